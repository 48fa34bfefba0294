"""The chain from features to words and certificate."""

import torch
from small_speech import noise_features, shared, tiny_deepspeech1

from overheard.attacks.complete import complete
from overheard.attacks.observation import Observation, Prior, Reconstruction

TEXT = "CHAIN"


def test_adds_words_and_certificate() -> None:
    model, features = tiny_deepspeech1(), noise_features([30])
    observation = Observation(model, shared(model, features, [TEXT]))
    found = complete(observation, Reconstruction("span", (features[0].double(),), (None,)))
    assert found.transcripts == (TEXT,)
    assert found.certified is True
    assert found.diagnostics["transcript_source"] == "output layer"
    assert found.diagnostics["transcript_exact"] == [True]


def test_uses_declared_transcripts_and_says_so() -> None:
    model, features = tiny_deepspeech1(256), noise_features([20, 24])
    update = shared(model, features, ["ONE", "TWO"])
    observation = Observation(model, update, Prior(transcripts=("ONE", "TWO")))
    found = complete(observation, Reconstruction("span", tuple(features[::-1]), (None, None)))
    assert found.transcripts == ("TWO", "ONE")
    assert found.certified is True
    assert found.diagnostics["transcript_source"] == "declared"


def test_leaves_failures_alone_and_refuses_wrong_features() -> None:
    model, features = tiny_deepspeech1(), noise_features([30])
    observation = Observation(model, shared(model, features, [TEXT]))
    nothing = Reconstruction("span", reason="no layer")
    assert complete(observation, nothing) is nothing
    wrong = Reconstruction("span", (features[0] + torch.ones(1),), (None,))
    assert complete(observation, wrong).certified is False
