"""The benchmark of a matching step runs and names what it measured; its ratios are for the command to show."""

from overheard.benchmarks.second_order import StepSize, measure
from overheard.commands.benchmarks import ratio_table


def test_measures_time_and_memory_of_a_step() -> None:
    tiny = StepSize(1, 8, 40)
    found = measure(repeats=1, small=tiny, large=tiny)
    assert [each.unit for each in found] == ["s", "s", "s", "MB", "MB"]
    assert all(each.reference > 0 for each in found)
    assert all("1x8 GRU, T=40" in each.name for each in found)
    assert ratio_table(found, 1).row_count == 5
