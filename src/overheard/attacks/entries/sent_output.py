"""The output layer's update where entries of it are missing: what was sent of a symbol's row tells the rest.

With known features the inputs A (P, C) of the output layer are known, and the row of symbol v is r_v A with r_v (P,),
softmax minus occupancy. A row of more entries than frames determines its r_v by least squares, and so its own missing
entries. One of fewer leaves directions open; along these r_v is taken as for a symbol that nobody said, p(v).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from overheard.attacks.entries.sent_entries import sent_entries
from overheard.attacks.entries.update_scale import output_scales, rescaled, update_scale
from overheard.attacks.observation import Observation
from overheard.attacks.output_layer import OutputRun
from overheard.attacks.received_update import ReceivedUpdate
from overheard.attacks.windows import find_windowed_layer
from overheard.federation.update import ClientUpdate
from overheard.recognition.recogniser import as_recogniser

UNEXPLAINED = 0.02
"""Share of zeros, at inputs that were not zero, from which on entries are missing."""
SMALLEST = 1e-5
"""Singular value of the inputs at a row's entries, relative to the largest, below which a direction is open."""


def as_computed(observation: Observation, run: OutputRun) -> tuple[ClientUpdate, dict[str, Any]]:
    """An update nearer to what the client computed: output layer filled in, factors taken out; and what was done.

    Args:
        observation: all that the attacker sees.
        run: of the output layer on the features of all its utterances.
    """
    diagnostics: dict[str, Any] = {}
    update = observation.update
    filled = fill_output(update, run)
    if filled is not None:
        update, diagnostics["open_symbols"] = filled
    elif _misses_entries(observation):
        update = ReceivedUpdate(update.tensors, update.protocol, _sent(update, ()))
    scale = update_scale(update, run)
    if scale != 1.0:
        return rescaled(update, scale), diagnostics | {"update_scale": scale}
    weight, bias = output_scales(update, run)
    if weight == bias == 1.0 or isinstance(update, ReceivedUpdate):
        return update, diagnostics
    # Tensors were clipped one by one: those of the output layer are known by now, the others compared up to a factor.
    tensors = dict(update.tensors)
    prefix = f"{run.layer}." if run.layer else ""
    tensors[f"{prefix}weight"] = tensors[f"{prefix}weight"] / weight
    tensors[f"{prefix}bias"] = tensors[f"{prefix}bias"] / bias
    diagnostics["output_scales"] = [weight, bias]
    return ReceivedUpdate(tensors, update.protocol, free_sizes=True), diagnostics


def fill_output(update: ClientUpdate, run: OutputRun) -> tuple[ReceivedUpdate, list[int]] | None:
    """Fill in the missing entries, and symbols whose entries leave directions open; None where none are missing.

    Args:
        update: what the client shared.
        run: of the output layer on the features of all its utterances.
    """
    prefix = f"{run.layer}." if run.layer else ""
    names = [name for name in (f"{prefix}weight", f"{prefix}bias") if name in update.tensors]
    if not names or not names[0].endswith("weight"):
        return None
    matrix = torch.cat([update.gradient(name).reshape(len(update.tensors[name]), -1) for name in names], dim=1)
    inputs = torch.cat(run.inputs)
    shown = functional.pad(inputs, (0, 1), value=1.0) if len(names) == 2 else inputs
    on = (shown != 0).any(dim=0)
    missing = (matrix == 0) & on
    if float(missing.double().mean()) < UNEXPLAINED:
        return None
    unsaid = torch.cat(run.logits).softmax(dim=-1).T  # (V, P)
    # Updates are means over utterances, and sums over local steps.
    unsaid = unsaid * (sum(update.protocol.step_weights) / update.protocol.num_utterances)
    filled, open_symbols = matrix.clone(), []
    for row in range(len(matrix)):
        known = on & ~missing[row]
        change, determined = _least_squares(shown[:, known], matrix[row, known] - unsaid[row] @ shown[:, known])
        open_symbols += [] if determined else [row]
        filled[row, missing[row]] = ((unsaid[row] + change) @ shown)[missing[row]]
    scale = update.gradient(names[0]).new_ones(())
    if update.protocol.learning_rate is not None:
        scale = scale * -update.protocol.learning_rate
    parts = filled.split([update.tensors[names[0]].shape[1], 1][: len(names)], dim=1)
    tensors = dict(update.tensors)
    for name, part in zip(names, parts, strict=True):
        tensors[name] = (part * scale).reshape(tensors[name].shape).to(tensors[name].dtype)
    return ReceivedUpdate(tensors, update.protocol, _sent(update, names)), open_symbols


def _sent(update: ClientUpdate, but: Sequence[str]) -> dict[str, Tensor]:
    return {name: tensor != 0 for name, tensor in update.tensors.items() if name not in but}


def _misses_entries(observation: Observation) -> bool:
    """Whether the layer that sees windows lacks entries: it has no zeros of its own."""
    windowed = find_windowed_layer(observation.model, as_recogniser(observation.model).front_end.num_features)
    return windowed is not None and sent_entries(observation, windowed) is not None


def _least_squares(shown: Tensor, row: Tensor) -> tuple[Tensor, bool]:
    """r of least size with r A nearest to the row, and whether nothing is open."""
    left, values, right = torch.linalg.svd(shown, full_matrices=False)
    kept = values > SMALLEST * values[:1]
    found = left[:, kept] @ ((right[kept] @ row) / values[kept])
    return found, int(kept.sum()) == len(shown)
