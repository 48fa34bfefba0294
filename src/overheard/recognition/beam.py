"""Beam search with an n-gram language model, by flashlight-text (Collobert et al. 2016; Pratap et al. 2019)."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from overheard.errors import InputError
from overheard.recognition.configuration import check_whole
from overheard.recognition.decoding import Hypothesis, words_of
from overheard.speech.alphabet import BLANK, Alphabet, collapse

SPACE_SYMBOL = "|"
"""How a character n-gram writes a space."""
UNKNOWN = "<unk>"
IMPOSSIBLE = -1e9

BeamDecoder = Callable[[Float[Tensor, "T V"]], list[Hypothesis]]
"""Log-probabilities of one utterance -> hypotheses, the best first."""


@dataclass(frozen=True)
class BeamConfig:
    """How to search.

    Attributes:
        beam: hypotheses kept at each frame.
        beam_symbols: best symbols tried at each frame; 0 for all.
        threshold: hypotheses that lie this far behind the best are dropped, nats.
        language_model: ARPA file or KenLM binary; None to add up paths alone. Of words with a lexicon, of characters
            without one, where `|` stands for the space.
        lexicon: file of words, one a line, to which the search is limited; a line may spell the word after a tab,
            with its characters parted by spaces. Any case.
        lm_weight: of the language model's log10 probabilities.
        word_score: added for each word, with a lexicon.

    Raises:
        InputError: a value out of range, or a word n-gram that no lexicon goes with.
    """

    beam: int = 100
    beam_symbols: int = 0
    threshold: float = 50.0
    language_model: Path | None = None
    lexicon: Path | None = None
    lm_weight: float = 1.0
    word_score: float = 0.0

    def __post_init__(self) -> None:
        check_whole("beam", self.beam, 1, 100_000)
        check_whole("beam_symbols", self.beam_symbols, 0, 100_000)
        for name in ("language_model", "lexicon"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise InputError(name, f"no file {path}", "name one that is there")


def beam_decoder(config: BeamConfig, alphabet: Alphabet) -> BeamDecoder:
    """A decoder for one alphabet; scores are log-probabilities of text with what model and words add.

    Raises:
        InputError: flashlight-text is not installed, the language model cannot be read, or a word of the lexicon
            cannot be written with the alphabet.
    """
    try:
        from flashlight.lib.text import decoder as flashlight
    except ImportError as error:
        raise InputError("decoder", "beam without flashlight-text", "install overheard[lm], or use greedy") from error
    if config.lexicon is not None:
        return _with_lexicon(flashlight, config, alphabet)
    return _lexicon_free(flashlight, config, alphabet)


def _lexicon_free(flashlight: Any, config: BeamConfig, alphabet: Alphabet) -> BeamDecoder:
    symbols = ["<blank>", *(SPACE_SYMBOL if each == " " else each for each in alphabet.characters)]
    if config.language_model is not None:
        _check_characters(config.language_model)
    model = _language_model(flashlight, config.language_model, symbols)
    options = flashlight.LexiconFreeDecoderOptions(
        beam_size=config.beam,
        beam_size_token=config.beam_symbols or alphabet.num_symbols,
        beam_threshold=config.threshold,
        lm_weight=config.lm_weight,
        sil_score=0.0,
        log_add=True,
        criterion_type=flashlight.CriterionType.CTC,
    )
    search = flashlight.LexiconFreeDecoder(options, model, _space(alphabet), BLANK, [])

    def decode(log_probs: Float[Tensor, "T V"]) -> list[Hypothesis]:
        found = _search(search, log_probs.float().contiguous().cpu())
        return _together((words_of(collapse(each.tokens), alphabet), each.score) for each in found)

    return decode


def _with_lexicon(flashlight: Any, config: BeamConfig, alphabet: Alphabet) -> BeamDecoder:
    assert config.lexicon is not None
    spellings = read_lexicon(config.lexicon, alphabet)
    words = [*spellings, UNKNOWN]
    model = _language_model(flashlight, config.language_model, words)
    trie = flashlight.Trie(alphabet.num_symbols, _space(alphabet))
    start = model.start(False)
    for index, labels in enumerate(spellings.values()):
        _, score = model.score(start, index)
        # Every word ends with a space; `_closed` gives the last one its own.
        trie.insert([*labels, _space(alphabet)], index, score)
    trie.smear(flashlight.SmearingMode.MAX)
    options = flashlight.LexiconDecoderOptions(
        beam_size=config.beam,
        beam_size_token=config.beam_symbols or alphabet.num_symbols,
        beam_threshold=config.threshold,
        lm_weight=config.lm_weight,
        word_score=config.word_score,
        unk_score=-torch.inf,
        sil_score=0.0,
        log_add=True,
        criterion_type=flashlight.CriterionType.CTC,
    )
    unknown = len(words) - 1
    search = flashlight.LexiconDecoder(options, trie, model, _space(alphabet), BLANK, unknown, [], False)

    def decode(log_probs: Float[Tensor, "T V"]) -> list[Hypothesis]:
        found = _search(search, _closed(log_probs.float().cpu(), _space(alphabet)))
        return _together((" ".join(words[word] for word in each.words if word >= 0), each.score) for each in found)

    return decode


def read_lexicon(path: Path, alphabet: Alphabet) -> dict[str, list[int]]:
    """Words and their labels.

    Raises:
        InputError: no words, an alphabet without a space, or a word that it cannot write.
    """
    if " " not in alphabet.characters:
        raise InputError("lexicon", "an alphabet without a space", "decode without a lexicon")
    spellings: dict[str, list[int]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, _, spelt = line.strip().partition("\t")
        if word:
            spellings[word] = alphabet.encode("".join((spelt or word).split()), f"{path}: {word}")
    if not spellings:
        raise InputError(str(path), "no words", "write one word a line")
    return spellings


def _language_model(flashlight: Any, path: Path | None, words: list[str]) -> Any:
    if path is None:
        return flashlight.ZeroLM()
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    try:
        return KenLM(str(path), Dictionary(words))
    except (RuntimeError, ValueError) as error:
        # KenLM's message leads with its source file; what is wrong stands after the last line break.
        found = f"no language model ({str(error).splitlines()[-1]})"
        raise InputError(str(path), found, "give an ARPA file of bigrams or more, or a KenLM binary") from error


def _check_characters(path: Path) -> None:
    """An ARPA file of words without a lexicon would know hardly a character, and nothing would say so."""
    with path.open(encoding="utf-8", errors="replace") as file:
        if not file.readline().startswith("\\data\\"):
            return
        lines = dropwhile(lambda line: line.strip() != "\\1-grams:", file)
        next(lines, None)
        unigrams = [line.split("\t")[1].strip() for line in takewhile(lambda line: line.strip(), lines)]
    words = [each for each in unigrams if len(each) > 1 and not each.startswith("<")]
    if words:
        raise InputError(str(path), f"an n-gram of words such as {words[0]}", "give a lexicon of its words too")


def _space(alphabet: Alphabet) -> int:
    # Beyond every symbol where there is none: the search compares it with labels and finds no equal.
    return alphabet.characters.find(" ") + 1 or alphabet.num_symbols


def _closed(log_probs: Float[Tensor, "T V"], space: int) -> Tensor:
    """One more frame that is a space or nothing, so that the last word can end."""
    last = torch.full((1, log_probs.shape[1]), IMPOSSIBLE)
    last[0, space] = last[0, BLANK] = 0.0
    return torch.cat([log_probs, last]).contiguous()


def _search(search: Any, log_probs: Tensor) -> Any:
    return search.decode(log_probs.data_ptr(), *log_probs.shape)


def _together(found: Any) -> list[Hypothesis]:
    """Hypotheses that read the same, a space at an end apart, as one; the best first."""
    scores: dict[str, float] = {}
    for text, score in found:
        scores[text] = float(np.logaddexp(scores.get(text, -np.inf), score))
    return [Hypothesis(text, score) for text, score in sorted(scores.items(), key=lambda item: -item[1])]
