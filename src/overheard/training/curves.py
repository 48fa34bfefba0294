"""The run's curves as PNG and PDF: what metrics.jsonl has of losses, errors, speed, traffic and privacy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overheard.training.tracking import METRICS, read_lines

CURVES = "curves"
COLUMNS = 3
MOST_SPEAKERS = 10
"""Curves by speaker that can be told apart."""


@dataclass(frozen=True)
class Curve:
    """A value over the steps: `kind` of line that has it, `name` there, `label` in the legend, `factor` of the unit.

    A curve that may hide another one is dashed.
    """

    kind: str
    name: str
    label: str | None = None
    factor: float = 1.0
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Values that share an axis, which starts at zero, is logarithmic, or is free."""

    title: str
    curves: tuple[Curve, ...]
    axis: str = "zero"


PANELS = (
    Panel(
        "CTC loss, nats per utterance",
        (Curve("step", "loss", "training"), Curve("evaluation", "loss", "held out")),
        "free",
    ),
    Panel("norm of the gradient", (Curve("step", "gradient_norm"),), "log"),
    Panel("learning rate", (Curve("step", "learning_rate"),)),
    Panel(
        "error rate, greedy, %", (Curve("evaluation", "wer", "WER", 100.0), Curve("evaluation", "cer", "CER", 100.0))
    ),
    Panel("utterances per second", (Curve("step", "utterances_per_second"),)),
    Panel(
        "seconds of a round",
        (Curve("step", "seconds_round", "whole"), Curve("step", "seconds_clients", "clients' computing", dashed=True)),
    ),
    Panel(
        "megabytes of a round",
        (
            Curve("step", "bytes_to_clients", "to clients", 1e-6),
            Curve("step", "bytes_from_clients", "from clients", 1e-6, dashed=True),
        ),
    ),
    Panel("epsilon", (Curve("step", "epsilon"),)),
)


def draw_curves(run: Path) -> list[Path]:
    """Draw metrics.jsonl as curves.png and curves.pdf; a panel for which nothing was recorded is left out.

    Returns:
        The files; none where not one step succeeded, since there is nothing to draw.
    """
    lines = read_lines(run / METRICS)
    if not any(line["kind"] == "step" for line in lines):
        return []
    drawn = [(panel, points) for panel in (*PANELS, *_by_speaker(lines)) if any(points := _points(panel, lines))]
    # Matplotlib takes a second to import, which no other command should pay.
    from matplotlib.figure import Figure

    rows = -(-len(drawn) // COLUMNS)
    figure = Figure(figsize=(11, 3.25 * rows), layout="constrained")
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axis, (panel, points) in zip(axes, drawn, strict=False):
        _draw(axis, panel, points)
        axis.set_xlabel("round" if any("clients" in line for line in lines) else "step")
    for axis in axes[len(drawn) :]:
        axis.set_axis_off()
    files = [run / f"{CURVES}.{suffix}" for suffix in ("png", "pdf")]
    for file in files:
        figure.savefig(file, dpi=120)
    return files


def _by_speaker(lines: list[dict[str, Any]]) -> list[Panel]:
    """Word error rates of each of a few speakers."""
    measured = [line for line in lines if line["kind"] == "evaluation" and line.get("speakers")]
    names = sorted({name for line in measured for name in line["speakers"]})
    if len(names) < 2:
        return []
    shown = tuple(Curve("evaluation", f"speakers/{name}/wer", name, 100.0) for name in names[:MOST_SPEAKERS])
    more = f" (the first {MOST_SPEAKERS} of {len(names)})" if len(names) > MOST_SPEAKERS else ""
    return [Panel(f"WER by speaker, greedy, %{more}", shown)]


def _points(panel: Panel, lines: list[dict[str, Any]]) -> list[list[tuple[int, float]]]:
    """(step, value) of each curve."""
    return [
        [
            (line["step"], curve.factor * value)
            for line in lines
            if line["kind"] == curve.kind and (value := _value(line, curve.name)) is not None
        ]
        for curve in panel.curves
    ]


def _value(line: dict[str, Any], name: str) -> float | int | None:
    found: Any = line
    for part in name.split("/"):
        found = (found or {}).get(part)
    return found


def _draw(axis: Any, panel: Panel, points: list[list[tuple[int, float]]]) -> None:
    for curve, own in zip(panel.curves, points, strict=True):
        if own:
            steps, values = zip(*own, strict=True)
            style = {"linestyle": "--" if curve.dashed else "-", "marker": "o" if len(own) < 60 else None, "ms": 3}
            axis.plot(steps, values, label=curve.label, **style)
    axis.set_title(panel.title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.axis == "log":
        axis.set_yscale("log")
    elif panel.axis == "zero":
        axis.set_ylim(bottom=0)
    if any(curve.label for curve in panel.curves):
        axis.legend(frameon=False, fontsize=8)
