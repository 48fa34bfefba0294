"""Share, attack, score: the three steps of every audit, as functions.

`share` knows the truth and keeps it apart; `attack_update` sees the update and the public model; `score` compares.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from overheard import __version__
from overheard.attacks.observation import Reconstruction
from overheard.audit.records import AuditRecord
from overheard.errors import InputError
from overheard.federation.client import ClientSettings, client_update
from overheard.federation.update import ClientUpdate, check_fits
from overheard.metrics.alignment import align_words, count_hits, frames_close
from overheard.metrics.features import match_utterances, score_features
from overheard.metrics.truth import TrueUtterance, Truth
from overheard.metrics.words import score_words
from overheard.recognition.loss import check_feasible
from overheard.recognition.models import MODELS, ModelSpec, parameter_shapes, spec_of
from overheard.recognition.recogniser import as_recogniser
from overheard.recognition.weights import resolve_model, weights_fingerprint
from overheard.speech.batching import Batch, check_batch, collate
from overheard.speech.corpus import Utterance
from overheard.speech.features import FrontEnd
from overheard.storage import read_tensors


def make_batch(model: nn.Module, utterances: Sequence[Utterance]) -> tuple[Batch, Truth]:
    """Features and labels of utterances, as the model's own front end and alphabet make them.

    Raises:
        InputError: an unknown symbol, an empty transcript, or too few frames for one; names the utterance.
    """
    recogniser = as_recogniser(model)
    front_end = FrontEnd(recogniser.front_end)
    labels = [recogniser.alphabet.encode(utterance.transcript, utterance.id) for utterance in utterances]
    with torch.no_grad():
        features = [front_end(utterance.waveform) for utterance in utterances]
    batch = collate(features, labels)
    check_feasible(model, batch, [utterance.id for utterance in utterances])
    said = [
        TrueUtterance(utterance.id, utterance.speaker, utterance.transcript, matrix, utterance.waveform)
        for utterance, matrix in zip(utterances, features, strict=True)
    ]
    return batch, Truth(tuple(said), front_end.config)


def read_batch(model: nn.Module, path: Path) -> tuple[Batch, Truth]:
    """A batch that somebody prepared: features, num_frames, targets and target_lengths in one safetensors file.

    Raises:
        InputError: the file is broken, a shape or length is wrong, or a transcript does not fit its frames.
    """
    tensors, _ = read_tensors(path, "batch", ours=False)
    recogniser = as_recogniser(model)
    alphabet, front_end = recogniser.alphabet, recogniser.front_end
    batch = check_batch(tensors, front_end.num_features, alphabet.num_symbols, str(path))
    names = [f"{path.stem}-{index}" for index in range(batch.size)]
    check_feasible(model, batch, names)
    said = [
        TrueUtterance(name, None, alphabet.decode(batch.utterance_labels(index)), batch.utterance_features(index), None)
        for index, name in enumerate(names)
    ]
    return batch, Truth(tuple(said), front_end)


def model_name(model: nn.Module, text: str) -> str:
    """How the server names a model so that an attacker can have it too: a registered one with random weights by its
    specification, any other as the user named it."""
    return spec_of(model).to_json() if is_registered(text) else text


def is_registered(text: str) -> bool:
    """The user asked for a registered model with random weights, by its name or specification."""
    return text in MODELS or text.startswith("{")


def share(model: nn.Module, batch: Batch, settings: ClientSettings, name: str, weights: str) -> ClientUpdate:
    """What one client with this batch would send; see `client_update`."""
    device = next(model.parameters()).device
    return client_update(model, batch.to(device), settings, name, weights)


def public_model(update: ClientUpdate, text: str | None, seed: int, source: str) -> nn.Module:
    """The model that an attacker has: the one the user names, or the one that the update names.

    A function that an update names is not called, since files from outside run no code here. Shapes are compared
    before memory is spent on a model.

    Raises:
        InputError: no model named, or one whose tensors or weights are not those of the update.
    """
    named = text or update.protocol.model
    if text is None and (not named or (":" in named and not named.startswith("{") and not Path(named).is_file())):
        raise InputError(source, f"its model is {named!r}", "name the model yourself with --model")
    if named.startswith("{"):
        check_fits(update, parameter_shapes(ModelSpec.from_json(named)), source)
    model = resolve_model(named, seed)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    check_fits(update, shapes, source)
    if update.protocol.weights and weights_fingerprint(model) != update.protocol.weights:
        remedy = "name the model with the weights that the client started from, with --model and --seed"
        raise InputError(source, f"it was computed from other weights than {named[:60]} has", remedy)
    return model


def score(reconstruction: Reconstruction, truth: Truth) -> list[AuditRecord]:
    """One record for each true utterance, in the truth's order; those that nothing stands for have failed."""
    pairs = match_utterances(reconstruction.features, tuple(said.features for said in truth.utterances))
    sample_rate = truth.front_end.sample_rate
    return [
        _score_one(reconstruction, said, pairs.get(index), sample_rate) for index, said in enumerate(truth.utterances)
    ]


def _rungs(reconstruction: Reconstruction) -> str | None:
    """What each rung of a ladder came to, without its time: records of equal runs are equal."""
    rows = reconstruction.diagnostics.get("rungs")
    return None if rows is None else "; ".join(f"{row['rung']}: {row['outcome']}" for row in rows)


def _score_one(reconstruction: Reconstruction, said: TrueUtterance, index: int | None, sample_rate: int) -> AuditRecord:
    given = reconstruction.given
    record = AuditRecord(
        utterance=said.id,
        speaker=said.speaker,
        seconds_audio=None if said.waveform is None else len(said.waveform) / sample_rate,
        kind=given.get("kind"),
        mode=given.get("mode"),
        batch=given.get("batch"),
        local_steps=given.get("local_steps"),
        prior=", ".join(given.get("prior", [])) or "nothing",
        attack=reconstruction.attack,
        rungs=_rungs(reconstruction),
        reason=reconstruction.reason,
        frames_true=len(said.features),
        frames_recovered=0,
        transcript_true=said.transcript,
        words_true=len(said.transcript.split()),
        certified=reconstruction.certified,
        unique=reconstruction.unique,
        seconds=reconstruction.seconds,
        seconds_words=reconstruction.seconds_words,
        peak_mb=reconstruction.peak_mb,
        version=__version__,
    )
    if index is None:
        return replace(record, reason=record.reason or "nothing came back for this utterance")
    found = score_features(reconstruction.features[index], said.features)
    record = replace(
        record,
        status="ok",
        frames_recovered=found.frames_recovered,
        feature_mae=found.mae,
        feature_snr_db=found.snr_db,
        frames_close=frames_close(reconstruction.features[index], said.features),
    )
    if not record.recovered and record.reason is None:
        frames = f"{found.frames_recovered} of {found.frames_true} frames"
        record = replace(record, reason=f"{frames}, mean absolute error {found.mae:.2g}")
    transcript = reconstruction.transcripts[index]
    if transcript is not None:
        words = score_words(transcript, said.transcript)
        hits = count_hits(align_words(said.transcript, transcript))
        record = replace(record, transcript_recovered=transcript, cer=words.cer, wer=words.wer, words_recovered=hits)
    return record
