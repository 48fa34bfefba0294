"""What a run writes down while it goes: metrics.jsonl, faults.jsonl, TensorBoard, and a table in the terminal."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from overheard.storage import write_text

METRICS, FAULTS, TENSORBOARD = "metrics.jsonl", "faults.jsonl", "tensorboard"
ROWS = 12
COLUMNS = ("epoch", "step", "loss", "gradient", "rate", "utt/s", "dev loss", "CER %", "WER %", "skipped")


class Tracker:
    """Records of one run; in processes beside the first it records faults alone.

    Args:
        run: the run's folder.
        rank: this process; the first one is 0.
        step: steps that the run has behind it; whatever was written of later ones is dropped, since they are repeated.
        console: where the table goes.
    """

    def __init__(self, run: Path, rank: int, step: int, console: Console) -> None:
        self.first = rank == 0
        self.run = run
        self.faults = run / (FAULTS if self.first else f"faults-{rank}.jsonl")
        self.rows: list[tuple[str, ...]] = []
        _drop_after(self.faults, step)
        if not self.first:
            return
        _drop_after(run / METRICS, step)
        self.writer = SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1)
        self.live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        self.console = console

    def __enter__(self) -> "Tracker":
        if self.first and self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.first:
            self.writer.close()
            if self.live is not None:
                self.live.stop()

    def record(self, kind: str, step: int, **values: Any) -> None:
        """Append one line to metrics.jsonl and its numbers to TensorBoard."""
        if not self.first:
            return
        _append(self.run / METRICS, {"kind": kind, "step": step, **values})
        for name, value in values.items():
            if isinstance(value, int | float) and name not in ("epoch", "seconds"):
                self.writer.add_scalar(f"{kind}/{name}", value, step)

    def fault(self, step: int, kind: str, utterances: tuple[str, ...], reason: str) -> None:
        """Append one line to faults.jsonl and name the utterances in the terminal."""
        _append(self.faults, {"step": step, "kind": kind, "utterances": list(utterances), "reason": reason})
        if self.first and kind != "elsewhere":
            some = ", ".join(utterances[:3]) + (f" and {len(utterances) - 3} more" if len(utterances) > 3 else "")
            self.console.print(f"left out ({kind}) {some}: {reason}", highlight=False, soft_wrap=True)

    def row(self, cells: tuple[str, ...], final: bool) -> None:
        """Show the newest numbers; a final row stays, any other is replaced by the next."""
        if not self.first:
            return
        if self.live is None:
            if final:
                self.console.print("  ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, cells, strict=True)))
            return
        table = Table(*COLUMNS)
        for each in [*self.rows[-ROWS:], cells]:
            table.add_row(*each)
        self.live.update(table, refresh=True)
        if final:
            self.rows.append(cells)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a last line cut short by a crash is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line.strip()]


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def _drop_after(path: Path, step: int) -> None:
    if path.is_file():
        kept = [json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= step]
        write_text(path, "".join(kept))
