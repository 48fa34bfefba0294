"""Laws are those behind the points, and every axis has its rows."""

from pathlib import Path

import pytest
from tone_corpus import write_tones

from overheard.benchmarks.scale import ScalePlan, fitted, measure
from overheard.commands.scale import scale_table
from overheard.errors import InputError


def test_a_law_is_found_again() -> None:
    law = fitted([1.0, 2.0, 4.0], [3.0, 12.0, 48.0])
    assert law is not None
    assert (law.factor, law.exponent) == pytest.approx((3.0, 2.0))
    assert law.at(3.0) == pytest.approx(27.0)
    assert fitted([1.0, 2.0], [None, 3.0]) is None
    assert fitted([2.0, 2.0], [1.0, 3.0]) is None


def test_every_axis_is_measured(tmp_path: Path) -> None:
    plan = ScalePlan(
        write_tones(tmp_path, speakers=1, each=3), seconds=(0.8, 1.0), units=(96, 128), batches=(1, 2), repeats=1
    )
    points = list(measure(plan))
    assert [point.axis for point in points] == ["seconds"] * 2 + ["units"] * 2 + ["batch"] * 2
    assert all(point.utterance_seconds > 0 for point in points)
    sizes = [point.update_mb for point in points if point.axis == "units"]
    assert 0 < sizes[0] < sizes[1]
    work = [point.utterance_gflop for point in points if point.axis == "units"]
    assert 0 < work[0] < work[1]
    assert scale_table(points, plan).row_count == 6 + 3


@pytest.mark.parametrize(
    "changes", [{"model": "x"}, {"seconds": ()}, {"units": (0,)}, {"repeats": 0}, {"known": ("all",)}]
)
def test_wrong_settings_are_refused(changes: dict) -> None:
    with pytest.raises(InputError):
        ScalePlan(Path("corpus"), **changes)
