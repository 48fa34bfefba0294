"""Frame after frame out of a layer's span: every window adds a few unknown frames to frames that are known.

The zero padding ahead of an utterance leaves its first window fewer unknowns than equations, and each later window has
only its newest frames unknown. Errors of older frames enter the newest ones: where they show, or a window tells too
little, the last frames are fitted anew together. Frames decode to zeros in the padding behind the utterance: this is
how its end shows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from overheard.attacks.decoding.reader import Reader
from overheard.attacks.decoding.window_fit import ABOVE_ROUNDING, Fit
from overheard.attacks.decoding.window_leaps import BACK, leaps
from overheard.attacks.windows import WindowedLayer

DRIFT = 5.0
"""How many times the residual expected of rounding a window may leave before the last frames are fitted anew."""
WEAK = 1e-3
"""Residual expected of a window's rounding, relative to the inputs, from which on older frames are fitted with it."""
LONGER = 0.7
"""Part of a shorter utterance's residual that a longer one must stay below to be preferred."""
ZERO = 2e-2
"""Size of a padding frame, relative to the utterance's frames."""
SAME = 1e-3
"""Difference of bit-identical frames, relative to their size, after decoding."""
WAYS_TRIED = 48
"""Guesses of what follows a run of equal frames, besides those of every window."""
NEAR = 1e-2
"""Difference of frames that were fitted from two starts, relative to their size, at which both led to one place."""
ALIKE = 3
"""Starts that lead to one place before no more are tried."""

LAST_STEPS = 4
"""Of Gauss-Newton at most where the last frames are fitted together."""
LEAP_EVERY = 3
"""Windows after which a leap is tried again where none led on."""
LEAP_STEPS = 8
"""The same behind a leap, whose frames may be far off."""
MISCOUNTED = 2
"""Windows by which the rank may be off."""
TELLS_NOTHING = 5e-3
"""Residual expected of a window's rounding, relative to the inputs, from which on hardly any frame is a wrong one."""
MOST_UNTOLD = 2
"""Lengths of a window, all windows of which tell nothing, behind which to give up: no window has told the frames in the
middle, and what follows is made up."""
OLDER_STARTS = 8
"""Frames already decoded that are tried as a start where the last one fails."""


@dataclass(frozen=True)
class DecodedFrames:
    """What came out from the first window on.

    Attributes:
        features: (T, F), up to where the decoder came.
        complete: whether the padding behind the utterance was reached.
        repeats: positions at which a run of equal frames filled a window; how often they repeat, the span cannot tell.
        refits: how often the last frames were fitted anew.
    """

    features: Float[Tensor, "T F"]
    complete: bool
    repeats: int
    refits: int


def decode_frames(
    reader: Reader,
    first: Float[Tensor, "K F"],
    longest: int,
    more_starts: Callable[[], list[Float[Tensor, "S F"]]],
    num_windows: int | None = None,
) -> DecodedFrames:
    """All frames of the utterance that starts with `first`.

    Args:
        reader: what they are read off.
        first: frames of its first window, padding left out.
        longest: positions after which to give up.
        more_starts: guesses of the newest frames of a window, asked for where those of the decoder's own fail.
        num_windows: different windows that the utterance has, where that is known; windows that the span lacks are
            leapt over only then.
    """
    layer = reader.layer
    features, stride = layer.num_features, layer.stride
    rows = torch.cat([torch.zeros(layer.before, features), first])
    # So many rows of padding are in the last window that is read, whatever the length.
    padding = layer.after - stride * (1 + reader.unseen) + 1
    repeats, refits, fitted = 0, 0, len(rows)
    ways, leapt = _Ways(), -LEAP_EVERY
    told, made_up, missing = len(rows), False, 0
    while (position := (len(rows) - layer.window) // stride + 1) < longest:
        if made_up := len(rows) - told > MOST_UNTOLD * layer.window:
            break
        if padding > 0 and len(rows) > layer.before + padding and is_zero(rows[-padding:], rows):
            missing = 0 if num_windows is None else num_windows - (position - max(0, repeats - 1))
            if missing <= MISCOUNTED or not ways.go_back():
                break
            rows, repeats = rows[: ways.place], repeats - 1
            fitted, told = min(fitted, len(rows)), len(rows)
            continue
        fit_from = reader.newest(rows, stride)
        filled = reader.hides_repeats and position > 1
        filled = filled and same_frames(rows[-layer.window : -stride], rows[-layer.window + stride :])
        starts = chain(_starts(rows, layer, filled, more_starts), ways.apart(rows[-stride:]) if filled else ())
        tried: list[Fit] = []
        # Where older frames can be fitted anew, starts that lead to one place tell that it is they that are off.
        enough = None if filled or fitted == len(rows) else ALIKE
        accepted = (each for each in _tries(fit_from, starts, tried, enough) if each.accepted)
        fit = ways.out(accepted, rows, (stride, features)) if filled else next(accepted, None)
        if fit is None and fitted == len(rows):
            nearest = min(tried, key=lambda each: each.residual / each.size)
            longer = torch.cat([rows, nearest.unknowns.view(stride, features)])
            # In a batch, a first window that fits by chance leads here, too, and no leap out of it anywhere.
            leaping = num_windows is not None and position >= leapt + LEAP_EVERY
            found = _past(reader, rows, longer, leaping)
            if found is None:
                break
            leapt = position if leaping and len(found) == len(longer) else leapt
            rows, fitted, refits = found, len(found), refits + 1
            continue
        if fit is not None:
            repeats += filled
            rows = torch.cat([rows, fit.unknowns.view(stride, features)])
            told = len(rows) if filled or fit.expected <= TELLS_NOTHING * fit.size else told
        drifts = fit is not None and fit.residual > DRIFT * fit.expected and len(rows) - fitted >= layer.window
        # Alone, a window that tells little would hand on more and more wrong frames.
        if fit is None or drifts or fit.expected > WEAK * fit.size:
            rows, _ = _fit_last(reader, rows, fitted)
            fitted, refits = len(rows), refits + 1
    # A leap may have landed on later windows, which are in the span, too.
    ended = layer.after > 0 and not made_up and missing <= MISCOUNTED + layer.window
    end = _end(reader, rows) if ended else None
    decoded = rows[layer.before :] if end is None else end[layer.before : len(end) - layer.after]
    return DecodedFrames(decoded.double(), end is not None, repeats, refits)


def _tries(
    fit_from: Callable[[Float[Tensor, " U"]], Fit],
    starts: Iterator[Float[Tensor, "S F"]],
    tried: list[Fit],
    enough: int | None,
) -> Iterator[Fit]:
    """Fits of a window from one start after another, which are also kept, until so many have led to one place."""
    for start in starts:
        tried.append(fit_from(start.flatten()))
        yield tried[-1]
        last = tried[-1].unknowns
        if (
            enough is not None
            and sum(bool((last - each.unknowns).norm() <= NEAR * last.norm()) for each in tried) >= enough
        ):
            return


class _Ways:
    """Ways out of runs of equal frames that fill a window: the span allows each of them after every run.

    Speech that no run has led to before comes first, then what is known to lead to the end of the utterance, then the
    padding behind it.
    """

    def __init__(self) -> None:
        self.place = 0  # rows up to the last run
        self._taken: list[Tensor] = []
        self._last: Fit | None = None
        self._to_end: Fit | None = None

    def out(self, accepted: Iterator[Fit], rows: Float[Tensor, "R F"], shape: tuple[int, int]) -> Fit | None:
        """The next one."""
        padding = None
        for fit in accepted:
            frames = fit.unknowns.view(shape)
            if is_zero(frames, rows):
                padding = fit
            elif not any(same_frames(frames, other) for other in [*self._taken, rows[-shape[0] :]]):
                self._taken.append(frames)
                self._last, self.place = fit, len(rows)
                return fit
        return self._to_end or padding

    def go_back(self) -> bool:
        """To the last run, since the end came before all windows had; False where that was done before."""
        again, self._to_end = self._to_end is None and self._last is not None, self._last
        return again

    def apart(self, last: Float[Tensor, "S F"]) -> Iterator[Float[Tensor, "S F"]]:
        """Guesses in directions from a run's frame at right angles to those of the ways taken."""
        if not self._taken:
            return
        generator = torch.Generator().manual_seed(0)
        known = torch.linalg.qr(torch.stack([(each - last).flatten() for each in self._taken]).T).Q
        size = float((self._taken[-1] - last).norm())
        for index in range(WAYS_TRIED):
            guess = torch.randn(last.numel(), generator=generator)
            guess -= known @ (known.T @ guess)
            yield last + (0.5 * 2 ** (index % 3)) * size * (guess / guess.norm()).view_as(last)


def _end(reader: Reader, rows: Float[Tensor, "R F"]) -> Float[Tensor, "E F"] | None:
    """Rows up to and with the padding behind the utterance; None where no length near the last row fits.

    Each length puts zeros behind its last frame and fits the frames before it: rounding alone must be left.
    """
    layer = reader.layer
    best, least = None, DRIFT
    # One frame, and one more for each position that is not seen.
    shortest = layer.before + 1 + reader.unseen * layer.stride
    for length in range(max(shortest, len(rows) - layer.after), len(rows) + 1):
        ended = torch.nn.functional.pad(rows[:length], (0, 0, 0, layer.after))
        spare = (len(ended) - layer.window) % layer.stride
        held = ended[: len(ended) - spare]
        free = max(layer.before, len(held) - layer.after - 2 * layer.window)
        fit = reader.together(held, (free, len(held) - layer.after + spare), ended=True, steps=3)
        # A few windows that do not fit at all would not show in the mean.
        if fit.excess < least and float(fit.left.max()) <= ABOVE_ROUNDING:
            # A last frame of zeros fits as well as none, or by chance a little better.
            least = LONGER * fit.excess
            best = torch.cat([fit.rows, ended[len(held) :]])
    return best


def _starts(
    rows: Float[Tensor, "R F"],
    layer: WindowedLayer,
    filled: bool,
    more_starts: Callable[[], list[Float[Tensor, "S F"]]],
) -> Iterator[Float[Tensor, "S F"]]:
    """Guesses of the newest frames, the likeliest first."""
    stride = layer.stride
    last = rows[-1:].expand(stride, -1)
    if not filled:
        yield last
    yield torch.zeros_like(last)
    yield 2 * last - rows[-1 - stride : -stride][-1:].expand(stride, -1)
    own = rows[layer.before :]
    yield own.mean(dim=0, keepdim=True).expand(stride, -1)
    for index in torch.linspace(0, len(own) - 1, OLDER_STARTS).long().tolist():
        yield own[index : index + 1].expand(stride, -1)
    yield from more_starts()


def _past(
    reader: Reader, rows: Float[Tensor, "R F"], longer: Float[Tensor, "Q F"], leaping: bool
) -> Float[Tensor, "S F"] | None:
    """Rows beyond a window that did not fit, all mended: older frames were off, or the newest window is not in the span
    and others behind it are; None where neither explains it.

    Args:
        reader: what they are read off.
        rows: without that window.
        longer: with it, as near as it came.
        leaping: whether to look for windows behind it.
    """
    best, least = _fit_last(reader, longer, len(rows))
    for back in BACK if leaping else ():
        # Frames are given up only where there is no way on otherwise.
        if least <= (ABOVE_ROUNDING if back else DRIFT):
            break
        for each in leaps(reader, rows, back):
            mended, left = _fit_last(reader, each, min(len(rows), len(each)), LEAP_STEPS)
            if left < least:
                best, least = mended, left
            if least <= DRIFT:
                break
    return best if least <= ABOVE_ROUNDING else None


def _fit_last(
    reader: Reader, rows: Float[Tensor, "R F"], fitted: int, steps: int = LAST_STEPS
) -> tuple[Float[Tensor, "R F"], float]:
    """Frames since the last such fit, and two windows before them, fitted together, and what the newest window leaves
    over rounding; those before stay."""
    free = max(reader.layer.before, fitted - 2 * reader.layer.window)
    fit = reader.together(rows, (free, len(rows)), ended=False, steps=steps)
    return fit.rows, float(fit.left[-1])


def is_zero(frames: Float[Tensor, "K F"], rows: Float[Tensor, "R F"]) -> bool:
    """Whether frames are padding, beside the size of frames in general."""
    return bool(frames.norm(dim=1).max() <= ZERO * rows.square().sum(dim=1).mean().sqrt())


def same_frames(one: Float[Tensor, "K F"], other: Float[Tensor, "K F"]) -> bool:
    """Whether frames that were decoded apart are bit-identical ones."""
    return bool((one - other).norm() <= SAME * other.norm())
