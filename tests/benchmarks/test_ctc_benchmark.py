import torch

from overheard.benchmarks.ctc import measure


def test_every_promise_is_measured() -> None:
    threads = torch.get_num_threads()
    rows = measure(repeats=1, scan_repeats=1, frames=60, scan_frames=60, rows=2)
    assert [row.unit for row in rows] == ["s", "s", "s", "relative error"]
    assert all(row.ours > 0 and row.reference > 0 for row in rows)
    assert rows[-1].met
    assert torch.get_num_threads() == threads
