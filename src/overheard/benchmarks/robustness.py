"""The exact attack on updates that something was done to: noise, coarser numbers, missing entries, clipping, several
steps of local training.

Noise is independent and Gaussian, its deviation a share of each tensor's own root mean square. One line of
robustness.jsonl for each utterance and case; started again, what is there is kept.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from overheard.attacks.observation import Observation, Reconstruction
from overheard.attacks.output_layer import in_mode
from overheard.attacks.registry import run_attack
from overheard.audit.steps import make_batch, share
from overheard.errors import InputError
from overheard.federation.client import ClientSettings
from overheard.federation.defences.registry import defend, parse_defence
from overheard.federation.update import ClientUpdate
from overheard.metrics import alignment
from overheard.metrics.features import match_utterances, score_features
from overheard.recognition.loss import recognition_loss
from overheard.recognition.weights import weights_fingerprint
from overheard.speech.batching import Batch
from overheard.speech.corpus import Selection, load_corpus, load_utterance, select

RESULTS = "robustness.jsonl"
RECOVERED, CLOSE = alignment.CLOSE, 0.1
"""Mean absolute errors of the features."""

RATE, SLOW_RATE = 3e-4, 3e-5
"""Of SGD, without and with momentum: the loss of DeepSpeech 1 with 2,048 units and random weights falls, for some with
swings in the first ten steps. At 1e-3 it goes up and down, at 1e-2 it ends tens of times as high as it began."""

Change = Callable[[Tensor, torch.Generator], Tensor]


def _noise(level: float) -> Change:
    def change(tensor: Tensor, generator: torch.Generator) -> Tensor:
        return tensor + level * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=generator)

    return change


def _stored_as(kind: torch.dtype) -> Change:
    return lambda tensor, _: tensor.to(kind).to(tensor.dtype)


def _eight_bits(tensor: Tensor, _: torch.Generator) -> Tensor:
    step = tensor.abs().max() / 127
    return (tensor / step).round() * step if float(step) > 0 else tensor


def _local(steps: int, rate: float, **others: float) -> ClientSettings:
    return ClientSettings("delta", "eval", steps, rate, **others)


CASES: dict[str, tuple[ClientSettings, Change | str | None]] = {
    "none": (ClientSettings(), None),
    "noise-1e-5": (ClientSettings(), _noise(1e-5)),
    "noise-1e-4": (ClientSettings(), _noise(1e-4)),
    "noise-1e-3": (ClientSettings(), _noise(1e-3)),
    "fp16": (ClientSettings(), _stored_as(torch.float16)),
    "bf16": (ClientSettings(), _stored_as(torch.bfloat16)),
    "8-bit": (ClientSettings(), _eight_bits),
    "quantise-8": (ClientSettings(), "quantise-8"),
    "clip-layers": (ClientSettings(), "clip-layers:norm=1"),
    "prune-0.5": (ClientSettings(), "prune:keep=0.5"),
    "prune-0.3": (ClientSettings(), "prune:keep=0.3"),
    "prune-0.1": (ClientSettings(), "prune:keep=0.1"),
    "top-k-0.5": (ClientSettings(), "top-k:keep=0.5"),
    "top-k-0.3": (ClientSettings(), "top-k:keep=0.3"),
    "top-k-0.1": (ClientSettings(), "top-k:keep=0.1"),
    "random-k-0.5": (ClientSettings(), "random-k:keep=0.5"),
    "random-k-0.3": (ClientSettings(), "random-k:keep=0.3"),
    "random-k-0.1": (ClientSettings(), "random-k:keep=0.1"),
    "sgd-1": (_local(1, RATE), None),
    "sgd-1-fp16": (_local(1, RATE), _stored_as(torch.float16)),
    "sgd-10": (_local(10, RATE), None),
    "sgd-10-momentum-decay": (_local(10, SLOW_RATE, momentum=0.9, weight_decay=1e-4), None),
    "sgd-50": (_local(50, RATE), None),
    "sgd-50-momentum-decay": (_local(50, SLOW_RATE, momentum=0.9, weight_decay=1e-4), None),
}
"""How the client trains, and what is done to its update: to each tensor, or by a defence."""


@dataclass(frozen=True)
class RobustnessResult:
    """One attack.

    Attributes:
        case: name in `CASES`.
        utterance: id.
        speaker: id.
        frames: T.
        mae: mean absolute error of the features; None where nothing came back.
        snr_db: dB.
        unique: the attack's own word.
        predicted_error: relative error that the attack states.
        reason: why not all came back.
        seconds: of the attack, CPU time.
        client_loss: of a client that takes steps, before them, nats.
        client_loss_after: the same behind them.
    """

    case: str
    utterance: str
    speaker: str
    frames: int
    mae: float | None
    snr_db: float | None
    unique: bool | None
    predicted_error: float | None
    reason: str | None
    seconds: float
    client_loss: float | None = None
    client_loss_after: float | None = None


def measure(
    model: nn.Module, corpus: Path, selection: Selection, cases: tuple[str, ...], out: Path
) -> Iterator[RobustnessResult]:
    """Attack every selected utterance in every case; what `out` holds already is skipped.

    Raises:
        InputError: an unknown case, or nothing is selected.
    """
    for case in cases:
        if case not in CASES:
            raise InputError("cases", repr(case), f"choose from {', '.join(CASES)}")
    out.mkdir(parents=True, exist_ok=True)
    done = {(each.case, each.utterance) for each in load_results(out)}
    weights = weights_fingerprint(model)
    for cut in select(load_corpus(corpus), selection)[0]:
        utterance = load_utterance(cut)
        batch, truth = make_batch(model, [utterance])
        shared: dict[ClientSettings, ClientUpdate | str] = {}
        losses: dict[ClientSettings, tuple[float | None, float | None]] = {}
        for case in cases:
            if (case, utterance.id) in done:
                continue
            client, change = CASES[case]
            if client not in shared:
                shared[client] = _shared(model, batch, client, weights)
                losses[client] = _losses(model, batch, shared[client])
            update = shared[client]
            start = time.process_time()
            if isinstance(update, ClientUpdate):
                update = _changed(update, change, selection.seed)
                start = time.process_time()
                found = run_attack(Observation(model, update), "span", seed=selection.seed)
            else:
                found = Reconstruction("span", reason=update)
            seconds = time.process_time() - start
            true = tuple(said.features for said in truth.utterances)
            scored = (
                score_features(found.features[match_utterances(found.features, true)[0]], true[0])
                if found.features
                else None
            )
            errors = found.diagnostics.get("likely_errors") or [None]
            result = RobustnessResult(
                case, utterance.id, utterance.speaker, len(true[0]), scored and scored.mae, scored and scored.snr_db,
                found.unique, errors[0], found.reason, seconds, *losses[client],
            )  # fmt: skip
            with (out / RESULTS).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(asdict(result)) + "\n")
            yield result


def _shared(model: nn.Module, batch: Batch, client: ClientSettings, weights: str) -> ClientUpdate | str:
    """What the client shares, or why it cannot train."""
    try:
        return share(model, batch, client, "", weights)
    except InputError as error:
        return f"the client cannot train: {error}"


def _losses(model: nn.Module, batch: Batch, update: ClientUpdate | str) -> tuple[float | None, float | None]:
    """The client's loss before and after its steps, so that nobody takes a client that diverges for one that trains."""
    if isinstance(update, str) or update.protocol.kind == "gradient":
        return None, None
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in update.tensors}
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad(), in_mode(model, update.protocol.mode):
        before = float(recognition_loss(model, batch))
        for name, parameter in parameters.items():
            parameter.add_(update.tensors[name])
        after = float(recognition_loss(model, batch))
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])
    return before, after


def _changed(update: ClientUpdate, change: Change | str | None, seed: int) -> ClientUpdate:
    generator = torch.Generator().manual_seed(seed)
    if change is None:
        return update
    if isinstance(change, str):
        return defend(update, [parse_defence(change)], generator)
    return ClientUpdate({name: change(tensor, generator) for name, tensor in update.tensors.items()}, update.protocol)


def load_results(out: Path) -> list[RobustnessResult]:
    """What a folder holds."""
    file = out / RESULTS
    if not file.exists():
        return []
    return [RobustnessResult(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class RobustnessRow:
    """All attacks of one case.

    Attributes:
        case: name in `CASES`.
        utterances: attacked.
        recovered: with a mean absolute error below `RECOVERED`.
        close: below `CLOSE`.
        unique: that the attack called so.
        falsely_unique: of those, not recovered.
        snr_db: median; utterances of which nothing came back count as 0 dB.
        seconds: median.
        learnt: clients whose loss fell; None where none took steps.
    """

    case: str
    utterances: int
    recovered: int
    close: int
    unique: int
    falsely_unique: int
    snr_db: float
    seconds: float
    learnt: int | None


def summarise(results: list[RobustnessResult]) -> list[RobustnessRow]:
    """One row for each case, in the order of `CASES`."""
    rows = []
    for case in CASES:
        of_case = [each for each in results if each.case == case]
        if not of_case:
            continue
        recovered = {each.utterance for each in of_case if each.mae is not None and each.mae < RECOVERED}
        steps = [
            each.client_loss_after < each.client_loss
            for each in of_case
            if each.client_loss is not None and each.client_loss_after is not None
        ]
        unique = {each.utterance for each in of_case if each.unique}
        rows.append(
            RobustnessRow(
                case,
                len(of_case),
                len(recovered),
                sum(each.mae is not None and each.mae < CLOSE for each in of_case),
                len(unique),
                len(unique - recovered),
                statistics.median(each.snr_db or 0.0 for each in of_case),
                statistics.median(each.seconds for each in of_case),
                sum(steps) if steps else None,
            )
        )
    return rows
