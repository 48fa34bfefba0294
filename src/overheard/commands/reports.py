"""overheard report: the page of one audit, or of several joined."""

from collections.abc import Sequence
from pathlib import Path

from overheard.audit.joined import join_audits
from overheard.audit.price import price_of
from overheard.commands.audits import report
from overheard.errors import InputError


def report_on(folders: Sequence[Path], out: Path | None, utility: Sequence[Path], redact: bool) -> None:
    """Write a run's page and what a paper needs; where there is something to join, into a folder of its own.

    Raises:
        InputError: no folder, or several without a place for what they come to.
    """
    if not folders:
        raise InputError("directories", "none", "name the --out folder of an audit")
    if out is None:
        if len(folders) > 1 or utility:
            what = f"{len(folders)} audits" if len(folders) > 1 else "prices for an audit"
            raise InputError("out", f"nothing, for {what}", "name a new folder for what they come to with --out")
        report(folders[0], redact)
        return
    join_audits(folders, out, [price_of(run) for run in utility])
    report(out, redact)
