"""The synthetic corpus: the same bytes for a seed, LibriSpeech's layout, voices that differ."""

import io
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from overheard.cli import main
from overheard.errors import InputError
from overheard.speech import synthetic, voices
from overheard.speech.alphabet import Alphabet
from overheard.speech.synthetic import read_sentences, synthesize
from overheard.speech.voices import VOICES, Voice, espeak_folder, speak

SENTENCE = "A QUIET VOICE REPLIED"


def missing_wheel() -> bool:
    try:
        espeak_folder()
    except InputError:
        return True
    return False


needs_espeak = pytest.mark.skipif(missing_wheel(), reason="needs the extra 'synthetic' (espeakng-loader)")


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def transcripts(corpus: Path) -> dict[str, str]:
    lines = [line for path in corpus.rglob("*.trans.txt") for line in path.read_text().splitlines()]
    return dict(line.split(" ", 1) for line in lines)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 speakers, 4 utterances each, seed 0: the defaults."""
    return synthesize(tmp_path_factory.mktemp("synthetic") / "corpus")


def test_sentences() -> None:
    sentences = read_sentences()
    assert len(sentences) >= 120
    assert len(set(sentences)) == len(sentences)
    for sentence in sentences:
        assert set(sentence) <= set(Alphabet().characters)
        assert sentence == " ".join(sentence.split())


@needs_espeak
def test_layout(corpus: Path) -> None:
    assert {path.name for path in corpus.iterdir()} == {"synthetic", "SPEAKERS.TXT", "synthesis.json"}
    texts = transcripts(corpus)
    assert len(texts) == len(list(corpus.rglob("*.flac"))) == 48
    for utterance, text in texts.items():
        speaker, chapter, index = utterance.split("-")
        assert speaker.isdecimal()
        assert len(index) == 4
        file = corpus / "synthetic" / speaker / chapter / f"{utterance}.flac"
        info = soundfile.info(file)
        assert (info.samplerate, info.channels, info.format, info.subtype) == (16_000, 1, "FLAC", "PCM_16")
        assert 1.0 <= info.duration <= 6.0
        assert text in read_sentences()
    assert len(set(texts.values())) == 48


@needs_espeak
def test_speakers_table_reads_like_the_original(corpus: Path, librispeech: Path) -> None:
    def rows(file: Path) -> list[list[str]]:
        lines = [line for line in file.read_text().splitlines() if not line.startswith(";")]
        return [[field.strip() for field in line.split("|", 4)] for line in lines]

    ours = rows(corpus / "SPEAKERS.TXT")
    theirs = rows(librispeech / "SPEAKERS.TXT")
    assert {len(row) for row in ours} == {len(row) for row in theirs} == {5}
    assert [row[0] for row in ours] == sorted(path.name for path in (corpus / "synthetic").iterdir())
    for speaker, sex, subset, minutes, _ in ours:
        files = (corpus / "synthetic" / speaker).rglob("*.flac")
        assert float(minutes) == pytest.approx(sum(soundfile.info(file).duration for file in files) / 60, abs=0.005)
        assert sex in "FM"
        assert subset == "synthetic"


@needs_espeak
def test_no_frame_is_silent(corpus: Path) -> None:
    for file in corpus.rglob("*.flac"):
        samples, _ = soundfile.read(file)
        frames = np.lib.stride_tricks.sliding_window_view(samples, 400)[::160]
        assert 20 * np.log10(np.sqrt(np.mean(frames**2, axis=1)).min()) > -63


@needs_espeak
def test_seed_fixes_every_byte(corpus: Path, tmp_path: Path) -> None:
    again = synthesize(tmp_path / "again")
    assert tree(again) == tree(corpus)


@needs_espeak
def test_another_seed_gives_other_sentences(tmp_path: Path) -> None:
    first, second = (
        synthesize(tmp_path / str(seed), num_speakers=2, utterances_per_speaker=2, seed=seed) for seed in (0, 1)
    )
    assert transcripts(first) != transcripts(second)
    assert tree(first) != tree(second)


@needs_espeak
def test_voices_are_known_to_espeak() -> None:
    # espeak-ng passes over a variant that it lacks without a word.
    variants = {path.name for path in (espeak_folder() / "espeak-ng-data" / "voices" / "!v").iterdir()}
    assert {voice.variant for voice in VOICES} <= variants
    assert len({(voice.accent, voice.variant) for voice in VOICES}) == len(VOICES) >= 12


@needs_espeak
def test_voices_differ() -> None:
    """Long-term log spectra of the same sentence, shape alone: far apart between any two voices."""
    spectra = []
    for voice in VOICES:
        samples = speak(voice, SENTENCE)
        assert np.array_equal(samples, speak(voice, SENTENCE))
        windows = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), 512)[::160] * np.hanning(512)
        power = (np.abs(np.fft.rfft(windows)) ** 2).mean(0)[2:]
        level = 10 * np.log10(power.reshape(15, 17).mean(1))
        spectra.append(level - level.mean())
    apart = [np.sqrt(np.mean((left - right) ** 2)) for left, right in combinations(spectra, 2)]
    assert min(apart) > 1.0, "dB"
    assert np.median(apart) > 4.0, "dB"


@needs_espeak
def test_women_speak_higher_than_men() -> None:
    def pitch(voice: Voice) -> float:
        samples = speak(voice, SENTENCE).astype(np.float64)
        loud = samples[np.argmax(np.convolve(samples**2, np.ones(2048), "valid")) :][:2048]
        correlation = np.correlate(loud, loud, "full")[2047:]
        return 16_000 / (40 + np.argmax(correlation[40:320]))

    by_sex = {sex: [pitch(voice) for voice in VOICES if voice.sex == sex] for sex in "FM"}
    assert np.median(by_sex["F"]) > 160 > 130 > np.median(by_sex["M"])


@needs_espeak
def test_bounds_pass_sentences_over(tmp_path: Path) -> None:
    corpus = synthesize(tmp_path / "c", num_speakers=2, utterances_per_speaker=2, min_seconds=1.4, max_seconds=2.6)
    durations = [soundfile.info(file).duration for file in corpus.rglob("*.flac")]
    assert len(durations) == 4
    assert all(1.4 <= duration <= 2.6 for duration in durations)


def spoken_as_tones(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace espeak-ng by one second of constant samples; returns the list that collects what was said."""
    said: list[str] = []

    def tone(voice: Voice, text: str) -> np.ndarray:
        said.append(text)
        return np.full(16_000, len(text), np.int16)

    monkeypatch.setattr(synthetic, "speak", tone)
    return said


def test_sentences_come_back_only_when_all_were_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = spoken_as_tones(monkeypatch)
    count = len(read_sentences())
    synthesize(tmp_path / "c", num_speakers=2, utterances_per_speaker=count - 40)
    assert len(set(said[:count])) == count
    for start in range(0, len(said), count - 40):
        assert len(set(said[start : start + count - 40])) == count - 40


def test_a_text_of_ones_own_is_spoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = spoken_as_tones(monkeypatch)
    text = tmp_path / "text.txt"
    text.write_text("one two\n\n  Three   four\nONE TWO\nIT'S FIVE\n")
    main(
        [
            "data",
            "synthesize",
            str(tmp_path / "c"),
            "--speakers",
            "2",
            "--utterances-per-speaker",
            "3",
            "--sentences",
            str(text),
        ]
    )
    assert sorted(said) == sorted(2 * ["ONE TWO", "THREE FOUR", "IT'S FIVE"])
    with pytest.raises(InputError, match="give 1 to 3: there are 3 sentences"):
        synthesize(tmp_path / "d", utterances_per_speaker=4, sentences=read_sentences(text))
    text.write_text("ONE\nTWO 2\n")
    with pytest.raises(InputError, match=r"text\.txt, line 2: unknown symbol '2'"):
        read_sentences(text)


def test_no_sentence_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken_as_tones(monkeypatch)
    with pytest.raises(InputError, match=r"0 of \d+ sentences take en-us\+f2 2.0 to 3.0 s; widen them"):
        synthesize(tmp_path, min_seconds=2.0, max_seconds=3.0)
    assert not list(tmp_path.iterdir())


def test_same_corpus_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = spoken_as_tones(monkeypatch)
    corpus = synthesize(tmp_path / "c", num_speakers=2, utterances_per_speaker=2)
    (corpus / "manifest.jsonl").write_text("a file of somebody else\n")
    messages = io.StringIO()
    console = Console(file=messages, width=200)
    assert synthesize(corpus, num_speakers=2, utterances_per_speaker=2, console=console) == corpus
    assert "already complete" in messages.getvalue()
    assert len(said) == 4


def remove_audio(corpus: Path) -> None:
    next(corpus.rglob("*.flac")).unlink()


def change_transcript(corpus: Path) -> None:
    next(corpus.rglob("*.trans.txt")).write_text("7001-1-0000 CHANGED\n")


def break_record(corpus: Path) -> None:
    (corpus / "synthesis.json").write_text("{")


def replace_record(corpus: Path) -> None:
    (corpus / "synthesis.json").write_text(json.dumps(["not a record"]))


def remove_record(corpus: Path) -> None:
    (corpus / "synthesis.json").unlink()


@pytest.mark.parametrize("damage", [remove_audio, change_transcript, break_record, replace_record, remove_record])
def test_damaged_corpus_is_not_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    spoken_as_tones(monkeypatch)
    corpus = synthesize(tmp_path / "c", num_speakers=1, utterances_per_speaker=1)
    damage(corpus)
    before = tree(corpus)
    with pytest.raises(InputError, match="not empty, and not the synthetic corpus asked for"):
        synthesize(corpus, num_speakers=1, utterances_per_speaker=1)
    assert tree(corpus) == before


def test_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(voice: Voice, text: str) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "speak", interrupt)
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_settings_do_not_overwrite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken_as_tones(monkeypatch)
    corpus = synthesize(tmp_path / "c", num_speakers=1, utterances_per_speaker=1)
    with pytest.raises(InputError, match="name an empty or a new folder"):
        synthesize(corpus, num_speakers=1, utterances_per_speaker=1, seed=1)


def test_empty_destination_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken_as_tones(monkeypatch)
    destination = tmp_path / "empty"
    destination.mkdir()
    synthesize(destination, num_speakers=1, utterances_per_speaker=1)
    assert (destination / "synthetic" / "7001" / "1" / "7001-1-0000.flac").is_file()


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices, "espeak_folder", lambda: tmp_path)
    with pytest.raises(InputError, match="no shared library"):
        synthesize(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_missing_wheel_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voices.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "overheard\[synthetic\]"'):
        synthesize(tmp_path / "corpus")


@needs_espeak
def test_unknown_voice() -> None:
    with pytest.raises(InputError, match=r"espeak-ng has no voice xx-none\+f1"):
        speak(Voice("xx-none", "f1", "F", 150, 50), SENTENCE)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"num_speakers": 0}, "num_speakers: 0; give 1 to 24"),
        ({"num_speakers": 25}, "num_speakers: 25; give 1 to 24: there are 24 voices"),
        ({"utterances_per_speaker": 0}, "utterances_per_speaker: 0; give 1 to"),
        ({"utterances_per_speaker": 100_000}, "utterances_per_speaker: 100000; give 1 to"),
        ({"min_seconds": 2.0, "max_seconds": 1.0}, "min_seconds, max_seconds: 2.0 to 1.0"),
        ({"min_seconds": -1.0}, "min_seconds, max_seconds: -1.0 to 6.0"),
        ({"seed": -1}, "seed: -1; give 0 or more"),
        ({"max_seconds": float("nan")}, "min_seconds, max_seconds: 1.0 to nan"),
    ],
)
def test_wrong_arguments(tmp_path: Path, settings: dict[str, float], found: str) -> None:
    with pytest.raises(InputError, match=found):
        synthesize(tmp_path / "corpus", **settings)  # pyright: ignore[reportArgumentType]
