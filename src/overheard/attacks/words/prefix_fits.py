"""How far prefixes of a text explain the occupancies of a few frames: least squares over where the alignment is.

A prefix's occupancies are linear in the masses of its states at the last of those frames (`prefix_marginals`), so that
one small system of equations tells what it leaves unexplained. Labels more, behind the same stem, add columns to the
stem's own: what each set of them explains follows from the stem's fit without solving anew.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from overheard.attacks.words.prefix_marginals import Prefixes, designs

WINDOW = 12
"""Frames that a prefix is tested on at once."""

EXPLAINS = 1e-3
"""Chi-square for each number that a state which has mass explains."""

HEARD = 1e-7
"""Mass of a state in the window's first frame that can be told from none."""


@dataclass(frozen=True)
class Occupancies:
    """What prefixes are to explain.

    Attributes:
        log_probs: (T, V) of the model.
        noise: (T, K, K) maps of K symbols' occupancies that make their errors independent and of size one.
        target: (T, K) occupancies under these maps.
        rows: (V,) which of the K symbols each is.
    """

    log_probs: Float[Tensor, "T V"]
    noise: Float[Tensor, "T K K"]
    target: Float[Tensor, "T K"]
    rows: Int[Tensor, " V"]

    def wanted(self, frame: int) -> Float[Tensor, " R"]:
        """Of the window that ends in a frame, the last frame first."""
        return self.target[max(0, frame - WINDOW + 1) : frame + 1].flip(0).flatten()

    def design(
        self, prefixes: Prefixes, frame: int, columns: int
    ) -> tuple[Float[Tensor, "P R C"], Float[Tensor, "P S C"]]:
        """`designs` of that window."""
        return designs(prefixes, frame, WINDOW, self.noise, self.rows, columns)


@dataclass(frozen=True)
class Fit:
    """How P prefixes explain a window.

    Attributes:
        basis: (P, R + C, C) orthonormal, of what the newest C states explain and of their ridge.
        residual: (P, R + C).
        cost: (P,) chi-square.
        now: (P,) newest states that have mass in the last frame.
        ever: (P,) newest states that have mass in any frame of the window.
    """

    basis: Float[Tensor, "P Q C"]
    residual: Float[Tensor, "P Q"]
    cost: Float[Tensor, " P"]
    now: Int[Tensor, " P"]
    ever: Int[Tensor, " P"]

    def take(self, rows: list[int]) -> "Fit":
        """Some of them."""
        return Fit(*(getattr(self, field.name)[rows] for field in fields(self)))


def fit_prefixes(observed: Occupancies, prefixes: Prefixes, frame: int, columns: int) -> Fit:
    """Least squares over masses of the newest states, which are about 1 at most.

    Args:
        observed: what is to be explained.
        prefixes: P of them.
        frame: the window's last.
        columns: states that may have mass in that frame.
    """
    design, before = observed.design(prefixes, frame, columns)
    wanted = nn.functional.pad(observed.wanted(frame), (0, design.shape[2]))
    basis, triangle = torch.linalg.qr(_with_ridge(design))
    shares = (basis.mT @ wanted)[:, :, None]
    residual = wanted - (basis @ shares)[:, :, 0]
    masses = torch.linalg.solve_triangular(triangle, shares, upper=True)
    # What the states from each on, older ones, add to the fit.
    older = shares[:, :, 0].square().flip(1).cumsum(dim=1).flip(1)
    now = _last(older > EXPLAINS * len(observed.wanted(frame)))
    ever = _last((before @ masses)[:, :, 0].abs() > HEARD)
    return Fit(basis, residual, residual.square().sum(dim=1), now, torch.maximum(now, ever))


def _with_ridge(design: Float[Tensor, "P R C"]) -> Float[Tensor, "P Q C"]:
    """With rows that keep masses at about 1."""
    identity = torch.eye(design.shape[2], dtype=design.dtype, device=design.device)
    return torch.cat([design, identity.expand(len(design), -1, -1)], dim=1)


def _last(flags: Bool[Tensor, "P C"]) -> Int[Tensor, " P"]:
    """Columns up to the last one that is set."""
    return (flags * torch.arange(1, flags.shape[1] + 1, device=flags.device)).amax(dim=1)


def left_by_longer(observed: Occupancies, stem: Fit, longer: Prefixes, frame: int, more: int) -> Float[Tensor, " N"]:
    """Chi-square of prefixes that have a stem in common, by making what they add to it orthogonal.

    Args:
        observed: what is to be explained.
        stem: the fit of one prefix.
        longer: N of that prefix with as many labels more each.
        frame: the window's last.
        more: labels.
    """
    design, _ = observed.design(longer, frame, 2 * more)
    basis, residual = stem.basis[0], stem.residual[0]
    own = basis.shape[1]
    added = nn.functional.pad(design, (0, 0, 0, own))
    for _ in range(2):  # once leaves what rounding makes of it
        added = added - basis @ (basis.T @ added)
    apart, _ = torch.linalg.qr(_with_ridge(added))
    shares = apart[:, : len(basis)].mT @ residual
    return residual.square().sum() - shares.square().sum(dim=1)
