"""Least squares over distributions, and the texts that it leads local search to."""

import torch

from overheard.attacks.words.edits import together
from overheard.attacks.words.relaxed_texts import simplex_least_squares


def test_a_point_inside_the_simplex_is_found_and_rows_are_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    design = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    true = torch.softmax(torch.randn(6, 4, generator=generator, dtype=torch.float64), dim=1)
    start = torch.full((6, 4), 0.25, dtype=torch.float64)
    found = simplex_least_squares(design, design @ true, start, steps=2000)
    assert torch.allclose(found, true, atol=1e-6)
    clipped = simplex_least_squares(design, design @ (3 * true), start)
    assert bool((clipped >= 0).all())
    assert torch.allclose(clipped.sum(dim=1), torch.ones(6, dtype=torch.float64))


def test_a_chain_of_shifts_is_one_step_where_columns_look_alike() -> None:
    """Neighbouring labels overlap in time, so that any one exchange alone may not help."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.arange(120, dtype=torch.float64)[:, None]
    design = torch.exp(-0.5 * ((frames - 4 * torch.arange(30)) / 5.0) ** 2)
    labels = torch.randint(5, (30,), generator=generator)
    true = torch.nn.functional.one_hot(labels, 5).double()
    start = true[torch.tensor([*range(10), 11, 10, 13, 12, 15, 14, *range(16, 30)])]
    found = simplex_least_squares(design, design @ true, start, steps=2000)
    assert torch.equal(found.argmax(dim=1), labels)


def test_edits_that_lie_apart_are_triedtogether() -> None:
    text = tuple(range(1, 21))
    first, beside, second, third = (9, *text[1:]), (text[0], 9, *text[2:]), (*text[:10], *text[11:]), (*text, 21)
    assert together(text, [first, beside, second, third]) == [
        (9, *text[1:10], *text[11:], 21),
    ]
    assert together(text, [first, beside]) == []
    assert together((1, 1, 1), [(1, 1), (1, 1, 1, 1)]) == []
