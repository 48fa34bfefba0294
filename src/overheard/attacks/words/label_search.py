"""Labels that fit the output layer's update better, while the features are still being found.

For given features the output layer's inputs h_t and logits are known, and a transcript enters its update through the
CTC occupancy alone: dW = sum_t (softmax_t - occupancy_t) h_t^T / N (Graves et al. 2006, eq. 16). One forward pass
therefore scores every transcript that is one edit away. Dang et al. (2022) replace one random character by the best;
here all single substitutions, insertions, deletions and exchanges of neighbours compete.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overheard.attacks.output_layer import OutputRun, output_gradient, run_output_layer
from overheard.errors import InputError
from overheard.federation.update import ClientUpdate
from overheard.recognition.ctc import ctc_occupancy
from overheard.speech.alphabet import minimum_frames

LABELS_PER_OUTPUT_FRAME = 0.28
"""English read aloud has 14 letters a second, on 50 output frames a second."""

CANDIDATES_AT_ONCE = 512


def guess_labels(
    model: nn.Module,
    update: ClientUpdate,
    features: Sequence[Float[Tensor, "_ F"]],
    generator: torch.Generator,
) -> list[list[int]]:
    """A first transcript for each utterance: symbols that the update says were said, in random order.

    With random weights all rows of the output layer's update look alike but for the occupancy: the row of a symbol
    that was said points the other way.
    """
    run = _run(model, update, features)
    target = output_gradient(update, run.layer)
    assert target is not None
    mean = torch.cat(run.inputs).mean(0)
    pull = (target[:, : len(mean)] @ mean)[1:]
    said = (pull.median() - pull).clamp(min=0.0)
    shares = (said / said.sum()).to(generator.device) if bool(said.any()) else None
    texts = []
    for inputs in run.inputs:
        count = max(1, round(LABELS_PER_OUTPUT_FRAME * len(inputs)))
        if shares is None:
            drawn = torch.randint(len(pull), (count,), generator=generator, device=generator.device)
        else:
            drawn = torch.multinomial(shares, count, replacement=True, generator=generator)
        labels = (drawn + 1).tolist()
        while minimum_frames(labels) > len(inputs):
            labels.pop()
        texts.append(labels)
    return texts


def improve_labels(
    model: nn.Module, update: ClientUpdate, features: Sequence[Float[Tensor, "_ F"]], labels: list[list[int]]
) -> list[list[int]]:
    """For each utterance in turn the best transcript within one edit, by the output layer's update."""
    run = _run(model, update, features)
    target = output_gradient(update, run.layer)
    assert target is not None
    if target.shape[1] > run.inputs[0].shape[1]:
        target = target[:, :-1]
    improved = [list(text) for text in labels]
    shares = [_shares(run, index, [text])[0] for index, text in enumerate(improved)]
    for index, text in enumerate(improved):
        rest = target - torch.stack([*shares, torch.zeros_like(target)]).sum(0) + shares[index]
        candidates = [text, *_edits(text, target.shape[0], len(run.inputs[index]))]
        best = (float("inf"), text, shares[index])
        for first in range(0, len(candidates), CANDIDATES_AT_ONCE):
            some = candidates[first : first + CANDIDATES_AT_ONCE]
            found = _shares(run, index, some)
            errors = (found - rest).square().sum((1, 2))
            winner = int(errors.argmin())
            if float(errors[winner]) < best[0]:
                best = (float(errors[winner]), some[winner], found[winner])
        improved[index], shares[index] = list(best[1]), best[2]
    return improved


def _run(model: nn.Module, update: ClientUpdate, features: Sequence[Float[Tensor, "_ F"]]) -> OutputRun:
    run = run_output_layer(model, features, update.protocol.mode)
    if run is None or output_gradient(update, run.layer) is None:
        found = "no linear layer writes the logits and shares its update"
        raise InputError("transcripts", found, "declare them as prior knowledge: they cannot be improved on the way")
    return run


def _shares(run: OutputRun, index: int, texts: Sequence[Sequence[int]]) -> Float[Tensor, "K V C"]:
    """What an utterance adds to N times the output layer's update, for each of K transcripts."""
    log_probs = run.logits[index].log_softmax(1)
    longest = max(1, *(len(text) for text in texts))
    targets = torch.zeros(len(texts), longest, dtype=torch.long, device=log_probs.device)
    for row, text in zip(targets, texts, strict=True):
        row[: len(text)] = torch.tensor(text, dtype=torch.long)
    frames = len(log_probs)
    expanded = log_probs[:, None].expand(-1, len(texts), -1)
    occupancy = ctc_occupancy(expanded, targets, [frames] * len(texts), [len(text) for text in texts])
    return torch.einsum("tkv,tc->kvc", expanded.exp() - occupancy, run.inputs[index])


def _edits(text: list[int], num_symbols: int, num_frames: int) -> list[list[int]]:
    symbols = range(1, num_symbols)
    substituted = [[*text[:at], new, *text[at + 1 :]] for at in range(len(text)) for new in symbols if new != text[at]]
    inserted = [[*text[:at], new, *text[at:]] for at in range(len(text) + 1) for new in symbols]
    deleted = [[*text[:at], *text[at + 1 :]] for at in range(len(text)) if len(text) > 1]
    exchanged = [
        [*text[:at], text[at + 1], text[at], *text[at + 2 :]] for at in range(len(text) - 1) if text[at] != text[at + 1]
    ]
    return [each for each in substituted + inserted + deleted + exchanged if minimum_frames(each) <= num_frames]
