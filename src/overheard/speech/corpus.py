"""Corpora: utterances with speaker and transcript, kept as Lhotse cuts. A speaker is a client.

A corpus is a folder in LibriSpeech's layout, `.../SUBSET/SPEAKER/CHAPTER/ID.flac` beside `*.trans.txt`, or a Lhotse
manifest. A manifest that `prepare` wrote remembers the files behind it and is refused once they have changed.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
from jaxtyping import Float
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from torch import Tensor

from overheard.errors import InputError
from overheard.speech.manifest import check_inside, read_manifest
from overheard.storage import parse_json, read_text, write_text, written_whole

AUDIO_SUFFIXES = (".flac", ".wav")
SAMPLE_RATE = 16000
"""Hz; what LibriSpeech has, and every model here takes."""

LONGEST_SECONDS = 3600
"""Of an utterance: a hundred times LibriSpeech's longest."""

LONGEST_NAME = 240
"""Bytes of an utterance's id, which is its file's name."""

PROBLEM_FIELDS = ("utterance", "speaker", "reason", "remedy")


@dataclass(frozen=True)
class Utterance:
    """One recording of one speaker.

    Attributes:
        id: unique in its corpus.
        speaker: id of who speaks.
        subset: name of the part of the corpus, such as "test-clean".
        waveform: (S,) samples in [-1, 1].
        sample_rate: Hz.
        transcript: what is said.
    """

    id: str
    speaker: str
    subset: str
    waveform: Float[Tensor, " S"]
    sample_rate: int
    transcript: str

    @property
    def seconds(self) -> float:
        """Duration, s."""
        return len(self.waveform) / self.sample_rate


@dataclass(frozen=True)
class Problem:
    """An utterance that cannot be used, and why."""

    utterance: str
    speaker: str
    reason: str
    remedy: str

    def error(self) -> InputError:
        """The problem as an error to raise."""
        return InputError(self.utterance, self.reason, self.remedy)


@dataclass(frozen=True)
class Corpus:
    """Usable utterances as Lhotse cuts, in order of their ids, and the rest as problems."""

    path: Path
    cuts: tuple[MonoCut, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Selection:
    """Which utterances of a corpus are meant; None stands for no limit.

    Attributes:
        min_seconds: shortest duration, s.
        max_seconds: longest duration, s.
        speakers: ids of speakers.
        subsets: names of parts of the corpus.
        utterances: ids of utterances.
        limit: how many; drawn at random by `seed`, kept in the corpus's order.
        seed: of that draw.
    """

    min_seconds: float | None = None
    max_seconds: float | None = None
    speakers: tuple[str, ...] = ()
    subsets: tuple[str, ...] = ()
    utterances: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0


def load_corpus(path: Path, *, anywhere: bool = False) -> Corpus:
    """A corpus from a folder in LibriSpeech's layout or from a Lhotse manifest of cuts.

    Args:
        path: the folder or manifest.
        anywhere: a manifest is one's own, and may name audio outside its folder that it was not prepared from.

    Raises:
        InputError: nothing there, no transcripts in it, or a manifest that is broken, stale, or leads elsewhere.
    """
    if path.is_dir():
        return _scan(path)
    if path.is_file():
        return _load_manifest(path, anywhere)
    raise InputError(str(path), "no such folder or manifest", "name a folder in LibriSpeech's layout with --corpus")


def prepare(folder: Path, manifest: Path) -> Corpus:
    """Write a Lhotse manifest of a folder, and beside it what the folder held when it was written.

    Args:
        folder: in LibriSpeech's layout; parts of subsets are fine.
        manifest: file to write, ending in .jsonl.gz.

    Raises:
        InputError: the folder holds no transcripts or no usable utterance, or the manifest's name is of another kind.
    """
    if not manifest.name.endswith(".jsonl.gz"):
        raise InputError(str(manifest), "no name for a Lhotse manifest", "let it end in .jsonl.gz")
    if not folder.is_dir():
        raise InputError(str(folder), "no such folder", "name a folder in LibriSpeech's layout")
    corpus = _scan(folder)
    if not corpus.cuts:
        raise InputError(str(folder), f"no usable utterance ({corpus.problems[0].reason})", corpus.problems[0].remedy)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(manifest) as temporary:
        # Lhotse picks the format by the name's ending.
        named = temporary.with_name(f"{temporary.name}.jsonl.gz")
        try:
            CutSet.from_cuts(corpus.cuts).to_file(named)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)
    source = {
        "folder": str(folder.resolve()),
        "fingerprint": _fingerprint(folder),
        "problems": [vars(problem) for problem in corpus.problems],
    }
    write_text(_source_file(manifest), json.dumps(source, indent=1))
    return corpus


def select(corpus: Corpus, selection: Selection) -> tuple[list[MonoCut], list[Problem]]:
    """The cuts that a selection means, and those problems that it would have met.

    A problem has no known duration, so durations leave it in.

    Raises:
        InputError: an utterance, speaker or subset that the corpus lacks, or nothing selected.
    """
    known = {
        "utterance": {cut.id for cut in corpus.cuts} | {problem.utterance for problem in corpus.problems},
        "speaker": {_speaker(cut) for cut in corpus.cuts} | {problem.speaker for problem in corpus.problems},
        "subset": {_subset(cut) for cut in corpus.cuts},
    }
    asked = {"utterance": selection.utterances, "speaker": selection.speakers, "subset": selection.subsets}
    for name, values in asked.items():
        for value in values:
            if value not in known[name]:
                some = ", ".join(sorted(known[name])[:5])
                raise InputError(f"{name} {value}", f"not in {corpus.path}", f"it has {some} ...")
    cuts = [cut for cut in corpus.cuts if _meets(cut, selection)]
    problems = [
        problem
        for problem in corpus.problems
        if (not selection.utterances or problem.utterance in selection.utterances)
        and (not selection.speakers or problem.speaker in selection.speakers)
    ]
    if selection.limit is not None:
        if selection.limit < 1:
            raise InputError("limit", selection.limit, "give a whole number from 1 up")
        together: list[MonoCut | Problem] = [*cuts, *problems]
        drawn = random.Random(selection.seed).sample(range(len(together)), min(selection.limit, len(together)))
        kept = [together[index] for index in sorted(drawn)]
        cuts = [each for each in kept if isinstance(each, MonoCut)]
        problems = [each for each in kept if isinstance(each, Problem)]
    if not cuts and not problems:
        raise InputError("selection", "no utterance meets it", f"{corpus.path} has {len(corpus.cuts)}; ask for less")
    return cuts, problems


def load_utterance(cut: MonoCut) -> Utterance:
    """Read one utterance's audio.

    Raises:
        InputError: the file is missing, broken or shorter than its manifest says, or of another rate.
    """
    recording = cut.recording
    if recording is None or cut.num_samples is None:
        raise InputError(cut.id, "a cut without a recording", "give a manifest of recorded speech")
    path = Path(str(recording.sources[0].source))
    problem = _audio_problem(path)
    if problem is not None:
        raise InputError(cut.id, *problem)
    try:
        samples, sample_rate = soundfile.read(path, dtype="float32")
    except (soundfile.LibsndfileError, OSError) as error:
        raise InputError(cut.id, f"corrupt audio in {path} ({error})", "fetch the file again") from error
    start = round(cut.start * sample_rate)
    waveform = torch.from_numpy(samples[start : start + cut.num_samples])
    if len(waveform) != cut.num_samples:
        found = f"{path} has {len(samples)} samples, the manifest says {start + cut.num_samples}"
        raise InputError(cut.id, found, "run overheard data prepare again")
    return Utterance(cut.id, _speaker(cut), _subset(cut), waveform, sample_rate, cut.supervisions[0].text or "")


def _meets(cut: MonoCut, selection: Selection) -> bool:
    return (
        (selection.min_seconds is None or cut.duration >= selection.min_seconds)
        and (selection.max_seconds is None or cut.duration <= selection.max_seconds)
        and (not selection.speakers or _speaker(cut) in selection.speakers)
        and (not selection.subsets or _subset(cut) in selection.subsets)
        and (not selection.utterances or cut.id in selection.utterances)
    )


def _speaker(cut: MonoCut) -> str:
    return str(cut.supervisions[0].speaker)


def _subset(cut: MonoCut) -> str:
    return str((cut.custom or {}).get("subset", ""))


def _scan(folder: Path) -> Corpus:
    """Read transcripts and audio headers below a folder."""
    transcripts = sorted(folder.rglob("*.trans.txt"))
    if not transcripts:
        remedy = "give LibriSpeech's layout: SUBSET/SPEAKER/CHAPTER/ID.flac beside SPEAKER-CHAPTER.trans.txt"
        raise InputError(str(folder), "no *.trans.txt in it", remedy)
    cuts: dict[str, MonoCut] = {}
    problems: dict[str, Problem] = {}
    for file in transcripts:
        speaker, subset = file.parents[1].name, file.parents[2].name
        for line in _lines(file):
            name, _, text = line.partition(" ")
            if name in cuts or name in problems:
                raise InputError(name, f"twice in {folder}, again in {file}", "give each utterance an id of its own")
            path = _audio_file(file.parent, name)
            found = (
                (f"no audio at {file.parent / name}.flac", "fetch the file") if path is None else _audio_problem(path)
            )
            if found is None and not text.strip():
                found = (f"empty transcript in {file}", "write its words there, or leave the utterance out")
            if found is not None or path is None:
                problems[name] = Problem(name, speaker, *(found or ("", "")))
            else:
                cuts[name] = _cut(name, path, speaker, subset, text.strip())
    return Corpus(
        folder,
        tuple(cuts[name] for name in sorted(cuts)),
        tuple(problems[name] for name in sorted(problems)),
    )


def _lines(file: Path) -> Sequence[str]:
    text = read_text(file, "write it as UTF-8: ID, a space, and the words, line by line")
    return [line for line in text.splitlines() if line.strip()]


def _audio_file(folder: Path, name: str) -> Path | None:
    # A name with a separator would lead out of the folder; file systems take no longer ones than this.
    if Path(name).name != name or len(name.encode()) > LONGEST_NAME:
        return None
    return next((path for suffix in AUDIO_SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def _audio_problem(path: Path) -> tuple[str, str] | None:
    """What a header says against using a file, and the remedy."""
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, OSError) as error:
        return f"corrupt audio in {path} ({error})", "fetch the file again"
    if info.samplerate != SAMPLE_RATE:
        return f"{info.samplerate} Hz audio in {path}", f"resample it to {SAMPLE_RATE} Hz"
    if info.channels != 1:
        return f"{info.channels} channels in {path}", "mix it down to one"
    if info.frames == 0:
        return f"no samples in {path}", "leave it out"
    if info.frames > LONGEST_SECONDS * SAMPLE_RATE:
        # A few kilobytes of FLAC can claim, and be, hours of silence.
        return f"{info.frames / SAMPLE_RATE:.0f} s of audio in {path}", f"cut it to {LONGEST_SECONDS} s at most"
    return None


def _cut(name: str, path: Path, speaker: str, subset: str, text: str) -> MonoCut:
    info = soundfile.info(path)
    source = AudioSource("file", channels=[0], source=str(path.resolve()))
    recording = Recording(name, [source], info.samplerate, info.frames, info.frames / info.samplerate)
    supervision = SupervisionSegment(name, name, 0.0, recording.duration, channel=0, text=text, speaker=speaker)
    return MonoCut(name, 0.0, recording.duration, 0, [supervision], recording=recording, custom={"subset": subset})


def _source_file(manifest: Path) -> Path:
    return manifest.with_name(manifest.name.removesuffix(".jsonl.gz") + ".source.json")


def _fingerprint(folder: Path) -> str:
    """Hash of every transcript, and of the name, size and time of every audio file."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.name.endswith(".trans.txt"):
            digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
        elif path.suffix in AUDIO_SUFFIXES:
            state = path.stat()
            digest.update(f"{path.relative_to(folder)}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _load_manifest(path: Path, anywhere: bool) -> Corpus:
    cuts = read_manifest(path)
    problems: list[Problem] = []
    # Beside its manifest, and the folder that this manifest can be shown to be of.
    allowed = [path.parent.resolve()]
    if _source_file(path).is_file():
        again = "run overheard data prepare again"
        source = parse_json(read_text(_source_file(path), again), str(_source_file(path)), again)
        try:
            folder, fingerprint = Path(source["folder"]), source["fingerprint"]
            problems = [Problem(*(str(fields[name]) for name in PROBLEM_FIELDS)) for fields in source["problems"]]
            fresh = folder.is_dir() and _fingerprint(folder) == fingerprint
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(str(_source_file(path)), "broken", again) from error
        if not fresh:
            found = f"stale: {folder} has changed since it was prepared"
            raise InputError(str(path), found, again)
        # Nobody knows a folder's fingerprint who has not read it.
        allowed.append(folder.resolve())
    if not anywhere:
        check_inside(path, cuts, allowed)
    return Corpus(path, tuple(sorted(cuts, key=lambda cut: cut.id)), tuple(problems))
