"""From cheap to dear, rung by rung, until a reconstruction is certified or the time is up.

The rank scan says what the update spans, at no risk; then come the closed form, the frames one after another, sparse
frames, and gradient matching for what nothing else explains, which begins with the best of what they left if that fits.
After each rung that brings features back the words are read and the client is run again: only that proves them, so
nothing else ends the climb early.
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
from overheard.recognition.recogniser import as_recogniser

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
    started = time.perf_counter()
    layers = rank_scan(observation)
    exposed = [row.layer for row in layers if row.verdict == "span exposed"]
    rows: list[dict[str, Any]] = [_row(RANK, f"{len(exposed)} of {len(layers)} layers exposed", started)]
    best: Reconstruction | None = None
    seconds, words = 0.0, 0.0
    for name in config.rungs:
        begun = time.perf_counter()
        left = config.seconds - (begun - started)
        if left <= 0:
            rows.append(_row(name, "no time left", begun))
            continue
        bounded = "seconds" in ATTACKS[name].config.__dataclass_fields__
        start = best if ATTACKS[name].takes_start and best is not None and _fits(observation, best) else None
        found = run_attack(observation, name, {"seconds": left} if bounded else {}, seed, start)
        seconds += found.seconds
        if found.features:
            with metered(next(observation.model.parameters()).device) as meter:
                found = finish(observation, found)
            words += meter.seconds
        rows.append(_row(name, _outcome(found, start), begun))
        # What began at the best so far is nowhere further from the update than that.
        if best is None or _worth(found) > _worth(best) or (start is not None and _worth(found) == _worth(best)):
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


def _fits(observation: Observation, found: Reconstruction) -> bool:
    """Whether a search can begin there: every utterance, of the lengths that are known and the front end's width."""
    lengths, width = observation.prior.num_frames, as_recogniser(observation.model).front_end.num_features
    return (
        len(found.features) == observation.update.protocol.num_utterances
        and all(matrix.shape[1] == width for matrix in found.features)
        and (lengths is None or lengths == tuple(len(matrix) for matrix in found.features))
    )


def _outcome(found: Reconstruction, start: Reconstruction | None) -> str:
    origin = "" if start is None else f", begun from {start.attack}"
    if found.certified:
        return f"certified{origin}"
    return f"not certified{origin}" if found.features else found.reason or "nothing came back"


def _row(rung: str, outcome: str, begun: float) -> dict[str, Any]:
    return {"rung": rung, "outcome": outcome, "seconds": time.perf_counter() - begun}
