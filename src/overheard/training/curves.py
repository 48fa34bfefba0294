"""The run's curves as PNG and PDF: loss, gradient norm, learning rate, error rates, utterances per second."""

from pathlib import Path
from typing import Any

from overheard.training.tracking import METRICS, read_lines

CURVES = "curves"


def draw_curves(run: Path) -> list[Path]:
    """Draw metrics.jsonl as curves.png and curves.pdf.

    Returns:
        The files; none where not one step succeeded, since there is nothing to draw.
    """
    lines = read_lines(run / METRICS)
    steps = [line for line in lines if line["kind"] == "step"]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    if not steps:
        return []
    # Matplotlib takes a second to import, which no other command should pay.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(2, 3).flat
    loss, gradient, rate, errors, speed, blank = axes
    _draw(loss, steps, "loss", "CTC loss, nats per utterance", "training")
    _draw(loss, evaluations, "loss", "CTC loss, nats per utterance", "held out")
    loss.legend(frameon=False)
    _draw(gradient, steps, "gradient_norm", "norm of the gradient")
    gradient.set_yscale("log")
    _draw(rate, steps, "learning_rate", "learning rate")
    for name, label in (("wer", "WER"), ("cer", "CER")):
        percent = [{**line, name: 100 * line[name]} for line in evaluations if line.get(name) is not None]
        _draw(errors, percent, name, "error rate, greedy, %", label)
    errors.set_ylim(bottom=0)
    if errors.lines:
        errors.legend(frameon=False)
    _draw(speed, steps, "utterances_per_second", "utterances per second")
    speed.set_ylim(bottom=0)
    blank.set_axis_off()
    for axis in (loss, gradient, rate, errors, speed):
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    files = [run / f"{CURVES}.{suffix}" for suffix in ("png", "pdf")]
    for file in files:
        figure.savefig(file, dpi=120)
    return files


def _draw(axis: Any, lines: list[dict[str, Any]], name: str, title: str, label: str | None = None) -> None:
    present = [line for line in lines if line.get(name) is not None]
    if present:
        marker = "o" if len(present) < 60 else None
        axis.plot(
            [line["step"] for line in present], [line[name] for line in present], label=label, marker=marker, ms=3
        )
    axis.set_title(title, fontsize=10)
