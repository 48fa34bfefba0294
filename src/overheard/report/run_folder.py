"""What an audit left in its output folder, read once and checked: configuration, records and rank scans."""

from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any

from overheard.audit.records import AuditRecord, load_records
from overheard.errors import InputError
from overheard.report.titles import Titles
from overheard.storage import parse_fields, parse_json, read_text

CONFIG = "config.json"
RANKS = "ranks.json"
CONFIG_KEYS: dict[str, type | tuple[type, ...]] = {
    "command": str,
    "created": str,
    "versions": dict,
    "threat_model": dict,
    "settings": dict,
    "corpus": dict,
    "threads": int,
    "device": str,
}
OPTIONAL_ROWS: dict[str, dict[str, tuple[type, ...]]] = {
    "prices": {
        "defence": (str,),
        "wer": (int, float, NoneType),
        "utterances": (int,),
        "epsilon": (int, float, NoneType),
        "delta": (int, float, NoneType),
        "rounds": (int,),
        "model": (str,),
        "corpus": (str,),
        "run": (str,),
    },
    "joined": {
        "folder": (str,),
        "records": (int,),
        "command": (str,),
        "created": (str,),
        "device": (str,),
        "threads": (int,),
    },
}
"""Lists that a configuration may have, and what each of their rows holds at least."""
REMEDY = "name the --out folder of overheard audit or demo, or run it again"


@dataclass(frozen=True)
class LayerRow:
    """One layer of a rank scan; see `attacks.rank.LayerRank`, whose fields these are."""

    layer: str
    kind: str
    rows: int
    columns: int
    rank: int
    margin: float
    verdict: str


@dataclass(frozen=True)
class RankScan:
    """The rank scan of one model.

    Attributes:
        model: registry name, path or module:function.
        attacked: whether the run holds an attack on it.
        note: what there is to say about that.
        layers: one row a layer, in the model's order.
        frames: T of the utterance whose update was scanned; None where nobody knows.
        seconds: wall time of the scan, s.
    """

    model: str
    attacked: bool
    note: str | None
    layers: tuple[LayerRow, ...]
    frames: int | None
    seconds: float

    @property
    def exposed(self) -> int:
        """Layers whose update gives away the span of their inputs."""
        return sum(layer.verdict == "span exposed" for layer in self.layers)


@dataclass(frozen=True)
class AuditedRun:
    """An output folder as a report reads it.

    Attributes:
        folder: where it is.
        config: its config.json.
        records: its results.jsonl.
        scans: its ranks.json.
        titles: of all models that these name.
    """

    folder: Path
    config: dict[str, Any]
    records: list[AuditRecord]
    scans: list[RankScan]
    titles: Titles


def read_run(folder: Path) -> AuditedRun:
    """All of an audit's output folder but the examples.

    Raises:
        InputError: a file is missing or is not what it should be.
    """
    config, records, scans = read_config(folder), load_records(folder), read_ranks(folder)
    named = [*(record.model for record in records), *(scan.model for scan in scans)]
    named += [price["model"] for price in config.get("prices", [])]
    return AuditedRun(folder, config, records, scans, Titles.of(named))


def read_config(folder: Path) -> dict[str, Any]:
    """The run's config.json.

    Raises:
        InputError: it is absent, no JSON object, or lacks an entry.
    """
    path = folder / CONFIG
    config = read_object(path)
    for key, kind in CONFIG_KEYS.items():
        if not isinstance(config.get(key), kind):
            raise InputError(str(path), f"no usable entry {key!r}", REMEDY)
    for key in ("given", "not_given"):
        if not isinstance(config["threat_model"].get(key), list):
            raise InputError(str(path), f"threat_model has no list {key!r}", REMEDY)
    for key, wanted in OPTIONAL_ROWS.items():
        rows = config.get(key, [])
        if not isinstance(rows, list) or not all(_has(row, wanted) for row in rows):
            raise InputError(str(path), f"no usable entry {key!r}", REMEDY)
    return config


def read_ranks(folder: Path) -> list[RankScan]:
    """The run's ranks.json, one scan a model; none where the run has no such file.

    Raises:
        InputError: it is no JSON list of rank scans.
    """
    path = folder / RANKS
    if not path.is_file():
        return []
    found = _read_json(path)
    if not isinstance(found, list) or not all(isinstance(scan, dict) for scan in found):
        raise InputError(str(path), "no list of rank scans", REMEDY)
    scans = []
    for scan in found:
        layers = scan.get("layers")
        if not isinstance(layers, list):
            raise InputError(str(path), "a rank scan without its layers", REMEDY)
        rows = tuple(_known(LayerRow, layer, path) for layer in layers)
        scans.append(_known(RankScan, scan | {"layers": rows}, path))
    return scans


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: there is none.
    """
    found = _read_json(path)
    if not isinstance(found, dict):
        raise InputError(str(path), "no JSON object", REMEDY)
    return found


def _read_json(path: Path) -> Any:
    return parse_json(read_text(path, REMEDY), str(path), REMEDY)


def _has(row: Any, wanted: dict[str, tuple[type, ...]]) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(key), kinds) for key, kinds in wanted.items())


def _known(build: type, found: Any, path: Path) -> Any:
    # A newer version may write more than this one shows.
    if isinstance(found, dict):
        names = {field.name for field in fields(build)}
        found = {name: value for name, value in found.items() if name in names}
    return parse_fields(build, found, path, "rank scan")
