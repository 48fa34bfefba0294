"""Gradient matching on short crops of real speech: every method has the same update, transcript and CPU time.

The client's utterance is a crop, and its target is the proportional part of the utterance's transcript: the attacks
need labels that belong to the update, not labels that are word for word what the crop says. Speakers that the settings
of `ours` were chosen on are left out.
"""

import json
import math
import random
import statistics
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import nn

from overheard import __version__
from overheard.attacks.gradient_matching.distances import DistanceConfig
from overheard.attacks.gradient_matching.priors import PriorConfig
from overheard.attacks.gradient_matching.schedules import ScheduleConfig
from overheard.attacks.hessian_free import HessianFreeConfig
from overheard.attacks.matching import MatchingConfig
from overheard.attacks.observation import Observation, Prior
from overheard.attacks.registry import ATTACKS
from overheard.audit.steps import make_batch, share
from overheard.errors import InputError
from overheard.federation.client import ClientSettings
from overheard.metrics.features import score_features
from overheard.recognition.loss import infeasible_reason
from overheard.recognition.models import ModelSpec, build_model, model_spec
from overheard.recognition.recogniser import as_recogniser
from overheard.recognition.weights import weights_fingerprint
from overheard.speech.corpus import Selection, Utterance, load_corpus, load_utterance, select
from overheard.storage import parse_fields, write_text

DEVELOPMENT_SPEAKERS = ("237", "2300")
"""The settings of `ours` were chosen on crops of these LibriSpeech speakers; the study leaves them out."""

MANY = 10**9
"""Iterations that no CPU budget of a study reaches."""


@dataclass(frozen=True)
class StudyPlan:
    """What is run.

    Attributes:
        corpus: folder in LibriSpeech's layout, or a manifest.
        crops: how many, of different speakers as far as there are so many.
        crop_seconds: length of a crop, s.
        cpu_seconds: process CPU time of each method on each crop, s.
        methods: names in `METHODS`.
        model: the recogniser, with random weights from the seed.
        exclude_speakers: whose speech is not used.
        seed: of crops, weights and attacks.
    """

    corpus: Path
    crops: int = 10
    crop_seconds: float = 1.0
    cpu_seconds: float = 120.0
    methods: tuple[str, ...] = ("ours", "cosine-adam", "output-layer", "hessian-free")
    model: ModelSpec = field(default_factory=lambda: model_spec("deepspeech2", num_layers=3, hidden_size=256))
    exclude_speakers: tuple[str, ...] = DEVELOPMENT_SPEAKERS
    seed: int = 0

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise InputError("methods", repr(method), f"choose from {', '.join(METHODS)}")
        if self.crops < 1 or not (self.crop_seconds > 0 and self.cpu_seconds > 0):
            raise InputError("crops, seconds", "none", "give at least one crop and more than 0 s")


@dataclass(frozen=True)
class StudyResult:
    """One method on one crop.

    Attributes:
        crop: utterance and first second of the crop.
        speaker: who speaks.
        method: by name.
        target: the transcript that the client trained on.
        frames: T.
        snr_db: of the features, dB.
        mae: mean absolute error of the features, whose standard deviation is 1.
        correlation: of the features, Pearson's.
        distance: that the attack reached, by its own measure; not comparable between methods.
        iterations: that it took.
        cpu_seconds: that it spent.
    """

    crop: str
    speaker: str
    method: str
    target: str
    frames: int
    snr_db: float
    mae: float
    correlation: float
    distance: float
    iterations: int
    cpu_seconds: float


def _ours(seconds: float) -> tuple[str, Any]:
    schedule = ScheduleConfig(learning_rate=0.4, decay="cosine")
    priors = PriorConfig(total_variation=0.003, span_residual=0.3)
    return "matching", MatchingConfig(iterations=MANY, seconds=seconds, schedule=schedule, priors=priors)


def _cosine_adam(seconds: float) -> tuple[str, Any]:
    schedule = ScheduleConfig(learning_rate=0.05, decay="cosine")
    config = MatchingConfig(
        iterations=MANY,
        seconds=seconds,
        optimiser="adam",
        distance=DistanceConfig("cosine"),
        schedule=schedule,
        priors=PriorConfig(span_residual=0.0),
    )
    return "matching", config


def _output_layer(seconds: float) -> tuple[str, Any]:
    config = _cosine_adam(seconds)[1]
    return "matching", replace(config, parameters=("output.",))


def _hessian_free(seconds: float) -> tuple[str, Any]:
    return "hessian_free", HessianFreeConfig(seconds=seconds)


METHODS = {
    "ours": _ours,
    "cosine-adam": _cosine_adam,
    "output-layer": _output_layer,
    "hessian-free": _hessian_free,
}
"""CPU seconds -> an attack by name and its settings."""


def choose_crops(plan: StudyPlan) -> list[tuple[str, Utterance]]:
    """The crops of a plan, each with its name: speakers in turn, utterance and place drawn by the seed.

    Raises:
        InputError: too few utterances that are long enough and whose part of the transcript fits the crop.
    """
    cuts, _ = select(load_corpus(plan.corpus), Selection(min_seconds=plan.crop_seconds))
    generator = random.Random(plan.seed)
    by_speaker: dict[str, list[Any]] = {}
    for cut in cuts:
        speaker = str(cut.supervisions[0].speaker)
        if speaker not in plan.exclude_speakers:
            by_speaker.setdefault(speaker, []).append(cut)
    for own in by_speaker.values():
        generator.shuffle(own)
    model = build_model(plan.model)
    found: list[tuple[str, Utterance]] = []
    while len(found) < plan.crops and any(by_speaker.values()):
        for speaker in sorted(by_speaker):
            if by_speaker[speaker] and len(found) < plan.crops:
                whole = load_utterance(by_speaker[speaker].pop())
                crop = _cropped(whole, plan.crop_seconds, generator.random())
                if _fits(model, crop[1]):
                    found.append(crop)
    if len(found) < plan.crops:
        found_text = f"{len(found)} crops of {plan.crop_seconds:g} s"
        raise InputError(str(plan.corpus), found_text, f"ask for fewer than {plan.crops}, or give more speech")
    return found


def run_study(plan: StudyPlan, out: Path, workers: int) -> Generator[StudyResult, None, None]:
    """Every method on every crop, one thread each; what `out` holds already is not done again.

    Args:
        plan: what to run.
        out: folder; results.jsonl gets one line for each method and crop as it is done.
        workers: processes side by side.

    Raises:
        InputError: the folder holds results of another plan.
    """
    settings = {
        **{key: value for key, value in asdict(plan).items() if key not in ("corpus", "methods", "crops")},
        "version": __version__,
    }
    _same_plan(out / "study.json", json.loads(json.dumps(settings)))
    results = read_results(out)
    yield from results
    done = {(result.crop, result.method) for result in results}
    jobs = [
        joblib.delayed(run_one)(plan, name, crop, method)
        for name, crop in choose_crops(plan)
        for method in plan.methods
        if (name, method) not in done
    ]
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
    for result in parallel(jobs):
        assert isinstance(result, StudyResult)
        with (out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        yield result


def run_one(plan: StudyPlan, name: str, crop: Utterance, method: str) -> StudyResult:
    """Share the crop's gradient, attack it, and score what came back."""
    torch.set_num_threads(1)
    model = build_model(plan.model).eval()
    batch, truth = make_batch(model, [crop])
    update = share(model, batch, ClientSettings(), plan.model.to_json(), weights_fingerprint(model))
    observation = Observation(model, update, Prior((crop.transcript,), (len(truth.utterances[0].features),)))
    attack, config = METHODS[method](plan.cpu_seconds)
    found = ATTACKS[attack].run(observation, config, generator=torch.Generator().manual_seed(plan.seed))
    if not found.features:
        raise InputError(name, f"{method} brought nothing back ({found.reason})", "leave the method out")
    true, recovered = truth.utterances[0].features, found.features[0].float()
    score = score_features(recovered, true)
    spent, iterations = found.diagnostics["cpu_seconds"], found.diagnostics["iterations"]
    return StudyResult(
        crop=name,
        speaker=crop.speaker,
        method=method,
        target=crop.transcript,
        frames=len(true),
        snr_db=math.inf if score.snr_db is None else score.snr_db,
        mae=score.mae,
        correlation=float(torch.corrcoef(torch.stack([recovered.flatten(), true.flatten()]))[0, 1]),
        distance=found.diagnostics["distance"],
        iterations=sum(iterations) if isinstance(iterations, list) else iterations,
        cpu_seconds=sum(spent) if isinstance(spent, list) else spent,
    )


def read_results(out: Path) -> list[StudyResult]:
    """What a study has written so far; a last line that a crash cut short is left out."""
    path = out / "results.jsonl"
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole, newline, rest = text.rpartition("\n")
    if rest:
        write_text(path, whole + newline)
    return [parse_fields(StudyResult, json.loads(line), path, "study result") for line in whole.splitlines()]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over crops; the deviation is 0 for a single one."""

    mean: float
    deviation: float


def summarise(results: Sequence[StudyResult]) -> dict[str, dict[str, Spread]]:
    """For each method the spread of every measured number over its crops."""
    numbers = [each.name for each in fields(StudyResult) if each.type in (float, int)]
    by_method: dict[str, dict[str, Spread]] = {}
    for method in dict.fromkeys(result.method for result in results):
        own = [result for result in results if result.method == method]
        columns = {name: [float(getattr(result, name)) for result in own] for name in numbers}
        by_method[method] = {
            name: Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
            for name, values in columns.items()
        }
    return by_method


def _cropped(whole: Utterance, seconds: float, place: float) -> tuple[str, Utterance]:
    """A crop at a place from 0 (the start) to 1 (the end), and the part of the transcript that belongs to it."""
    size = round(seconds * whole.sample_rate)
    first = round(place * (len(whole.waveform) - size))
    begin, end = first / len(whole.waveform), (first + size) / len(whole.waveform)
    count = len(whole.transcript)
    text = whole.transcript[math.floor(begin * count) : math.ceil(end * count)].strip()
    name = f"{whole.id}@{first / whole.sample_rate:.2f}"
    return name, replace(whole, waveform=whole.waveform[first : first + size].clone(), transcript=text)


def _fits(model: nn.Module, crop: Utterance) -> bool:
    frames = as_recogniser(model).front_end.num_frames(len(crop.waveform))
    output = int(as_recogniser(model).output_lengths(torch.tensor([frames]))[0])
    labels = as_recogniser(model).alphabet.encode(crop.transcript, crop.id)
    return infeasible_reason(frames, output, labels) is None


def _same_plan(path: Path, settings: dict[str, Any]) -> None:
    if not path.is_file():
        write_text(path, json.dumps(settings, indent=1, sort_keys=True))
        return
    former = json.loads(path.read_text(encoding="utf-8"))
    for key in sorted(settings.keys() | former.keys()):
        if former.get(key) != settings.get(key):
            found = f"results with {key} {former.get(key)!r}, now {settings.get(key)!r}"
            raise InputError(str(path.parent), found, "choose another --out folder, or the same settings")
