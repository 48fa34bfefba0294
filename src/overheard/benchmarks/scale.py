"""What one utterance costs an attacker, as a function of its duration, of the model's units and of the batch.

Time is CPU time of one thread, which does not depend on what else the machine does; memory is the peak of the attack
above what was held before; bytes are those of the update; operations are counted in one more run, whose time is not. A
law `a x^b` is fitted to each by least squares of logarithms.
"""

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lhotse import MonoCut
from torch.utils.flop_counter import FlopCounterMode

from overheard.audit.job import audit_batch, prepare
from overheard.audit.plan import AuditPlan
from overheard.errors import InputError
from overheard.recognition.models import MODELS, parameter_shapes, spec_of
from overheard.speech.corpus import load_corpus

Axis = Literal["seconds", "units", "batch"]
AXES: tuple[Axis, ...] = ("seconds", "units", "batch")
BYTES = 4
"""Of a float32."""


@dataclass(frozen=True)
class ScalePlan:
    """What is measured: along each axis, the others at their first value.

    Attributes:
        corpus: folder or manifest; utterances nearest to a duration are taken.
        model: name of a registered model whose configuration has `hidden_size`.
        attack: by name.
        until: how far it goes.
        options: settings of the attack.
        known: what the attacker is declared to know beforehand.
        seconds: durations of utterances, s.
        units: hidden sizes.
        batches: utterances in an update.
        repeats: different utterances, or batches, for each point.
        seed: of weights and attack.
    """

    corpus: Path
    model: str = "deepspeech1"
    attack: str = "span"
    until: Literal["features", "words", "certificate"] = "features"
    options: dict[str, Any] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    seconds: tuple[float, ...] = (3.0, 2.0, 6.0)
    units: tuple[int, ...] = (1024, 512, 2048)
    batches: tuple[int, ...] = (1, 2, 4)
    repeats: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InputError("model", repr(self.model), f"choose one of {', '.join(MODELS)}")
        for name in ("seconds", "units", "batches"):
            if not getattr(self, name) or not all(value > 0 for value in getattr(self, name)):
                raise InputError(name, getattr(self, name), "give numbers above 0")
        self.audit_plan("", 1).check()
        if self.repeats < 1:
            raise InputError("repeats", self.repeats, "give a whole number from 1 up")

    def audit_plan(self, model: str, batch: int) -> AuditPlan:
        """The audit of one model at one batch size."""
        return AuditPlan(
            self.corpus,
            models=(model,),
            batch=batch,
            attack=self.attack,
            options=self.options,
            until=self.until,
            known=self.known,
            examples=0,
            seed=self.seed,
        )


@dataclass(frozen=True)
class ScalePoint:
    """One size along one axis: medians over its repeats.

    Attributes:
        axis: that is varied.
        size: in its unit.
        utterance_seconds: CPU seconds an utterance, share, attack and score together.
        peak_mb: of the attack, MB.
        update_mb: of the update, MB.
        utterance_gflop: additions and multiplications of matrix products and convolutions an utterance, 10^9;
            decompositions are not counted.
        recovered: utterances with all frames and an error below 0.01, of all.
        utterances: all.
    """

    axis: Axis
    size: float
    utterance_seconds: float
    peak_mb: float | None
    update_mb: float
    utterance_gflop: float
    recovered: int
    utterances: int


@dataclass(frozen=True)
class Law:
    """y = factor * size ** exponent."""

    factor: float
    exponent: float

    def at(self, size: float) -> float:
        """Its value."""
        return self.factor * size**self.exponent


def measure(plan: ScalePlan) -> Iterator[ScalePoint]:
    """Every size of every axis that has more than one.

    Raises:
        InputError: the corpus has too few utterances.
    """
    cuts = load_corpus(plan.corpus).cuts
    if len(cuts) < plan.repeats * max(plan.batches):
        raise InputError(str(plan.corpus), f"{len(cuts)} utterances", "give more, or ask for fewer repeats")
    sizes = {"seconds": plan.seconds, "units": plan.units, "batch": plan.batches}
    first = {axis: values[0] for axis, values in sizes.items()}
    for axis in AXES:
        for size in sorted(sizes[axis]) if len(sizes[axis]) > 1 else ():
            yield _point(plan, cuts, axis, {**first, axis: size})


def fitted(sizes: Sequence[float], values: Sequence[float | None]) -> Law | None:
    """The law through some points; None where fewer than two have a value above zero."""
    known = [(math.log(size), math.log(value)) for size, value in zip(sizes, values, strict=True) if value]
    if len({x for x, _ in known}) < 2:
        return None
    exponent, offset = statistics.linear_regression(*zip(*known, strict=True))
    return Law(math.exp(offset), exponent)


def _point(plan: ScalePlan, cuts: Sequence[MonoCut], axis: Axis, sizes: dict[str, float]) -> ScalePoint:
    batch = int(sizes["batch"])
    text = f'{{"name": "{plan.model}", "config": {{"hidden_size": {int(sizes["units"])}}}}}'
    audited = prepare(text, plan.seed, torch.device("cpu"))
    chosen = sorted(cuts, key=lambda cut: (abs(cut.duration - sizes["seconds"]), cut.id))[: plan.repeats * batch]
    audit = plan.audit_plan(text, batch)
    spent, records = [], []
    for at in range(0, len(chosen), batch):
        start = time.process_time()
        records += audit_batch(audit, audited, chosen[at : at + batch], None)
        spent.append((time.process_time() - start) / batch)
    with FlopCounterMode(display=False) as counter:
        audit_batch(audit, audited, chosen[:batch], None)
    shapes = parameter_shapes(spec_of(audited.model))
    peaks = [record.peak_mb for record in records if record.peak_mb is not None]
    return ScalePoint(
        axis=axis,
        size=sum(cut.duration for cut in chosen) / len(chosen) if axis == "seconds" else float(sizes[axis]),
        utterance_seconds=statistics.median(spent),
        peak_mb=statistics.median(peaks) if peaks else None,
        update_mb=BYTES * sum(math.prod(shape) for shape in shapes.values()) / 2**20,
        utterance_gflop=counter.get_total_flops() / batch / 1e9,
        recovered=sum(record.recovered for record in records),
        utterances=len(records),
    )
