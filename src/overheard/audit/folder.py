"""An audit's output folder: begun once, gone on with by the same audit alone, and what made it."""

import importlib.metadata
import json
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from overheard import __version__
from overheard.errors import InputError
from overheard.storage import parse_json, read_text, write_text

CONFIG = "config.json"
LIBRARIES = ("torch", "numpy", "scipy", "lhotse")
"""Whose versions results depend on."""


def provenance(device: torch.device) -> dict[str, Any]:
    """Command, time, versions, threads and device, as config.json keeps them."""
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {
        "command": shlex.join(["overheard", *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"overheard": __version__, "python": platform.python_version(), **libraries},
        "threads": torch.get_num_threads(),
        "device": str(device),
    }


def begin(out: Path, config: dict[str, Any], what: str) -> None:
    """Write config.json, readable by the folder's owner alone.

    Args:
        out: new, empty, or of an audit with the same fingerprint.
        config: everything that the run is of, "fingerprint" among it.
        what: is begun, with its article, for the message.

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """
    file = out / CONFIG
    if file.exists():
        try:
            kept = parse_json(read_text(file, "choose another --out"), str(file), "choose another --out")["fingerprint"]
        except (KeyError, TypeError) as error:
            raise InputError(str(file), "broken", "choose another --out") from error
        if kept != config["fingerprint"]:
            raise InputError(str(out), f"holds {what} with other settings", "choose another --out, or delete it")
    elif out.exists() and any(out.iterdir()):
        raise InputError(str(out), "a folder with other things in it", "choose a new or empty one with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Audits hold private speech.
        out.chmod(0o700)
        for leftover in out.rglob(".*.part"):
            # What a killed run was writing.
            leftover.unlink()
        write_text(file, json.dumps(config, indent=1))
    except OSError as error:
        raise InputError(str(out), f"cannot be written ({error.strerror})", "choose another --out") from error
