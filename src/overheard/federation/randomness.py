"""Where noise comes from: the run's seed in a simulation, the system in a deployment."""

import torch

from overheard.speech.augmentation import generator_for


def noise_generator(seed: int, number: int, purpose: str, secret: bool) -> torch.Generator:
    """The source of what hides something.

    Whoever knows the seed of a simulation can draw its noise again and take it off, so a guarantee is worth nothing
    against them; a deployment seeds from the system. Torch's generator is not a cryptographic one in either case.

    Args:
        seed: of the run.
        number: of the round.
        purpose: what is drawn and by whom.
        secret: seed from the system.
    """
    if not secret:
        return generator_for(seed, number, purpose)
    generator = torch.Generator()
    generator.seed()
    return generator
