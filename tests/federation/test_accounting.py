"""The accountant against closed forms and against what must hold of any."""

import math

import pytest

pytest.importorskip("dp_accounting", reason="dp-accounting is not installed: overheard[federated]")

from overheard.federation.accounting import sample_level_epsilon, user_level_epsilon


def gaussian_epsilon(multiplier: float, steps: int, delta: float) -> float:
    """Best of Renyi's orders, converted by Mironov 2017, proposition 3: an upper bound on what a better one gives."""
    orders = [1 + index / 10 for index in range(1, 1000)]
    return min(steps * order / (2 * multiplier**2) + math.log(1 / delta) / (order - 1) for order in orders)


@pytest.mark.parametrize(("multiplier", "steps"), [(1.0, 1), (2.0, 30), (0.8, 5)])
def test_without_sampling_it_is_the_gaussian_mechanism(multiplier: float, steps: int) -> None:
    found = sample_level_epsilon(1.0, multiplier, steps, 1e-5)
    bound = gaussian_epsilon(multiplier, steps, 1e-5)
    assert 0.7 * bound < found <= bound * 1.001


def test_sampling_amplifies_and_rounds_compose() -> None:
    assert sample_level_epsilon(0.01, 1.0, 100, 1e-5) < sample_level_epsilon(0.1, 1.0, 100, 1e-5)
    assert sample_level_epsilon(0.1, 1.0, 10, 1e-5) < sample_level_epsilon(0.1, 1.0, 100, 1e-5)
    assert sample_level_epsilon(0.1, 1.0, 0, 1e-5) == 0
    assert user_level_epsilon(100, 8, 1.0, 10, 1e-5) < user_level_epsilon(100, 50, 1.0, 10, 1e-5)
    assert user_level_epsilon(100, 8, 1.0, 10, 1e-5) < user_level_epsilon(100, 8, 1.0, 20, 1e-5)


def test_replacing_a_client_counts_twice() -> None:
    """With everybody taking part there is no sampling, and the sum moves by two norms."""
    assert user_level_epsilon(8, 8, 2.0, 5, 1e-5) == pytest.approx(sample_level_epsilon(1.0, 1.0, 5, 1e-5), rel=1e-6)
