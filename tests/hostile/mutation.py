"""Files as somebody malicious or a bad disk would make them, from good ones; all of it follows from one generator."""

import gzip
import json
import random
from collections.abc import Callable
from typing import Any

Mutate = Callable[[bytes, random.Random], bytes]

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, -1.5, 1e308, "", "a", "a" * 5000, "NaN",
    "../../../etc/passwd", "/etc/passwd", "<script>alert(1)</script>", "pipe: id", "\u0000", "\ud800", "é\n\r\u2028",
    "__class__", [], {}, [[]], {"": {}}, ["a", 1], [None], {"type": "MonoCut"}, "F32", "BF16", "F8_E4M3", "C64", "BOOL",
    [2**40, 2**40], [0, 2**62], [-1], [0, 1 << 50],
)  # fmt: skip
"""What a careless reader believes."""

RAW = ("1e999", "NaN", "-Infinity", "1" * 5000, "[" * 3000, '{"a":' * 3000, '"\\ud800"', "-0", "01", "tru", "\x00")
"""Text in place of a JSON value."""

BYTES = (
    b"\x00",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"\x80\x04\x95",
    b"%s%n",
    b"\n",
)


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, put in or left out."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(changed) + 1)
        length = draw.choice((1, 1, 2, 4, 8, 64))
        kind = draw.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = draw.randrange(256)
        elif kind == 2:
            changed[at:at] = draw.choice(BYTES)
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length]
        elif draw.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def mutate_json(content: bytes, draw: random.Random) -> bytes:
    """A value exchanged, left out or added anywhere in a JSON text; now and then its bytes."""
    if draw.random() < 0.2:
        return mutate_bytes(content, draw)
    values = json.loads(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        values = _changed(values, draw)
    text = json.dumps(values)
    if draw.random() < 0.2:
        text = text.replace(draw.choice((": 0", ": 1", "null", '""', "[]")), f": {draw.choice(RAW)}", 1)
    return text.encode()


def mutate_lines(content: bytes, draw: random.Random) -> bytes:
    """One line of a file of JSON lines changed, doubled or left out."""
    lines = content.splitlines()
    at = draw.randrange(len(lines))
    lines[at] = mutate_json(lines[at], draw)
    if draw.random() < 0.1:
        lines.insert(at, draw.choice(lines))
    return b"\n".join(lines) + (b"" if draw.random() < 0.1 else b"\n")


def mutate_packed_lines(content: bytes, draw: random.Random) -> bytes:
    """The same inside a gzip file; now and then the file's own bytes."""
    if draw.random() < 0.2:
        return mutate_bytes(content, draw)
    return gzip.compress(mutate_lines(gzip.decompress(content), draw), 1)


def mutate_safetensors(content: bytes, draw: random.Random) -> bytes:
    """The header as JSON, our own JSON inside it, its length, or any bytes."""
    if draw.random() < 0.2:
        return mutate_bytes(content, draw)
    size = int.from_bytes(content[:8], "little")
    header, tensors = json.loads(content[8 : 8 + size]), content[8 + size :]
    metadata = header.get("__metadata__", {})
    if metadata and draw.random() < 0.6:
        for name in metadata:
            metadata[name] = mutate_json(metadata[name].encode(), draw).decode("utf-8", "replace")
    else:
        header = _changed(header, draw)
    text = json.dumps(header).encode()
    length = len(text) if draw.random() < 0.9 else draw.choice((0, 1, 2**20, 2**40, 2**63, 2**64 - 1))
    if draw.random() < 0.1:
        tensors = mutate_bytes(tensors, draw)
    return length.to_bytes(8, "little") + text + tensors


def mutate_text(content: bytes, draw: random.Random) -> bytes:
    """Words of a text exchanged, doubled or left out; now and then its bytes."""
    if draw.random() < 0.3:
        return mutate_bytes(content, draw)
    words = content.decode().split(" ")
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(words))
        new = draw.choice((*RAW, json.dumps(draw.choice(VALUES)), draw.choice(words), "", "=", "[[", "]", "\n"))
        words[at : at + draw.randrange(2)] = [new]
    return " ".join(words).encode("utf-8", "surrogatepass")


def _changed(value: Any, draw: random.Random) -> Any:
    """The value with one of those inside it exchanged."""
    inside = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    if not inside or draw.random() < 0.15:
        if isinstance(value, dict) and draw.random() < 0.5:
            return {**value, draw.choice(("x", "", "__class__", "__metadata__")): draw.choice(VALUES)}
        return draw.choice(VALUES)
    key = draw.choice(list(inside))
    copied = value.copy()
    if isinstance(copied, dict) and draw.random() < 0.15:
        del copied[key]
    else:
        copied[key] = _changed(copied[key], draw)
    return copied
