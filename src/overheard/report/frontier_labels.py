"""Where the names of defences stand beside the points of a frontier: once for points that coincide, none on another."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

LETTER = 0.56
"""Mean width of a letter, and below the height of a line, as shares of the font's size."""
LINE = 1.2
NEAR = (0.02, 0.04)
"""Shares of the axes' width and height within which points have one label between them."""
GAP = 9.0
"""From a point to its label, pt: markers of several models stand side by side."""
STEPS = 30


@dataclass(frozen=True)
class Label:
    """One label.

    Attributes:
        text: a line for each defence.
        x: of the points that it names, pt from the left of the axes.
        y: of the same, pt from the bottom.
        left: its own left end, pt.
        middle: half its height, pt from the bottom.
    """

    text: str
    x: float
    y: float
    left: float
    middle: float


@dataclass(frozen=True)
class _Box:
    left: float
    right: float
    bottom: float
    top: float

    def meets(self, other: "_Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )


def place_labels(points: Sequence[tuple[float, float, str]], width: float, height: float, font: float) -> list[Label]:
    """Labels within the axes, each as near to its points as others let it be.

    Args:
        points: x and y in pt from the lower left of the axes, and a name; a name counts once in its label.
        width: of the axes, pt.
        height: of the same, pt.
        font: size, pt.
    """
    groups: list[tuple[float, float, list[str]]] = []
    for x, y, name in points:
        for others_x, others_y, names in groups:
            if abs(x - others_x) <= NEAR[0] * width and abs(y - others_y) <= NEAR[1] * height:
                if name not in names:
                    names.append(name)
                break
        else:
            groups.append((x, y, [name]))
    taken = [_Box(x - GAP / 2, x + GAP / 2, y - GAP / 2, y + GAP / 2) for x, y, _ in groups]
    labels = []
    for x, y, names in sorted(groups, key=lambda group: -group[1]):
        box = _free_box(x, y, names, width, height, font, taken)
        taken.append(box)
        labels.append(Label("\n".join(names), x, y, box.left, (box.bottom + box.top) / 2))
    return labels


def _free_box(
    x: float, y: float, names: Sequence[str], width: float, height: float, font: float, taken: Sequence[_Box]
) -> _Box:
    """The nearest place on either side; where there is none, the one that is nearest of all."""
    long, high = LETTER * font * max(map(len, names)), LINE * font * len(names)
    # Towards the middle first, where there is room for it.
    sides = [x + GAP, x - GAP - long]
    if x > width / 2:
        sides.reverse()
    boxes = []
    for step, left in itertools.product(range(STEPS), sides):
        for way in (1, -1) if step else (1,):
            middle = y + way * step * font / 2
            middle = min(max(middle, high / 2), height - high / 2)
            start = min(max(left, 0.0), max(0.0, width - long))
            boxes.append(_Box(start, start + long, middle - high / 2, middle + high / 2))
    return next((box for box in boxes if not any(box.meets(other) for other in taken)), boxes[0])
