"""Texts of one utterance, and how far the occupancies of each are from the observed ones."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.output_layer import FrameEvidence
from overheard.attacks.words.nearby_texts import nearby_occupancies
from overheard.attacks.words.text_lattice import Chains, MeanLattice, Text, TextLattice
from overheard.recognition.ctc import ctc_occupancy
from overheard.speech.alphabet import minimum_frames

AT_ONCE = 2**20
"""Values of a lattice that are scored at once: what stays in a processor's cache."""

LATTICES = 4
"""Texts whose lattices are kept."""


@dataclass
class Search:
    """One utterance's search: its evidence, and what has been scored.

    Attributes:
        evidence: of the output layer.
        symbols: labels that the text may hold.
        scores: |W (gamma(y) - gamma_observed)| by text, Frobenius norm.
        effort: what has been computed, in lattices of a whole text.
        found_at: effort after which the best text so far had been scored.
    """

    evidence: FrameEvidence
    symbols: list[int]
    scores: dict[Text, float] = field(default_factory=dict)
    effort: float = 0.0
    found_at: float = 0.0
    lattices: dict[Text, TextLattice | MeanLattice] = field(default_factory=dict, repr=False)

    @property
    def frames(self) -> int:
        """Output frames."""
        return len(self.evidence.log_probs)

    @cached_property
    def gram(self) -> Float[Tensor, "T T"]:
        """W' W."""
        return self.evidence.whitener.T @ self.evidence.whitener

    def score(self, texts: Iterable[Text]) -> dict[Text, float]:
        """Scores of texts; those without a path are left out."""
        wanted = {text: None for text in texts if minimum_frames(text) <= self.frames}
        fresh = sorted((text for text in wanted if text not in self.scores), key=len)
        before = min(self.scores.values(), default=torch.inf)
        self.effort += len(fresh)
        while fresh:
            rows = max(1, AT_ONCE // (self.frames * (2 * len(fresh[-1]) + 3)))
            batch, fresh = fresh[-rows:], fresh[:-rows]
            misfit = mean_occupancies(self.evidence.weighted, batch) - self.evidence.occupancy[:, None]
            norms = torch.linalg.vector_norm(self.whiten(misfit), dim=(0, 2))
            self.scores |= dict(zip(batch, norms.tolist(), strict=True))
        if min(self.scores.values(), default=torch.inf) < before:
            self.found_at = self.effort
        return {text: self.scores[text] for text in wanted}

    def nearest(self, text: Text, others: Iterable[Text], count: int) -> dict[Text, float]:
        """Scores of those of other texts that promise most by the lattice about what they change of a text."""
        wanted = {other: None for other in others if minimum_frames(other) <= self.frames and other != text}
        found = {other: self.scores[other] for other in wanted if other in self.scores}
        fresh = [other for other in wanted if other not in self.scores]
        if len(fresh) <= count:
            return self.score(wanted)
        pull = self.gram @ (self.evidence.occupancy - self.lattice(text).occupancy)
        # What an edit changes of the mean over local steps is much what it changes at the mean of their probabilities.
        known = TextLattice(self.evidence.log_probs, text) if self.evidence.chains else self.lattice(text)
        assert isinstance(known, TextLattice)
        promise: dict[Text, float] = {}
        for group in nearby_occupancies(self.evidence.log_probs, known, fresh):
            own = group.frames
            change = group.found - known.occupancy[own, None]
            moved = (self.gram[own, own] @ change.flatten(1)).view_as(change)
            gain = ((2.0 * pull[own, None] - moved) * change).sum(dim=(0, 2))
            gain = torch.where(group.found[0].sum(dim=1) > 0, gain, -torch.inf)
            promise |= dict(zip(group.texts, gain.tolist(), strict=True))
            self.effort += len(group.texts) * (len(group.found) / self.frames) ** 2
        best = sorted(promise, key=lambda other: -promise[other])[:count]
        return found | self.score(best)

    def lattice(self, text: Text) -> TextLattice | MeanLattice:
        """Of a text; the last few are kept."""
        if text not in self.lattices:
            while len(self.lattices) >= LATTICES:
                del self.lattices[next(iter(self.lattices))]
            chains = self.evidence.chains
            self.lattices[text] = MeanLattice(chains, text) if chains else TextLattice(self.evidence.log_probs, text)
            self.effort += 1
        return self.lattices[text]

    def whiten(self, values: Tensor) -> Tensor:
        """W along the first dimension."""
        return (self.evidence.whitener @ values.flatten(1)).view_as(values)

    def best(self) -> Text:
        """The best text so far."""
        return min(self.scores, key=lambda text: self.scores[text])

    def misfit(self, text: Text) -> Float[Tensor, "T V"]:
        """What a text does not explain, whitened."""
        return self.whiten(self.evidence.occupancy - self.lattice(text).occupancy)

    def doubt(self, text: Text) -> Float[Tensor, " L"]:
        """How large that is where each label is."""
        design = self.whiten(self.lattice(text).label_occupancy)
        return design.T.abs() @ self.misfit(text).norm(dim=1)


def occupancies(log_probs: Float[Tensor, "T V"], texts: list[Text]) -> Float[Tensor, "T N V"]:
    """gamma of many texts of one utterance."""
    longest = max(1, max(len(text) for text in texts))
    targets = torch.zeros(len(texts), longest, dtype=torch.long, device=log_probs.device)
    for row, text in zip(targets, texts, strict=True):
        row[: len(text)] = torch.tensor(text, dtype=torch.long)
    many = log_probs[:, None].expand(-1, len(texts), -1)
    return ctc_occupancy(many, targets, [len(log_probs)] * len(texts), [len(text) for text in texts])


def mean_occupancies(chains: Chains, texts: list[Text]) -> Float[Tensor, "T N V"]:
    """The same, the mean over local steps."""
    found = [share * occupancies(log_probs, texts) for share, log_probs in chains]
    return torch.stack(found).sum(dim=0)


def likely_symbols(evidence: FrameEvidence) -> list[int]:
    """Labels whose expected number of frames, sum_t p_t - db, is more than its own expected error.

    A label that is in the text is expected for about a frame or more; where the error is not well below that, the sums
    tell nothing and every label stays.
    """
    mass = evidence.smoothed.sum(dim=0)
    error = evidence.noise / len(mass) ** 0.5
    every = list(range(1, len(mass)))
    found = [label for label in every if float(mass[label]) > error]
    return found if found and error < 0.25 else every
