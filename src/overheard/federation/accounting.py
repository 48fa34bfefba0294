"""(epsilon, delta) of what has been released so far, by dp-accounting's Renyi accountant."""

from overheard.errors import InputError


def sample_level_epsilon(sampling_rate: float, noise_multiplier: float, steps: int, delta: float) -> float:
    """Of DP-SGD with Poisson sampling, adding or removing one utterance (Mironov, Talwar and Zhang 2019).

    Args:
        sampling_rate: probability with which one step takes an utterance.
        noise_multiplier: standard deviation of the noise over the clipping norm.
        steps: taken so far.
        delta: of the guarantee.

    Raises:
        InputError: dp-accounting is not installed.
    """
    accounting, rdp = _library()
    accountant = rdp.RdpAccountant()
    if steps:
        event = accounting.PoissonSampledDpEvent(sampling_rate, accounting.GaussianDpEvent(noise_multiplier))
        accountant.compose(event, steps)
    return float(accountant.get_epsilon(delta))


def user_level_epsilon(population: int, cohort: int, noise_multiplier: float, rounds: int, delta: float) -> float:
    """Of rounds with a cohort of fixed size drawn without replacement, one client replaced by another.

    Replacing a client moves the clipped sum by up to twice the clipping norm, so the multiplier counts half (Wang,
    Balle and Kasiviswanathan 2019 for the sampling).

    Args:
        population: clients that may be drawn.
        cohort: clients drawn in a round.
        noise_multiplier: standard deviation of the noise over the clipping norm.
        rounds: so far.
        delta: of the guarantee.

    Raises:
        InputError: dp-accounting is not installed.
    """
    accounting, rdp = _library()
    accountant = rdp.RdpAccountant(neighboring_relation=accounting.NeighboringRelation.REPLACE_ONE)
    if rounds:
        gaussian = accounting.GaussianDpEvent(noise_multiplier / 2)
        sampled = accounting.SampledWithoutReplacementDpEvent(population, cohort, gaussian)
        accountant.compose(gaussian if cohort == population else sampled, rounds)
    return float(accountant.get_epsilon(delta))


def _library():
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError as error:
        remedy = "install overheard[federated]"
        raise InputError("defence", "differential privacy without dp-accounting", remedy) from error
    return dp_accounting, rdp
