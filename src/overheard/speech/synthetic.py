"""A corpus made on the spot: known sentences spoken by espeak-ng in many voices, in LibriSpeech's folder layout."""

import hashlib
import importlib.resources
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Int16
from rich.console import Console
from rich.progress import track

from overheard.errors import InputError
from overheard.speech.alphabet import Alphabet
from overheard.speech.voices import SAMPLE_RATE, VOICES, Voice, speak
from overheard.storage import read_text

SUBSET = "synthetic"
FIRST_SPEAKER = 7001
CHAPTER = "1"
# espeak-ng pauses in digital zeros, which no microphone records. This is the level of the quietest frames (the 5th
# percentile of their root mean square) in the median utterance of LibriSpeech.
ROOM_NOISE_DBFS = -60.0
# Beside the corpus: what it was made with, and a checksum of what was made.
RECORD_FILE = "synthesis.json"
SPEAKERS_HEADER = """\
; Synthetic speech: each reader is a voice of espeak-ng.
;
;ID  |SEX| SUBSET           |MINUTES| NAME
"""


def read_sentences(path: Path | None = None) -> tuple[str, ...]:
    """The built-in text, or that of a file: capital letters, apostrophes and single spaces; no sentence twice.

    Raises:
        InputError: a file that cannot be read, or with a sentence that has other symbols.
    """
    if path is None:
        text = importlib.resources.files("overheard").joinpath("speech", "sentences.txt").read_text(encoding="ascii")
        return tuple(text.splitlines())
    remedy = "give a text file with a sentence in each line"
    sentences = [" ".join(line.upper().split()) for line in read_text(path, remedy).splitlines()]
    for number, sentence in enumerate(sentences, start=1):
        Alphabet().encode(sentence, f"{path}, line {number}")
    return tuple(dict.fromkeys(filter(None, sentences)))


def synthesize(
    destination: Path,
    *,
    num_speakers: int = 12,
    utterances_per_speaker: int = 4,
    min_seconds: float = 1.0,
    max_seconds: float = 6.0,
    seed: int = 0,
    sentences: Sequence[str] | None = None,
    console: Console | None = None,
) -> Path:
    """Make a corpus of `num_speakers * utterances_per_speaker` utterances, 16 kHz mono 16-bit FLAC.

    The files are `destination/synthetic/SPEAKER/CHAPTER/SPEAKER-CHAPTER-0000.flac`, with a transcript file in each
    chapter and `destination/SPEAKERS.TXT`. White noise at -60 dBFS stands for the room. A seed gives the same bytes
    each time (with the same espeak-ng, numpy, soxr and libsndfile). Nothing appears before all of it is made. A folder
    that holds the very corpus asked for is left alone.

    Args:
        destination: a folder that is empty or does not exist.
        num_speakers: 1 to 24; speaker i has voice i, whatever the seed.
        utterances_per_speaker: at most the number of sentences. No speaker says a sentence twice, and no two
            speakers say the same one before all that fit were said.
        min_seconds: shortest utterance.
        max_seconds: longest utterance; sentences that a voice speaks outside of these bounds are passed over.
        seed: which sentences fall to whom, and the noise; not negative.
        sentences: from which each voice says some, as `read_sentences` gives them; the built-in ones unless given.
        console: where progress and messages go, by default standard error.

    Returns:
        `destination`.

    Raises:
        InputError: counts or bounds out of range, too few sentences within the bounds, destination in use by something
            else, espeak-ng not installed.
    """
    sentences = read_sentences() if sentences is None else tuple(sentences)
    _check(num_speakers, utterances_per_speaker, min_seconds, max_seconds, seed, len(sentences))
    console = console or Console(stderr=True)
    settings = {
        "num_speakers": num_speakers,
        "utterances_per_speaker": utterances_per_speaker,
        "min_seconds": min_seconds,
        "max_seconds": max_seconds,
        "seed": seed,
        "room_noise_dbfs": ROOM_NOISE_DBFS,
        "voices": [asdict(voice) for voice in VOICES[:num_speakers]],
        "sentences": hashlib.sha256("\n".join(sentences).encode()).hexdigest(),
    }
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        if _holds(destination, settings):
            console.print(f"the synthetic corpus is already complete in {destination}", soft_wrap=True, highlight=False)
            return destination
        remedy = "name an empty or a new folder"
        raise InputError(str(destination), "not empty, and not the synthetic corpus asked for", remedy)
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=destination) as aside:
        corpus = Path(aside)
        table = SPEAKERS_HEADER
        deck = random.Random(seed).sample(sentences, len(sentences))
        speakers = enumerate(VOICES[:num_speakers], FIRST_SPEAKER)
        for speaker, voice in track(speakers, "speaking", total=num_speakers, console=console, transient=True):
            said = _say(voice, deck, utterances_per_speaker, min_seconds, max_seconds)
            room = np.random.default_rng((seed, speaker))
            recorded = {sentence: _record(samples, room) for sentence, samples in said.items()}
            _write_chapter(corpus / SUBSET / str(speaker) / CHAPTER, speaker, recorded)
            minutes = sum(map(len, said.values())) / SAMPLE_RATE / 60
            table += f"{speaker:<5}| {voice.sex} | {SUBSET:<17}|{minutes:6.2f} | {voice.name}\n"
            deck = [sentence for sentence in deck if sentence not in said] + list(said)
        (corpus / "SPEAKERS.TXT").write_text(table, encoding="ascii", newline="\n")
        record = {"settings": settings, "files": _checksums(corpus)}
        (corpus / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="ascii", newline="\n")
        # The record goes last: without it the folder is not taken for a corpus.
        for name in (SUBSET, "SPEAKERS.TXT", RECORD_FILE):
            (corpus / name).rename(destination / name)
    return destination


def _check(
    num_speakers: int,
    utterances_per_speaker: int,
    min_seconds: float,
    max_seconds: float,
    seed: int,
    num_sentences: int,
) -> None:
    for name, value, limit, things in (
        ("num_speakers", num_speakers, len(VOICES), "voices"),
        ("utterances_per_speaker", utterances_per_speaker, num_sentences, "sentences"),
    ):
        if not 1 <= value <= limit:
            raise InputError(name, value, f"give 1 to {limit}: there are {limit} {things}")
    if not 0 <= min_seconds < max_seconds:
        found = f"{min_seconds} to {max_seconds}"
        raise InputError("min_seconds, max_seconds", found, "give two durations, the shorter first")
    if seed < 0:
        raise InputError("seed", seed, "give 0 or more")


def _say(
    voice: Voice, deck: Sequence[str], count: int, min_seconds: float, max_seconds: float
) -> dict[str, Int16[np.ndarray, " _"]]:
    """The first `count` sentences of the deck that this voice speaks within the bounds, and how it speaks them."""
    said = {}
    for sentence in deck:
        samples = speak(voice, sentence)
        if min_seconds <= len(samples) / SAMPLE_RATE <= max_seconds:
            said[sentence] = samples
        if len(said) == count:
            return said
    found = f"{len(said)} of {len(deck)} sentences take {voice.name} {min_seconds} to {max_seconds} s"
    raise InputError("min_seconds, max_seconds", found, f"widen them, or ask for fewer than {count} by each speaker")


def _record(samples: Int16[np.ndarray, " S"], room: np.random.Generator) -> Int16[np.ndarray, " S"]:
    noise = 2**15 * 10 ** (ROOM_NOISE_DBFS / 20) * room.standard_normal(len(samples))
    return np.clip(np.round(samples + noise), -(2**15), 2**15 - 1).astype(np.int16)


def _write_chapter(folder: Path, speaker: int, recorded: dict[str, Int16[np.ndarray, " _"]]) -> None:
    folder.mkdir(parents=True)
    lines = []
    for index, (sentence, samples) in enumerate(recorded.items()):
        utterance = f"{speaker}-{CHAPTER}-{index:04d}"
        soundfile.write(folder / f"{utterance}.flac", samples, SAMPLE_RATE, subtype="PCM_16")
        lines.append(f"{utterance} {sentence}\n")
    transcripts = folder / f"{speaker}-{CHAPTER}.trans.txt"
    transcripts.write_text("".join(lines), encoding="ascii", newline="\n")


def _checksums(corpus: Path) -> dict[str, str]:
    files = sorted(path for path in corpus.rglob("*") if path.is_file())
    return {path.relative_to(corpus).as_posix(): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _holds(folder: Path, settings: dict[str, object]) -> bool:
    """Whether every file of the corpus with these settings is here, unchanged; files of others do not matter."""
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="ascii"))
        if record["settings"] != settings:
            return False
        return all(_sha256(folder / name) == checksum for name, checksum in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return False
