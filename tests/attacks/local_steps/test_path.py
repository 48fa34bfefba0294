"""The weights of a client's local steps: a path that ends where the client's did, and what is seen along it."""

import pytest
import torch
from small_speech import noise_features, shared, tiny_deepspeech1
from torch import Tensor, nn

from overheard.attacks.certificates.resimulation import simulate_client
from overheard.attacks.local_steps import path
from overheard.attacks.local_steps.layer_drift import layer_drift
from overheard.attacks.local_steps.path import revisit, take_steps
from overheard.attacks.output_layer import run_output_layer
from overheard.attacks.rank import layer_matrix
from overheard.federation.client import ClientSettings
from overheard.federation.update import Protocol

SAID, WRONG = "I SUPPOSE THAT'S IT", "QUICK OLD BROWN XX"
STEPS = ClientSettings("delta", "eval", 6, 2e-3)


def labels(text: str, model: nn.Module) -> tuple[int, ...]:
    return tuple(model.alphabet.encode(text))  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


def logits_of(model: nn.Module, features: list[Tensor]) -> Tensor:
    run = run_output_layer(model, features, "eval")
    assert run is not None
    return run.logits[0]


@pytest.mark.parametrize("kept", [0, path.MOST_KEPT], ids=["run twice", "weights kept"])
def test_a_wrong_text_is_moved_towards_the_steps_of_the_right_one(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path, "MOST_KEPT", kept)
    model, features = tiny_deepspeech1(), noise_features([40])
    before = {name: each.clone() for name, each in model.state_dict().items()}
    update = shared(model, features, [SAID], STEPS)
    true, alone, moved, shares = [], [], [], []
    simulate_client(model, update, features, [labels(SAID, model)], lambda _: true.append(logits_of(model, features)))
    wrong = [labels(WRONG, model)]
    simulate_client(model, update, features, wrong, lambda _: alone.append(logits_of(model, features)))

    def look(share: float) -> None:
        shares.append(share)
        moved.append(logits_of(model, features))

    steps = take_steps(model, update, features, wrong)
    revisit(model, update, features, wrong, steps, look)
    assert shares == [1.0] * 6
    torch.testing.assert_close(moved[0], true[0], rtol=1e-5, atol=1e-5)
    # Up to the differences that the text makes beside the common way.
    assert torch.dist(moved[-1], true[-1]) < 0.5 * torch.dist(alone[-1], true[-1])
    assert steps.apart(update, "output.weight") > 0
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_the_right_text_passes_the_clients_own_weights() -> None:
    model, features = tiny_deepspeech1(), noise_features([40])
    settings = ClientSettings("delta", "eval", 4, 1e-3, momentum=0.5, clip_norm=5.0)
    update = shared(model, features, [SAID], settings)
    right, true, moved, factors, shares = [labels(SAID, model)], [], [], [], []

    def each_step(factor: float) -> None:
        factors.append(factor)
        true.append(logits_of(model, features))

    def look(share: float) -> None:
        shares.append(share)
        moved.append(logits_of(model, features))

    simulate_client(model, update, features, right, each_step)
    steps = take_steps(model, update, features, right)
    path = revisit(model, update, features, right, steps, look)
    assert path is not None
    again = take_steps(model, update, features, right, path)
    assert steps.apart(update, "output.weight") < 1e-5
    assert again.apart(update, "output.weight") < 1e-4
    torch.testing.assert_close(moved, true, rtol=1e-4, atol=1e-4)
    assert max(factors) < 1.0
    weights = [1.875, 1.75, 1.5, 1.0]
    assert shares == pytest.approx([factor * weight for factor, weight in zip(factors, weights, strict=True)])


def test_without_its_drift_a_layer_was_shown_the_same_at_every_step() -> None:
    model, features = tiny_deepspeech1(256), noise_features([30])
    update = shared(model, features, [SAID], ClientSettings("delta", "eval", 6, 6e-2))
    first, second = "input_layers.0", "input_layers.1"
    found = layer_drift(model, update, features, [labels(SAID, model)], first, second)

    def unexplained(matrix: Tensor, means: dict[str, Tensor]) -> float:
        shown: list[Tensor] = []
        handle = model.get_submodule(second).register_forward_hook(lambda _, given, __: shown.append(given[0][:, 0]))
        try:
            with path.at_weights(dict(model.named_parameters()), means):
                run_output_layer(model, features, "eval")
        finally:
            handle.remove()
        basis = torch.linalg.qr(shown[0].double().T).Q
        return float((matrix - matrix @ basis @ basis.T).norm() / matrix.norm())

    matrix = layer_matrix(update, second, model.get_submodule(second))
    assert matrix is not None
    observed = matrix[:, :-1]
    assert unexplained(observed - found.drift, found.means) < 1e-3
    assert unexplained(observed, found.means) > 2e-2


def test_a_step_that_momentum_repeats_counts_more() -> None:
    protocol = Protocol("delta", local_steps=5, learning_rate=0.05, momentum=0.9, weight_decay=0.1)
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimiser = torch.optim.SGD([weight], 0.05, 0.9, weight_decay=0.1)
    gradients = [3.0, -1.0, 2.0, 0.5, -4.0]
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimiser.step()
    summed = sum(share * gradient for share, gradient in zip(protocol.step_weights, gradients, strict=True))
    assert -0.05 * summed == pytest.approx(float(weight.detach()))
