"""The single edit of a batch's texts that its update sees least: what a comparison must be able to tell apart."""

from collections.abc import Sequence

import torch

from overheard.attacks.output_layer import OutputRun
from overheard.attacks.words.scored_texts import Text, occupancies
from overheard.speech.alphabet import minimum_frames

EDITS_AT_ONCE = 64


def nearest_texts(run: OutputRun, texts: Sequence[Text]) -> list[Text] | None:
    """All texts, the one edited that changes the output layer's gradient least; None where no edit fits its frames.

    Args:
        run: of the output layer.
        texts: of each utterance.
    """
    nearest: tuple[float, int, Text] | None = None
    for index, (logits, inputs, text) in enumerate(zip(run.logits, run.inputs, texts, strict=True)):
        log_probs = logits.log_softmax(dim=-1)
        others = [other for other in _single_edits(text, logits.shape[1]) if minimum_frames(other) <= len(logits)]
        for start in range(0, len(others), EDITS_AT_ONCE):
            some = others[start : start + EDITS_AT_ONCE]
            found = occupancies(log_probs, [text, *some])
            change = torch.einsum("tnv,tc->nvc", found[:, 1:] - found[:, :1], inputs).flatten(1).norm(dim=1)
            least = int(change.argmin())
            if nearest is None or float(change[least]) < nearest[0]:
                nearest = float(change[least]), index, some[least]
    if nearest is None:
        return None
    _, index, other = nearest
    return [other if at == index else text for at, text in enumerate(texts)]


def _single_edits(text: Text, num_symbols: int) -> list[Text]:
    """Neighbours exchanged, a label taken out, doubled, or replaced by the next symbol: one of each at every place."""
    found = [(*text, 1)]
    for place, label in enumerate(text):
        before, after = text[:place], text[place + 1 :]
        found += [(*before, *after), (*before, label, *text[place:]), (*before, label % (num_symbols - 1) + 1, *after)]
        if after:
            found.append((*before, after[0], label, *after[1:]))
    return [other for other in dict.fromkeys(found) if other != text]
