"""Words from the output layer."""

import pytest
import torch
from small_speech import noise_features, shared, tiny_deepspeech1

from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.transcript import _judged, recover_transcripts
from overheard.attacks.words.scored_texts import Search, occupancies
from overheard.attacks.words.text_search import SearchConfig
from overheard.federation.client import ClientSettings
from overheard.federation.update import ClientUpdate
from overheard.recognition.models import build_model, model_spec

TEXTS = ["", "A", "AA", "HELLO", "ALL SEEN TOO", "THE BALLOON  IS OFF", "AAAAAA"]


@pytest.mark.parametrize("text", TEXTS)
def test_finds_a_text_exactly(text: str) -> None:
    model, features = tiny_deepspeech1(), noise_features([40])
    found = recover_transcripts(model, shared(model, features, [text]), features)
    assert found.texts == (text,)
    assert found.exact == (True,)
    assert found.reason is None
    assert found.residual[0] < found.gap[0] / 10


@pytest.mark.parametrize("scale", [10.0, 60.0])
def test_finds_a_text_under_peaky_probabilities(scale: float) -> None:
    model, features = tiny_deepspeech1(), noise_features([40])
    with torch.no_grad():
        model.output.weight.mul_(scale)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    found = recover_transcripts(model, shared(model, features, ["SEVEN THREE"]), features)
    assert found.texts == ("SEVEN THREE",)
    assert found.exact == (True,)


@pytest.mark.parametrize(
    ("lengths", "hidden_size"), [((20, 20), 192), ((25, 18, 31), 256)], ids=["equal lengths", "three lengths"]
)
def test_finds_every_text_of_a_batch(lengths: tuple[int, ...], hidden_size: int) -> None:
    model, features = tiny_deepspeech1(hidden_size), noise_features(lengths)
    texts = ("GOOD", "TALL", "YES SIR")[: len(lengths)]
    found = recover_transcripts(model, shared(model, features, texts), features)
    assert found.texts == texts
    assert all(found.exact)


@pytest.mark.parametrize(
    "settings",
    [
        ClientSettings("delta", "eval", 1, 1e-3),
        ClientSettings("delta", "eval", 1, 1e-2, weight_decay=1e-2),
        ClientSettings("delta", "eval", 10, 1e-3),
        ClientSettings("delta", "eval", 8, 2e-4, momentum=0.9, weight_decay=1e-3),
        ClientSettings("delta", "eval", 6, 3e-3, clip_norm=20.0),
    ],
    ids=["one", "decay", "ten", "momentum", "clipped"],
)
def test_finds_texts_behind_local_steps(settings: ClientSettings) -> None:
    """Ten take a third off the loss: at the weights that the server sent, no text explains what they did."""
    model, features = tiny_deepspeech1(512, cell="tanh"), noise_features([50, 40])
    texts = ["GOOD DAY", "NOT LATER"]
    found = recover_transcripts(model, shared(model, features, texts, settings), features)
    assert found.texts == tuple(texts)
    assert found.exact == (True, True)
    assert (found.apart or 0.0) < 1e-4


def test_texts_come_nearer_along_a_path_where_their_own_steps_overshoot() -> None:
    """At four times the rate of the tests above; by their own steps alone, wrong texts come to GOO DAY at best."""
    model, features = tiny_deepspeech1(256, cell="tanh"), noise_features([40], seed=3)
    update = shared(model, features, ["GOOD DAY"], ClientSettings("delta", "eval", 10, 4e-3))
    found = recover_transcripts(model, update, features)
    assert found.texts == ("GOOD DAY",)
    assert found.exact == (True,)


def test_steps_of_other_speech_end_elsewhere_and_give_no_exact_text() -> None:
    model, features = tiny_deepspeech1(256, cell="tanh"), noise_features([40])
    update = shared(model, features, ["NOT SAID"], ClientSettings("delta", "eval", 4, 1e-3))
    found = recover_transcripts(model, update, noise_features([40], seed=1))
    assert found.exact == (False,)
    assert found.apart is not None
    assert found.apart > 1e-2


def test_finds_a_text_in_half_precision() -> None:
    model, features = tiny_deepspeech1(), noise_features([24])
    update = shared(model, features, ["HALF"])
    coarse = ClientUpdate({name: tensor.bfloat16() for name, tensor in update.tensors.items()}, update.protocol)
    assert recover_transcripts(model, coarse, features).texts == ("HALF",)


def test_reads_an_output_layer_without_bias_behind_train_mode_batch_norm() -> None:
    model = build_model(model_spec("deepspeech2", channels=4, num_layers=1, hidden_size=64))
    features = noise_features([61], 257)
    update = shared(model, features, ["NO BIAS"], ClientSettings(mode="train"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = recover_transcripts(model, update, features)
    assert found.texts == ("NO BIAS",)
    assert found.exact == (True,)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_does_not_call_a_text_exact_from_wrong_features() -> None:
    model, features = tiny_deepspeech1(), noise_features([24])
    update = shared(model, features, ["IS SAID"])
    found = recover_transcripts(model, update, noise_features([24], seed=1), SearchConfig(evaluations=3000))
    assert found.exact == (False,)


def test_a_text_that_takes_longer_to_score_is_searched_for_less() -> None:
    config = SearchConfig(evaluations=1000)
    assert [config.limit(frames) for frames in (1, 140, 170, 640)] == [1000, 1000, 678, 500]


def test_says_why_nothing_is_found() -> None:
    features = noise_features([30])
    dropping = tiny_deepspeech1(dropout=0.5)
    update = shared(dropping, features, ["MASKS"], ClientSettings(mode="train"))
    assert "dropout" in (recover_transcripts(dropping, update, features).reason or "")
    model = tiny_deepspeech1()
    update = shared(model, features, ["HERE"])
    assert "2 of the update's 1" in (recover_transcripts(model, update, features * 2).reason or "")
    partial = ClientUpdate({"input_layers.0.weight": update.tensors["input_layers.0.weight"]}, update.protocol)
    assert "output" in (recover_transcripts(model, partial, features).reason or "")


@pytest.mark.parametrize(("size", "exact"), [(1e-3, True), (15.0, False)], ids=["small errors", "large errors"])
def test_errors_of_the_expected_size_that_hide_all_texts_make_none_exact(size: float, exact: bool) -> None:
    """Under large ones every text scores about what is expected of a right one."""
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(40, 29, generator=generator, dtype=torch.float64).log_softmax(dim=1)
    text, identity = (8, 9, 4), torch.eye(40, dtype=torch.float64)
    errors = torch.randn(40, 29, generator=generator, dtype=torch.float64)
    occupancy = occupancies(log_probs, [text])[:, 0] + size * errors / errors.norm()
    variances, rows = torch.zeros(40, dtype=torch.float64), torch.ones(29, dtype=torch.float64)
    evidence = FrameEvidence(log_probs, occupancy, occupancy, identity, size, identity, variances, rows)
    search = Search(evidence, list(range(1, 29)))
    search.score([text])
    assert _judged(search, SearchConfig(), text).exact == exact
