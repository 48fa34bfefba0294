"""Corpora: any folder in LibriSpeech's layout, its manifest, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from overheard.errors import InputError
from overheard.speech.corpus import Selection, load_corpus, load_utterance, prepare, select


def write_chapter(root: Path, speaker: str, lines: dict[str, str], seconds: float = 1.0, subset: str = "part") -> Path:
    """A chapter of one speaker with a tone for each line."""
    folder = root / subset / speaker / "1"
    folder.mkdir(parents=True)
    for index, name in enumerate(lines):
        samples = 0.1 * np.sin(np.arange(round(16000 * (seconds + index))) * 0.05)
        soundfile.write(folder / f"{name}.flac", samples, 16000)
    text = "".join(f"{name} {words}\n" for name, words in lines.items())
    (folder / f"{speaker}-1.trans.txt").write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    write_chapter(root, "11", {"11-1-0000": "ONE", "11-1-0001": "TWO", "11-1-0002": "THREE"})
    write_chapter(root, "12", {"12-1-0000": "FOUR"}, seconds=2.5, subset="other")
    return root


def test_a_folder_is_a_corpus(folder: Path) -> None:
    corpus = load_corpus(folder)
    assert [cut.id for cut in corpus.cuts] == ["11-1-0000", "11-1-0001", "11-1-0002", "12-1-0000"]
    said = load_utterance(corpus.cuts[3])
    assert (said.speaker, said.subset, said.transcript, said.sample_rate) == ("12", "other", "FOUR", 16000)
    assert said.waveform.shape == (40000,)
    assert said.seconds == 2.5


@pytest.mark.parametrize("part", ["part", "part/11", "part/11/1"])
def test_a_part_of_a_subset_is_a_corpus(folder: Path, part: str) -> None:
    corpus = load_corpus(folder / part)
    assert [cut.id for cut in corpus.cuts] == ["11-1-0000", "11-1-0001", "11-1-0002"]
    assert load_utterance(corpus.cuts[0]).speaker == "11"


def test_a_manifest_gives_the_same_corpus(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl.gz"
    prepare(folder, manifest)
    kept, scanned = load_corpus(manifest), load_corpus(folder)
    assert [cut.id for cut in kept.cuts] == [cut.id for cut in scanned.cuts]
    assert load_utterance(kept.cuts[1]).transcript == "TWO"
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "manifest.jsonl.gz", "manifest.source.json"}


def test_a_manifest_without_its_source_file_is_plain_lhotse(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl.gz"
    prepare(folder, manifest)
    (tmp_path / "manifest.source.json").unlink()
    assert len(load_corpus(manifest).cuts) == 4


def _rewrite_transcript(folder: Path) -> None:
    file = folder / "part/11/1/11-1.trans.txt"
    file.write_text(file.read_text().replace("ONE", "TEN"))


def _remove_audio(folder: Path) -> None:
    (folder / "part/11/1/11-1-0000.flac").unlink()


def _add_speaker(folder: Path) -> None:
    write_chapter(folder, "13", {"13-1-0000": "FIVE"})


def _replace_audio(folder: Path) -> None:
    soundfile.write(folder / "part/11/1/11-1-0000.flac", np.zeros(1600), 16000)


def _remove_all(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("change", [_rewrite_transcript, _remove_audio, _add_speaker, _replace_audio, _remove_all])
def test_a_stale_manifest_is_refused(folder: Path, tmp_path: Path, change) -> None:
    manifest = tmp_path / "manifest.jsonl.gz"
    prepare(folder, manifest)
    change(folder)
    with pytest.raises(InputError, match="stale"):
        load_corpus(manifest)


def test_unusable_utterances_are_problems_and_not_the_end(folder: Path) -> None:
    chapter = folder / "part/11/1"
    soundfile.write(chapter / "11-1-0001.flac", np.zeros((100, 2)), 16000)
    (chapter / "11-1-0002.flac").write_bytes(b"fLaC and nothing else")
    corpus = load_corpus(folder)
    assert {problem.utterance: problem.reason.split(" in ")[0] for problem in corpus.problems} == {
        "11-1-0001": "2 channels",
        "11-1-0002": "corrupt audio",
    }
    assert len(corpus.cuts) == 2
    cuts, problems = select(corpus, Selection(speakers=("11",)))
    assert (len(cuts), len(problems)) == (1, 2)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(min_seconds=2.0), ["11-1-0001", "11-1-0002", "12-1-0000"]),
        (Selection(max_seconds=2.0), ["11-1-0000", "11-1-0001"]),
        (Selection(speakers=("12",)), ["12-1-0000"]),
        (Selection(subsets=("other",)), ["12-1-0000"]),
        (Selection(utterances=("11-1-0002",)), ["11-1-0002"]),
        (Selection(min_seconds=1.5, speakers=("11",), limit=5), ["11-1-0001", "11-1-0002"]),
    ],
)
def test_selection(folder: Path, selection: Selection, expected: list[str]) -> None:
    assert [cut.id for cut in select(load_corpus(folder), selection)[0]] == expected


def test_a_limit_draws_by_its_seed(folder: Path) -> None:
    corpus = load_corpus(folder)
    drawn = [[cut.id for cut in select(corpus, Selection(limit=2, seed=seed))[0]] for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({tuple(each) for each in drawn}) > 1
    assert all(each == sorted(each) and len(each) == 2 for each in drawn)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(utterances=("99",)), "utterance 99: not in"),
        (Selection(speakers=("99",)), "speaker 99: not in"),
        (Selection(subsets=("dev",)), "subset dev: not in"),
        (Selection(min_seconds=100.0), "no utterance meets it"),
        (Selection(limit=0), "limit: 0"),
    ],
)
def test_a_selection_of_nothing_is_refused(folder: Path, selection: Selection, message: str) -> None:
    with pytest.raises(InputError, match=message):
        select(load_corpus(folder), selection)


def test_real_librispeech_is_a_corpus(librispeech: Path) -> None:
    corpus = load_corpus(librispeech)
    assert len(corpus.cuts) == 161
    assert not corpus.problems
    assert len({cut.supervisions[0].speaker for cut in corpus.cuts}) == 13
