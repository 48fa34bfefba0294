"""Files that hold tensors: safetensors with JSON metadata, read with bounds and written whole or not at all.

Nothing here unpickles or executes what it reads. A header is read and checked before any tensor is, so a file that
claims more than it holds costs no memory.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from overheard.errors import InputError

METADATA_KEY = "overheard"
"""The one safetensors metadata entry that is ours: a JSON object."""

MOST_HEADER_BYTES = 16 << 20
"""Of a safetensors header: one of ten thousand tensors takes a tenth of it."""

MOST_TEXT_BYTES = 1 << 28
"""Of a JSON or text file that is read whole."""

TYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
"""Of tensors that are read; torch cannot calculate with some others."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed to it on success, removed on any failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write named tensors and a JSON object as one safetensors file.

    Raises:
        InputError: the folder cannot be written.
    """
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        with written_whole(path) as temporary:
            save_file(owned, temporary, metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    except OSError as error:
        raise InputError(str(path), f"cannot be written ({error.strerror})", "choose a folder you can write") from error


def read_tensors(path: Path, wanted: str, ours: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Named tensors and the JSON object of a safetensors file.

    Args:
        path: the file.
        wanted: what the file should be, for the error message, such as "client update".
        ours: `write_tensors` wrote it; a file of other origin need not have the JSON object.

    Raises:
        InputError: no such file, not safetensors, truncated, its header is huge, its metadata is not ours, or a tensor
            holds NaN or is of a type that nothing here writes.
    """
    if not path.is_file():
        raise InputError(str(path), "no such file", f"name the {wanted} file that overheard wrote")
    again = f"write the {wanted} again"
    try:
        with path.open("rb") as start:
            header = int.from_bytes(start.read(8), "little")
        if header > MOST_HEADER_BYTES:
            raise InputError(str(path), f"not a whole safetensors file (a header of {header} bytes)", again)
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            metadata = _object(text, path, wanted) if ours else {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping, has keys alone)
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(str(path), f"not a whole safetensors file ({error})", again) from error
    for name, tensor in tensors.items():
        if tensor.dtype not in TYPES:
            raise InputError(str(path), f"tensor {name[:60]!r} has type {tensor.dtype}", again)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(str(path), f"tensor {name[:60]!r} holds NaN or infinity", again)
    return tensors, metadata


def read_text(path: Path, remedy: str, most_bytes: int = MOST_TEXT_BYTES) -> str:
    """A text file from outside, whole.

    Raises:
        InputError: it cannot be read, is larger than a file of its kind can be, or is not UTF-8.
    """
    try:
        if path.stat().st_size > most_bytes:
            raise InputError(str(path), f"more than {most_bytes >> 20} MB", remedy)
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(str(path), "no such file", remedy) from error
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", remedy) from error
    except UnicodeDecodeError as error:
        raise InputError(str(path), "not UTF-8 text", remedy) from error


def parse_json(text: str, where: str, remedy: str) -> Any:
    """JSON from outside; NaN and infinity, which are none, are refused.

    Raises:
        InputError: no JSON, nested without end, or with half a character, which no file or screen takes.
    """
    try:
        return _encodable(json.loads(text, parse_constant=_no_number), text)
    except (ValueError, RecursionError) as error:
        raise InputError(where, "no JSON", remedy) from error


def _no_number(text: str) -> Any:
    raise ValueError(text)


def _encodable(values: Any, text: str) -> Any:
    if "\\u" in text:
        # A lone surrogate can be written as an escape only.
        json.dumps(values, ensure_ascii=False).encode()
    return values


def _object(text: str | None, path: Path, wanted: str) -> dict[str, Any]:
    remedy = f"name the {wanted} file that overheard wrote"
    if text is None:
        raise InputError(str(path), f"safetensors without the metadata of a {wanted}", remedy)
    try:
        parsed = _encodable(json.loads(text), text)
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), "metadata is no JSON", remedy) from error
    if not isinstance(parsed, dict):
        raise InputError(str(path), "metadata is no JSON object", remedy)
    return parsed


def parse_fields(build: Callable[..., Any], fields: Any, path: Path | str, wanted: str) -> Any:
    """Build a dataclass from JSON of unknown origin.

    Raises:
        InputError: a field is missing, unknown or has the wrong type.
    """
    if not isinstance(fields, dict):
        raise InputError(str(path), f"a {type(fields).__name__} where a {wanted} belongs", f"write the {wanted} again")
    try:
        return build(**fields)
    except (TypeError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(str(path), f"not a {wanted} ({error})", f"write the {wanted} again") from error
