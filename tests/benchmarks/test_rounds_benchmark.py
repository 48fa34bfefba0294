"""What rounds cost beyond the clients' computing: counted from runs of the real engine."""

from pathlib import Path

import pytest
from tone_corpus import write_tones

pytest.importorskip("flwr", reason="Flower is not installed: overheard[federated]")

from overheard.benchmarks.rounds import RoundsLoad, measure, row_of
from overheard.errors import InputError


def test_each_number_of_clients_has_a_row(tmp_path: Path) -> None:
    load = RoundsLoad(write_tones(tmp_path / "corpus"), clients=(2, 4), workers=(0,), rounds=3)
    rows = list(measure(load, tmp_path / "runs"))
    assert [(row.clients, row.workers) for row in rows] == [(2, 0), (4, 0)]
    assert all(row.overhead > 0 and row.computing > 0 for row in rows)
    assert rows[1].to_clients == 2 * rows[0].to_clients
    assert rows[1].from_clients == 2 * rows[0].from_clients
    with pytest.raises(InputError, match="an earlier measurement"):
        next(measure(load, tmp_path / "runs"))


def test_overhead_is_what_a_round_takes_beyond_the_clients() -> None:
    def line(number: int, seconds: float, own: float) -> dict:
        cpu = {"cpu_clients": own / 2, "cpu_process": seconds / 2}
        count = {"bytes_to_clients": 8, "bytes_from_clients": 4, "clients": [{}, {}], "left_out": {}}
        return {"kind": "step", "step": number, "seconds": seconds, "seconds_clients": own, **count, **cpu}

    lines = [line(1, 9.0, 5.0), line(2, 12.0, 2.0), line(3, 16.0, 2.0), line(4, 19.5, 2.0)]
    row = row_of([*lines, {"kind": "evaluation", "step": 4}], 2, 1)
    assert (row.first, row.seconds, row.computing, row.overhead) == (9.0, 3.5, 2.0, 1.5)
    assert (row.clients_cpu, row.server_cpu) == (1.0, 1.75)
    assert row_of(lines, 2, 2).computing == 1.0
    assert row_of(lines, 2, 0).server_cpu == 0.75
    with pytest.raises(InputError, match=r"bob.*left out of round 3: NaN"):
        row_of([*lines[:2], {**lines[2], "clients": [{}], "left_out": {"bob": "NaN"}}], 2, 1)


def test_one_round_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rounds: 1"):
        RoundsLoad(tmp_path, rounds=1)
