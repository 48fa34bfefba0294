"""The same seed, machine and threads: the same records but for times, whatever the attack."""

import math
from pathlib import Path

import pytest
import torch
from quick_settings import QUICK
from rich.console import Console

from overheard.attacks.registry import ATTACKS
from overheard.audit.plan import AuditPlan
from overheard.audit.records import AuditRecord, timeless
from overheard.audit.runner import run_audit
from overheard.speech.corpus import Selection

DEEPSPEECH1 = '{"name": "deepspeech1", "config": {"hidden_size": 96, "context": 2}}'
DEEPSPEECH2 = '{"name": "deepspeech2", "config": {"hidden_size": 16, "num_layers": 1}}'
SETTINGS = {**QUICK, "ladder": {"rungs": ["span", "sequential"]}}

SPARSE_FRAMES = 1e-2
"""Relative difference allowed between two runs of this one attack: see tests/attacks/test_registry.py."""

THREADS = 1e-6
"""Relative difference of features' errors allowed between numbers of threads: sums are taken in another order."""


def audited(corpus: Path, out: Path, attack: str, model: str = DEEPSPEECH1) -> list[AuditRecord]:
    plan = AuditPlan(
        corpus,
        Selection(utterances=("11-1-0000",)),
        (model,),
        attack=attack,
        options=SETTINGS[attack],
        known=("transcript", "length"),
        examples=0,
        seed=7,
    )
    return run_audit(plan, out, torch.device("cpu"), Console(quiet=True))


def test_every_attack_is_held_to_it() -> None:
    assert set(SETTINGS) == {*ATTACKS, "ladder"}


@pytest.mark.parametrize("attack", SETTINGS)
def test_the_same_seed_gives_the_same_records(noises: Path, tmp_path: Path, attack: str) -> None:
    model = DEEPSPEECH2 if attack == "sparse_frames" else DEEPSPEECH1
    first, second = (audited(noises, tmp_path / name, attack, model) for name in ("first", "second"))
    if attack == "sparse_frames" and first[0].feature_mae is not None:
        (one,), (two,) = first, second
        assert one.frames_recovered == two.frames_recovered
        assert math.isclose(one.feature_mae or 0.0, two.feature_mae or 0.0, rel_tol=SPARSE_FRAMES)
        return
    assert timeless(first) == timeless(second)


def test_another_number_of_threads_moves_the_last_bits_alone(noises: Path, tmp_path: Path) -> None:
    (one,) = audited(noises, tmp_path / "one", "span")
    torch.set_num_threads(2)
    try:
        (two,) = audited(noises, tmp_path / "two", "span")
    finally:
        torch.set_num_threads(1)
    assert (one.recovered, one.unique, one.transcript_recovered) == (
        two.recovered,
        two.unique,
        two.transcript_recovered,
    )
    assert one.feature_mae is not None
    assert two.feature_mae is not None
    assert abs(one.feature_mae - two.feature_mae) <= THREADS
