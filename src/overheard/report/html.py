"""`write_report`: an audit's output folder -> one HTML page that needs nothing else and asks nothing of any network."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from overheard.audit.records import AuditRecord
from overheard.metrics.alignment import CLOSE
from overheard.report import wording
from overheard.report.columns import columns_shown, settings_shared
from overheard.report.examples import Example, examples_shown, read_example
from overheard.report.feature_errors import error_plot
from overheard.report.figures import FeatureMaps, feature_maps, spectrum_plot
from overheard.report.overview import duration_plot, frame_error_plot, frontier_plot
from overheard.report.run_folder import AuditedRun, RankScan, read_run
from overheard.report.summary import (
    Condition,
    Summary,
    condition,
    failure_reasons,
    grouped,
    records_shown,
    summarise,
    transcript_changes,
    verdict,
)
from overheard.report.verdicts import Standing, standings, verdict_headline, verdict_sentences
from overheard.report.voices import TITLES, voices
from overheard.storage import write_text

REPORT = "report.html"
REDACTED = "report-redacted.html"
TEMPLATES = Path(__file__).parent / "templates"
ROWS = 500
EXAMPLES = 8
REASONS = 20
CONDITIONS = 200


@dataclass(frozen=True)
class _ModelPart:
    """What the page says of one model."""

    name: str | None
    title: str
    summary: Summary | None
    scan: RankScan | None
    spectrum: Markup | None
    spectrum_of: str | None


@dataclass(frozen=True)
class _ExamplePart:
    """What the page shows of one example."""

    anchor: str
    example: Example
    maps: FeatureMaps
    said: str | None
    read: str | None
    changes: list[tuple[str, str]] | None
    frame_errors: Markup | None


def write_report(folder: Path, *, redact: bool = False) -> Path:
    """Write the page of an audit's output folder; the same folder gives the same bytes.

    Args:
        folder: what `overheard audit` or `demo` wrote: config.json, results.jsonl, and where there are any, ranks.json
            and examples.
        redact: leave out the examples, whose audio, features and transcripts are somebody's speech.

    Returns:
        The page in that folder: report.html, or report-redacted.html.

    Raises:
        InputError: a file is missing or is not what it should be.
    """
    return write_page(read_run(folder), redact=redact)


def write_page(run: AuditedRun, *, redact: bool = False) -> Path:
    """`write_report` of a folder that was read already."""
    folder, records, titles = run.folder, run.records, run.titles
    found = standings(records)
    chosen = [] if redact else examples_shown(records, EXAMPLES)
    examples = [example for record in chosen if (example := read_example(folder, record)) is not None]
    anchors = {example.record.example: f"example-{index}" for index, example in enumerate(examples, start=1)}
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            config=run.config,
            settings=json.dumps(run.config["settings"], indent=2, ensure_ascii=False),
            summary=summarise(records),
            standings=found if _several_defences(found) else [],
            headline=verdict_headline(found) if _several_defences(found) else wording.headline(summarise(records)),
            verdict_sentences=verdict_sentences(found),
            models=_model_parts(run, examples),
            title_of=titles,
            conditions=_conditions(records),
            voices=voices(records),
            heard=_heard(records),
            frontier_plot=frontier_plot("frontier", records, titles),
            duration_plot=duration_plot("durations", records, titles),
            redact=redact,
            error_plot=error_plot("error", records, titles),
            threshold=CLOSE,
            examples=[_example_part(anchors[example.record.example], example) for example in examples],
            attacks_shown=len({example.record.attack for example in examples}),
            examples_kept=len({record.example for record in records} - {None}),
            anchors=anchors,
            total=len(records),
            unrecovered=sum(not record.recovered for record in records),
            rows=records_shown(records, ROWS),
            columns=columns_shown(records),
            shared=settings_shared(records, titles),
            reasons=failure_reasons(records),
            reasons_shown=REASONS,
            **_inlined(),
        )
    )
    path = folder / (REDACTED if redact else REPORT)
    write_text(path, page)
    return path


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["say"] = wording
    environment.globals["verdict"] = verdict
    environment.globals["sources"] = TITLES
    return environment


def _inlined() -> dict[str, str]:
    """Style and script, and the hash by which the page allows that one script and no other."""
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"style": Markup(style), "script": Markup(script), "script_hash": f"sha256-{digest}"}


def _model_parts(run: AuditedRun, examples: Sequence[Example]) -> list[_ModelPart]:
    groups = grouped(run.records, lambda record: record.model)
    by_name = {scan.model: scan for scan in run.scans}
    parts = []
    for index, name in enumerate(dict.fromkeys([*groups, *by_name]), start=1):
        example = next((one for one in examples if one.record.model == name and one.spectrum is not None), None)
        spectrum = None
        if example is not None and example.spectrum is not None:
            read, true = example.record.frames_recovered, example.record.frames_true
            spectrum = spectrum_plot(f"spectrum-{index}", example.spectrum, read, true)
        parts.append(
            _ModelPart(
                name=name,
                title=run.titles(name),
                summary=summarise(groups[name]) if name in groups else None,
                scan=by_name.get(name or ""),
                spectrum=spectrum,
                spectrum_of=example.record.utterance if example else None,
            )
        )
    return parts


def _several_defences(found: Sequence[Standing]) -> bool:
    """Some model was attacked under more than one: a sum over them says nothing."""
    return len(found) > len({each.model for each in found})


def _conditions(records: Sequence[AuditRecord]) -> dict[str, Any]:
    """Groups of records made alike, and the names of the settings in which they differ."""
    groups = {key: summarise(group) for key, group in grouped(records, condition).items()}
    names = [field.name for field in fields(Condition)]
    differing = [name for name in names if len({getattr(key, name) for key in groups}) > 1]
    summaries = list(groups.values())
    return {
        "groups": groups,
        "shown": list(groups.items())[:CONDITIONS],
        "names": ["model", *(name for name in differing if name != "model")],
        "numeric": ("batch", "local_steps", "epsilon", "delta"),
        "priced": any(each.utility_wer for each in summaries),
        "read": any(each.words for each in summaries),
        "counted": any(each.frames for each in summaries),
    }


def _heard(records: Sequence[AuditRecord]) -> dict[str, int]:
    """How many records have hearings, and of how many utterances: several conditions repeat them."""
    listened = [record.utterance for record in records if record.hearings]
    return {"records": len(listened), "utterances": len(set(listened))}


def _example_part(anchor: str, example: Example) -> _ExamplePart:
    said = example.details.get("transcript_true") or example.record.transcript_true
    read = example.details.get("transcript_recovered") or example.record.transcript_recovered
    return _ExamplePart(
        anchor=anchor,
        example=example,
        maps=feature_maps(anchor, example.true, example.recovered, example.front_end),
        said=said,
        read=read,
        changes=[*transcript_changes(said, read)] if said is not None and read is not None else None,
        frame_errors=None
        if example.recovered is None
        else frame_error_plot(f"{anchor}-frames", example.true, example.recovered, example.front_end),
    )
