"""Learning rates rise, fall, and are a function of the position alone."""

import pytest
import torch
from tone_corpus import tiny_model

from overheard.errors import InputError
from overheard.recognition.models import build_model
from overheard.training.schedule import build_optimiser, learning_rate
from overheard.training.settings import TrainingSettings, differences

HIGHEST = 2e-3


@pytest.mark.parametrize(("schedule", "end"), [("cosine", 0.01), ("one-cycle", 0.0), ("constant", 1.0)])
def test_the_rate_rises_to_the_highest_and_ends_where_it_should(schedule: str, end: float) -> None:
    settings = TrainingSettings(schedule=schedule, learning_rate=HIGHEST, warmup=0.25)  # pyright: ignore
    rates = [learning_rate(settings, done / 100) for done in range(101)]
    assert rates[:26] == sorted(rates[:26])
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert max(rates) == pytest.approx(HIGHEST)
    assert rates[0] > 0
    assert rates[-1] == pytest.approx(end * HIGHEST, abs=1e-7)


def test_one_cycle_is_torchs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=HIGHEST)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimiser, HIGHEST, total_steps=101, pct_start=31 / 101)
    ours = TrainingSettings(schedule="one-cycle", learning_rate=HIGHEST, warmup=0.3)
    for step in range(101):
        assert learning_rate(ours, step / 100) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6, abs=1e-9)
        optimiser.step()
        if step < 100:
            theirs.step()


@pytest.mark.parametrize("name", ["adamw", "sgd", "novograd"])
def test_biases_and_norms_are_not_decayed(name: str) -> None:
    if name == "novograd":
        pytest.importorskip("pytorch_optimizer")
    model = build_model(tiny_model())
    optimiser = build_optimiser(model, TrainingSettings(optimiser=name, weight_decay=0.1))  # pyright: ignore
    decayed, free = optimiser.param_groups
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0
    assert {each.ndim for each in free["params"]} == {1}
    assert sum(len(group["params"]) for group in (decayed, free)) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"epochs": 0}, "epochs: 0"), ({"learning_rate": -1.0}, "learning_rate"), ({"warmup": 1.0}, "warmup: 1.0")],
)
def test_settings_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingSettings(**changes)


def test_differences_name_what_differs() -> None:
    before = {"settings": {"epochs": 2, "seed": 0}, "processes": 1}
    assert differences(before, before) == []
    now = {"settings": {"epochs": 3, "seed": 0}, "processes": 1}
    assert differences(before, now) == ["settings.epochs: 2 there, 3 now"]
