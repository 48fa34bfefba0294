"""Greedy decoding, beam search and alignment, held to sums and maxima over every path there is."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from overheard.errors import InputError
from overheard.recognition.alignment import align, word_times
from overheard.recognition.beam import BeamConfig, beam_decoder, read_lexicon
from overheard.recognition.decoding import greedy, words_of
from overheard.speech.alphabet import Alphabet, collapse

AB = Alphabet("AB ")
FRAMES = 5


def log_probs(seed: int, frames: int = FRAMES) -> Float[Tensor, "T V"]:
    return torch.randn(frames, AB.num_symbols, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def paths(values: Float[Tensor, "T V"]) -> Iterator[tuple[tuple[int, ...], float]]:
    for path in itertools.product(range(AB.num_symbols), repeat=len(values)):
        yield path, sum(float(values[frame, symbol]) for frame, symbol in enumerate(path))


def texts(values: Float[Tensor, "T V"]) -> dict[str, float]:
    """Log-probability of every text, over all paths that spell it."""
    sums: dict[str, float] = {}
    for path, score in paths(values):
        text = words_of(collapse(path), AB)
        sums[text] = sums.get(text, 0.0) + math.exp(score)
    return {text: math.log(total) for text, total in sums.items()}


def test_greedy_takes_the_best_path_within_each_utterance() -> None:
    first, second = log_probs(0), log_probs(1)
    batch = torch.stack([first, second], dim=1)
    found = greedy(batch, torch.tensor([FRAMES, 3]), AB)
    for values, hypothesis in zip((first, second[:3]), found, strict=True):
        path, score = max(paths(values), key=lambda item: item[1])
        assert hypothesis.text == words_of(collapse(path), AB)
        assert hypothesis.score == pytest.approx(score, abs=1e-5)


@settings(max_examples=8)
@given(seed=st.integers(0, 1000), frames=st.integers(2, FRAMES))
def test_alignment_is_the_best_path_that_spells_the_labels(seed: int, frames: int) -> None:
    values = log_probs(seed, frames)
    best: dict[tuple[int, ...], float] = {}
    for path, score in paths(values):
        labels = tuple(collapse(path))
        best[labels] = max(score, best.get(labels, -math.inf))
    for labels, score in best.items():
        spans = align(values, labels)
        path = [0] * frames
        for label, (start, end) in zip(labels, spans, strict=True):
            path[start:end] = [label] * (end - start)
        assert tuple(collapse(path)) == labels
        assert sum(float(values[frame, symbol]) for frame, symbol in enumerate(path)) == pytest.approx(score, abs=1e-5)


def test_alignment_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="2 output frames for 2 labels; 3 frames are needed"):
        align(log_probs(0, 2), [1, 1])


def test_words_have_the_times_of_their_letters() -> None:
    symbols = [0, 1, 1, 2, 0, 3, 3, 0, 2, 0]  # A A B, space, B
    values = torch.full((10, 4), -20.0)
    values[torch.arange(10), torch.tensor(symbols)] = 0.0
    first, second = word_times(values, "AB B", AB, 2.0)
    assert (first.word, first.start, first.end) == ("AB", 0.2, 0.8)
    assert (second.word, second.start, second.end) == ("B", 1.6, 1.8)
    assert word_times(values, "", AB, 2.0) == ()


class TestBeam:
    """With a beam as wide as the problem the search is exact."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("flashlight.lib.text.decoder")

    @settings(max_examples=8)
    @given(seed=st.integers(0, 1000))
    def test_without_a_language_model_it_adds_up_all_paths(self, seed: int) -> None:
        values = log_probs(seed)
        expected = texts(values)
        found = beam_decoder(BeamConfig(beam=5000), AB)(values)
        assert found[0].text == max(expected, key=lambda text: expected[text])
        for hypothesis in found:
            assert hypothesis.score == pytest.approx(expected[hypothesis.text], abs=1e-3)
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)

    def test_a_lexicon_allows_its_words_alone(self, tmp_path: Path) -> None:
        lexicon = tmp_path / "words.txt"
        lexicon.write_text("AB\nba\tB A\n")
        found = beam_decoder(BeamConfig(beam=2000, lexicon=lexicon), AB)(log_probs(3))
        assert {word for each in found for word in each.text.split()} <= {"AB", "ba"}
        expected = texts(log_probs(3))
        assert found[0].text.upper() == max(("AB", "BA", ""), key=lambda text: expected[text])

    def test_a_word_model_outweighs_the_sound(self, tmp_path: Path) -> None:
        lexicon, model = tmp_path / "words.txt", tmp_path / "words.arpa"
        lexicon.write_text("AB\nBA\n")
        values = log_probs(3)
        for likely, unlikely in (("AB", "BA"), ("BA", "AB")):
            model.write_text(_arpa({likely: -0.1, unlikely: -20.0}))
            config = BeamConfig(beam=2000, language_model=model, lexicon=lexicon, lm_weight=3.0)
            words = beam_decoder(config, AB)(values)[0].text.split()
            assert unlikely not in words

    def test_a_character_model_needs_no_lexicon(self, tmp_path: Path) -> None:
        model = tmp_path / "characters.arpa"
        values = log_probs(0)
        for likely, unlikely in (("A", "B"), ("B", "A")):
            model.write_text(_arpa({likely: -0.1, unlikely: -9.0, "|": -9.0}))
            config = BeamConfig(beam=2000, language_model=model, lm_weight=3.0)
            assert unlikely not in beam_decoder(config, AB)(values)[0].text

    def test_a_word_model_without_a_lexicon_is_refused(self, tmp_path: Path) -> None:
        model = tmp_path / "words.arpa"
        model.write_text(_arpa({"A": -1.0, "AB": -1.0}))
        with pytest.raises(InputError, match="an n-gram of words such as AB; give a lexicon"):
            beam_decoder(BeamConfig(language_model=model), AB)

    def test_what_is_no_language_model_is_refused(self, tmp_path: Path) -> None:
        model = tmp_path / "text.arpa"
        model.write_text("hello\n")
        with pytest.raises(InputError, match="no language model"):
            beam_decoder(BeamConfig(language_model=model), AB)


def test_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        BeamConfig(language_model=tmp_path / "none.arpa")
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("AXE\n")
    with pytest.raises(InputError, match="unknown symbol 'X'"):
        read_lexicon(lexicon, AB)
    lexicon.write_text("\n")
    with pytest.raises(InputError, match="no words"):
        read_lexicon(lexicon, AB)
    with pytest.raises(InputError, match="an alphabet without a space"):
        read_lexicon(lexicon, Alphabet("AB"))


def _arpa(unigrams: dict[str, float]) -> str:
    first = next(iter(unigrams))
    entries = {"<unk>": -99.0, "<s>": -99.0, "</s>": -1.0, **unigrams}
    lines = "".join(f"{score}\t{word}\t0\n" for word, score in entries.items())
    head = f"\\data\\\nngram 1={len(entries)}\nngram 2=1\n\n"
    return f"{head}\\1-grams:\n{lines}\n\\2-grams:\n-0.1\t<s> {first}\n\n\\end\\\n"
