"""`join_audits`: several audits' folders -> one like them, for one report over models, defences and attacks.

The new folder holds copies of records and examples, so that it can be moved and shown by itself; the audits stay as
they are. Prices and guarantees of defences come from federated runs; see `price`.
"""

import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from overheard.audit.folder import CONFIG
from overheard.audit.price import Price, priced
from overheard.audit.records import RESULTS, AuditRecord, load_records, to_line
from overheard.errors import InputError
from overheard.storage import parse_json, read_text, write_text

RANKS, EXAMPLES = "ranks.json", "examples"
EXAMPLE_FILES = ("features.safetensors", "example.json", "original.flac", "true_features.flac", "recovered.flac")
SAME = ("utterance", "model", "weights", "kind", "mode", "batch", "local_steps", "defence", "attack", "prior", "seed")
"""What two records may not share: the attack would count twice."""
REMEDY = "name --out folders of overheard audit"


@dataclass(frozen=True)
class _Audit:
    folder: Path
    config: dict[str, Any]
    records: list[AuditRecord]


def join_audits(folders: Sequence[Path], out: Path, prices: Sequence[Price]) -> list[AuditRecord]:
    """Write a folder that holds what all of these hold; returns its records.

    Args:
        folders: of audits, at least one; of each model, the rank scan of the first of them is kept.
        out: new, empty, or one that an earlier joining wrote.
        prices: of defences; see `priced`.

    Raises:
        InputError: a folder that is no audit's, two that hold the same attack, an `out` with other things in it, or as
            `priced`.
    """
    audits = [_Audit(folder, _config(folder), load_records(folder)) for folder in folders]
    _refuse_twice(audits)
    _begin(out, folders)
    joined: list[AuditRecord] = []
    for index, audit in enumerate(audits):
        place = f"{EXAMPLES}/{index:02d}-{audit.folder.resolve().name}"
        joined += [_moved(record, audit.folder, out, place) for record in audit.records]
    joined = priced(joined, prices)
    write_text(out / RESULTS, "".join(map(to_line, joined)))
    write_text(out / RANKS, json.dumps(_ranks(folders), indent=1))
    write_text(out / CONFIG, json.dumps(_described(audits, joined, prices), indent=1))
    return joined


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_text(folder / CONFIG, REMEDY), str(folder / CONFIG), REMEDY)
        for part, key in (("threat_model", "given"), ("threat_model", "not_given"), ("corpus", "path")):
            found[part][key]
        for key in ("command", "created", "versions", "settings", "threads", "device"):
            found[key]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(str(folder / CONFIG), "no configuration of an audit", REMEDY) from error
    return found


def _refuse_twice(audits: Sequence[_Audit]) -> None:
    seen: dict[tuple[Any, ...], Path] = {}
    for audit in audits:
        for record in audit.records:
            key = tuple(getattr(record, name) for name in SAME)
            earlier = seen.setdefault(key, audit.folder)
            if earlier != audit.folder:
                found = f"{earlier} and {audit.folder} hold the same attack on {record.utterance}"
                raise InputError("directories", found, "name each audit once")


def _begin(out: Path, folders: Sequence[Path]) -> None:
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise InputError("out", f"{out}, one of the audits themselves", "choose a new or empty folder")
    if out.exists() and any(out.iterdir()):
        try:
            ours = "joined" in json.loads((out / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise InputError(str(out), "a folder with other things in it", "choose a new or empty one with --out")
        if (out / EXAMPLES).is_dir():
            shutil.rmtree(out / EXAMPLES)
    # Audits hold private speech.
    out.mkdir(parents=True, exist_ok=True)
    out.chmod(0o700)


def _moved(record: AuditRecord, folder: Path, out: Path, place: str) -> AuditRecord:
    """The record with its example in the new folder; without one where it is no longer in the old."""
    if record.example is None:
        return record
    source = (folder / record.example).resolve()
    if not source.is_relative_to(folder.resolve()):
        raise InputError(f"example of {record.utterance}", f"{record.example} lies outside {folder}", REMEDY)
    if not source.is_dir():
        return replace(record, example=None)
    example = f"{place}/{source.name}"
    (out / example).mkdir(parents=True, exist_ok=True)
    for name in EXAMPLE_FILES:
        if (source / name).is_file():
            # With who may read it.
            shutil.copy(source / name, out / example / name)
    return replace(record, example=example)


def _ranks(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The first rank scan of each model; one that was attacked anywhere was attacked."""
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        path = folder / RANKS
        if not path.is_file():
            continue
        try:
            scans = [
                (scan["model"], scan["attacked"], scan)
                for scan in parse_json(read_text(path, REMEDY), str(path), REMEDY)
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(str(path), "no list of rank scans", REMEDY) from error
        for model, attacked, scan in scans:
            if model in found and attacked and not found[model]["attacked"]:
                found[model] |= {"attacked": True, "note": scan.get("note")}
            found.setdefault(model, dict(scan))
    return list(found.values())


def _described(audits: Sequence[_Audit], records: Sequence[AuditRecord], prices: Sequence[Price]) -> dict[str, Any]:
    """config.json of the whole: what all share as it is, what differs side by side."""
    configs = [audit.config for audit in audits]
    names = dict.fromkeys(name for config in configs for name in config["versions"])
    described = {
        "command": shlex.join(["overheard", *sys.argv[1:]]),
        "created": " to ".join(dict.fromkeys([min(_each(configs, "created")), max(_each(configs, "created"))])),
        "versions": {name: _said(config["versions"].get(name) for config in configs) for name in names},
        "models": list(dict.fromkeys(record.model for record in records)),
        "threat_model": {
            "given": _stated([config["threat_model"]["given"] for config in configs]),
            "not_given": _stated([config["threat_model"]["not_given"] for config in configs]),
        },
        "settings": {str(audit.folder): audit.config["settings"] for audit in audits},
        "corpus": {
            "path": _said(config["corpus"]["path"] for config in configs),
            "utterances": len({record.utterance for record in records}),
            "speakers": len({record.speaker for record in records}),
        },
        "threads": max(config["threads"] for config in configs),
        "device": _said(_each(configs, "device")),
        "prices": [asdict(price) for price in prices],
        "joined": [
            {
                "folder": str(audit.folder),
                "records": len(audit.records),
                "command": audit.config["command"],
                "created": audit.config["created"],
                "device": audit.config["device"],
                "threads": audit.config["threads"],
            }
            for audit in audits
        ],
    }
    listened = [config["listening"] for config in configs if isinstance(config.get("listening"), dict)]
    if listened:
        described["listening"] = {name: _said(each.get(name) for each in listened) for name in listened[0]}
    return described


def _each(configs: Iterable[dict[str, Any]], key: str) -> list[Any]:
    return [config[key] for config in configs]


def _said(values: Iterable[Any]) -> Any:
    """What all say; where they differ, each once."""
    distinct = [value for value in dict.fromkeys(values) if value is not None]
    return distinct[0] if len(distinct) == 1 else ", ".join(map(str, distinct)) or None


def _stated(lists: Sequence[Sequence[str]]) -> list[str]:
    """Every line once; those that not every audit has say so."""
    return [
        line if all(line in each for each in lists) else f"{line} (in some of the audits)"
        for line in dict.fromkeys(line for each in lists for line in each)
    ]
