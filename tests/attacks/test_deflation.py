"""Known solutions repel, others stay solutions, and the Jacobian is the product's own."""

import torch

from overheard.attacks.deflation import NOTHING_KNOWN, Deflation

ROOTS = (torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([-1.5, 0.5], dtype=torch.float64))


def residual(unknowns: torch.Tensor) -> torch.Tensor:
    """Zero at both of ROOTS, and nowhere near."""
    return torch.stack([(unknowns - root).square().sum() for root in ROOTS]).prod() * torch.ones(3, dtype=torch.float64)


def test_nothing_known_changes_nothing() -> None:
    values, jacobian = torch.randn(3), torch.randn(3, 2)
    deflated = NOTHING_KNOWN.apply(torch.zeros(2), values, jacobian)
    assert torch.equal(deflated.residual, values)
    assert torch.equal(deflated.jacobian, jacobian)
    assert deflated.factor == NOTHING_KNOWN.factor(torch.zeros(2)) == 1.0


def test_jacobian_is_that_of_the_product() -> None:
    deflation = Deflation(ROOTS)
    point = torch.tensor([0.3, -0.8], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(residual, point)
    assert isinstance(jacobian, torch.Tensor)
    found = deflation.apply(point, residual(point), jacobian)
    expected = torch.autograd.functional.jacobian(lambda x: deflation.factors(x) * residual(x), point)
    assert isinstance(expected, torch.Tensor)
    assert torch.allclose(found.jacobian, expected)
    assert torch.allclose(found.residual, found.factor * residual(point))


def test_only_the_known_solution_repels() -> None:
    deflation = Deflation(ROOTS[:1])
    for distance in (1e-1, 1e-2, 1e-3):
        near = ROOTS[0] + torch.tensor([distance, 0.0], dtype=torch.float64)
        there = residual(near).norm() * deflation.factor(near)
        assert there > 5.0
    assert residual(ROOTS[1]).norm() * deflation.factor(ROOTS[1]) == 0
