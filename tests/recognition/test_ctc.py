import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.nn import functional as F

from overheard.errors import InputError
from overheard.recognition import ctc_lattice
from overheard.recognition.ctc import CTCLoss, ctc_loss, ctc_occupancy
from overheard.recognition.ctc_scan import ctc_scan_loss


class Problem(NamedTuple):
    logits: Float[Tensor, "T N V"]
    targets: Int[Tensor, "N L"]
    input_lengths: Int[Tensor, " N"]
    target_lengths: Int[Tensor, " N"]
    blank: int = 0

    def loss(self, function: Callable[..., Tensor], **options: Any) -> Tensor:
        return function(self.logits.log_softmax(2), *self[1:4], blank=self.blank, **options)

    def concatenated(self) -> "Problem":
        labels = [row[:length] for row, length in zip(self.targets, self.target_lengths, strict=True)]
        return self._replace(targets=torch.cat(labels))


def draw_problem(
    frames: int,
    rows: int,
    symbols: int,
    labels: int,
    *,
    seed: int = 0,
    scale: float = 1.0,
    blank: int = 0,
    full: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Random logits and labels, many of them repeated; lengths drawn too unless `full`."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn((frames, rows, symbols), generator=generator, dtype=torch.float64)
    targets = torch.randint(symbols - 1, (rows, labels), generator=generator)
    targets += (targets >= blank).long()
    input_lengths, target_lengths = torch.full((rows,), frames), torch.full((rows,), labels)
    if not full:
        input_lengths = torch.randint(frames + 1, (rows,), generator=generator)
        target_lengths = torch.randint(labels + 1, (rows,), generator=generator)
    return Problem(logits.to(dtype).requires_grad_(), targets, input_lengths, target_lengths, blank)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    symbols = draw(st.integers(2, 6))
    return draw_problem(
        draw(st.integers(1, 14)),
        draw(st.integers(1, 5)),
        symbols,
        draw(st.integers(0, 6)),
        seed=draw(st.integers(0, 2**31)),
        scale=draw(st.sampled_from([0.1, 1.0, 10.0, 200.0])),
        blank=draw(st.integers(0, symbols - 1)),
    )


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def hessian_product(losses: Tensor, logits: Tensor, weights: Tensor, direction: Tensor) -> Tensor:
    (gradient,) = grad((losses * weights).sum(), logits, create_graph=True)
    return grad((gradient * direction).sum(), logits)[0]


@given(problems(), st.booleans())
def test_value_and_gradient_are_torchs(problem: Problem, concatenated: bool) -> None:
    given_problem = problem.concatenated() if concatenated else problem
    losses = given_problem.loss(ctc_loss, reduction="none")
    close(losses, problem.loss(F.ctc_loss, reduction="none"))
    with torch.no_grad():
        close(given_problem.loss(ctc_loss, reduction="none"), losses)
    ours = grad(given_problem.loss(ctc_loss, reduction="sum", zero_infinity=True), problem.logits)[0]
    close(ours, grad(problem.loss(F.ctc_loss, reduction="sum", zero_infinity=True), problem.logits)[0])


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("zero_infinity", [False, True])
def test_reductions_are_torchs(reduction: str, zero_infinity: bool) -> None:
    problem = draw_problem(6, 12, 4, 5, seed=3)
    expected = problem.loss(F.ctc_loss, reduction=reduction, zero_infinity=zero_infinity)
    close(problem.loss(ctc_loss, reduction=reduction, zero_infinity=zero_infinity), expected)
    module = CTCLoss(problem.blank, reduction, zero_infinity)
    close(module(problem.logits.log_softmax(2), *problem[1:4]), expected)


def test_one_utterance_without_batch_dimension() -> None:
    problem = draw_problem(8, 1, 4, 3, full=True)
    log_probs = problem.logits.detach()[:, 0].log_softmax(1)
    lengths = torch.tensor(8), torch.tensor(3)
    for reduction in ("none", "mean", "sum"):
        expected = F.ctc_loss(log_probs, problem.targets[0], *lengths, reduction=reduction)
        close(ctc_loss(log_probs, problem.targets[0], *lengths, reduction=reduction), expected)
        close(ctc_loss(log_probs, problem.targets[0], (8,), 3, reduction=reduction), expected)


def brute_force(log_probs: Tensor, labels: list[int], blank: int) -> tuple[Tensor, Tensor]:
    """Likelihood and occupancy (T, V) by enumeration of all V^T paths."""
    frames, symbols = log_probs.shape
    likelihood, occupancy = torch.tensor(0.0, dtype=torch.float64), torch.zeros_like(log_probs)
    for path in itertools.product(range(symbols), repeat=frames):
        if [symbol for symbol, _ in itertools.groupby(path) if symbol != blank] == labels:
            probability = log_probs[torch.arange(frames), list(path)].sum().exp()
            likelihood += probability
            occupancy[torch.arange(frames), list(path)] += probability
    return likelihood, occupancy


@pytest.mark.parametrize("labels", [[], [0], [0, 0], [0, 2], [2, 0, 2], [2, 2, 2], [0, 0, 2, 2]])
def test_sum_over_all_paths(labels: list[int]) -> None:
    log_probs = torch.randn((5, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    likelihood, occupancy = brute_force(log_probs, labels, blank=1)
    targets = torch.tensor(labels, dtype=torch.int64)
    close(ctc_loss(log_probs, targets, 5, len(labels), blank=1, reduction="sum"), -likelihood.log())
    found = ctc_occupancy(log_probs[:, None], targets, (5,), (len(labels),), blank=1)[:, 0]
    close(found, occupancy / likelihood.clamp(min=1e-300))


CHECKED = {
    "one frame": ([1], [1], 1),
    "one frame, no label": ([1], [0], 1),
    "no frame, no label": ([0, 2], [0, 1], 2),
    "repeats, padding, no label": ([6, 4, 5, 5], [3, 2, 0, 1], 6),
}


@pytest.mark.parametrize("in_logs", [False, True])
@pytest.mark.parametrize("name", CHECKED)
def test_derivatives_by_finite_differences(name: str, in_logs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_logs:
        monkeypatch.setattr(ctc_lattice, "LOG_SMALLEST_MEETING", torch.inf)
    input_lengths, target_lengths, frames = CHECKED[name]
    rows = len(input_lengths)
    targets = torch.tensor([[1, 1, 2], [2, 1, -7], [0, 9, 9], [1, 0, 0]])[:rows]
    log_probs = torch.randn((frames, rows, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def losses(log_probs: Tensor) -> Tensor:
        return ctc_loss(log_probs, targets, input_lengths, target_lengths, blank=3, reduction="none")

    # Not normalised: the derivatives are those with respect to log_probs themselves.
    assert gradcheck(losses, (log_probs.requires_grad_(),))
    assert gradgradcheck(losses, (log_probs,))


@given(st.integers(0, 2**31), st.sampled_from([0.1, 1.0, 30.0, 300.0]))
def test_hessian_product_is_the_scans(seed: int, scale: float) -> None:
    problem = draw_problem(15, 4, 5, 5, seed=seed, scale=scale)
    problem = problem._replace(input_lengths=11 + problem.input_lengths % 5)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(4, generator=generator, dtype=torch.float64)
    direction = torch.randn(problem.logits.shape, generator=generator, dtype=torch.float64)
    ours = hessian_product(problem.loss(ctc_loss, reduction="none"), problem.logits, weights, direction)
    close(ours, hessian_product(problem.loss(ctc_scan_loss), problem.logits, weights, direction))


@pytest.mark.parametrize("frames", [40, 900])
def test_both_number_ranges_agree(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw_problem(frames, 3, 6, 15, full=True)
    weights, direction = torch.ones(3, dtype=torch.float64), problem.logits.detach().cos()

    def run() -> tuple[Tensor, Tensor, Tensor]:
        losses = problem.loss(ctc_loss, reduction="none")
        (gradient,) = grad(losses.sum(), problem.logits, retain_graph=True)
        return losses, gradient, hessian_product(losses, problem.logits, weights, direction)

    as_probabilities = run()
    assert not any(lattice.in_logs for lattice in solve(problem).lattices)
    monkeypatch.setattr(ctc_lattice, "LOG_SMALLEST_MEETING", torch.inf)
    assert all(lattice.in_logs for lattice in solve(problem).lattices)
    for found, expected in zip(as_probabilities, run(), strict=True):
        close(found, expected)


def solve(problem: Problem) -> ctc_lattice.Solution:
    chains = ctc_lattice.build_chains(problem.targets, *problem[2:])
    return ctc_lattice.solve(problem.logits.detach().log_softmax(2), chains)


def test_paths_that_both_directions_would_lose() -> None:
    """The best path falls 800 nats behind at either end, below the smallest float64, and wins by 3000 nats a frame."""
    log_probs = torch.full((40, 2, 6), -1.0, dtype=torch.float64)
    log_probs[:, 0] = -400.0
    log_probs[:, 0, 0] = 0.0
    log_probs[4:-4, 0] = -3000.0
    log_probs[4:-4, 0, 3] = 0.0
    targets = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]])
    lengths = torch.tensor([40, 40]), torch.tensor([5, 5])
    expected = F.ctc_loss(log_probs, targets, *lengths, reduction="none")
    assert 1590 < expected[0] < 1600
    close(ctc_loss(log_probs, targets, *lengths, reduction="none"), expected)
    close(ctc_loss(log_probs.requires_grad_(), targets, *lengths, reduction="none"), expected)
    close(ctc_occupancy(log_probs, targets, *lengths).sum(2), torch.ones((40, 2), dtype=torch.float64))


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_second_derivatives_of_float32_input(scale: float) -> None:
    problem = draw_problem(500, 4, 29, 60, scale=scale, full=True, dtype=torch.float32)
    log_probs = problem.logits.detach().log_softmax(2)
    direction = torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(1))

    def product(dtype: torch.dtype) -> Tensor:
        values = log_probs.to(dtype, copy=True).requires_grad_()
        losses = ctc_loss(values, *problem[1:4], reduction="none")
        assert losses.dtype == dtype
        return hessian_product(losses, values, torch.ones(4, dtype=dtype), direction.to(dtype))

    found, expected = product(torch.float32), product(torch.float64)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_impossible_transcripts() -> None:
    problem = draw_problem(4, 3, 4, 3, full=True)
    problem = problem._replace(targets=torch.tensor([[1, 1, 1], [1, 2, 3], [2, 2, 1]]))
    losses = problem.loss(ctc_loss, reduction="none")
    assert losses.isinf().tolist() == [True, False, False]
    (gradient,) = grad(losses.sum(), problem.logits)
    assert gradient[:, 0].isnan().all()
    assert gradient[:, 1:].isfinite().all()

    losses = problem.loss(ctc_loss, reduction="none", zero_infinity=True)
    assert losses[0] == 0
    weights, direction = torch.ones(3, dtype=torch.float64), problem.logits.detach().cos()
    second = hessian_product(losses, problem.logits, weights, direction)
    assert (second[:, 0] == 0).all()
    targets, lengths = problem.targets[1:], (problem.input_lengths[1:], problem.target_lengths[1:])
    expected = ctc_scan_loss(problem.logits.log_softmax(2)[:, 1:], targets, *lengths)
    close(second, hessian_product(expected, problem.logits, weights[1:], direction))
    assert (ctc_occupancy(problem.logits.log_softmax(2), *problem[1:4])[:, 0] == 0).all()


def test_probabilities_of_zero() -> None:
    problem = draw_problem(6, 2, 3, 2, full=True)
    log_probs = problem.logits.detach().log_softmax(2)
    log_probs[2, :, 0] = log_probs[3, 1] = -torch.inf
    log_probs.requires_grad_()
    losses = ctc_loss(log_probs, *problem[1:4], reduction="none", zero_infinity=True)
    close(losses, F.ctc_loss(log_probs, *problem[1:4], reduction="none", zero_infinity=True))
    gradient = grad(losses.sum(), log_probs)[0]
    close(gradient[:, 0].sum(1), torch.full((6,), -1.0, dtype=torch.float64))
    assert (gradient[:, 1] == 0).all()


def test_one_rows_nan_stays_its_own() -> None:
    problem = draw_problem(6, 3, 4, 2, full=True)
    expected = problem.loss(ctc_loss, reduction="none").detach()
    problem.logits.data[3, 1] = torch.nan
    losses = problem.loss(ctc_loss, reduction="none")
    assert losses.isnan().tolist() == [False, True, False]
    close(losses[[0, 2]], expected[[0, 2]])
    assert grad(losses.sum(), problem.logits)[0][:, [0, 2]].isfinite().all()


def test_layout_and_frames_beyond_the_longest_do_not_matter() -> None:
    problem = draw_problem(9, 4, 5, 3, seed=5)
    log_probs = problem.logits.detach().log_softmax(2)
    batch_first = log_probs.transpose(0, 1).contiguous().transpose(0, 1)
    assert not batch_first.is_contiguous()
    expected = ctc_loss(log_probs, *problem[1:4])
    close(ctc_loss(batch_first, *problem[1:4]), expected)
    longer = F.pad(log_probs, (0, 0, 0, 0, 0, 4), value=torch.nan)
    close(ctc_loss(longer, *problem[1:4]), expected)
    as_lists = (problem.targets.int(), problem.input_lengths.tolist(), tuple(problem.target_lengths.tolist()))
    close(ctc_loss(log_probs, *as_lists), expected)


@given(problems())
def test_occupancy_is_a_distribution_and_the_gradient(problem: Problem) -> None:
    log_probs = problem.logits.detach().log_softmax(2).requires_grad_()
    occupancy = ctc_occupancy(log_probs, *problem[1:])
    losses = ctc_loss(log_probs, *problem[1:], reduction="none", zero_infinity=True)
    close(occupancy, -grad(losses.sum(), log_probs)[0])
    fits = ~problem.loss(ctc_loss, reduction="none").isinf()
    valid = torch.arange(len(log_probs))[:, None] < problem.input_lengths
    close(occupancy.sum(2), (valid & fits).double())


def test_occupancy_of_many_candidates() -> None:
    problem = draw_problem(30, 1, 6, 5, full=True)
    candidates = torch.randint(1, 6, (40, 5), generator=torch.Generator().manual_seed(0))
    log_probs = problem.logits.detach().log_softmax(2).float().expand(-1, 40, -1)
    lengths = (torch.full((40,), 30), torch.full((40,), 5))
    found = ctc_occupancy(log_probs, candidates, *lengths)
    assert found.dtype == torch.float32
    close(found[:, 7:8], ctc_occupancy(log_probs[:, :1], candidates[7:8], (30,), (5,)), 1e-6)


LOG_PROBS = torch.zeros((4, 2, 3))
TARGETS = torch.tensor([[1, 2], [2, 1]])
REFUSED = {
    "float targets": ((LOG_PROBS, TARGETS.float(), (4, 4), (2, 2)), {}, "targets: torch.float32"),
    "blank among labels": ((LOG_PROBS, TARGETS, (4, 4), (2, 1)), {"blank": 2}, "targets: label 2 in row 0"),
    "label too large": ((LOG_PROBS, TARGETS + 1, (4, 4), (1, 2)), {}, "targets: label 3 in row 1"),
    "label negative": ((LOG_PROBS, TARGETS - 3, (4, 4), (2, 2)), {}, "targets: label -2 in row 0"),
    "concatenated labels do not add up": ((LOG_PROBS, TARGETS.view(-1), (4, 4), (2, 1)), {}, "targets: 4 concatenated"),
    "rows differ": ((LOG_PROBS, TARGETS[:1], (4, 4), (2, 2)), {}, "targets: shape (1, 2) for 2"),
    "more frames than there are": ((LOG_PROBS, TARGETS, (4, 5), (2, 2)), {}, "input_lengths: 5 in row 1"),
    "negative frames": ((LOG_PROBS, TARGETS, (4, -1), (2, 2)), {}, "input_lengths: -1 in row 1"),
    "more labels than there are": ((LOG_PROBS, TARGETS, (4, 4), (3, 2)), {}, "target_lengths: 3 in row 0"),
    "float lengths": ((LOG_PROBS, TARGETS, torch.ones(2), (2, 2)), {}, "input_lengths: torch.float32"),
    "too few lengths": ((LOG_PROBS, TARGETS, (4, 4), (2,)), {}, "target_lengths: shape (1,)"),
    "blank out of range": ((LOG_PROBS, TARGETS, (4, 4), (2, 2)), {"blank": 3}, "blank: 3"),
    "unknown reduction": ((LOG_PROBS, TARGETS, (4, 4), (2, 2)), {"reduction": "max"}, "reduction: 'max'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_input_is_refused_in_one_line(name: str) -> None:
    arguments, options, start = REFUSED[name]
    with pytest.raises(InputError) as error:
        ctc_loss(*arguments, **options)
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_cpu() -> None:
    problem = draw_problem(50, 6, 8, 9, seed=2)
    targets, input_lengths, target_lengths = (field.cuda() for field in problem[1:4])
    moved = Problem(problem.logits.detach().cuda().requires_grad_(), targets, input_lengths, target_lengths)
    weights, direction = torch.ones(6, dtype=torch.float64), problem.logits.detach().cos()
    options = {"reduction": "none", "zero_infinity": True}
    expected = hessian_product(problem.loss(ctc_loss, **options), problem.logits, weights, direction)
    found = hessian_product(moved.loss(ctc_loss, **options), moved.logits, weights.cuda(), direction.cuda())
    close(found.cpu(), expected)
