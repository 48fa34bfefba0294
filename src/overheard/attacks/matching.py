"""Gradient matching: search for features whose update is the observed one (Zhu et al. 2019; Geiping et al. 2020).

With signed Adam the optimiser sees only the sign of the gradient (Geiping et al. 2020, section 5). The update may be a
gradient or the change of the weights after local steps, of one utterance or of several; the labels may be known or are
improved on the way. The result is the point of least distance, over all restarts: nothing else can the attacker see.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overheard.attacks.gradient_matching.distances import DistanceConfig
from overheard.attacks.gradient_matching.optimiser import OPTIMISERS, build_optimiser, restore, state_of
from overheard.attacks.gradient_matching.priors import PriorConfig
from overheard.attacks.gradient_matching.problem import (
    Evaluation,
    Problem,
    build_problem,
    find_lengths,
    initial_features,
    standardised,
    too_long,
)
from overheard.attacks.gradient_matching.progress import Show, shown_progress
from overheard.attacks.gradient_matching.schedules import ScheduleConfig, cut_into_grids, learning_rate, next_visit
from overheard.attacks.gradient_matching.second_order import EngineChoice
from overheard.attacks.gradient_matching.state import ExpectedRun, MatchingState, Outcome, load_state, run_signature
from overheard.attacks.observation import Observation, Reconstruction, load_reconstruction
from overheard.attacks.words.label_search import guess_labels, improve_labels
from overheard.errors import InputError
from overheard.recognition.recogniser import as_recogniser
from overheard.speech.alphabet import Alphabet

ENGINES = ("auto", "exact", "frozen", "naive")
NOT_PART_OF_THE_RUN = ("checkpoint", "checkpoint_every", "iterates", "iterates_every")


@dataclass(frozen=True)
class MatchingConfig:
    """Settings of the attack.

    Attributes:
        parameters: beginnings of the names of the parameters to match; none for all.
        distance: between updates.
        optimiser: "signed-adam", "adam", "lbfgs" (strong Wolfe line search) or "sgd".
        schedule: which frames change when, and the learning rate.
        priors: terms beside the distance.
        iterations: of each restart, at most.
        seconds: process CPU time of the whole run, shared by the restarts; None for no limit.
        restarts: runs from different random points, ranked by distance.
        initial: "random", "zeros", or the path of a reconstruction that another attack wrote.
        initial_scale: standard deviation of the random point.
        engine: of the second derivatives; "auto" picks one and says why.
        initial_transcripts: a first guess where the transcripts are not known; none to guess from the update.
        labels_every: iterations between two improvements of unknown transcripts.
        history_every: iterations between two rows of the diagnostics' history.
        checkpoint: file to write the run's state to and to resume from; empty for none.
        checkpoint_every: iterations between two checkpoints.
        iterates: folder for reconstructions on the way, to be scored afterwards; empty for none.
        iterates_every: iterations between two of them.
    """

    parameters: tuple[str, ...] = ()
    distance: DistanceConfig = field(default_factory=DistanceConfig)
    optimiser: str = "signed-adam"
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    priors: PriorConfig = field(default_factory=PriorConfig)
    iterations: int = 1000
    seconds: float | None = None
    restarts: int = 1
    initial: str = "random"
    initial_scale: float = 0.1
    engine: str = "auto"
    initial_transcripts: tuple[str, ...] = ()
    labels_every: int = 20
    history_every: int = 50
    checkpoint: str = ""
    checkpoint_every: int = 100
    iterates: str = ""
    iterates_every: int = 50

    def __post_init__(self) -> None:
        for name, value, choices in (("optimiser", self.optimiser, OPTIMISERS), ("engine", self.engine, ENGINES)):
            if value not in choices:
                raise InputError(name, repr(value), f"choose one of {', '.join(choices)}")
        for name in ("iterations", "restarts", "labels_every", "history_every", "checkpoint_every", "iterates_every"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "give a whole number from 1 up")
        if self.seconds is not None and not self.seconds > 0:
            raise InputError("seconds", self.seconds, "give CPU seconds above 0")


def attack(
    observation: Observation,
    config: MatchingConfig,
    *,
    generator: torch.Generator,
    start: Reconstruction | None = None,
) -> Reconstruction:
    """Match the observed update.

    Args:
        observation: what the attacker sees.
        config: settings.
        generator: of random points and guesses.
        start: another attack's reconstruction to begin with, in place of `config.initial`.

    Raises:
        InputError: a setting that this model or update does not allow, or a checkpoint of another run.
    """
    settings: dict[str, Any] = asdict(config)
    if start is None and config.initial not in ("random", "zeros"):
        start = load_reconstruction(Path(config.initial))
    if start is not None and not start.features:
        return Reconstruction("matching", reason="the reconstruction to start from has no features", settings=settings)
    lengths = find_lengths(observation, start)
    if not lengths.num_frames:
        return Reconstruction("matching", reason=lengths.source, settings=settings)
    engine = None if config.engine == "auto" else EngineChoice(config.engine, "asked for")  # pyright: ignore
    problem = build_problem(observation, config.parameters, config.distance, config.priors, engine, lengths)
    run = _Run(problem, config, start, generator)
    state = run.first_or_resumed_state()
    reason = too_long(problem.model, problem.num_frames, state.labels)
    if reason is not None:
        return Reconstruction("matching", reason=reason, settings=settings)
    state = run.finish(state)
    best = min(state.finished, key=lambda each: each.distance)
    if best.features is None:
        return Reconstruction("matching", reason="the distance was never a finite number", settings=settings)
    return run.reconstruction(
        best.features,
        best.labels,
        {
            "distance": best.distance,
            "distances_of_restarts": [each.distance for each in state.finished],
            "iterations": [each.iterations for each in state.finished],
            "cpu_seconds": [each.cpu_seconds for each in state.finished],
            "engine": asdict(problem.engine),
            "lengths": lengths.source,
            "exposed_layer": None if lengths.layer is None else lengths.layer.name,
            "history": state.history,
        },
    )


@dataclass(frozen=True)
class _Run:
    """One run: a problem, its settings, and the generator that restarts draw from."""

    problem: Problem
    config: MatchingConfig
    start: Reconstruction | None
    generator: torch.Generator

    def first_or_resumed_state(self) -> MatchingState:
        if self.config.checkpoint and Path(self.config.checkpoint).is_file():
            return load_state(Path(self.config.checkpoint), self.generator, self._expected())
        return MatchingState(*self._first_point())

    def finish(self, state: MatchingState) -> MatchingState:
        """Carry the state through all restarts that are left."""
        with shown_progress() as show:
            while len(state.finished) < self.config.restarts:
                self._restart(state, show)
                state.finished.append(self._outcome(state))
                if len(state.finished) < self.config.restarts:
                    kept = {"restart": state.restart + 1, "finished": state.finished, "history": state.history}
                    state = MatchingState(*self._first_point(), **kept)
                self._save(state)
        return state

    def reconstruction(
        self, features: Tensor, labels: Sequence[Sequence[int]], diagnostics: dict[str, Any]
    ) -> Reconstruction:
        """What a point stands for, at the scale that the front end gives."""
        matrices = self.problem.utterances(features)
        if self.config.distance.kind == "cosine":
            matrices = [standardised(self.problem.model, matrix) for matrix in matrices]
        given = self.problem.observation.prior.transcripts
        alphabet: Alphabet = as_recogniser(self.problem.model).alphabet
        return Reconstruction(
            attack="matching",
            features=tuple(matrix.detach().clone() for matrix in matrices),
            transcripts=given if given is not None else tuple(alphabet.decode(text) for text in labels),
            settings=asdict(self.config),
            diagnostics=diagnostics,
        )

    def _restart(self, state: MatchingState, show: Show) -> None:
        schedule = self.config.schedule
        grids = cut_into_grids(schedule, len(state.features))
        begun = time.process_time() - state.cpu_seconds
        optimiser, block, working_on = None, state.features, state.visit
        while (progress := self._progress(state)) < 1.0:
            visit = next_visit(schedule, grids, state.visit, state.iteration, progress, state.gradient)
            if optimiser is None or visit != working_on:
                block = state.features[visit.start : visit.stop].clone().requires_grad_()
                optimiser = build_optimiser(self.config.optimiser, block, schedule.learning_rate)
                if visit == state.visit and state.optimiser is not None:
                    restore(optimiser, state.optimiser)
                working_on = visit
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(schedule, progress)
            self._improve_labels(state)
            found = self._step(state, optimiser, block, visit.start, visit.stop)
            if found is None:
                break
            state.visit, state.gradient = visit, found.gradient
            state.iteration += 1
            state.cpu_seconds = time.process_time() - begun
            state.optimiser = state_of(self.config.optimiser, optimiser)
            self._note(state, found, show)
        distance = self.problem.distance_at(state.features, state.labels)
        _keep_if_best(state, state.features, distance)

    def _step(
        self, state: MatchingState, optimiser: torch.optim.Optimizer, block: Tensor, first: int, last: int
    ) -> Evaluation | None:
        """One step of the optimiser on one grid; None where the objective is no longer finite."""
        found: list[Evaluation] = []

        def closure() -> float:
            with torch.no_grad():
                state.features[first:last] = block
            found.append(self.problem.evaluate(state.features, state.labels))
            gradient = found[-1].gradient[first:last]
            block.grad = gradient.sign() if self.config.optimiser == "signed-adam" else gradient.clone()
            _keep_if_best(state, state.features, found[-1].distance)
            return found[-1].objective

        optimiser.step(closure)
        with torch.no_grad():
            finite = bool(torch.isfinite(block).all()) and bool(torch.isfinite(found[0].gradient).all())
            if finite:
                state.features[first:last] = block
            elif state.best_features is not None:
                state.features = state.best_features.clone()
        return found[0] if finite else None

    def _progress(self, state: MatchingState) -> float:
        """Share of this restart that is over, by whichever limit is nearer."""
        share = state.iteration / self.config.iterations
        if self.config.seconds is None:
            return share
        return max(share, state.cpu_seconds * self.config.restarts / self.config.seconds)

    def _first_point(self) -> tuple[Tensor, list[list[int]]]:
        observation, config = self.problem.observation, self.config
        features = initial_features(self.problem, config.initial, config.initial_scale, self.start, self.generator)
        texts = observation.prior.transcripts or config.initial_transcripts
        if texts:
            if len(texts) != len(self.problem.num_frames):
                found = f"{len(texts)} for {len(self.problem.num_frames)} utterances"
                raise InputError("transcripts", found, "give one for each utterance")
            alphabet: Alphabet = as_recogniser(self.problem.model).alphabet
            return features, [alphabet.encode(text) for text in texts]
        matrices = self.problem.utterances(features)
        return features, guess_labels(self.problem.model, observation.update, matrices, self.generator)

    def _improve_labels(self, state: MatchingState) -> None:
        known = self.problem.observation.prior.transcripts is not None
        if not known and state.iteration > 0 and state.iteration % self.config.labels_every == 0:
            matrices = self.problem.utterances(state.features)
            state.labels = improve_labels(self.problem.model, self.problem.observation.update, matrices, state.labels)

    def _note(self, state: MatchingState, found: Evaluation, show: Show) -> None:
        row = {
            "restart": state.restart,
            "iteration": state.iteration,
            "loss": found.loss,
            "gradient_norm": float(found.gradient.norm()),
            "distance": found.distance,
            "objective": found.objective,
            "cpu_seconds": state.cpu_seconds,
        }
        show(self._progress(state), row)
        if state.iteration % self.config.history_every == 0:
            state.history.append(row)
        if self.config.iterates and state.iteration % self.config.iterates_every == 0:
            name = f"iterate-{state.restart:02d}-{state.iteration:06d}.safetensors"
            self.reconstruction(state.features, state.labels, row).save(Path(self.config.iterates) / name)
        if state.iteration % self.config.checkpoint_every == 0:
            self._save(state)

    def _outcome(self, state: MatchingState) -> Outcome:
        labels = tuple(tuple(text) for text in state.best_labels)
        return Outcome(labels, state.best_distance, state.iteration, state.cpu_seconds, state.best_features)

    def _save(self, state: MatchingState) -> None:
        if self.config.checkpoint:
            state.save(Path(self.config.checkpoint), self.generator, self._signature())

    def _expected(self) -> ExpectedRun:
        features = initial_features(self.problem, "zeros", 0.0, None, self.generator)
        grids = cut_into_grids(self.config.schedule, len(features))
        symbols = as_recogniser(self.problem.model).alphabet.num_symbols
        return ExpectedRun(self._signature(), features, symbols, grids, self.config.optimiser)

    def _signature(self) -> dict[str, Any]:
        settings = {name: value for name, value in asdict(self.config).items() if name not in NOT_PART_OF_THE_RUN}
        start = None if self.start is None else torch.cat([matrix.flatten() for matrix in self.start.features])
        return run_signature(self.problem.observation, settings, self.generator.initial_seed(), start)


def _keep_if_best(state: MatchingState, features: Tensor, distance: float) -> None:
    # A distance that is not a number is not below any.
    if distance < state.best_distance:
        state.best_features, state.best_labels = features.clone(), [list(text) for text in state.labels]
        state.best_distance = distance
