"""The benchmark of the recurrences, at a size where it takes no time."""

from overheard.benchmarks.recurrence import measure


def test_every_line_is_measured() -> None:
    lines = measure(repeats=1, frames=4, hidden=3, cells=["gru"])
    assert [line.unit for line in lines] == ["s", "s", "s", "MB"]
    assert all(line.ours > 0 and line.reference > 0 for line in lines[:3])
    assert all(line.ours >= 0 and line.reference >= 0 for line in lines[3:])
