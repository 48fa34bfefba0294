"""The benchmark of the closed form runs, and both ways find the features; the ratio is for the command to show."""

from overheard.benchmarks.closed_form import measure


def test_both_ways_find_the_features() -> None:
    seconds, error = measure(repeats=1, frames=40, units=256)
    assert (seconds.unit, error.unit) == ("s", "relative error")
    assert seconds.ours > 0
    assert error.ours < 1e-4
    assert error.reference < 1e-2
