"""A factor on the whole update hides neither words nor proof; what is no factor is left alone."""

import pytest
import torch
from small_speech import noise_features, shared, tiny_deepspeech1

from overheard.attacks.complete import complete
from overheard.attacks.entries.update_scale import rescaled, update_scale
from overheard.attacks.observation import Observation, Reconstruction
from overheard.attacks.output_layer import run_output_layer
from overheard.federation.client import ClientSettings
from overheard.federation.update import ClientUpdate

CLIENTS = {"gradient": ClientSettings(), "delta": ClientSettings("delta", "eval", 1, 0.1)}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("factor", [0.03, 1.0, 7.0])
def test_a_clipped_update_is_read_and_proven(client: str, factor: float) -> None:
    model, features = tiny_deepspeech1(192), noise_features([20, 24])
    update = rescaled(shared(model, features, ["ONE", "TWO"], CLIENTS[client]), 1 / factor)
    found = complete(Observation(model, update), Reconstruction("known", tuple(features), (None, None)))
    assert found.transcripts == ("ONE", "TWO")
    assert found.certified is True
    assert found.diagnostics.get("update_scale", 1.0) == pytest.approx(factor, rel=1e-5)


def test_a_factor_is_no_excuse_for_wrong_features() -> None:
    model, (matrix,) = tiny_deepspeech1(), noise_features([24])
    update = rescaled(shared(model, [matrix], ["SHE SELLS"]), 20.0)
    wrong = matrix.clone()
    wrong[11] *= 1.01
    found = complete(Observation(model, update), Reconstruction("known", (wrong,), (None,)))
    assert found.certified is not True


@pytest.mark.parametrize("spoil", ["noise", "no layer", "every symbol"])
def test_what_is_no_factor_is_left_alone(spoil: str) -> None:
    model, features = tiny_deepspeech1(), noise_features([40])
    text = "THE QUICK BROWN FOX JUMPS" if spoil != "every symbol" else "ABCDEFGHIJKLMNOPQRSTUVWXYZ '"
    update = shared(model, features, [text])
    run = run_output_layer(model, features, "eval")
    assert run is not None
    generator = torch.Generator().manual_seed(0)
    tensors = dict(update.tensors)
    for name, tensor in update.tensors.items():
        if spoil == "noise":
            tensors[name] = tensor + 0.1 * tensor.std() * torch.randn(tensor.shape, generator=generator)
        elif spoil == "no layer" and name.startswith("output"):
            del tensors[name]
    assert update_scale(ClientUpdate(tensors, update.protocol), run) == 1.0
