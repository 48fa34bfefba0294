"""From cheap to dear, rung by rung, until a reconstruction is certified or the time is up.

The rank scan says what the update spans, at no risk; then come the closed form, the frames one after another, sparse
frames, and gradient matching for what nothing else explains. After each rung that brings features back the words are
read and the client is run again: only that proves them, so nothing else ends the climb early.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from overheard.attacks.observation import Observation, Reconstruction
from overheard.attacks.rank import rank_scan
from overheard.attacks.registry import ATTACKS, run_attack
from overheard.errors import InputError
from overheard.metering import metered

LADDER = "ladder"
RANK = "rank"
RUNGS = ("span", "sequential", "sparse_frames", "matching")


@dataclass(frozen=True)
class LadderConfig:
    """Settings of the climb.

    Attributes:
        rungs: attacks by name, from cheap to dear.
        seconds: wall time of the climb. No rung is begun behind it; one that has a limit of its own gets what is left,
            and the others are let finish.

    Raises:
        InputError: no rung, an unknown one, or no time.
    """

    rungs: tuple[str, ...] = RUNGS
    seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in self.rungs:
            if name not in ATTACKS:
                raise InputError("rungs", repr(name), f"choose from {', '.join(ATTACKS)}")
        if not self.rungs or not self.seconds > 0:
            raise InputError("rungs, seconds", "none", "give at least one attack and more than 0 s")


def climb(
    observation: Observation,
    config: LadderConfig,
    finish: Callable[[Observation, Reconstruction], Reconstruction],
    seed: int = 0,
) -> Reconstruction:
    """The first certified reconstruction, else the least doubtful one that holds most utterances.

    Args:
        observation: all that the attacker sees.
        config: settings.
        finish: adds words and certificate to features, as `complete.complete`.
        seed: of whatever the rungs draw.

    Returns:
        The attack is the rung's; diagnostics "rungs" has a row for each: rung, outcome, seconds.
    """
    start = time.perf_counter()
    layers = rank_scan(observation)
    exposed = [row.layer for row in layers if row.verdict == "span exposed"]
    rows: list[dict[str, Any]] = [_row(RANK, f"{len(exposed)} of {len(layers)} layers exposed", start)]
    best: Reconstruction | None = None
    seconds, words = 0.0, 0.0
    for name in config.rungs:
        begun = time.perf_counter()
        left = config.seconds - (begun - start)
        if left <= 0:
            rows.append(_row(name, "no time left", begun))
            continue
        bounded = "seconds" in ATTACKS[name].config.__dataclass_fields__
        found = run_attack(observation, name, {"seconds": left} if bounded else {}, seed)
        seconds += found.seconds
        if found.features:
            with metered(next(observation.model.parameters()).device) as meter:
                found = finish(observation, found)
            words += meter.seconds
        rows.append(_row(name, _outcome(found), begun))
        if best is None or _worth(found) > _worth(best):
            best = found
        if found.certified:
            break
    assert best is not None
    reason = best.reason
    if not best.features:
        reason = "; ".join(f"{row['rung']}: {row['outcome']}" for row in rows)
    diagnostics = {**best.diagnostics, "rungs": rows, "exposed_layers": exposed}
    return replace(best, reason=reason, diagnostics=diagnostics, seconds=seconds, seconds_words=words or None)


def _worth(found: Reconstruction) -> tuple[bool, int, bool]:
    """What speaks for a reconstruction, as the attacker sees it; of equals the cheaper rung's stays."""
    return bool(found.certified), len(found.features), found.unique is not False


def _outcome(found: Reconstruction) -> str:
    if found.certified:
        return "certified"
    return "not certified" if found.features else found.reason or "nothing came back"


def _row(rung: str, outcome: str, begun: float) -> dict[str, Any]:
    return {"rung": rung, "outcome": outcome, "seconds": time.perf_counter() - begun}
