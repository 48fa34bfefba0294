"""Low-rank completion: the row space of a matrix of which only some entries are known.

D = G A of rank r is seen at a mask. In turn each row's g is least squares over its own entries and each column's a over
its own (alternating least squares), on the rows and columns that keep well more than r entries of one another. The rank
grows from a few: strong directions first, so that what the entries hide of them does not pass for weaker ones. While
directions are missing they act as noise, and each direction is shrunk as noise of that size asks for (ridge, as in
probabilistic principal components); the shrinking fades as the rest does.

Nobody sets the rank. Below it, what is left unexplained has a direction nearly as strong as the weakest one found; from
the rank on it falls to rounding (`wiberg`), in which no direction stands out. The margin is the ratio of the weakest
singular value to the largest of the rest. More directions than there are explain what is known, too: one of them may be
a single column, which is then explained where it is known and wrong elsewhere. So the fewest that do are sought.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from overheard.attacks.entries.row_least_squares import least_squares_by_row
from overheard.attacks.entries.wiberg import wiberg

CLEAR_MARGIN = 10.0
"""From which on the rank is believed; speech leaves no such gap among its own singular values."""
ENTRIES_PER_DIRECTION = 1.15
"""That a row or column needs to take part: hardly more than 1 leaves next to no equations."""
FIRST_RANK = 4
GROWTH = 1.3
FALLING = 0.85
"""Ratio of squared residuals of one sweep to the next up to which sweeps go on."""
SWEEPS = 20
FELL = 0.1
"""Ratio of squared residuals of one rank to the next up to which the rank may be there: speech's own singular values
fall by less on most of their way."""
CERTAIN_MARGIN = 100.0
"""From which on a rank is believed whatever is left; below it where no direction stands out of the rest."""
OF_ITS_OWN = 0.5
"""Share of a row or column that lies in the directions found from which on one of them may be for it alone."""
WHITE = 1.5
"""Ratio of the rest's largest singular value to that of independent noise of its size up to which it is noise."""


@dataclass(frozen=True)
class Completion:
    """Directions that explain what is known.

    Attributes:
        rows: indices that took part.
        columns: the same.
        basis: orthonormal rows that span each row of D, over `scales`, at `columns`.
        scales: of the columns.
        singular_values: of the completed matrix, rows and columns scaled, largest first.
        residual: root mean square of what is left of the scaled entries, whose own is 1.
        margin: see the module.
    """

    rows: Int[Tensor, " R"]
    columns: Int[Tensor, " C"]
    basis: Float[Tensor, "r C"]
    scales: Float[Tensor, " C"]
    singular_values: Float[Tensor, " r"]
    residual: float
    margin: float

    @property
    def rank(self) -> int:
        return len(self.basis)


def complete(
    matrix: Float[Tensor, "R C"],
    mask: Bool[Tensor, "R C"],
    generator: torch.Generator,
    rank: int | None = None,
    certain: float = CERTAIN_MARGIN,
) -> Completion | None:
    """Complete a matrix; None where so few entries are known that no rank explains them.

    Args:
        matrix: float64, 0 where it is not known.
        mask: where it is.
        generator: of the first guesses of directions.
        rank: where it is known; the completion then has it.
        certain: margin from which on a rank is believed; infinite for what rounding leaves.
    """
    present = mask.to(matrix)
    columns = _root_mean_square(matrix, present, 0)
    scaled = matrix / columns
    scaled = scaled / _root_mean_square(scaled, present, 1)
    most = rank or min(matrix.shape)
    state = _first(scaled, present, min(FIRST_RANK, most), generator)
    least, before = 1, 1.0
    while state is not None:
        low = 0.0 if rank is not None else FELL * before
        state, told = _swept(state, scaled, present, least, low, generator)
        if rank is None and (told.margin >= CLEAR_MARGIN or state.square <= low):
            enough = state.cut(told.rank) if told.margin >= CLEAR_MARGIN else state
            final = _fewest(enough, least, scaled, present, generator)
            told = final.told_rank(final.rank, generator)
            if told.margin >= certain or (told.margin >= CLEAR_MARGIN and final.is_noise(generator)):
                return final.completion(columns, told.margin)
            state = final if final.rank == state.rank else state
        if state.rank >= most:
            return None if rank is None else _exact(state, scaled, present).completion(columns, told.margin)
        least, before = state.rank + 1, state.square
        state = _grown(state, present, min(most, max(state.rank + 2, int(GROWTH * state.rank))), generator)
    return None


def excess_over_any(
    matrix: Float[Tensor, "R C"], mask: Bool[Tensor, "R C"], basis: Float[Tensor, "r C"], sweeps: int
) -> float | None:
    """Variance that given directions leave over that which the best leave that a few sweeps reach from them.

    About 1 where what they leave is noise. None where so few entries are known that any directions explain them.

    Args:
        matrix: 0 where it is not known, rows and columns of like size.
        mask: where it is.
        basis: the directions.
        sweeps: of alternating least squares.
    """
    rows, columns = core(mask.to(matrix), len(basis))
    known = mask[rows][:, columns].to(matrix)
    count, (height, width) = float(known.sum()), known.shape
    freedom = len(basis) * (height + width - len(basis))
    if count <= ENTRIES_PER_DIRECTION * freedom or width <= len(basis):
        return None
    part = matrix[rows][:, columns]
    inner = torch.linalg.qr(basis[:, columns].T).Q.T
    left, _ = least_squares_by_row(part, known, inner)
    given = float(((part - left @ inner) * known).square().sum()) / (count - height * len(basis))
    for _ in range(sweeps):
        outer = torch.linalg.qr(left).Q
        inner = least_squares_by_row(part.T.contiguous(), known.T.contiguous(), outer.T.contiguous())[0].T
        inner = torch.linalg.qr(inner.T).Q.T
        left, _ = least_squares_by_row(part, known, inner)
    best = float(((part - left @ inner) * known).square().sum()) / (count - freedom)
    return given / max(best, torch.finfo(matrix.dtype).tiny)


@dataclass(frozen=True)
class _Told:
    """A rank and its margin."""

    rank: int
    margin: float


@dataclass(frozen=True)
class _State:
    """Directions on the rows and columns that take part, and what they leave of the entries."""

    rows: Bool[Tensor, " R"]
    columns: Bool[Tensor, " C"]
    basis: Float[Tensor, "r K"]
    values: Float[Tensor, " r"]
    rest: Float[Tensor, "S K"]
    square: float
    """Of an entry of the rest, mean, freedom of the directions taken off."""

    @property
    def rank(self) -> int:
        return len(self.basis)

    def told_rank(self, least: int, generator: torch.Generator) -> _Told:
        """How many directions, at least so many, stand out of those behind them and of the rest, and by what ratio."""
        behind = torch.cat([self.values[1:], self.values.new_zeros(1)]).clamp(min=self._strongest_left(generator))
        margins = (self.values / behind)[least - 1 :]
        best = int(margins.argmax())
        return _Told(best + least, float(margins[best]))

    def is_noise(self, generator: torch.Generator) -> bool:
        """Whether no direction stands out of the rest."""
        edge = self.square**0.5 * (len(self.rest) ** 0.5 + self.rest.shape[1] ** 0.5)
        return self._strongest_left(generator) <= WHITE * edge / self._share**0.5

    def _strongest_left(self, generator: torch.Generator) -> float:
        """Singular value of a direction that is missing, of which only a share of the entries is in the rest."""
        return float(_strongest(self.rest, 1, generator)[1][0]) / self._share

    @property
    def _share(self) -> float:
        return max(float((self.rest != 0).double().mean()), torch.finfo(torch.float64).tiny)

    def part(self, matrix: Float[Tensor, "R C"]) -> Float[Tensor, "S K"]:
        """The rows and columns that take part."""
        return matrix[self.rows][:, self.columns]

    def explained(
        self,
        outer: Float[Tensor, "S r"],
        values: Float[Tensor, " r"],
        basis: Float[Tensor, "r K"],
        matrix: Float[Tensor, "S K"],
        known: Float[Tensor, "S K"],
    ) -> "_State":
        """The same rows and columns with directions of these singular vectors and values."""
        rest = (matrix - (outer * values) @ basis) * known
        count, (height, width) = float(known.sum()), matrix.shape
        spare = max(count - len(basis) * (height + width - len(basis)), count / 10)
        square = max(float(rest.square().sum()) / spare, torch.finfo(matrix.dtype).tiny)
        return _State(self.rows, self.columns, basis, values, rest, square)

    def cut(self, rank: int) -> "_State":
        return _State(self.rows, self.columns, self.basis[:rank], self.values[:rank], self.rest, self.square)

    def completion(self, scales: Float[Tensor, " C"], margin: float) -> Completion:
        rows, columns = torch.nonzero(self.rows).flatten(), torch.nonzero(self.columns).flatten()
        return Completion(rows, columns, self.basis, scales[self.columns], self.values, self.square**0.5, margin)


def _root_mean_square(matrix: Tensor, present: Tensor, dim: int) -> Tensor:
    squares = matrix.square().sum(dim=dim, keepdim=True) / present.sum(dim=dim, keepdim=True).clamp(min=1)
    return torch.where(squares > 0, squares, 1.0).sqrt().squeeze(0)


def core(present: Float[Tensor, "R C"], rank: int) -> tuple[Bool[Tensor, " R"], Bool[Tensor, " C"]]:
    """Rows and columns that keep enough entries of one another for so many directions; none where there are none."""
    least = ENTRIES_PER_DIRECTION * rank
    rows, columns = present.sum(dim=1) >= least, present.sum(dim=0) >= least
    while True:
        fewer_rows = rows & (present @ columns.to(present) >= least)
        fewer_columns = columns & (fewer_rows.to(present) @ present >= least)
        if torch.equal(fewer_rows, rows) and torch.equal(fewer_columns, columns):
            return rows, columns
        rows, columns = fewer_rows, fewer_columns


def _first(scaled: Tensor, present: Tensor, rank: int, generator: torch.Generator) -> _State | None:
    rows, columns = core(present, rank)
    if not bool(rows.any()):
        return None
    some, known = scaled[rows][:, columns], present[rows][:, columns]
    found, values = _strongest(some / known.mean(), rank, generator)
    return _State(rows, columns, found, values, some, float(some.square().sum() / known.sum()))


def _strongest(matrix: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """About the first right singular vectors, one a row, and values (Halko et al. 2011, algorithm 4.4)."""
    draw = torch.randn(len(matrix), min(count + 8, *matrix.shape), generator=generator, dtype=matrix.dtype)
    for _ in range(3):
        draw = matrix @ torch.linalg.qr(matrix.T @ draw).Q
        draw = torch.linalg.qr(draw).Q
    _, values, vectors = torch.linalg.svd(draw.T @ matrix, full_matrices=False)
    return vectors[:count], values[:count]


def _grown(state: _State, present: Tensor, rank: int, generator: torch.Generator) -> _State | None:
    """More directions, from what is left; on fewer rows and columns, where these have too few entries for so many."""
    rows, columns = core(present, rank)
    if not bool(rows.any()):
        return None
    known = float(present[state.rows][:, state.columns].mean())
    more, values = _strongest(state.rest / known, rank - state.rank, generator)
    basis = torch.linalg.qr(torch.cat([state.basis, more])[:, columns[state.columns]].T).Q.T
    values = torch.cat([state.values, values])
    rest = state.rest[rows[state.rows]][:, columns[state.columns]]
    return _State(rows, columns, basis, values, rest, state.square)


def _fewest(state: _State, least: int, scaled: Tensor, present: Tensor, generator: torch.Generator) -> _State:
    """The fewest directions, from `least` on, of which the rank shows; as many as there are where it shows for none."""
    state = _exact(state, scaled, present)
    told = state.told_rank(least, generator)
    if told.margin >= CLEAR_MARGIN and told.rank < state.rank:
        state = _exact(state.cut(told.rank), scaled, present)
    fewer = _shared(state, least, scaled, present)
    if fewer is None and told.margin < CLEAR_MARGIN:
        return state
    fewer = fewer or state.cut(state.rank - 1)
    while least <= fewer.rank < state.rank:
        exact = _exact(fewer, scaled, present)
        if exact.told_rank(exact.rank, generator).margin >= CLEAR_MARGIN:
            state = exact
            fewer = _shared(state, least, scaled, present) or state.cut(state.rank - 1)
        else:
            least = fewer.rank + 1
            fewer = state.cut((least + state.rank) // 2)
    return state


def _exact(state: _State, scaled: Tensor, present: Tensor) -> _State:
    """As many directions, which explain what is known as well as any near them."""
    matrix, known = state.part(scaled), state.part(present)
    left, basis = wiberg(matrix, known, state.basis)
    outer, values, turn = torch.linalg.svd(left, full_matrices=False)
    return state.explained(outer, values, turn @ basis, matrix, known)


def _shared(state: _State, least: int, scaled: Tensor, present: Tensor) -> _State | None:
    """Fewer directions, `least` at least: those that are for more than one row or column; None where all may be."""
    matrix, known = state.part(scaled), state.part(present)
    left, _ = least_squares_by_row(matrix, known, state.basis)
    outer, values, turn = torch.linalg.svd(left, full_matrices=False)
    rows = outer.square().sum(dim=1) < OF_ITS_OWN
    columns = (turn @ state.basis).square().sum(dim=0) < OF_ITS_OWN
    inner, sizes, _ = torch.linalg.svd((outer * values)[rows] @ (turn @ state.basis)[:, columns], full_matrices=False)
    margins = (sizes[:-1] / sizes[1:].clamp(min=torch.finfo(sizes.dtype).tiny))[least - 1 : state.rank - 1]
    if not len(margins) or float(margins.max()) < CLEAR_MARGIN:
        return None
    rank = int(margins.argmax()) + least
    turned, known_turned = matrix[rows].T.contiguous(), known[rows].T.contiguous()
    shared, _ = least_squares_by_row(turned, known_turned, inner[:, :rank].T.contiguous())
    return replace(state.cut(rank), basis=torch.linalg.qr(shared).Q.T.contiguous())


def _swept(
    state: _State, scaled: Tensor, present: Tensor, least: int, low: float, generator: torch.Generator
) -> tuple[_State, _Told]:
    """Alternate least squares of rows and columns, until a rank shows, or what is left is so low or falls no more."""
    matrix, known = state.part(scaled), state.part(present)
    turned, known_turned = matrix.T.contiguous(), known.T.contiguous()
    height, width = matrix.shape
    tiny = torch.finfo(matrix.dtype).tiny
    before, told = None, _Told(state.rank, 1.0)
    for _ in range(SWEEPS):
        noise = state.square / state.values.square().clamp(min=tiny)
        left, _ = least_squares_by_row(matrix, known, state.basis, noise * height)
        outer, sizes, _ = torch.linalg.svd(left, full_matrices=False)
        noise = state.square / sizes.square().clamp(min=tiny)
        right, _ = least_squares_by_row(turned, known_turned, outer.T.contiguous(), noise * width)
        inner, values, basis = torch.linalg.svd(right.T, full_matrices=False)
        state = state.explained(outer @ inner, values, basis, matrix, known)
        told = state.told_rank(min(least, state.rank), generator)
        settled = before is not None and state.square > FALLING * before
        if told.margin >= CLEAR_MARGIN or state.square <= low or settled:
            break
        before = state.square
    return state, told
