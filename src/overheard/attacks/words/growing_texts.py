"""Texts read off occupancies from either end, one frame after the other.

A prefix explains the occupancies of all frames that the alignment has not left it in (`prefix_marginals`). Where the
next label begins to be heard, long before it is likely, the fit fails by more than noise, and one label more mends it:
with errors of 1e-6, an occupancy of 1e-5 is seen. So a beam of prefixes follows the frames, ranked by what they leave
unexplained and by their length, and nothing about the rest of the text is guessed.

How a beam finds its way from frame to frame is in `near_prefixes`. It goes astray where many labels begin to be heard
at once, some alignments running ahead of others: a wrong few explain that as well as the right ones. Where occupancies
below a floor are not told from none, labels are heard one after the other; where the floor is too high, unlikely ones
are not heard at all. So a reading that went astray is taken up again from there, or from before, with another floor.

Labels can also hide for long, in time that the model fills with blanks; read from the other end, where time runs
backwards and CTC is the same, other labels hide (`joined_readings`).
"""

from dataclasses import dataclass
from itertools import product
from statistics import median

from overheard.attacks.words.near_prefixes import TAIL, Frame, Text, labels_before
from overheard.attacks.words.prefix_fits import Occupancies
from overheard.attacks.words.prefix_marginals import Prefixes, no_labels, together

MARGIN = 100.0
"""Chi-square beyond the best at which a prefix is given up."""

UNEXPLAINED = 2.0
"""Chi-square for each number that is taken to be usual at first."""

PATIENCE = 4
"""Frames, one after the other, that may be left unexplained, half as many by more than the margin; then reading on is
in vain."""

BACK = (0, 12, 36)
"""Frames before it went astray from which it is taken up again."""

AHEAD = 12
"""Frames behind it that have to be reached then."""

TRAIL = 64
"""Frames of which the prefixes are kept."""

MOST_EDITED = 100
"""Prefixes that are edited in one reading, and one for every second frame."""

USUAL = 20
"""Frames that tell what is usual."""

LONGEST = 60
"""Frames before a window that a text with other last labels is tested on, at most."""

SPARE = 2
"""Labels kept beyond those that have mass."""


@dataclass(frozen=True)
class Reading:
    """Beginnings of a text, or ends.

    Attributes:
        texts: after the last frame that was read, best first.
        explained: the best after the last frame that was explained.
    """

    texts: list[Text]
    explained: Text

    def turned(self) -> "Reading":
        """From the other end."""
        return Reading([text[::-1] for text in self.texts], self.explained[::-1])


@dataclass(frozen=True)
class _Place:
    """Where a reading is.

    Attributes:
        beam: prefixes after the frames before this one.
        frame: the next.
        settled: labels that the alignment has left behind.
        heard: frame of each label of the best prefix.
        ever: for each frame, labels that the alignment had left behind in its window.
        explained: the best prefix of the last window that was explained.
        lost: windows since that were not, those that are far from it twice.
    """

    beam: Prefixes
    frame: int
    settled: int
    heard: tuple[int, ...]
    ever: tuple[int, ...]
    explained: Text
    lost: int


class Reader:
    """Reads from the beginning, with occupancies that are believed to different floors.

    Args:
        floors: the same occupancies with different errors.
        labels: that the text may hold.
        width: prefixes kept from one frame to the next.
        hint: a text that may be right in parts; what it says is tried where a reading does not go on by itself.
    """

    def __init__(self, floors: list[Occupancies], labels: list[int], width: int, hint: Text) -> None:
        self.floors, self.labels, self.width, self.hint = floors, labels, width, hint
        self.left: list[list[float]] = [[] for _ in floors]
        self.frames = len(floors[0].log_probs)
        self.effort = MOST_EDITED + self.frames // 2
        self.trail: list[_Place] = []

    def advance(self) -> bool:
        """Read on to where the reading goes astray, from there once more with another floor; whether that led on."""
        if not self.trail:
            start = _Place(no_labels(self.floors[0].log_probs), 0, 0, (), (), (), 0)
            self.trail = self._on([start], 0, self.frames)
            return True
        if self.trail[-1].frame == self.frames or self.effort <= 0:
            return False
        further = self._again()
        self.trail = further or self.trail
        return further is not None

    @property
    def reading(self) -> Reading:
        """Prefixes where it is."""
        return Reading(list(self.trail[-1].beam.texts), self.trail[-1].explained)

    def _again(self) -> list[_Place] | None:
        """The trail with another floor, from where it went astray or before; None where that leads nowhere."""
        astray = self.trail[-1].frame
        for back, floor in product(BACK, range(len(self.floors))):
            before = [at for at in self.trail if at.lost == 0 and at.frame <= astray - PATIENCE - back]
            ahead = min(astray + AHEAD, self.frames)
            found = self._on(before or self.trail[:1], floor, ahead)
            if found[-1].frame == ahead and found[-1].lost == 0:
                return self._on(found, floor, self.frames)
        return None

    def _on(self, trail: list[_Place], floor: int, stop: int) -> list[_Place]:
        """The trail from its last place on with one floor, to a frame or where it goes astray."""
        trail = list(trail)
        while trail[-1].frame < min(stop, self.frames) and trail[-1].lost < PATIENCE and self.effort > 0:
            trail = [*trail[-TRAIL:], self._step(trail[-1], floor)]
        return trail

    def _step(self, at: _Place, floor: int) -> _Place:
        """One frame on."""
        observed, left, frame = self.floors[floor], self.left[floor], at.frame
        usual = median(left[-USUAL:]) if left else UNEXPLAINED
        back = frame - _since(at.beam, at.heard, frame)
        window = Frame(observed, self.labels, frame, at.settled, usual, back, self.hint)
        found, edited = window.explained(at.beam)
        self.effort -= edited
        kept = [each for each in found[: self.width] if each.rank < found[0].rank + MARGIN]
        wholes, best = [window.whole(each) for each in kept], kept[0]
        beam = together([prefix for prefix, _ in wholes])
        settled = max(0, min(labels_before(prefix.texts[0], fit.now) for prefix, fit in wholes) - SPARE)
        behind = max(0, min(labels_before(prefix.texts[0], fit.ever) for prefix, fit in wholes) - SPARE)
        ever = (*at.ever, behind)
        heard = at.heard[: len(best.text)] + (frame,) * (len(best.text) - len(at.heard))
        oldest = min([settled, *ever[_since(beam, heard, frame + 1) :]])
        beam = beam.newest(2 * (max(len(text) for text in beam.texts) - oldest) + 1)
        left.append(best.cost / len(observed.wanted(frame)))
        if best.cost <= window.enough:
            return _Place(beam, frame + 1, settled, heard, ever, best.text, 0)
        lost = at.lost + (2 if best.cost > window.enough + MARGIN else 1)
        return _Place(beam, frame + 1, settled, heard, ever, at.explained, lost)


def _since(beam: Prefixes, heard: tuple[int, ...], frame: int) -> int:
    """Frame from which on the last few labels were heard.

    Args:
        beam: prefixes.
        heard: frame of each label of the best of them.
        frame: the next.
    """
    place = max(0, min(len(text) for text in beam.texts) - TAIL - 1)
    return max(frame - LONGEST, heard[place] if place < len(heard) else frame)
