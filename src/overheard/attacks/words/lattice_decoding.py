"""Text from occupancies as an integer least-squares problem.

Where a text y of L labels is aligned, the occupancy of symbol k is a sum over the places of k in the text,

    gamma_t(k) = sum_j q_t(j) [y_j = k],

with q_t(j) the probability that frame t is at label j. q depends on the text through the symbols' probabilities alone,
so that q of a text that is about right, or of one made of average symbols, serves to find y: a least-squares problem
over matrices Y whose rows are one-hot. It is solved as receivers in communications do: QR, then a beam over the
triangle, last label first (the K-best form of sphere decoding), with a ridge that stands for the error of q.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overheard.attacks.words.text_lattice import Chains, TextLattice
from overheard.recognition.ctc import ctc_occupancy
from overheard.speech.alphabet import BLANK


def label_occupancy(log_probs: Float[Tensor, "T V"], labels: list[int]) -> Float[Tensor, "T L"]:
    """q: probability of each frame being at each label of a text."""
    return TextLattice(log_probs, tuple(labels)).label_occupancy


def average_symbols(
    log_probs: Float[Tensor, "T V"], observed: Float[Tensor, "T V"], copies: int
) -> Float[Tensor, "T symbols"]:
    """Log-probabilities of the blank and of `copies` equal symbols, each the mean of those that the frame may hold."""
    labels = observed[:, BLANK + 1 :].clamp(min=0.0)
    # A frame that shows no label at all says nothing about which it would be.
    shares = labels + labels.mean() * 1e-3 + torch.finfo(labels.dtype).tiny
    shares = shares / shares.sum(dim=1, keepdim=True)
    mean = (shares * log_probs[:, BLANK + 1 :].exp()).sum(dim=1).log()
    return torch.cat([log_probs[:, BLANK, None], mean[:, None].expand(-1, copies)], dim=1)


def rank_lengths(
    chains: Chains,
    observed: Float[Tensor, "T V"],
    whitener: Float[Tensor, "T T"],
    at_once: int = 12,
) -> list[int]:
    """Numbers of labels, likeliest first: how well texts of average symbols explain when labels are spoken at all.

    The misfit has one valley over the length, so a grid that closes in on it is enough.
    """
    frames = len(observed)
    generic = [(share, average_symbols(log_probs, observed, 2)) for share, log_probs in chains]
    wanted = observed[:, BLANK + 1 :].sum(dim=1)
    misfits: dict[int, float] = {}
    low, high = 0, frames
    while True:
        step = max(1, -(-(high - low) // at_once))
        fresh = [length for length in range(low, high + 1, step) if length not in misfits]
        misfits |= dict(zip(fresh, _length_misfits(generic, wanted, whitener, fresh), strict=True))
        if step == 1:
            return sorted(misfits, key=lambda length: misfits[length])
        best = min(misfits, key=lambda length: misfits[length])
        low, high = max(0, best - step), min(frames, best + step)


def _length_misfits(
    generic: Chains, wanted: Float[Tensor, " T"], whitener: Float[Tensor, "T T"], lengths: list[int]
) -> list[float]:
    if not lengths:
        return []
    # Two equal symbols in turn, since a symbol that follows itself would need a blank between.
    turns = torch.arange(max(1, max(lengths)), device=wanted.device) % 2 + 1
    labels = wanted.new_zeros(len(wanted), len(lengths))
    for share, log_probs in generic:
        found = ctc_occupancy(
            log_probs[:, None].expand(-1, len(lengths), -1),
            turns.expand(len(lengths), -1),
            [len(log_probs)] * len(lengths),
            lengths,
        )
        labels = labels + share * found[:, :, 1:].sum(dim=2)
    return (whitener @ (labels - wanted[:, None])).square().sum(dim=0).tolist()


def average_label_occupancy(chains: Chains, observed: Float[Tensor, "T V"], length: int) -> Float[Tensor, "T L"]:
    """q of a text of so many average symbols."""
    labels = list(range(1, length + 1))
    found = [
        share * label_occupancy(average_symbols(log_probs, observed, length), labels) for share, log_probs in chains
    ]
    return torch.stack(found).sum(dim=0)


def nearest_texts(
    design: Float[Tensor, "R L"], target: Float[Tensor, "R K"], ridge: float, beam: int
) -> Int[Tensor, "beam L"]:
    """One-hot rows Y that bring `design` Y near to `target`: column indices, nearest first.

    Args:
        design: q, whitened.
        target: occupancy of K symbols, whitened alike.
        ridge: error of the design relative to one column's weight; the larger, the more each label is judged by itself.
        beam: partial texts kept.
    """
    labels, symbols = design.shape[1], target.shape[1]
    weight = ridge * float(design.square().sum(dim=0).mean().sqrt())
    identity = torch.eye(labels, dtype=design.dtype, device=design.device)
    prior = torch.full((labels, symbols), weight / symbols, dtype=design.dtype, device=design.device)
    orthogonal, triangle = torch.linalg.qr(torch.cat([design, weight * identity]))
    turned = orthogonal.T @ torch.cat([target, prior])  # (L, K)
    texts = torch.zeros(1, 0, dtype=torch.long, device=design.device)
    costs = design.new_zeros(1)
    for row in range(labels - 1, -1, -1):
        taken = triangle[row, row + 1 :].expand_as(texts)
        wanted = turned[row] - design.new_zeros(len(texts), symbols).scatter_add_(1, texts, taken)
        diagonal = triangle[row, row]
        branch = costs[:, None] + wanted.square().sum(dim=1, keepdim=True) - 2 * diagonal * wanted + diagonal**2
        costs, picked = branch.flatten().topk(min(beam, branch.numel()), largest=False)
        texts = torch.cat([(picked % symbols)[:, None], texts[picked // symbols]], dim=1)
    return texts
