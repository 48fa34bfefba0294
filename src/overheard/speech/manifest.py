"""Lhotse manifests of unknown origin: read with bounds, checked before anything is opened that they name."""

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lhotse import MonoCut
from lhotse.serialization import deserialize_item

from overheard.errors import InputError
from overheard.storage import parse_json

REMEDY = "give a Lhotse manifest of cuts (.jsonl.gz), or a folder in LibriSpeech's layout"
MOST_BYTES = 1 << 30
"""Of a manifest, unpacked: that of a million utterances."""
MOST_LINE_BYTES = 1 << 20
LONGEST_SECONDS = 1e7
"""Of a recording: a season."""


def read_manifest(path: Path) -> list[MonoCut]:
    """Every cut of a manifest, each with a recording in a file and a supervision.

    Raises:
        InputError: not a manifest of such cuts; names the line.
    """
    cuts: list[MonoCut] = []
    try:
        for number, line in enumerate(_lines(path), start=1):
            cuts.append(_cut(line, f"{path}:{number}"))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(str(path), f"not a manifest of cuts ({error})", REMEDY) from error
    if not cuts:
        raise InputError(str(path), "a manifest without cuts", REMEDY)
    return cuts


def check_inside(path: Path, cuts: Sequence[MonoCut], allowed: Sequence[Path]) -> None:
    """Refuse a manifest that leads to files outside of some folders: it could have others' speech read.

    Raises:
        InputError: names the first such file.
    """
    inside: set[Path] = set()
    for cut in cuts:
        # `read_manifest` has seen that it is there.
        source = Path(cut.recording.sources[0].source)  # pyright: ignore
        if source.parent in inside and not source.is_symlink():
            continue
        try:
            found = source.resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{path}: {cut.id}", f"no usable path ({error})", REMEDY) from error
        if not any(found.is_relative_to(folder) for folder in allowed):
            remedy = "put the manifest into a folder above its audio, or write it with overheard data prepare"
            raise InputError(f"{path}: {cut.id}", f"{source} lies outside the manifest's folder", remedy)
        if not source.is_symlink() and ".." not in source.parts:
            inside.add(source.parent)


def _lines(path: Path) -> Iterator[str]:
    """Its lines; a small file that unpacks without end is not followed."""
    total = 0
    with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
        while line := file.readline(MOST_LINE_BYTES):
            total += len(line)
            if total > MOST_BYTES or len(line) == MOST_LINE_BYTES:
                raise InputError(str(path), "larger than a manifest can be", REMEDY)
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(str(path), "not a manifest of cuts (no UTF-8 text)", REMEDY) from error
            if text.strip():
                yield text


def _cut(line: str, where: str) -> MonoCut:
    values = parse_json(line, where, REMEDY)
    if not isinstance(values, dict) or values.get("type") != "MonoCut":
        raise InputError(where, "no cut of a recording", REMEDY)
    try:
        cut = deserialize_item(values)
        usable = isinstance(cut, MonoCut) and _usable(cut)
    except (ValueError, AssertionError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(where, f"no cut of a recording ({error})", REMEDY) from error
    if not usable:
        raise InputError(where, "a cut without a recording in a file, a supervision or a duration", REMEDY)
    return cut


def _usable(cut: MonoCut) -> bool:
    recording, custom = cut.recording, cut.custom or {}
    if recording is None or len(recording.sources) != 1 or not cut.supervisions:
        return False
    source, said = recording.sources[0], cut.supervisions[0]
    return (
        isinstance(cut.id, str)
        and isinstance(custom, dict)
        and source.type == "file"
        and isinstance(source.source, str)
        and isinstance(recording.sampling_rate, int)
        and recording.sampling_rate > 0
        and _number(cut.start)
        and _number(cut.duration)
        and cut.duration > 0
        and isinstance(cut.num_samples, int)
        and isinstance(said.text, str | None)
        and isinstance(said.speaker, str | int | None)
        and "\0" not in source.source
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LONGEST_SECONDS
