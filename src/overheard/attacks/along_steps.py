"""Features and words behind several local steps, each found with the help of the other.

The layer that sees windows is shown the same at every step and tells the features by itself, as exactly as the weights'
rounding lets it. The layers behind it moved, and tell nothing until one knows how. Words follow from those features
(`transcript`), the steps from both, what the layer behind was shown from the steps (`local_steps.layer_drift`), better
features from that layer, and so on while the steps end nearer to where the client's did. Where the first layer leaves
no doubt and the words are exact, that is all.
"""

from dataclasses import replace

import torch
from torch import Tensor

from overheard.attacks.local_steps.layer_drift import layer_drift
from overheard.attacks.noise.layer_behind import LayerBehind, find_layer_behind
from overheard.attacks.noise.noisy_span import NoisyRecovery, fit_with_layer_behind
from overheard.attacks.observation import Observation, Reconstruction
from overheard.attacks.span import SpanConfig
from overheard.attacks.transcript import TranscriptResult, recover_transcripts
from overheard.attacks.windows import WindowedLayer, find_windowed_layer
from overheard.attacks.words.text_lattice import Text
from overheard.recognition.recogniser import as_recogniser

MOST_ROUNDS = 4
"""Of features and words in turn."""

FITS = 2
"""Of features with the same words: what the layer behind was shown follows from features, too."""

HOPELESS = 0.1
"""Likely relative error of the features above which nothing is sought: no step is right on such."""

STANDS_STILL = 0.5
"""How far the steps may still end from the client's, relative to the round before, for another round."""


def follow_steps(observation: Observation, reconstruction: Reconstruction) -> tuple[Reconstruction, TranscriptResult]:
    """Better features, where there are any, and what was said.

    Args:
        observation: all that the attacker sees, an update of several local steps.
        reconstruction: features that the layer that sees windows told.
    """
    model, update = observation.model, observation.update
    features = reconstruction.features
    error = max(reconstruction.diagnostics.get("likely_errors") or [0.0])
    if error > HOPELESS:
        reason = (
            f"the features are off by about {error:.1g} of their size, and the local steps cannot be followed on such"
        )
        nothing = TranscriptResult((None,) * len(features), (False,) * len(features), reason=reason)
        return reconstruction, nothing
    words = recover_transcripts(model, update, features)
    if reconstruction.unique and all(words.exact):
        return reconstruction, words
    windowed = find_windowed_layer(model, as_recogniser(model).front_end.num_features)
    behind = None if windowed is None else find_layer_behind(observation, windowed, known_drift=True)
    for _ in range(MOST_ROUNDS):
        texts = _labels(observation, words)
        if windowed is None or behind is None or texts is None or words.apart is None:
            break
        found = _refitted(observation, windowed, behind, list(features), texts)
        if found is None:
            break
        recovery, change = found
        better = tuple(recovery.likely.features)
        again = recover_transcripts(model, update, better, guess=texts)
        if again.apart is None or again.apart >= words.apart:
            break
        slow = again.apart > STANDS_STILL * words.apart
        features, words = better, again
        reconstruction = _with(reconstruction, recovery, change)
        if slow:
            break
    return reconstruction, words


def _labels(observation: Observation, words: TranscriptResult) -> list[Text] | None:
    alphabet = as_recogniser(observation.model).alphabet
    if any(text is None for text in words.texts):
        return None
    return [tuple(alphabet.encode(text)) for text in words.texts if text is not None]


def _refitted(
    observation: Observation,
    windowed: WindowedLayer,
    behind: LayerBehind,
    features: list[Tensor],
    texts: list[Text],
) -> tuple[NoisyRecovery, float] | None:
    """The last fit, and how much it changed, relative to the features; None where it does not come to an end."""
    found, change = None, 0.0
    for _ in range(FITS):
        moved = layer_drift(observation.model, observation.update, features, texts, windowed.name, behind.name)
        mean = replace(
            behind,
            weight=moved.means[f"{windowed.name}.weight"].flatten(1)[:, windowed.order].cpu(),
            bias=moved.means.get(f"{windowed.name}.bias", behind.bias).cpu(),
        )
        draws = torch.Generator().manual_seed(0)
        found = fit_with_layer_behind(observation, windowed, features, mean, moved.drift.cpu(), draws)
        if found is None or not found.likely.settled:
            return None
        difference = torch.cat(found.likely.features) - torch.cat(features)
        change = float(difference.norm() / torch.cat(features).norm())
        features = list(found.likely.features)
    return None if found is None else (found, change)


def _with(reconstruction: Reconstruction, recovery: NoisyRecovery, change: float) -> Reconstruction:
    """With the features of a fit along the steps; what the last one changed counts as their error, too."""
    error = max(recovery.likely.predicted_error, change)
    reason = None
    if not recovery.fits:
        reason = "the features found leave more of the update unexplained than its noise does"
    elif error > SpanConfig().precision:
        reason = "the features along the local steps are not determined to the stated tolerance"
    diagnostics = reconstruction.diagnostics | {
        "noisy_layers": list(recovery.layers),
        "noise": list(recovery.noise),
        "noise_excess": recovery.excess,
        "likely_errors": [error] * len(recovery.likely.features),
    }
    features = recovery.likely.features
    unique = reason is None
    return replace(reconstruction, features=features, errors=(), unique=unique, reason=reason, diagnostics=diagnostics)
