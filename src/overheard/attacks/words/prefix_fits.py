"""How far prefixes of a text explain the occupancies of a few frames: least squares over where the alignment is.

A prefix's occupancies are linear in the masses of its states at the last of those frames (`prefix_marginals`), so that
one small system of equations tells what it leaves unexplained. Labels more, behind the same stem, add columns to the
stem's own: what each set of them explains follows from the stem's fit without solving anew.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from overheard.attacks.words.prefix_marginals import Prefixes, designs, with_tails

WINDOW = 12
"""Frames that a prefix is tested on at once."""

EXPLAINS = 1e-3
"""Chi-square for each number that a state which has mass explains."""

LINGERING = 36
"""Frames, before the last labels were heard, in which further ones may have begun."""

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

    def between(self, start: int, stop: int) -> "Occupancies":
        """Of some frames."""
        own = slice(start, stop)
        return Occupancies(self.log_probs[own], self.noise[own], self.target[own], self.rows)

    def wanted(self, frame: int, window: int = WINDOW) -> Float[Tensor, " R"]:
        """Of the window that ends in a frame, the last frame first."""
        return self.target[max(0, frame - window + 1) : frame + 1].flip(0).flatten()

    def design(
        self, prefixes: Prefixes, frame: int, columns: int, window: int = WINDOW
    ) -> tuple[Float[Tensor, "P R C"], Float[Tensor, "P S C"]]:
        """`designs` of that window."""
        return designs(prefixes, frame, window, self.noise, self.rows, columns)


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


def fit_prefixes(observed: Occupancies, prefixes: Prefixes, frame: int, columns: int, window: int = WINDOW) -> Fit:
    """Least squares over masses of the newest states, which are about 1 at most.

    Args:
        observed: what is to be explained.
        prefixes: P of them.
        frame: the window's last.
        columns: states that may have mass in that frame.
        window: its frames.
    """
    design, before = observed.design(prefixes, frame, columns, window)
    wanted = nn.functional.pad(observed.wanted(frame, window), (0, design.shape[2]))
    basis, triangle = torch.linalg.qr(_with_ridge(design))
    shares = (basis.mT @ wanted)[:, :, None]
    residual = wanted - (basis @ shares)[:, :, 0]
    masses = torch.linalg.solve_triangular(triangle, shares, upper=True)
    # What the states from each on, older ones, add to the fit.
    older = shares[:, :, 0].square().flip(1).cumsum(dim=1).flip(1)
    now = _last(older > EXPLAINS * design.shape[1])
    ever = _last((before @ masses)[:, :, 0].abs() > HEARD)
    return Fit(basis, residual, residual.square().sum(dim=1), now, torch.maximum(now, ever))


def _with_ridge(design: Float[Tensor, "P R C"]) -> Float[Tensor, "P Q C"]:
    """With rows that keep masses at about 1."""
    identity = torch.eye(design.shape[2], dtype=design.dtype, device=design.device)
    return torch.cat([design, identity.expand(len(design), -1, -1)], dim=1)


def _last(flags: Bool[Tensor, "P C"]) -> Int[Tensor, " P"]:
    """Columns up to the last one that is set."""
    return (flags * torch.arange(1, flags.shape[1] + 1, device=flags.device)).amax(dim=1)


def left_by_longer(
    observed: Occupancies, fit: Fit, stem: Prefixes, tails: list[tuple[int, ...]], frame: int, heard: int
) -> Float[Tensor, " N"]:
    """Chi-square of a prefix with each of some tails, by what these add to it that is orthogonal to its own.

    Args:
        observed: what is to be explained.
        fit: of the prefix.
        stem: the prefix.
        tails: N, all of one length.
        frame: the window's last.
        heard: frames back to where the prefix's last labels were heard.
    """
    start, stop = max(0, frame - WINDOW + 1), frame + 1
    first = max(0, start - heard - LINGERING)
    longer = with_tails(stem.newest(2).between(first, stop), tails, observed.log_probs[first:stop])
    longer = longer.between(start - first, stop - first)
    # Back to the window's first frame, masses come from two states more in every frame.
    older = stem.newest(2 + 2 * WINDOW).between(start, stop)
    design, _ = observed.between(start, stop).design(longer.behind(older), frame - start, 2 * len(tails[0]))
    basis, residual = fit.basis[0, : design.shape[1]], fit.residual[0, : design.shape[1]]
    # The residual is orthogonal to the prefix's own columns, so that these enter what others explain by Gram's matrix.
    shared = basis.T @ design
    gram = (
        design.mT @ design - shared.mT @ shared + torch.eye(design.shape[2], dtype=design.dtype, device=design.device)
    )
    shares = (residual @ design)[:, :, None]
    explained = (shares * torch.linalg.solve(gram, shares)).sum(dim=(1, 2))
    return fit.cost[0] - explained.clamp(min=0.0)
