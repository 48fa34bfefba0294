"""overheard audit --run: attack what a federated run kept."""

from pathlib import Path

from rich.console import Console

from overheard.audit.federated import FederatedAudit, audit_run
from overheard.commands.audits import show_records
from overheard.commands.machine import set_up


def audit_federated(plan: FederatedAudit, out: Path, device: str, threads: int) -> None:
    """Attack what a federated run kept, print the table and the page's path.

    Raises:
        InputError: nothing succeeded; names the first reason.
    """
    where = set_up(device, threads)
    console = Console()
    show_records(audit_run(plan, out, where, console), out, console)
