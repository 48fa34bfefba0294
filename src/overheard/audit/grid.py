"""A grid of audits: models x clients x defences x batches x attacks x seeds x durations, as jobs of one update each.

A grid is a TOML file; every key but `corpus` has a default, and every list is an axis:

    corpus = "corpora/LibriSpeech"
    models = ["deepspeech1", "runs/trained"]     # architecture and weights: random ones from the seed, or a run's own
    durations = [[0, 4], [4, 8]]                 # from, to, s
    limit = 10                                   # utterances of each duration
    batches = [1, 2]                             # utterances in an update
    defences = ["none", "clip:norm=1 noise:std=1e-4"]
    attacks = ["span", {name = "matching", options = {iterations = 200}, known = ["length"]}]
    clients = [{kind = "gradient"}, {kind = "delta", local_steps = 4, learning_rate = 0.01}]
    seeds = [0, 1]
"""

import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lhotse import MonoCut

from overheard.attacks.complete import Until
from overheard.audit.grouping import group
from overheard.audit.plan import AuditPlan
from overheard.errors import InputError
from overheard.federation.client import ClientSettings
from overheard.recognition.configuration import config_from_json
from overheard.speech.corpus import Corpus, Problem, Selection, select

MOST_BYTES = 1 << 20
"""Of a grid's file: a longer one is something else."""


@dataclass(frozen=True)
class GridAttack:
    """One value of the attacks' axis; see `AuditPlan`."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    until: Until = "words"
    known: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """What a grid's file says.

    Attributes:
        corpus: folder or manifest.
        models: names, files, runs or module:function.
        clients: how a client trains.
        defences: one or more defences each, apart by spaces; "none" for none.
        batches: utterances in an update.
        batch_seconds: audio of an update at most, s.
        attacks: by name, or with settings.
        seeds: of random weights, batches, draws and attacks.
        durations: (from, to) in s; they may touch but not overlap.
        limit: utterances of each duration, the same for every other axis.
        speakers: only these.
        subsets: only these parts of the corpus.
        examples: how many updates keep their signals, the first jobs.
    """

    corpus: str
    models: tuple[str, ...] = ("deepspeech1",)
    clients: tuple[ClientSettings, ...] = (ClientSettings(),)
    defences: tuple[str, ...] = ("none",)
    batches: tuple[int, ...] = (1,)
    batch_seconds: float | None = None
    attacks: tuple[GridAttack, ...] = (GridAttack("auto"),)
    seeds: tuple[int, ...] = (0,)
    durations: tuple[tuple[float, float], ...] = ((0.0, math.inf),)
    limit: int | None = None
    speakers: tuple[str, ...] = ()
    subsets: tuple[str, ...] = ()
    examples: int = 4

    def __post_init__(self) -> None:
        for name in ("models", "clients", "defences", "batches", "attacks", "seeds", "durations"):
            values = getattr(self, name)
            if not values:
                raise InputError(name, "an axis without a value", "give one, or leave the key out")
            if any(each in values[:place] for place, each in enumerate(values)):
                raise InputError(name, "a value twice", "give each once")
        edges = sorted(self.durations)
        if any(not start < end for start, end in edges) or any(
            later[0] < former[1] for former, later in itertools.pairwise(edges)
        ):
            raise InputError("durations", json.dumps(self.durations), "give [from, to] pairs that do not overlap")

    def plans(self) -> Iterator[AuditPlan]:
        """Every condition, durations apart; models and seeds change least often, since building a model takes time."""
        for model, seed, client, defence, batch, attack, (start, end) in itertools.product(
            self.models, self.seeds, self.clients, self.defences, self.batches, self.attacks, self.durations
        ):
            yield AuditPlan(
                corpus=Path(self.corpus),
                # Seconds are whole samples: the shorter duration keeps an utterance that lies on the edge.
                selection=Selection(
                    min_seconds=math.nextafter(start, math.inf) if start else None,
                    max_seconds=end if math.isfinite(end) else None,
                    speakers=self.speakers,
                    subsets=self.subsets,
                    limit=self.limit,
                ),
                models=(model,),
                client=client,
                defences=() if defence == "none" else tuple(defence.split()),
                batch=batch,
                batch_seconds=self.batch_seconds,
                attack=attack.name,
                options=attack.options,
                until=attack.until,
                known=attack.known,
                examples=0,
                seed=seed,
            )

    def settings(self) -> dict[str, Any]:
        """The grid as JSON values; an open end of durations is null."""
        values = asdict(self)
        values["durations"] = [[start, end if math.isfinite(end) else None] for start, end in self.durations]
        return json.loads(json.dumps(values))


@dataclass(frozen=True)
class Job:
    """One update of one condition.

    Attributes:
        plan: the condition.
        cuts: the client's utterances; none for an utterance that the corpus cannot give.
        problem: that utterance and its reason.
        settings: hash that this job's records carry, and no record of any other settings.
        example: name of the folder that keeps its signals; None to keep none.
    """

    plan: AuditPlan
    cuts: tuple[MonoCut, ...]
    problem: Problem | None
    settings: str
    example: str | None = None

    @property
    def utterances(self) -> tuple[str, ...]:
        """Ids of what is in the update."""
        return tuple(cut.id for cut in self.cuts) if self.problem is None else (self.problem.utterance,)

    @property
    def seconds_audio(self) -> float:
        """Duration of it, s."""
        return sum(cut.duration for cut in self.cuts)


def read_grid(path: Path) -> Grid:
    """The grid that a TOML file describes.

    Raises:
        InputError: no such file, no TOML, an unknown key, or a value that cannot be used.
    """
    remedy = "name a TOML file that describes a grid"
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(str(path), f"more than {MOST_BYTES} bytes", remedy)
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(str(path), "no such file", remedy) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(path), f"no TOML ({error})", remedy) from error
    attacks = values.get("attacks")
    if isinstance(attacks, list):
        values["attacks"] = [{"name": each} if isinstance(each, str) else each for each in attacks]
    grid = config_from_json(Grid, values, str(path))
    for plan in grid.plans():
        plan.check()
    return grid


def jobs_of(grid: Grid, corpus: Corpus) -> list[Job]:
    """Every update of every condition, in the order of the conditions and of the corpus.

    Raises:
        InputError: nothing is selected, or utterances that fill no batch.
    """
    jobs: list[Job] = []
    for plan in grid.plans():
        cuts, problems = select(corpus, plan.selection)
        batches = group(cuts, plan.batch, plan.batch_seconds, plan.seed)
        jobs += [Job(plan, tuple(batch), None, _settings(plan, batch)) for batch in batches]
        jobs += [Job(plan, (), problem, _settings(plan, ())) for problem in problems]
    # A problem has no known duration and meets every one of them.
    jobs = list({(job.settings, job.utterances): job for job in jobs}.values())
    audible = [place for place, job in enumerate(jobs) if job.problem is None][: grid.examples]
    for place in audible:
        jobs[place] = replace(jobs[place], example=f"{jobs[place].cuts[0].id}-{jobs[place].settings}")
    return jobs


def _settings(plan: AuditPlan, batch: Sequence[MonoCut]) -> str:
    """Hash of the condition, and of who shares an update with whom."""
    if len(batch) < 2:
        return plan.fingerprint()
    text = json.dumps([plan.fingerprint(), [cut.id for cut in batch]])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
