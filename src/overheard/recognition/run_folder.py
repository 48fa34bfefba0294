"""Where a training run keeps its checkpoints, which of them are whole, and which is the best.

    RUN/checkpoints/step-000000120/model.safetensors    the recogniser
                                   state.safetensors    tensors of optimiser and random generators
                                   state.json           everything else
                                   checksums.json       SHA-256 of the other three; written last

A folder appears under its name when all of it is written. Anything else found there is what a killed run left behind.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from overheard.errors import InputError
from overheard.storage import parse_json, read_text

CHECKPOINTS = "checkpoints"
MODEL, TENSORS, STATE, CHECKSUMS = "model.safetensors", "state.safetensors", "state.json", "checksums.json"
PREFIX, UNFINISHED = "step-", ".part"


def checkpoint_folders(run: Path) -> list[Path]:
    """Every finished checkpoint of a run, oldest first; whether it is still whole is another question."""
    return sorted(path for path in (run / CHECKPOINTS).glob(f"{PREFIX}*") if path.is_dir() and _step(path) is not None)


def model_file(run: Path) -> Path:
    """The model in a folder: its own, or that of a run's best whole checkpoint.

    The last checkpoint stands for the best where no word error rate was measured.

    Raises:
        InputError: no checkpoint in the folder, or none that is whole; names the first damage.
    """
    if (run / MODEL).is_file():
        return run / MODEL
    folders = checkpoint_folders(run)
    if not folders:
        raise InputError(str(run), "a folder without checkpoints", "name a run of overheard train, or a model file")
    damages = {folder: damage(folder) for folder in folders}
    whole = [folder for folder in folders if damages[folder] is None]
    if not whole:
        raise InputError(str(run), f"no whole checkpoint ({damages[folders[-1]]})", "train again")
    return (best_of(whole) or whole[-1]) / MODEL


def best_of(folders: list[Path]) -> Path | None:
    """The checkpoint of the lowest word error rate, the latest of equals; None where none was measured."""
    measured = [(wer, -index) for index, folder in enumerate(folders) if (wer := _wer(folder)) is not None]
    if not measured:
        return None
    _, index = min(measured)
    return folders[-index]


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, None when they are as they were written."""
    try:
        checksums = parse_json((folder / CHECKSUMS).read_text(encoding="utf-8"), CHECKSUMS, "train again")
        for name in (MODEL, TENSORS, STATE):
            if _sha256(folder / name) != checksums[name]:
                return f"{folder / name} is not as it was written"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder / CHECKSUMS} is broken ({error})"
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON part of a whole checkpoint.

    Raises:
        InputError: no such file, or no JSON object.
    """
    path = folder / STATE
    found = parse_json(read_text(path, "train again"), str(path), "train again")
    if not isinstance(found, dict):
        raise InputError(str(path), "no JSON object", "train again")
    return found


@contextmanager
def new_checkpoint(run: Path, step: int) -> Iterator[Path]:
    """A folder to write a checkpoint's files into; it gets its name when all of them are on disk.

    One of that name that is already there is replaced.
    """
    final = run / CHECKPOINTS / f"{PREFIX}{step:09d}"
    temporary = final.with_name(f".{final.name}{UNFINISHED}")
    for leftover in (run / CHECKPOINTS).glob(f".{PREFIX}*{UNFINISHED}"):
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        checksums = {name: _sha256(temporary / name) for name in (MODEL, TENSORS, STATE)}
        (temporary / CHECKSUMS).write_text(json.dumps(checksums, indent=1), encoding="utf-8")
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def prune(run: Path, keep: int) -> None:
    """Delete all but the last few and the best."""
    folders = checkpoint_folders(run)
    kept = {*folders[-keep:], best_of(folders)}
    for folder in folders:
        if folder not in kept:
            shutil.rmtree(folder)


def _step(folder: Path) -> int | None:
    digits = folder.name.removeprefix(PREFIX)
    return int(digits) if digits.isdecimal() else None


def _wer(folder: Path) -> float | None:
    try:
        wer = read_state(folder).get("wer")
    except InputError:
        return None
    return float(wer) if isinstance(wer, int | float) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
