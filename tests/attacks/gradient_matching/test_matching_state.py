"""A checkpoint of gradient matching is read back whole, and refused where its parts do not fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from overheard.attacks.gradient_matching.optimiser import OPTIMISERS, build_optimiser, restore, state_of
from overheard.attacks.gradient_matching.schedules import Visit
from overheard.attacks.gradient_matching.state import ExpectedRun, MatchingState, Outcome, load_state
from overheard.errors import InputError
from overheard.storage import read_tensors, write_tensors

SHAPE = (9, 1, 4)
GRIDS = [(0, 5), (5, 9)]


def features(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def expected(optimiser: str = "adam") -> ExpectedRun:
    return ExpectedRun({"model": "a"}, torch.zeros(SHAPE), 29, GRIDS, optimiser)


def moved(kind: str, block: Tensor, steps: int) -> torch.optim.Optimizer:
    """An optimiser after some steps towards zero."""
    optimiser = build_optimiser(kind, block, 0.1)
    take_steps(optimiser, block, steps)
    return optimiser


def take_steps(optimiser: torch.optim.Optimizer, block: Tensor, steps: int) -> None:
    def closure() -> float:
        block.grad = block.detach() ** 3
        return float((block.detach() ** 4).sum()) / 4

    for _ in range(steps):
        optimiser.step(closure)


def half_done(kind: str = "adam") -> MatchingState:
    block = features()[5:].clone().requires_grad_()
    former = [Outcome(((3, 1),), 0.5, 7, 2.0, features(1)), Outcome((), float("inf"), 1, 0.1)]
    return MatchingState(
        features(), [[3, 2]], 2, 6, 1.5, features(2), [[3]], 0.25, Visit(1, 1, 5, 9, 3),
        state_of(kind, moved(kind, block, 3)), features(3), former, [{"loss": 1.0}],
    )  # fmt: skip


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_everything_comes_back(kind: str, tmp_path: Path) -> None:
    path, generator = tmp_path / "c", torch.Generator().manual_seed(5)
    state = half_done(kind)
    state.save(path, generator, {"model": "a"})
    later = torch.randn(3, generator=generator)
    other = torch.Generator()
    found = load_state(path, other, expected(kind))
    assert torch.equal(torch.randn(3, generator=other), later)
    for name in ("labels", "restart", "iteration", "cpu_seconds", "best_labels", "best_distance", "visit", "history"):
        assert getattr(found, name) == getattr(state, name), name
    for name in ("features", "best_features", "gradient"):
        assert torch.equal(getattr(found, name), getattr(state, name)), name
    assert [vars(each) | {"features": None} for each in found.finished] == [
        vars(each) | {"features": None} for each in state.finished
    ]
    assert found.finished[0].features is not None
    assert torch.equal(found.finished[0].features, features(1))
    assert found.finished[1].features is None


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_an_optimiser_goes_on_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    block = features()[5:].clone().requires_grad_()
    optimiser = moved(kind, block, 3)
    state = half_done(kind)
    state.optimiser = state_of(kind, optimiser)
    state.save(tmp_path / "c", torch.Generator(), {"model": "a"})
    kept = load_state(tmp_path / "c", torch.Generator(), expected(kind)).optimiser
    assert kept is not None
    copied = block.detach().clone().requires_grad_()
    again = build_optimiser(kind, copied, 0.1)
    restore(again, kept)
    take_steps(optimiser, block, 3)
    take_steps(again, copied, 3)
    assert torch.equal(block, copied)


def test_an_optimiser_that_has_not_moved_has_no_state() -> None:
    for kind in OPTIMISERS:
        assert state_of(kind, moved(kind, torch.zeros(3, requires_grad=True), 1 if kind == "lbfgs" else 0)) is None


def spoiled(change: Callable[[dict[str, Tensor], dict[str, Any]], Any], kind: str, path: Path) -> Path:
    half_done(kind).save(path, torch.Generator(), {"model": "a"})
    tensors, metadata = read_tensors(path, "matching checkpoint")
    change(tensors, metadata["matching"])
    write_tensors(path, tensors, metadata)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop("features"), "features: nothing"),
        (lambda t, m: t.update(features=torch.zeros(9, 1, 5)), r"shape \(9, 1, 5\)"),
        (lambda t, m: t.update(gradient=torch.zeros(SHAPE, dtype=torch.float64)), "gradient: torch.float64"),
        (lambda t, m: t.update({"finished.0": torch.zeros(1)}), "finished.0"),
        (lambda t, m: t.pop("best_features"), "distance: 0.25"),
        (lambda t, m: t.update({"optimiser.exp_avg": torch.zeros(9, 1, 4)}), "optimiser.exp_avg"),
        (lambda t, m: t.pop("optimiser.exp_avg_sq"), "optimiser.exp_avg_sq: nothing"),
        (lambda t, m: t.update({"optimiser.step": torch.tensor(-1.0)}), "step: -1.0"),
        (lambda t, m: t.update(generator=torch.zeros(3, dtype=torch.uint8)), "generator"),
        (lambda t, m: t["generator"].zero_(), "generator: .*mt19937"),
        (lambda t, m: t.pop("generator"), "generator"),
        (lambda t, m: m.update(labels=[[29]]), "labels: 29"),
        (lambda t, m: m.update(labels=[[3], [3]]), "2 transcripts"),
        (lambda t, m: m.update(labels=[[3] * 10]), "at most 9 labels|1 transcripts"),
        (lambda t, m: m.update(best_labels=[["a"]]), "best_labels"),
        (lambda t, m: m.pop("labels"), "no labels"),
        (lambda t, m: m.update(more=1), "unknown setting 'more'"),
        (lambda t, m: m.update(iteration=10**400), "iterations"),
        (lambda t, m: m.update(cpu_seconds=float("nan")), "cpu_seconds"),
        (lambda t, m: m.update(restart=0), "restart: 0"),
        (lambda t, m: m["visit"].update(grid=2), "visit.grid"),
        (lambda t, m: m["visit"].update(start=4), "frames 4 to 9"),
        (lambda t, m: m["visit"].pop("stop"), "no stop"),
        (lambda t, m: m["finished"][0].update(features=3), "unknown setting 'features'"),
        (lambda t, m: m["finished"][0].update(labels=[[0]]), "labels: 0"),
        (lambda t, m: m.update(finished=3), "finished"),
        (lambda t, m: m.update(history=[3]), "history"),
        (lambda t, m: m.update(optimiser={"lr": 3}), "'lr'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    change: Callable[[dict[str, Tensor], dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_state(spoiled(change, "adam", tmp_path / "c"), torch.Generator(), expected())
    assert str(caught.value).startswith(str(tmp_path / "c"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: m["optimiser"].update(ro=1), "lists of unequal length"),
        (lambda t, m: m["optimiser"].update(old_dirs=10**9), "old_dirs"),
        (lambda t, m: m["optimiser"].update(n_iter="a"), "n_iter"),
        (lambda t, m: m["optimiser"].pop("prev_loss"), "prev_loss"),
        (lambda t, m: t.update({"optimiser.d": torch.zeros(4, 1, 4)}), "optimiser.d"),
    ],
)
def test_so_is_a_strange_state_of_lbfgs(
    change: Callable[[dict[str, Tensor], dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load_state(spoiled(change, "lbfgs", tmp_path / "c"), torch.Generator(), expected("lbfgs"))
