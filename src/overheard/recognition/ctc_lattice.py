"""The CTC lattice: messages along every alignment of a transcript, their occupancy, and the tangent of both.

A. Graves et al., "Connectionist temporal classification", ICML 2006, section 4 (alpha, beta, occupancy);
B. A. Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 1994 (the R-operator).

A transcript of L labels becomes a chain of W = 2 L_max + 3 columns: a start that emits nothing, the 2 L + 1 states
(labels between blanks), an end that waits out the padded frames, and unused columns. A path leaves the start before
frame 0 and has reached the end at frame T, which no utterance has. So the chain reads the same in both directions:
beta is alpha of the flipped chain on flipped frames, and one loop over T carries 2N rows, N forward and N flipped.
Everything is float64.

Messages are kept as probabilities, rescaled to sum to one every few frames. Values too far apart would underflow, which
could lose the only path that survives a later frame. So nothing is let go: FLOOR is added to every state at every
frame, and the messages bound the true ones from above. The share of the likelihood that enters through one floor is at
most about FLOOR / r, where r is the likelihood over the product of the masses of the two messages that meet there, each
known at its last rescaling and grown no more than threefold a frame since. A row whose r comes near FLOOR is swept
again in logarithms, slower and without any such limit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

FLOOR = 1e-290
# Keeps the floors' share of the likelihood under 1e-20 per state and frame.
SMALLEST_MEETING = 1e-260
LOG_SMALLEST_MEETING = math.log(SMALLEST_MEETING)
RESCALE_EVERY = 8
LOWEST = torch.finfo(torch.float64).min
# Room for two steps back, left of column 0.
PAD = 2
WEIGHTS_AT_ONCE = 2**19


class Chains(NamedTuple):
    """N transcripts as chains of W columns, and how many frames each has."""

    symbols: Int[Tensor, "N W"]  # blank where nothing is emitted
    emits: Bool[Tensor, "N W"]
    skips: Bool[Tensor, "N2 W"]  # may be entered from two columns back; rows N.. describe the flipped chains
    end: Int[Tensor, " N"]  # column of the end
    num_frames: Int[Tensor, " N"]

    def select(self, rows: Int[Tensor, " R"]) -> "Chains":
        both = torch.cat([rows, rows + len(self.end)])
        return Chains(self.symbols[rows], self.emits[rows], self.skips[both], self.end[rows], self.num_frames[rows])


class Lattice(NamedTuple):
    """Messages of some rows of a batch, in both directions."""

    rows: Int[Tensor, " R"]  # which rows of the batch
    messages: Float[Tensor, "T_plus_2 R2 W_plus_pad"]  # step 0 is before the first frame
    chains: Chains
    in_logs: Bool[Tensor, ""]  # on the CPU

    def to_tensors(self) -> tuple[Tensor, ...]:
        return (self.rows, self.messages, *self.chains, self.in_logs)

    @staticmethod
    def from_tensors(tensors: Sequence[Tensor]) -> "list[Lattice]":
        """Lattices from their `to_tensors`, one after the other."""
        fields = len(Chains._fields) + 3
        return [
            Lattice(rows, messages, Chains(*chains), in_logs)
            for rows, messages, *chains, in_logs in (tensors[k : k + fields] for k in range(0, len(tensors), fields))
        ]


@dataclass(frozen=True)
class Solution:
    """Negative log-likelihoods and the lattices they came from: one, or two where some rows needed logarithms."""

    losses: Float[Tensor, " N"]
    lattices: tuple[Lattice, ...]


def build_chains(
    targets: Int[Tensor, "N L"], num_frames: Int[Tensor, " N"], target_lengths: Int[Tensor, " N"], blank: int
) -> Chains:
    num_rows, width = targets.shape[0], 2 * targets.shape[1] + 3
    column = torch.arange(width, device=targets.device)
    end = 2 * target_lengths + 2
    symbols = targets.new_full((num_rows, width), blank)
    symbols[:, 2:-1:2] = targets
    symbols.masked_fill_(column >= end[:, None], blank)
    skips = torch.zeros((num_rows, width), dtype=torch.bool, device=targets.device)
    # From label to unequal label, from start to first label, from last label to end. From start to the end of an
    # empty transcript too, which is the path of zero frames.
    skips[:, 2::2] = symbols[:, 2::2] != symbols[:, :-2:2]
    skips[:, 2] = True
    flipped = torch.zeros_like(skips)
    flipped[:, 2:] = skips[:, 2:].flip(1)
    return Chains(symbols, (column >= 1) & (column < end[:, None]), torch.cat([skips, flipped]), end, num_frames)


def solve(log_probs: Float[Tensor, "T N V"], chains: Chains) -> Solution:
    """Losses and messages in both directions; impossible alignments have loss inf."""
    attempt = _attempt_probabilities(log_probs, chains)
    every_row = torch.arange(len(chains.end), device=log_probs.device)
    if bool(attempt.sound.all()):
        return Solution(attempt.losses, (Lattice(every_row, attempt.messages, chains, torch.tensor(False)),))
    losses, sound, rest = attempt.losses, every_row[attempt.sound], every_row[~attempt.sound]
    chains_of_rest = chains.select(rest)
    messages = _stack_directions(attempt.log_emissions[:, rest], -torch.inf)
    _enter_starts(messages, chains_of_rest, 0.0)
    losses[rest] = _losses_in_logs(messages, chains_of_rest, attempt.log_scale[rest])
    in_logs = Lattice(rest, messages, chains_of_rest, torch.tensor(True))
    if len(sound) == 0:
        return Solution(losses, (in_logs,))
    kept = attempt.messages[:, torch.cat([sound, sound + len(every_row)])]
    return Solution(losses, (Lattice(sound, kept, chains.select(sound), torch.tensor(False)), in_logs))


def solve_losses(log_probs: Float[Tensor, "T N V"], chains: Chains) -> Float[Tensor, " N"]:
    """Losses alone.

    Both directions are swept here too: the flipped rows are what vouches for probabilities, and together they still
    cost less than one direction in logarithms. Rows that do need logarithms are swept forward only.
    """
    attempt = _attempt_probabilities(log_probs, chains)
    losses, rest = attempt.losses, (~attempt.sound).nonzero().squeeze(1)
    if len(rest) > 0:
        messages = _pad_steps(attempt.log_emissions[:, rest], -torch.inf)
        messages[0, :, PAD] = 0.0
        losses[rest] = _losses_in_logs(messages, chains.select(rest), attempt.log_scale[rest])
    return losses


def occupancy(lattice: Lattice) -> Float[Tensor, "T_plus_1 R W"]:
    """Posterior probability of each state at each frame; zero at padded frames and for impossible alignments."""
    messages, chains = lattice.messages, lattice.chains
    count = len(chains.end)
    before, after = messages[:-1, :count], messages[1:, count:, PAD:].flip(0, 2)
    if lattice.in_logs:
        joint = _logaddexp_steps(before, _log_skips(chains.skips[:count])).add_(after)
        joint = torch.softmax(joint, 2).masked_fill_(_impossible(messages, chains)[:, None], 0.0)
    else:
        joint = _add_steps(before, chains.skips[:count].double()).mul_(after)
        joint /= joint.sum(2, keepdim=True)
    return joint.masked_fill_(_padded(chains, len(joint))[:, :, None], 0.0)


def occupancy_between(
    emissions: Float[Tensor, "F V"],
    chains: Chains,
    before: Float[Tensor, "N W"],
    after: Float[Tensor, "N W"],
) -> Float[Tensor, "F N W"]:
    """Posterior probability of each state at each of F frames within an utterance; zero where a chain fits no path.

    Args:
        emissions: probabilities of symbols, over each frame's best.
        chains: N transcripts of one utterance, or parts of them.
        before: messages of the frame before the first, on any scale.
        after: messages of the frame behind the last, from the other end and with that frame's emission, on any scale.
    """
    symbols = chains.symbols
    grid = emissions[:, symbols.flatten()].view(len(emissions), *symbols.shape) * chains.emits
    messages = _stack_directions(grid, 0.0)
    messages[0, :, PAD:] = torch.cat([before, after.flip(1)]) + FLOOR
    _sweep_probabilities(messages, chains.skips)
    count = len(symbols)
    joint = _add_steps(messages[:-1, :count], chains.skips[:count].double())
    joint *= messages[1:, count:, PAD:].flip(0, 2)
    total = joint.sum(2, keepdim=True)
    lost = (total < SMALLEST_MEETING).any(0)
    return torch.where(lost, 0.0, joint.div_(total))


def occupancy_tangent(
    lattice: Lattice, posterior: Float[Tensor, "T_plus_1 R W"], direction: Float[Tensor, "T R V"]
) -> tuple[Float[Tensor, "T_plus_1 R W"], Float[Tensor, " R"]]:
    """Derivatives of occupancy and log-likelihood as log_probs move along `direction`.

    The derivative of a log message is the direction's expected sum along the paths that end in that state,
    `d_t(s) = u_t(s) + sum_k w_t(s, k) d_{t-1}(s - k)`, with w the posterior of the step taken: weights in [0, 1]
    whatever the range of the messages. Subtracting each frame's expected direction first leaves the derivative of
    occupancy unchanged and keeps the sums from growing with T.
    """
    chains = lattice.chains
    moved = _at_states(direction, chains)
    moved.masked_fill_(_padded(chains, len(moved))[:, :, None], 0.0)
    expected = (posterior * moved).sum(2, keepdim=True)
    moved -= expected
    tangents = _stack_directions(moved, 0.0)
    steps = len(tangents)
    here, one, two = _step_views(tangents)
    at_once = max(1, WEIGHTS_AT_ONCE // max(1, tangents[0].numel()))
    for first in range(1, steps, at_once):
        last = min(first + at_once, steps)
        weights = (w.unbind(0) for w in _step_weights(lattice, first, last))
        for k, from_here, from_one, from_two in zip(range(first, last), *weights, strict=True):
            here[k].addcmul_(from_here, here[k - 1]).addcmul_(from_one, one[k - 1]).addcmul_(from_two, two[k - 1])
    count = len(chains.end)
    change = tangents[1:, :count, PAD:] + tangents[1:, count:, PAD:].flip(0, 2)
    return change.sub_(moved).mul_(posterior), expected.sum((0, 2))


def sum_over_states(states: Float[Tensor, "T_plus_1 R W"], chains: Chains, num_symbols: int) -> Float[Tensor, "T R V"]:
    """Adds up the states that emit the same symbol."""
    frames = states.shape[0] - 1
    total = states.new_zeros((frames, states.shape[1], num_symbols))
    return total.scatter_add_(2, chains.symbols.expand(frames, -1, -1), states[:frames])


def impossible(lattice: Lattice) -> Bool[Tensor, " R"]:
    """Rows whose transcript fits no path of nonzero probability."""
    if lattice.in_logs:
        return _impossible(lattice.messages, lattice.chains)
    return torch.zeros_like(lattice.rows, dtype=torch.bool)


class _Attempt(NamedTuple):
    log_emissions: Float[Tensor, "T_plus_1 N W"]
    log_scale: Float[Tensor, " N"]
    messages: Float[Tensor, "T_plus_2 N2 W_plus_pad"]
    losses: Float[Tensor, " N"]
    sound: Bool[Tensor, " N"]


def _attempt_probabilities(log_probs: Float[Tensor, "T N V"], chains: Chains) -> _Attempt:
    log_emissions, log_scale = _log_emissions(log_probs, chains)
    messages = _stack_directions(log_emissions.exp(), 0.0)
    messages[0, :, PAD:] = FLOOR
    _enter_starts(messages, chains, 1.0)
    log_mass = _sweep_probabilities(messages, chains.skips)
    losses = -(log_mass[:, : len(log_scale)].sum(0) + log_scale)
    return _Attempt(log_emissions, log_scale, messages, losses, _meetings_are_sound(log_mass))


def _losses_in_logs(
    messages: Float[Tensor, "T_plus_2 R_or_2R W_plus_pad"], chains: Chains, log_scale: Float[Tensor, " R"]
) -> Float[Tensor, " R"]:
    """Turns log emissions of one or both directions into log messages in place."""
    log_peak = _sweep_logs(messages, chains.skips[: messages.shape[1]])
    losses = -(log_peak[:, : len(log_scale)].sum(0) + log_scale)
    return losses.masked_fill(_impossible(messages, chains), torch.inf)


def _padded(chains: Chains, frames: int) -> Bool[Tensor, "frames N"]:
    return torch.arange(frames, device=chains.end.device)[:, None] >= chains.num_frames


def _at_states(grid: Float[Tensor, "T N V"], chains: Chains, extra: float = 0.0) -> Float[Tensor, "T_plus_1 N W"]:
    """Values of the states' symbols in float64, with one more frame after the last."""
    frames = grid.shape[0]
    states = grid.new_full((frames + 1, *chains.symbols.shape), extra, dtype=torch.float64)
    states[:frames] = grid.gather(2, chains.symbols.expand(frames, -1, -1))
    return states


def _log_emissions(
    log_probs: Float[Tensor, "T N V"], chains: Chains
) -> tuple[Float[Tensor, "T_plus_1 N W"], Float[Tensor, " N"]]:
    """Log-probability of each state's symbol over the frame's best, and the sum of those bests over valid frames."""
    scores = _at_states(log_probs, chains)
    scores.masked_fill_(~chains.emits, -torch.inf)
    best = scores.amax(2, keepdim=True).clamp_(min=LOWEST)
    scores -= best
    padded = _padded(chains, len(scores))[:, :, None]
    scores.masked_fill_(padded, -torch.inf)
    waiting = torch.where(padded, 0.0, -torch.inf).to(scores.dtype)
    scores.scatter_(2, chains.end[:, None].expand(len(scores), -1, 1), waiting)
    return scores, best.masked_fill_(padded, 0.0).sum((0, 2))


def _pad_steps(grid: Float[Tensor, "T_plus_1 N W"], fill: float) -> Float[Tensor, "T_plus_2 N W_plus_pad"]:
    frames, count, width = grid.shape
    steps = grid.new_full((frames + 1, count, width + PAD), fill)
    steps[1:, :, PAD:] = grid
    return steps


def _stack_directions(grid: Float[Tensor, "T_plus_1 N W"], fill: float) -> Float[Tensor, "T_plus_2 N2 W_plus_pad"]:
    frames, count, width = grid.shape
    steps = grid.new_empty((frames + 1, 2 * count, width + PAD))
    steps[0] = fill
    steps[:, :, :PAD] = fill
    steps[1:, :count, PAD:] = grid
    steps[1:, count:, PAD:] = grid.flip(0, 2)
    return steps


def _enter_starts(messages: Float[Tensor, "T_plus_2 N2 W_plus_pad"], chains: Chains, certain: float) -> None:
    count, last = len(chains.end), messages.shape[2] - 1
    messages[0, :count, PAD] = certain
    messages[0, count + torch.arange(count, device=messages.device), last - chains.end] = certain


def _step_views(steps: Float[Tensor, "K R W_plus_pad"]) -> tuple[tuple[Tensor, ...], ...]:
    """Each step's states, and those one and two columns before them."""
    return steps[:, :, PAD:].unbind(0), steps[:, :, 1:-1].unbind(0), steps[:, :, :-PAD].unbind(0)


def _sweep_probabilities(
    messages: Float[Tensor, "T_plus_2 R W_plus_pad"], skips: Bool[Tensor, "R W"]
) -> Float[Tensor, "T_plus_1 R"]:
    """Turns emissions into messages in place; returns the log mass that each step was divided by.

    Rows are run through end to end as one dimension, which is faster; the zeros of the padding keep them apart. Where a
    row holds NaN its neighbours turn NaN too, are found unsound, and are swept again in logarithms, row by row.
    """
    # Views of every step, made once: slicing inside the loop would cost as much as the arithmetic.
    flat = messages.flatten(1)
    whole, here, one, two = (v.unbind(0) for v in (messages, flat[:, PAD:], flat[:, 1:-1], flat[:, :-PAD]))
    may_skip = F.pad(skips.double(), (PAD, 0)).flatten()[PAD:]
    floor = F.pad(torch.full(skips.shape, FLOOR, dtype=messages.dtype, device=messages.device), (PAD, 0)).flatten()[
        PAD:
    ]
    reached = torch.empty_like(may_skip)
    mass = messages.new_ones((len(messages) - 1, messages.shape[1], 1))
    for k, (stayed, moved, skipped, emitted) in enumerate(zip(here, one, two, here[1:], strict=False), start=1):
        torch.add(stayed, moved, out=reached)
        reached.addcmul_(may_skip, skipped)
        torch.addcmul(floor, reached, emitted, out=emitted)
        if k % RESCALE_EVERY == 0 or k == len(messages) - 1:
            torch.sum(whole[k], 1, keepdim=True, out=mass[k - 1])
            whole[k].div_(mass[k - 1])
    return mass.squeeze(2).log_()


def _sweep_logs(
    messages: Float[Tensor, "T_plus_2 R W_plus_pad"], skips: Bool[Tensor, "R W"]
) -> Float[Tensor, "T_plus_1 R"]:
    """The same in logarithms, each step divided by its largest message instead; exact at any range."""
    here, one, two = _step_views(messages)
    log_skips = _log_skips(skips)
    reached, by_skip = torch.empty_like(log_skips), torch.empty_like(log_skips)
    peak = messages.new_empty((len(messages) - 1, messages.shape[1], 1))
    peaks = peak.unbind(0)
    for k in range(1, len(messages)):
        torch.logaddexp(here[k - 1], one[k - 1], out=reached)
        torch.add(log_skips, two[k - 1], out=by_skip)
        torch.logaddexp(reached, by_skip, out=reached)
        here[k].add_(reached)
        torch.amax(here[k], 1, keepdim=True, out=peaks[k - 1])
        here[k].sub_(peaks[k - 1].clamp_(min=LOWEST))
    return peak.squeeze(2)


def _meetings_are_sound(log_mass: Float[Tensor, "T_plus_1 N2"]) -> Bool[Tensor, " N"]:
    """Whether FLOOR is negligible wherever the two directions meet; false for rows that hold NaN or no path."""
    count = log_mass.shape[1] // 2
    total = torch.cat([log_mass.new_zeros((1, 2 * count)), log_mass.cumsum(0)])
    before, after = total[:-1, :count], total[:-1, count:].flip(0)
    return ((total[-1, :count] - before - after) > LOG_SMALLEST_MEETING).all(0)


def _impossible(messages: Float[Tensor, "T_plus_2 R_any W_plus_pad"], chains: Chains) -> Bool[Tensor, " R"]:
    ends = messages[-1, : len(chains.end), PAD:].gather(1, chains.end[:, None])
    return (ends == -torch.inf).squeeze(1)


def _log_skips(skips: Bool[Tensor, "R W"]) -> Float[Tensor, "R W"]:
    return torch.where(skips, 0.0, -torch.inf).to(torch.float64)


def _add_steps(steps: Float[Tensor, "K R W_plus_pad"], may_skip: Float[Tensor, "R W"]) -> Float[Tensor, "K R W"]:
    reached = steps[:, :, PAD:] + steps[:, :, 1:-1]
    return reached.addcmul_(may_skip, steps[:, :, :-PAD])


def _logaddexp_steps(steps: Float[Tensor, "K R W_plus_pad"], log_skips: Float[Tensor, "R W"]) -> Float[Tensor, "K R W"]:
    reached = torch.logaddexp(steps[:, :, PAD:], steps[:, :, 1:-1])
    return torch.logaddexp(reached, steps[:, :, :-PAD] + log_skips)


def _step_weights(lattice: Lattice, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
    """Posteriors of having stayed, moved by one or skipped, given the state after each of steps first to last - 1."""
    before = lattice.messages[first - 1 : last - 1]
    here, one, two = before[:, :, PAD:], before[:, :, 1:-1], before[:, :, :-PAD]
    if lattice.in_logs:
        log_skips = _log_skips(lattice.chains.skips)
        # Unreachable states would be -inf minus -inf; they have no occupancy, so weight 0 serves.
        reached = _logaddexp_steps(before, log_skips).clamp_(min=LOWEST)
        return (here - reached).exp_(), (one - reached).exp_(), (two + log_skips).sub_(reached).exp_()
    may_skip = lattice.chains.skips.double()
    share = _add_steps(before, may_skip).reciprocal_()
    return here * share, one * share, (two * may_skip).mul_(share)
