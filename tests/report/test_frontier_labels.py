"""Names beside points: within the axes, none on another, and one for points that coincide."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from overheard.report.frontier_labels import LETTER, LINE, Label, place_labels

WIDTH, HEIGHT, FONT = 340.0, 210.0, 9.0


def box(label: Label) -> tuple[float, float, float, float]:
    lines = label.text.split("\n")
    half = LINE * FONT * len(lines) / 2
    return label.left, label.left + LETTER * FONT * max(map(len, lines)), label.middle - half, label.middle + half


def meet(one: Label, other: Label) -> bool:
    (a, b, c, d), (e, f, g, h) = box(one), box(other)
    return a < f - 1e-6 and e < b - 1e-6 and c < h - 1e-6 and g < d - 1e-6


def test_points_at_one_place_have_one_label_with_each_name_once() -> None:
    (label,) = place_labels([(30.0, 200.0, "none"), (30.0, 200.0, "clip"), (31.0, 199.0, "none")], WIDTH, HEIGHT, FONT)
    assert label.text == "none\nclip"
    assert box(label)[0] > 30


def test_a_label_stands_beside_its_point_where_there_is_room() -> None:
    left, right = place_labels([(10.0, 100.0, "none"), (330.0, 100.0, "noise")], WIDTH, HEIGHT, FONT)
    assert (left.middle, right.middle) == (100, 100)
    assert box(left)[0] > 10
    assert box(right)[1] < 330


@given(
    st.lists(
        st.tuples(
            st.floats(20, WIDTH - 20), st.floats(8, HEIGHT - 8), st.sampled_from(["none", "clip:norm=1", "quantise-16"])
        ),
        max_size=6,
    )
)
def test_labels_stay_within_the_axes_and_off_each_other(points: list[tuple[float, float, str]]) -> None:
    labels = place_labels(points, WIDTH, HEIGHT, FONT)
    assert {name for _, _, name in points} == {name for label in labels for name in label.text.split("\n")}
    for label in labels:
        left, right, bottom, top = box(label)
        assert left >= -1e-6
        assert right <= WIDTH + 1e-6
        assert bottom >= -1e-6
        assert top <= HEIGHT + 1e-6
    assert not any(meet(one, other) for one, other in itertools.combinations(labels, 2))
