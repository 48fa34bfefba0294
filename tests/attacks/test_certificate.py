"""The certificate: given for what is right, never for what is wrong."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_speech import noise_features, shared, tiny_deepspeech1
from torch import Tensor

from overheard.attacks import span
from overheard.attacks.certificate import Hypothesis, certify, settle
from overheard.attacks.observation import Observation
from overheard.federation.client import ClientSettings
from overheard.federation.update import ClientUpdate

TEXT = "SHE SELLS"
FRAMES = 26

CLIENTS = {
    "gradient": ClientSettings(),
    "delta": ClientSettings("delta", "eval", 1, 0.1),
    "three steps": ClientSettings("delta", "eval", 3, 1e-3),
}


@pytest.mark.parametrize("client", CLIENTS)
def test_certifies_the_truth(client: str) -> None:
    model, features = tiny_deepspeech1(), noise_features([FRAMES])
    found = certify(model, shared(model, features, [TEXT], CLIENTS[client]), features, [TEXT])
    assert found.certified is True
    assert found.reason is None
    assert found.relative_difference is not None
    assert found.relative_difference < 1e-5


@pytest.mark.parametrize("seed", range(6))
def test_certifies_features_that_are_right_to_their_precision(seed: int) -> None:
    model, features = tiny_deepspeech1(seed=seed), noise_features([FRAMES], seed=seed)
    update = shared(model, features, [TEXT])
    generator = torch.Generator().manual_seed(seed)
    near = [matrix + 1e-6 * torch.randn(matrix.shape, generator=generator) for matrix in features]
    assert certify(model, update, near, [TEXT], precision=1e-5).certified is True


def test_features_that_may_be_anything_are_not_certified() -> None:
    model, features = tiny_deepspeech1(), noise_features([FRAMES])
    found = certify(model, shared(model, features, [TEXT]), features, [TEXT], precision=1.2)
    assert found.certified is False
    assert "granted" in str(found.reason)


def test_a_unit_that_switches_is_no_difference_and_excuses_nothing() -> None:
    """A unit that rounding puts on the other side of zero changes the first layer's update, not the rest's."""
    model, (matrix,) = tiny_deepspeech1(), noise_features([FRAMES])
    weight, bias = (model.get_parameter(f"input_layers.0.{name}") for name in ("weight", "bias"))
    window = torch.nn.functional.pad(matrix, (0, 0, 2, 2))[10:15].flatten()
    with torch.no_grad():
        bias[3] = 2e-7 - weight[3] @ window  # a positive number that features right to 1e-6 do not fix the sign of
    update = shared(model, [matrix], [TEXT])
    direction = weight[3].detach().view(5, -1)
    near = matrix.clone()
    near[10:13] -= 3e-6 * (direction / direction.square().sum())[2:]
    found = certify(model, update, [near], [TEXT], precision=1e-6)
    assert found.certified is True, found.reason
    assert found.per_tensor["input_layers.0.weight"] > 10 * found.per_tensor["output.weight"]
    wrong = matrix.clone()
    wrong[11] *= 1.001
    found = certify(model, update, [wrong], [TEXT], precision=1e-6)
    assert found.certified is False
    assert found.per_tensor["output.weight"] > found.per_tensor_floor["output.weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [False, True], ids=["half", "half in float32"])
def test_grants_half_precision_its_steps(dtype: torch.dtype, stored: bool) -> None:
    model, features = tiny_deepspeech1(), noise_features([FRAMES])
    update = shared(model, features, [TEXT])
    tensors = {name: tensor.to(dtype) for name, tensor in update.tensors.items()}
    if stored:
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
    coarse = ClientUpdate(tensors, update.protocol)
    assert certify(model, coarse, features, [TEXT]).certified is True
    assert certify(model, coarse, features, ["SHE SLELS"]).certified is False


def test_a_batch_may_come_in_another_order_but_not_with_exchanged_words() -> None:
    model, features = tiny_deepspeech1(192), noise_features([20, 24])
    update = shared(model, features, ["ONE", "TWO"])
    assert certify(model, update, features, ["ONE", "TWO"]).certified is True
    assert certify(model, update, features[::-1], ["TWO", "ONE"]).certified is True
    assert certify(model, update, features, ["TWO", "ONE"]).certified is False


def test_says_why_it_cannot_tell() -> None:
    features = noise_features([FRAMES])
    model = tiny_deepspeech1(dropout=0.5)
    update = shared(model, features, [TEXT], ClientSettings(mode="train"))
    found = certify(model, update, features, [TEXT])
    assert found.certified is None
    assert "dropout" in (found.reason or "")
    assert certify(model, update, features, [None]).certified is None
    assert certify(model, update, features * 2, [TEXT] * 2).certified is None


def test_settles_how_often_a_silent_frame_repeats() -> None:
    model, (spoken,) = tiny_deepspeech1(), noise_features([FRAMES])

    def silent(count: int) -> Tensor:
        return torch.cat([spoken[:12], spoken[12:13].expand(count, -1), spoken[13:]])

    update = shared(model, [silent(4)], [TEXT])
    found = settle(model, update, [Hypothesis((silent(count),), (TEXT,)) for count in (1, 3, 4, 5, 9)])
    assert found.index == 2
    assert found.certificate.certified is True
    assert settle(model, update, [Hypothesis((spoken[:3],), (TEXT,))]).index is None


@pytest.mark.parametrize("client", ["gradient", "delta"])
def test_errors_of_a_ten_thousandth_are_refused(client: str) -> None:
    """Of all features or of one frame, whatever the frame: no rounding of the client's excuses them."""
    model, (matrix,) = tiny_deepspeech1(96), noise_features([FRAMES])
    update = shared(model, [matrix], [TEXT], CLIENTS[client])
    for frame in (None, *range(FRAMES)):
        error = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0))
        if frame is not None:
            error = error * (torch.arange(FRAMES) == frame)[:, None]
        wrong = matrix + 1e-4 * matrix.norm() * error / error.norm()
        found = certify(model, update, [wrong], [TEXT])
        assert found.certified is False, frame


def error_of_one_feature(matrix: Tensor, level: float, draws: int) -> Tensor:
    """(D, T, F) errors of that size, relative, that every frame has the same of, in one of its features."""
    errors = torch.zeros(draws, *matrix.shape)
    noise = torch.randn(draws, 1, generator=torch.Generator().manual_seed(1))
    errors[:, :, 3] = level * matrix.shape[1] ** 0.5 * matrix.square().mean().sqrt() * noise
    return errors


def test_errors_are_granted_as_the_solver_draws_them() -> None:
    """One feature that is less certain than others, in all frames alike, moves an update more than its size tells."""
    model, (matrix,) = tiny_deepspeech1(), noise_features([FRAMES])
    with torch.no_grad():
        model.get_parameter("input_layers.0.weight").view(128, 5, 26)[:, :, 3] *= 10
    update = shared(model, [matrix], [TEXT])
    *some, error = error_of_one_feature(matrix, 1e-5, 5)
    draws = [torch.stack(some)]
    assert certify(model, update, [matrix + error], [TEXT], 1e-5, draws).certified is True
    assert certify(model, update, [matrix + error], [TEXT], 1e-5).certified is False
    assert certify(model, update, [matrix + 10 * error], [TEXT], 1e-5, draws).certified is False


ATTEMPTS = {
    "swap": 60,
    "substitute": 60,
    "shift a frame": 60,
    "exchange frames": 60,
    "drop a silent frame": 40,
    "repeat a silent frame": 40,
    "insert": 30,
}
"""350 attempts to obtain a false certificate."""

SILENCE = slice(10, 14)


def _wrong(kind: str, matrix: Tensor, place: int, other: int) -> tuple[Tensor, str]:
    at, frame = place % (len(TEXT) - 1), place % len(matrix)
    if kind == "swap":
        assume(TEXT[at] != TEXT[at + 1])
        return matrix, TEXT[:at] + TEXT[at + 1] + TEXT[at] + TEXT[at + 2 :]
    letter = chr(ord("A") + other % 26)
    if kind == "substitute":
        assume(letter != TEXT[at])
        return matrix, TEXT[:at] + letter + TEXT[at + 1 :]
    if kind == "insert":
        return matrix, TEXT[:at] + letter + TEXT[at:]
    changed = matrix.clone()
    if kind == "shift a frame":
        direction = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(other))
        changed[frame] += 1e-3 * matrix[frame].norm() * direction / direction.norm()
    elif kind == "exchange frames":
        second = other % len(matrix)
        assume(not torch.equal(matrix[frame], matrix[second]))
        changed[[frame, second]] = changed[[second, frame]]
    elif kind == "drop a silent frame":
        changed = torch.cat([matrix[: SILENCE.start], matrix[SILENCE.start + 1 + place % 3 :]])
    else:
        changed = torch.cat(
            [matrix[: SILENCE.stop], matrix[SILENCE.start][None].expand(1 + place % 3, -1), matrix[SILENCE.stop :]]
        )
    return changed, TEXT


@pytest.mark.parametrize("client", ["gradient", "delta"])
def test_a_solvers_own_errors_excuse_nothing_else(client: str) -> None:
    """With the draws that came with its features, those are certified, and wrong ones are not."""
    model, (matrix,) = tiny_deepspeech1(96), noise_features([FRAMES])
    update = shared(model, [matrix], [TEXT], CLIENTS[client])
    found = span.attack(Observation(model, update), span.SpanConfig(), generator=torch.Generator())
    (features,), (errors,) = found.features, found.errors
    (likely,) = found.diagnostics["likely_errors"]
    assert errors.square().mean().sqrt() == pytest.approx(likely * float(features.square().mean().sqrt()))
    assert certify(model, update, [features], [TEXT], likely, [errors]).certified is True
    wrong = [features + 1e-4 * features.norm() * error / error.norm() for error in errors[:2]]
    wrong += [_wrong("shift a frame", features.float(), place, place)[0] for place in (0, 9, 18)]
    for candidate in wrong:
        assert certify(model, update, [candidate], [TEXT], likely, [errors]).certified is False


@pytest.mark.parametrize("kind", ATTEMPTS)
@pytest.mark.parametrize("client", ["gradient", "delta"])
def test_no_false_certificate(kind: str, client: str) -> None:
    model, (matrix,) = tiny_deepspeech1(96), noise_features([FRAMES])
    matrix[SILENCE] = matrix[SILENCE.start]
    update = shared(model, [matrix], [TEXT], CLIENTS[client])
    assert certify(model, update, [matrix], [TEXT]).certified is True
    attempts = 0

    @settings(max_examples=ATTEMPTS[kind] // 2, deadline=None, derandomize=True)
    @given(place=st.integers(0, 10_000), other=st.integers(0, 10_000), precision=st.sampled_from([1e-7, 1e-6]))
    def attempt(place: int, other: int, precision: float) -> None:
        nonlocal attempts
        features, text = _wrong(kind, matrix, place, other)
        found = certify(model, update, [features], [text], precision)
        attempts += 1
        assert found.certified is False, found

    attempt()
    assert attempts >= ATTEMPTS[kind] // 2
