"""overheard bench utility: what each defence costs in words."""

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from overheard.commands.federation import Order, make_plan
from overheard.federation.quiet import quieten
from overheard.metrics.intervals import Estimate
from overheard.training.plan import usable_cuts


def utility_table(order: Order, defences: tuple[str, ...]) -> None:
    """Measure the start and one row after another, then print the table."""
    quieten()
    from overheard.benchmarks.utility import NONE, STRENGTHS, measure, word_error_rate

    plan, start = make_plan(order)
    console = Console()
    table = Table(title=f"{plan.settings.rounds} rounds from one start", title_justify="left", box=SIMPLE)
    table.add_column("defence", overflow="fold", min_width=26)
    for name in ("WER", "95 %", "cost", "epsilon", "heard"):
        table.add_column(name, justify="right", no_wrap=True)
    if plan.dev is not None:
        before = word_error_rate(start, usable_cuts(start, plan.dev_corpus, plan.dev)[0])
        table.add_row("the start", *_rates(before, None), "-", "0")
    undefended: Estimate | None = None
    with console.status("training") as status:
        texts = defences or STRENGTHS
        for number, row in enumerate(measure(plan, start, texts, order.out), start=1):
            undefended = row.wer if row.defence == NONE else undefended
            rates = _rates(row.wer, undefended)
            epsilon = "-" if row.epsilon is None else f"{row.epsilon:.3g}"
            table.add_row(row.defence, *rates, epsilon, str(row.utterances))
            found = row.reason or f"WER {rates[0]} ({rates[1]}), epsilon {epsilon}, {row.seconds:.0f} s"
            console.print(f"{row.defence}: {found}", highlight=False, markup=False, soft_wrap=True)
            status.update(f"training, {number} of {len(texts)} done")
    console.print(table)


def _rates(wer: Estimate | None, undefended: Estimate | None) -> tuple[str, str, str]:
    """Percent, its interval, and points above the run without a defence, where that came first."""
    if wer is None:
        return "-", "-", "-"
    cost = "-" if undefended is None else f"{100 * (wer.value - undefended.value):+.1f}"
    return f"{100 * wer.value:.1f} %", f"{100 * wer.low:.1f}-{100 * wer.high:.1f}", cost
