"""From features to the whole: words from the output layer, and the certificate of both."""

from dataclasses import replace

from overheard.attacks.certificate import FLOAT32, certify
from overheard.attacks.observation import Observation, Reconstruction
from overheard.attacks.transcript import recover_transcripts


def complete(observation: Observation, reconstruction: Reconstruction) -> Reconstruction:
    """Add what was said, and whether the update follows from it all, to features that an attack brought back.

    Transcripts that the attacker is declared to know are used as they are, and diagnostics say so; those of several
    utterances are put into the features' order where the output layer tells it.

    Args:
        observation: all that the attacker sees.
        reconstruction: of any attack; returned unchanged where it holds no features. Its diagnostic
            "predicted_error", where present, is the precision that the certificate grants the features.
    """
    if not reconstruction.features:
        return reconstruction
    model, update = observation.model, observation.update
    declared = observation.prior.transcripts
    diagnostics = dict(reconstruction.diagnostics)
    if declared is not None and len(declared) == len(reconstruction.features) == 1:
        transcripts: tuple[str | None, ...] = declared
        diagnostics["transcript_source"] = "declared"
    else:
        found = recover_transcripts(model, update, reconstruction.features)
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
    granted = diagnostics.get("predicted_error")
    precision = float(granted) if isinstance(granted, int | float) else FLOAT32
    certificate = certify(model, update, reconstruction.features, transcripts, precision)
    diagnostics["certificate"] = {
        "relative_difference": certificate.relative_difference,
        "floor": certificate.floor,
        "text_residual": certificate.text_residual,
        "text_floor": certificate.text_floor,
        "text_gap": certificate.text_gap,
        "tolerance": certificate.tolerance,
        "precision": certificate.precision,
        "reason": certificate.reason,
    }
    return replace(reconstruction, transcripts=transcripts, certified=certificate.certified, diagnostics=diagnostics)
