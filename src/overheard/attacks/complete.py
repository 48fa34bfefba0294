"""From features to the whole: words from the output layer, and the certificate of both."""

from dataclasses import replace
from typing import Any, Literal

from overheard.attacks.along_steps import follow_steps
from overheard.attacks.certificate import Certificate, certify
from overheard.attacks.certificates.resimulation import trace
from overheard.attacks.entries.sent_output import as_computed
from overheard.attacks.ladder import LADDER, LadderConfig, climb
from overheard.attacks.observation import Observation, Reconstruction
from overheard.attacks.output_layer import FLOAT32, run_output_layer
from overheard.attacks.registry import AUTO, check_update, config_of, run_attack
from overheard.attacks.transcript import recover_transcripts
from overheard.metering import metered
from overheard.recognition.configuration import config_from_json

Until = Literal["features", "words", "certificate"]
"""How far an attack goes: each stage includes those before it, and costs more than they do together."""


def attack_until(
    observation: Observation,
    name: str = AUTO,
    options: dict[str, Any] | None = None,
    seed: int = 0,
    until: Until = "words",
) -> Reconstruction:
    """Features by an attack, then the words, then the certificate, as far as is wanted.

    Args:
        observation: all that the attacker sees.
        name: of the attack, or "auto", see `registry.run_attack`; or "ladder", see `ladder.climb`, which always goes
            as far as certificates.
        options: settings of that attack.
        seed: of whatever it draws.
        until: the last stage.

    Raises:
        InputError: as `registry.run_attack`.
    """
    if name == LADDER:
        check_update(observation)
        config = config_from_json(LadderConfig, options or {}, f"settings of attack {LADDER}")
        return replace(climb(observation, config, complete, seed), given=observation.given())
    found = run_attack(observation, name, options, seed)
    if until == "features" or not found.features:
        return found
    with metered(next(observation.model.parameters()).device) as meter:
        found = complete(observation, found, certificate=until == "certificate")
    return replace(found, seconds_words=meter.seconds)


def check_attack(name: str, options: dict[str, Any]) -> None:
    """Refuse an attack before anything is computed.

    Raises:
        InputError: no such attack or setting.
    """
    if name == LADDER:
        config_from_json(LadderConfig, options, f"settings of attack {LADDER}")
    else:
        config_of(name, options)


def complete(observation: Observation, reconstruction: Reconstruction, certificate: bool = True) -> Reconstruction:
    """Add what was said, and whether the update follows from it all, to features that an attack brought back.

    Transcripts that the attacker is declared to know are used as they are, and diagnostics say so; those of several
    utterances are put into the features' order where the output layer tells it. Entries that are missing of the output
    layer are filled in first, and factors, as from clipping, taken out; see `sent_output` and `update_scale`.

    Args:
        observation: all that the attacker sees.
        reconstruction: of any attack; returned unchanged where it holds no features. The largest of its diagnostic
            "likely_errors", where present, is the precision that the certificate grants the features.
        certificate: whether to run the client again on what was found, which takes twice a client's step.
    """
    if not reconstruction.features:
        return reconstruction
    model, update = observation.model, observation.update
    declared = observation.prior.transcripts
    along_steps = None
    if update.protocol.local_steps > 1 and declared is None:
        reconstruction, along_steps = follow_steps(observation, reconstruction)
    traced = trace(model, reconstruction.features, update.protocol.mode) if certificate else None
    run = traced.run if traced else run_output_layer(model, reconstruction.features, update.protocol.mode)
    diagnostics = dict(reconstruction.diagnostics)
    if run is not None:
        update, found_out = as_computed(observation, run)
        diagnostics |= found_out
    if declared is not None and len(declared) == len(reconstruction.features) == 1:
        transcripts: tuple[str | None, ...] = declared
        diagnostics["transcript_source"] = "declared"
    else:
        found = along_steps or recover_transcripts(model, update, reconstruction.features, run=run)
        transcripts = found.texts
        diagnostics |= {
            "transcript_source": "output layer",
            "transcript_exact": list(found.exact),
            "transcript_residual": list(found.relative_residual),
            "transcript_evaluations": found.evaluations,
            "transcript_reason": found.reason,
        }
        if declared is not None and len(declared) == len(transcripts):
            if sorted(declared) != sorted(text or "" for text in transcripts):
                transcripts = declared
            diagnostics["transcript_source"] = "declared"
    if not certificate:
        return replace(reconstruction, transcripts=transcripts, diagnostics=diagnostics)
    precision = max(diagnostics.get("likely_errors") or [FLOAT32])
    errors = reconstruction.errors
    proof = certify(model, update, reconstruction.features, transcripts, precision, errors, traced=traced)
    diagnostics["certificate"] = _described(proof)
    return replace(reconstruction, transcripts=transcripts, certified=proof.certified, diagnostics=diagnostics)


def _described(proof: Certificate) -> dict[str, Any]:
    """The certificate's figures as JSON values, without those of every tensor."""
    left_out = ("certified", "per_tensor", "per_tensor_floor")
    return {name: value for name, value in vars(proof).items() if name not in left_out}
