"""Three engines behind one function, each held to float64 double backward through torch's own parts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from builders import batch_of, small_deepspeech1, small_deepspeech2
from overheard.attacks.gradient_matching.distances import DistanceConfig, build_distance
from overheard.attacks.gradient_matching.second_order import (
    Engine,
    EngineChoice,
    choose_engine,
    grad_of_distance,
    simulated_update,
)
from overheard.federation.client import ClientSettings, client_update
from overheard.federation.update import Protocol
from overheard.speech.batching import Batch

DELTA = Protocol("delta", local_steps=3, learning_rate=0.05)
TRAINING = Protocol(mode="train")


def tiny(**config: str) -> nn.Module:
    """DeepSpeech 2 of few channels and units."""
    return small_deepspeech2(12, 2, 0, channels=4, **config)


def ds2_batch(*lengths: int, seed: int = 0) -> Batch:
    batch = batch_of(*lengths, num_features=257, seed=seed)
    return replace(batch, features=(batch.features / 20).double())


def compare(model: nn.Module, batch: Batch, protocol: Protocol, engine: Engine, single: bool = False) -> float:
    """Relative error of an engine against naive float64, from a point away from the observed one."""
    model = model.double()
    names = [name for name, _ in model.named_parameters()]
    kind = "gradient" if protocol.kind == "gradient" else "delta"
    settings = ClientSettings(kind, protocol.mode, protocol.local_steps, protocol.learning_rate)
    update = client_update(model, batch, settings, "test", "")
    generator = torch.Generator().manual_seed(5)
    noise = 0.3 * torch.randn(batch.features.shape, generator=generator, dtype=torch.float64)
    batch = replace(batch, features=batch.features + noise)
    distance = build_distance(DistanceConfig(), [update.gradient(name) for name in names])
    reference = grad_of_distance(model, batch, names, distance, protocol, EngineChoice("naive", ""))
    if single:
        model, batch = model.float(), replace(batch, features=batch.features.float())
        distance = build_distance(DistanceConfig(), [update.gradient(name).float() for name in names])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    found = grad_of_distance(model, batch, names, distance, protocol, EngineChoice(engine, "asked for"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert found.distance == pytest.approx(reference.distance, rel=1e-3 if single else 1e-9)
    assert found.loss == pytest.approx(reference.loss, rel=1e-4)
    return float((found.gradient.double() - reference.gradient).norm() / reference.gradient.norm())


MODELS = {
    "deepspeech2": (tiny, lambda: ds2_batch(23, 19)),
    "deepspeech2-lstm": (lambda: tiny(cell="lstm"), lambda: ds2_batch(21)),
    "deepspeech2-group": (lambda: tiny(norm="group"), lambda: ds2_batch(23, 19)),
    "deepspeech1": (lambda: small_deepspeech1(32), lambda: replace(b := batch_of(20), features=b.features.double())),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("engine", "single", "tolerance"),
    [("exact", False, 1e-9), ("exact", True, 1e-3), ("frozen", False, 1e-6), ("frozen", True, 1e-2)],
)
def test_engines_agree_with_float64(name: str, engine: Engine, single: bool, tolerance: float) -> None:
    build, make = MODELS[name]
    error = compare(build(), make(), Protocol(), engine, single)
    assert error < tolerance, f"relative error {error:.2e}"


@pytest.mark.parametrize("protocol", [DELTA, TRAINING], ids=["delta", "training"])
@pytest.mark.parametrize(("engine", "tolerance"), [("exact", 1e-9), ("frozen", 1e-6)])
def test_local_steps_and_training_mode(protocol: Protocol, engine: Engine, tolerance: float) -> None:
    assert compare(tiny(), ds2_batch(23, 19), protocol, engine) < tolerance


@pytest.mark.parametrize("protocol", [Protocol(), DELTA], ids=["gradient", "delta"])
def test_the_gradient_is_that_of_the_distance(protocol: Protocol) -> None:
    """Against differences of the distance itself, through the client's own code, on a smooth model."""
    model = Smooth().double()
    names = [name for name, _ in model.named_parameters()]
    batch = replace(b := batch_of(12), features=b.features.double() / 20)
    target = [torch.randn_like(parameter) for parameter in model.parameters()]
    distance = build_distance(DistanceConfig("cosine+l2"), target)
    found = grad_of_distance(model, batch, names, distance, protocol, EngineChoice("exact", ""))
    along = torch.randn(batch.features.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def at(step: float) -> float:
        moved = replace(batch, features=batch.features + step * along)
        settings = ClientSettings(protocol.kind, "eval", protocol.local_steps, protocol.learning_rate)
        update = client_update(model, moved, settings, "", "")
        return distance([update.gradient(name) for name in names])[0]

    slope = (at(1e-5) - at(-1e-5)) / 2e-5
    assert float((found.gradient * along).sum()) == pytest.approx(slope, rel=1e-5)
    assert at(0.0) == pytest.approx(found.distance)


class Smooth(nn.Module):
    """A user's model with no kink at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.output = nn.Linear(26, 12), nn.Linear(12, 29)

    def forward(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        return self.output(torch.tanh(self.first(features))), num_frames


class Kinky(Smooth):
    """A user's model with a kink of every kind: modules, functions, methods, operators, in place and not."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(12, 12)
        self.prelu, self.pool, self.clip = nn.PReLU(12), nn.MaxPool1d(3, 1, 1), nn.Hardtanh(-1.5, 1.5, inplace=True)

    def forward(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.prelu(self.first(features).permute(1, 2, 0))  # (N, 12, T)
        hidden = self.pool(hidden) + F.leaky_relu(hidden, 0.2) + hidden.clamp(min=-0.1) + F.hardswish(hidden)
        hidden = self.clip(1.0 * hidden).permute(2, 0, 1)
        hidden = self.rnn(hidden)[0] + torch.where(hidden > 0.1, hidden, 0.3 * hidden) + hidden.abs()
        hidden = torch.relu_(1.0 * hidden) + torch.maximum(hidden, -hidden) + hidden.max(dim=2, keepdim=True).values
        return self.output(hidden * hidden.amax(dim=2, keepdim=True) + hidden.relu()), num_frames


@pytest.mark.parametrize("single", [False, True])
def test_freezing_covers_users_models(single: bool) -> None:
    batch = replace(b := batch_of(25), features=b.features.double() / 10)
    error = compare(Kinky(), batch, Protocol(), "frozen", single)
    assert error < (1e-2 if single else 1e-6), f"relative error {error:.2e}"


def test_kinks_left_alone_are_wrong() -> None:
    """What freezing is for: the same difference without it."""
    from overheard.attacks.gradient_matching import second_order

    batch = ds2_batch(23)
    frozen = second_order.frozen_kinks
    try:
        second_order.frozen_kinks = lambda patterns: second_order.nullcontext()  # pyright: ignore
        assert compare(tiny(), batch, Protocol(), "frozen", single=True) > 1e-2
    finally:
        second_order.frozen_kinks = frozen


class Undifferentiable(Smooth):
    """A user's model with a kernel whose backward cannot be differentiated."""

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return 2 * values

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, *gradients):
            return 2 * gradients[0]

    def forward(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        return self.output(torch.tanh(self.Twice.apply(self.first(features)))), num_frames


@pytest.mark.parametrize(
    ("model", "engine", "reason"),
    [
        (small_deepspeech1(16), "exact", "differentiated twice"),
        (Smooth(), "exact", "differentiated twice"),
        (Kinky(), "frozen", "rnn (GRU)"),
        (Undifferentiable(), "frozen", "differentiable once only"),
    ],
)
def test_the_engine_is_chosen_for_a_stated_reason(model: nn.Module, engine: Engine, reason: str) -> None:
    choice = choose_engine(model, batch_of(12), Protocol())
    assert choice.engine == engine
    assert reason in choice.reason
    names = [name for name, _ in model.named_parameters()]
    target = [torch.ones_like(parameter) for parameter in model.parameters()]
    step = grad_of_distance(model, batch_of(12), names, build_distance(DistanceConfig(), target), Protocol())
    assert step.engine == choice
    assert bool(torch.isfinite(step.gradient).all())


@pytest.mark.parametrize("protocol", [Protocol(), DELTA, TRAINING], ids=["gradient", "delta", "training"])
def test_the_simulated_update_is_the_clients(protocol: Protocol) -> None:
    model, batch = tiny().double(), ds2_batch(23, 19)
    names = [name for name, _ in model.named_parameters()]
    settings = ClientSettings(protocol.kind, protocol.mode, protocol.local_steps, protocol.learning_rate)
    update = client_update(model, batch, settings, "", "")
    for name, found in zip(names, simulated_update(model, batch, names, protocol), strict=True):
        torch.testing.assert_close(found, update.gradient(name), rtol=1e-7, atol=1e-9)


def test_dropout_is_left_out_of_a_simulated_training_step() -> None:
    batch = replace(b := batch_of(20), features=b.features.double())
    model = small_deepspeech1(32, dropout=0.5).double()
    names = [name for name, _ in model.named_parameters()]
    first, again = (simulated_update(model, batch, names, TRAINING) for _ in range(2))
    plain = simulated_update(small_deepspeech1(32).double(), batch, names, TRAINING)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, plain, strict=True))
