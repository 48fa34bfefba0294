"""The benchmark of the closed form runs and finds the features; the ratio of times is for the command to show."""

from overheard.benchmarks.closed_form import measure


def test_features_are_found_as_precisely_as_they_should_be() -> None:
    seconds, error = measure(repeats=1, frames=40, units=256)
    assert (seconds.unit, error.unit) == ("s", "relative error")
    assert seconds.ours > 0
    assert error.met
