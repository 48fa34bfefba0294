"""Words and proof from updates of which entries are missing, or whose tensors were shrunk one by one."""

import pytest
import torch
from small_speech import noise_features, shared, tiny_deepspeech1

from overheard.attacks.complete import complete
from overheard.attacks.entries.sent_output import fill_output
from overheard.attacks.observation import Observation, Reconstruction
from overheard.attacks.output_layer import run_output_layer
from overheard.federation.client import ClientSettings
from overheard.federation.defences.registry import defend, parse_defence
from overheard.federation.update import ClientUpdate

CLIENTS = {"gradient": ClientSettings(), "delta": ClientSettings("delta", "eval", 1, 0.1)}


def defended(update: ClientUpdate, text: str) -> ClientUpdate:
    return defend(update, [parse_defence(text)], torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("text", "client"),
    [("prune:keep=0.5", "gradient"), ("prune:keep=0.5", "delta"), ("top-k:keep=0.5", "gradient"),
     ("random-k:keep=0.5", "gradient"), ("random-k:keep=0.5", "delta"), ("clip-layers:norm=0.01", "gradient"),
     ("clip-layers:norm=0.01", "delta")],
)  # fmt: skip
def test_words_and_proof(text: str, client: str) -> None:
    model, features = tiny_deepspeech1(192), noise_features([24])
    update = defended(shared(model, features, ["SHE SELLS"], CLIENTS[client]), text)
    found = complete(Observation(model, update), Reconstruction("known", tuple(features), (None,)))
    assert found.transcripts == ("SHE SELLS",)
    assert found.certified is True, found.diagnostics["certificate"]


@pytest.mark.parametrize("text", ["prune:keep=0.5", "random-k:keep=0.5", "clip-layers:norm=0.01"])
def test_wrong_features_are_not_proven(text: str) -> None:
    model, (matrix,) = tiny_deepspeech1(192), noise_features([24])
    update = defended(shared(model, [matrix], ["SHE SELLS"]), text)
    for frame in (2, 11, 20):
        wrong = matrix.clone()
        wrong[frame] *= 1.001
        found = complete(Observation(model, update), Reconstruction("known", (wrong,), (None,)))
        assert found.certified is not True


def test_missing_entries_follow_from_those_that_were_sent() -> None:
    model, features = tiny_deepspeech1(192), noise_features([24])
    update = shared(model, features, ["SHE SELLS"])
    run = run_output_layer(model, features, "eval")
    assert run is not None
    assert fill_output(update, run) is None
    filled = fill_output(defended(update, "prune:keep=0.5"), run)
    assert filled is not None
    found, open_symbols = filled
    exact, seen = update.tensors["output.weight"], found.tensors["output.weight"]
    determined = [symbol for symbol in range(len(exact)) if symbol not in open_symbols]
    assert len(determined) > 20
    assert (seen - exact)[determined].norm() < 1e-3 * exact.norm()


def test_symbols_of_which_too_little_was_sent_are_named() -> None:
    model, features = tiny_deepspeech1(64), noise_features([40])
    run = run_output_layer(model, features, "eval")
    assert run is not None
    filled = fill_output(defended(shared(model, features, ["SHE SELLS"]), "random-k:keep=0.3"), run)
    assert filled is not None
    assert len(filled[1]) == 29
