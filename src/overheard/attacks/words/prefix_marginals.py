"""What the first labels of a text say about occupancies, whatever the rest of the text is.

Given a text, CTC's states s_t are a Markov chain, and run backwards in time its steps follow from forward messages
alone (Graves et al. 2006, eq. 5 to 7),

    P(s_t | s_{t+1}) = alpha_t(s_t) / sum of alpha_t over the states that s_{t+1} may be entered from,

since what lies ahead of s_{t+1} weighs its predecessors alike. Forward messages of the first m labels do not depend on
the labels after them. So while the alignment is within the first m labels, the occupancies of all frames up to t are
linear in the distribution of s_t, with known coefficients: a prefix is tested by least squares, with no guess about the
rest and no approximation.

States stand in columns, newest first: the blank behind the last label, that label, the blank before it, and so on. A
state is entered from itself, from the next column, and, labels alone, from the one after that.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from overheard.speech.alphabet import BLANK


@dataclass(frozen=True)
class Prefixes:
    """P beginnings of texts, each by its newest S states.

    Attributes:
        texts: their labels.
        symbols: (P, S) of states.
        skips: (P, S) whether a state may be entered from two columns on.
        forward: (P, T, S) log alpha of all frames; minus infinity where there is no such state.
    """

    texts: tuple[tuple[int, ...], ...]
    symbols: Int[Tensor, "P S"]
    skips: Bool[Tensor, "P S"]
    forward: Float[Tensor, "P T S"]

    def take(self, rows: list[int]) -> "Prefixes":
        """Some of them, in this order."""
        return Prefixes(
            tuple(self.texts[row] for row in rows), self.symbols[rows], self.skips[rows], self.forward[rows]
        )

    def newest(self, states: int) -> "Prefixes":
        """With fewer states."""
        return Prefixes(
            self.texts, self.symbols[:, :states], self.skips[:, :states], self.forward[:, :, :states].contiguous()
        )

    def between(self, start: int, stop: int) -> "Prefixes":
        """In some frames."""
        return Prefixes(self.texts, self.symbols, self.skips, self.forward[:, start:stop])

    def behind(self, older: "Prefixes") -> "Prefixes":
        """With older states of the one prefix whose two newest ones all of these end in."""
        count = len(self.texts)
        return Prefixes(
            self.texts,
            torch.cat([self.symbols, older.symbols[:, 2:].expand(count, -1)], dim=1),
            torch.cat([self.skips, older.skips[:, 2:].expand(count, -1)], dim=1),
            torch.cat([self.forward, older.forward[:, :, 2:].expand(count, -1, -1)], dim=2),
        )

    def without(self, labels: int) -> "Prefixes":
        """Without their last labels."""
        return Prefixes(
            tuple(text[: len(text) - labels] for text in self.texts),
            self.symbols[:, 2 * labels :],
            self.skips[:, 2 * labels :],
            self.forward[:, :, 2 * labels :],
        )


def no_labels(log_probs: Float[Tensor, "T V"]) -> Prefixes:
    """The prefix that every text has."""
    zeros = torch.zeros(1, 1, dtype=torch.long, device=log_probs.device)
    return Prefixes(((),), zeros + BLANK, zeros.bool(), log_probs[:, BLANK].cumsum(dim=0)[None, :, None])


def extended(prefixes: Prefixes, labels: Int[Tensor, " P"], log_probs: Float[Tensor, "T V"]) -> Prefixes:
    """Each prefix with one label more.

    alpha_t = p_t (alpha_{t-1} + inflow_{t-1}) in closed form: with C_t the sum of log p up to t,
    log alpha_t = C_t + log sum_{u <= t} exp(inflow_{u-1} - C_{u-1}).
    """
    alone = prefixes.symbols.shape[1] == 1
    last = torch.full_like(labels, BLANK) if alone else prefixes.symbols[:, 1]
    inflow = prefixes.forward[:, :, 0]
    if not alone:
        inflow = torch.logaddexp(inflow, prefixes.forward[:, :, 1].masked_fill((last == labels)[:, None], -torch.inf))
    first = torch.tensor([0.0 if not text else -torch.inf for text in prefixes.texts], dtype=log_probs.dtype)
    label = _accumulated(inflow, log_probs[:, labels].T, first.to(log_probs.device))
    blank = _accumulated(label, log_probs[:, BLANK].expand_as(label), torch.full_like(label[:, 0], -torch.inf))
    texts = tuple((*text, label) for text, label in zip(prefixes.texts, labels.tolist(), strict=True))
    symbols = torch.stack([torch.full_like(labels, BLANK), labels], dim=1)
    # The first label of all has no label before it that could be skipped from.
    skips = torch.stack([torch.zeros_like(labels, dtype=torch.bool), (last != labels) & (last != BLANK)], dim=1)
    return Prefixes(
        texts,
        torch.cat([symbols, prefixes.symbols], dim=1),
        torch.cat([skips, prefixes.skips], dim=1),
        torch.cat([torch.stack([blank, label], dim=2), prefixes.forward], dim=2),
    )


def _accumulated(
    inflow: Float[Tensor, "P T"], log_probs: Float[Tensor, "P T"], first: Float[Tensor, " P"]
) -> Float[Tensor, "P T"]:
    total = log_probs.cumsum(dim=1)
    before = torch.cat([first[:, None], inflow[:, :-1] - total[:, :-1]], dim=1)
    return total + before.logcumsumexp(dim=1)


def with_tails(stem: Prefixes, tails: list[tuple[int, ...]], log_probs: Float[Tensor, "T V"]) -> Prefixes:
    """One prefix with each of some tails, all of one length."""
    many = stem.take([0] * len(tails))
    for labels in torch.tensor(tails, dtype=torch.long, device=log_probs.device).T:
        many = extended(many, labels, log_probs)
    return many


def together(groups: list[Prefixes]) -> Prefixes:
    """Several groups in one; shorter ones are filled up with states that do not exist."""
    widest = max(group.symbols.shape[1] for group in groups)
    symbols, skips, forward = [], [], []
    for group in groups:
        missing = widest - group.symbols.shape[1]
        symbols.append(torch.nn.functional.pad(group.symbols, (0, missing), value=BLANK))
        skips.append(torch.nn.functional.pad(group.skips, (0, missing)))
        forward.append(torch.nn.functional.pad(group.forward, (0, missing), value=-torch.inf))
    return Prefixes(
        tuple(text for group in groups for text in group.texts),
        torch.cat(symbols),
        torch.cat(skips),
        torch.cat(forward),
    )


def designs(
    prefixes: Prefixes,
    frame: int,
    window: int,
    noise: Float[Tensor, "T K K"],
    rows: Int[Tensor, " V"],
    columns: int,
) -> tuple[Float[Tensor, "P R C"], Float[Tensor, "P S C"]]:
    """Occupancies of the last frames up to one, over their errors, for each state that the last of them may be in.

    Args:
        prefixes: tested.
        frame: the last.
        window: frames, fewer where there are no more.
        noise: of `unit_noise`, K symbols.
        rows: which of these each of the V symbols is.

    Returns:
        R = frames times K, the last frame first.
    """
    first = max(0, frame - window + 1)
    # In every frame back, masses come from two states more.
    prefixes = prefixes.newest(columns + 2 * (frame - first))
    there = prefixes.forward[:, frame].isfinite()
    masses = torch.diag_embed(there.to(noise))[:, :, :columns]
    entered = _entered_from(prefixes, first, frame)
    places = rows[prefixes.symbols]
    found = []
    for time in range(frame, first - 1, -1):
        found.append(noise[time][:, places].transpose(0, 1) @ masses)
        if time > first:
            masses = _step_back(masses, entered[:, :, time - 1 - first])
    return torch.cat(found, dim=1), masses


def _entered_from(prefixes: Prefixes, first: int, stop: int) -> Float[Tensor, "3 P T S"]:
    """Shares of a state's mass that were, in each of some frames, in it, one column on and two columns on."""
    forward = prefixes.forward[:, first:stop]
    ahead = torch.nn.functional.pad(forward, (0, 2), value=-torch.inf)
    skipping = torch.where(prefixes.skips[:, None], ahead[:, :, 2:], -torch.inf)
    # Where nothing is finite, nothing came from anywhere.
    return torch.nan_to_num(torch.stack([forward, ahead[:, :, 1:-1], skipping]).softmax(dim=0))


def _step_back(masses: Float[Tensor, "P S U"], shares: Float[Tensor, "3 P S"]) -> Float[Tensor, "P S U"]:
    here, one, two = shares[:, :, :, None]
    before = here * masses
    before[:, 1:].addcmul_(one[:, :-1], masses[:, :-1])
    before[:, 2:].addcmul_(two[:, :-2], masses[:, :-2])
    return before
