"""Flower's own simulation engine: hung and killed clients, a killed server, the same weights, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tone_corpus import tiny_model, write_tones

pytest.importorskip("flwr", reason="Flower is not installed: overheard[federated]")
pytest.importorskip("ray", reason="Ray is not installed: overheard[federated]")

from fleet import Fault, faulty_app, plan_of, run, same_weights

from overheard.cli import main
from overheard.federation.quiet import quieten
from overheard.recognition.checkpoint import last_checkpoint
from overheard.training.tracking import read_lines

DEADLINE = 6.0


def test_of_eight_clients_four_fail_each_in_its_way_and_the_others_learn(tmp_path: Path) -> None:
    quieten()
    corpus = write_tones(tmp_path / "corpus", speakers=8, each=3)
    kinds = {"100": "crash", "102": "hang", "104": "nan", "106": "die"}
    app = faulty_app(tmp_path / "faulty", tuple(Fault(*each) for each in kinds.items()), DEADLINE)
    plan = plan_of(corpus, workers=1, rounds=1, clients_per_round=8, deadline=DEADLINE)
    server = run(plan, tmp_path / "faulty", app=app)
    alone = run(plan_of(corpus, rounds=1, speakers=("101", "103", "105", "107")), tmp_path / "alone")
    assert same_weights(server.model, alone.model)
    reasons = {line["client"]: line["reason"] for line in read_lines(tmp_path / "faulty" / "faults.jsonl")}
    assert set(reasons) == set(kinds)
    assert "the disk is gone" in reasons["100"]
    assert "'output.bias' holds NaN" in reasons["104"]
    assert all("ActorUnavailable" in reasons[name] or "ActorDied" in reasons[name] for name in ("102", "106"))
    assert not ray_processes(os.getpid())


def test_a_killed_server_goes_on_to_the_same_weights(tones: Path, tmp_path: Path) -> None:
    flags = [
        *("federate", "--corpus", str(tones), "--recipe", "synthetic"),
        *("--rounds", "6", "--clients-per-round", "2", "--steps", "1", "--batch-size", "2", "--learning-rate", "0.01"),
        *("--model", tiny_model().to_json(), "--strategy", "FedAdam:eta=0.01", "--hold-out", "103"),
        *("--workers", "0", "--threads", "1", "--out"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "overheard", *flags, str(tmp_path / "run")]
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while not (tmp_path / "run" / "checkpoints" / "step-000000002").is_dir():
        assert killed.poll() is None, "ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = last_checkpoint(tmp_path / "run")
    assert done is not None
    assert 2 <= done.state["progress"]["round"] < 6
    for folder in ("run", "whole"):
        main([*flags, str(tmp_path / folder)])
    first, second = (last_checkpoint(tmp_path / folder) for folder in ("run", "whole"))
    assert first is not None
    assert second is not None
    assert first.state["progress"]["round"] == second.state["progress"]["round"] == 6
    assert same_weights(first.model, second.model)
    lines = [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "step"]
    assert lines == [1, 2, 3, 4, 5, 6]


def ray_processes(parent: int) -> list[str]:
    """Command lines of Ray's processes that descend from a process, after a moment for them to end."""
    for _ in range(50):
        found = [line for line in _descendants(parent) if "raylet" in line or "gcs_server" in line or "ray::" in line]
        if not found:
            return []
        time.sleep(0.2)
    return found


def _descendants(parent: int) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    family, grown = {str(parent)}, True
    while grown:
        more = {pid for pid, above, *_ in rows if above in family} - family
        family, grown = family | more, bool(more)
    return [row[2] for row in rows if row[0] in family - {str(parent)} and len(row) == 3]
