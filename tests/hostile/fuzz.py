"""Spoiled files through every reader: each is read, or refused in one line; nothing else may happen.

    PYTHONPATH=tests python tests/hostile/fuzz.py --inputs 100000 [--reader update manifest] [--seed 0]

Prints for each reader how many inputs were read and refused, the slowest, and the process's peak memory.
"""

import argparse
import random
import resource
import signal
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from readers import Reader, readers, write_corpus

from overheard.errors import InputError

HANG_SECONDS = 30
LONGEST_LINE = 2000
"""Characters of a message."""
MOST_MB = 1024
"""Peak memory of the whole process, libraries included."""


@dataclass
class Count:
    """What became of a reader's inputs."""

    read: int = 0
    refused: int = 0
    slowest: float = 0.0


def try_one(reader: Reader, folder: Path, content: bytes, count: Count) -> None:
    """One input: read, or refused in one line of bounded length. Anything else is the caller's error."""
    path = folder / reader.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    start = time.process_time()
    try:
        reader.read(folder)
        count.read += 1
    except InputError as error:
        count.refused += 1
        line = str(error)
        if "\n" in line or len(line) > LONGEST_LINE:
            raise ValueError(f"not one clear line, but {len(line)} characters") from error
    count.slowest = max(count.slowest, time.process_time() - start)


def fuzz(reader: Reader, folder: Path, inputs: int, seed: int) -> Count:
    """So many inputs through one reader; an input that breaks it stays in the folder."""
    count = Count()
    for index in range(inputs):
        draw = random.Random(f"{seed} {index}")
        signal.alarm(HANG_SECONDS)
        try:
            try_one(reader, folder, reader.mutate(reader.good, draw), count)
        except Exception:
            print(f"broken by input {index} of seed {seed}: {folder / reader.name}", flush=True)
            raise
        finally:
            signal.alarm(0)
    return count


def _hung(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"a reader took more than {HANG_SECONDS} s")


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", nargs="*", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _hung)
    place = Path(tempfile.mkdtemp(prefix="overheard-fuzz-"))
    table = readers(place / "good")
    print(f"{'reader':<20} {'inputs':>8} {'read':>8} {'refused':>8} {'slowest ms':>10} {'CPU s':>7} {'peak MB':>8}")
    for name in arguments.reader or table:
        start = time.process_time()
        folder = place / name.replace(" ", "-")
        if name == "transcripts":
            write_corpus(folder)
        count = fuzz(table[name], folder, arguments.inputs, arguments.seed)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        spent = time.process_time() - start
        numbers = f"{count.read:>8} {count.refused:>8} {1000 * count.slowest:>10.1f} {spent:>7.0f} {peak:>8.0f}"
        print(f"{name:<20} {arguments.inputs:>8} {numbers}", flush=True)
        assert peak < MOST_MB, f"{peak:.0f} MB"


if __name__ == "__main__":
    main()
