"""Convolution with large kernels in a fraction of the multiplications, differentiable as often as one likes.

Overlapping tiles of the input, the kernel and the output are taken through three small matrices, along one axis after
the other, and in between stands one matrix product over channels for each point:

    output = C [ (B input) (A kernel) ]        S. Winograd, "Arithmetic complexity of computations", 1980

nested in two dimensions as by A. Lavin and S. Gray ("Fast algorithms for convolutional neural networks", 2016, section
4). The points are those of the discrete Fourier transform, at which large tiles lose no digits; a complex product is
three real ones. All of it is linear or a matrix product, and so are the second derivatives that autograd finds; the
double backward of torch's own convolution computes the kernel's gradient whether or not anybody asked for it.

A strided convolution is made one of stride 1 first: the phases of each axis become channels.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

FEWEST_TAPS = 64
"""Of a kernel: with fewer the transforms cost as much as they spare."""

SHORTEST_TILE = 28
"""Outputs of a tile along an axis, or twice the taps where those are more; measured on DeepSpeech 2's convolutions."""


@dataclass(frozen=True)
class _Axis:
    """One axis of a convolution, cut into tiles.

    Attributes:
        size: inputs.
        kernel: taps.
        stride: phases.
        padding: zeros on both sides.
    """

    size: int
    kernel: int
    stride: int
    padding: int

    @property
    def wanted(self) -> int:
        """Outputs of the convolution."""
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def taps(self) -> int:
        """Of each phase."""
        return -(-self.kernel // self.stride)

    @property
    def tiles(self) -> int:
        return -(-self.wanted // max(SHORTEST_TILE, 2 * self.taps))

    @property
    def outputs(self) -> int:
        """Of each tile."""
        return -(-self.wanted // self.tiles)

    @property
    def window(self) -> int:
        """Inputs of each tile in a phase."""
        return self.outputs + self.taps - 1

    @property
    def length(self) -> int:
        """Inputs of all tiles in a phase."""
        return self.tiles * self.outputs + self.taps - 1

    @property
    def margins(self) -> tuple[int, int]:
        """Zeros before and after the inputs; fewer than none where the last inputs go unused."""
        return self.padding, self.length * self.stride - self.size - self.padding


def tiled_conv2d(
    inputs: Float[Tensor, "N C K T"],
    weight: Float[Tensor, "O C height width"],
    bias: Float[Tensor, " O"] | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Float[Tensor, "N O K_out T_out"]:
    """As `torch.nn.functional.conv2d` with one group and no dilation.

    Args:
        inputs: with their padding no smaller than the kernel.
        weight: the kernels.
        bias: of each output channel.
        stride: along either axis.
        padding: zeros on both sides of either axis.
    """
    count, channels = inputs.shape[:2]
    filters = weight.shape[0]
    rows, columns = axes = _axes(inputs, weight, stride, padding)
    phases = channels * rows.stride * columns.stride

    grid = functional.pad(inputs, (*columns.margins, *rows.margins))
    grid = grid.view(count, channels, rows.length, rows.stride, columns.length, columns.stride)
    grid = grid.permute(2, 4, 0, 1, 3, 5).reshape(rows.length, columns.length, count, phases)
    tiles = _Tiles.apply(grid, rows, columns)  # (row window, column window, row tiles, column tiles, N, phases)

    missing = [axis.taps * axis.stride - axis.kernel for axis in axes]
    taps = functional.pad(weight, (0, missing[1], 0, missing[0]))
    taps = taps.view(filters, channels, rows.taps, rows.stride, columns.taps, columns.stride)
    taps = taps.permute(2, 4, 1, 3, 5, 0).reshape(rows.taps, columns.taps, -1)

    of_tile, of_kernel, to_output = (
        [matrix.to(inputs) for matrix in matrices]
        for matrices in zip(*(_transforms(axis.taps, axis.outputs) for axis in axes), strict=True)
    )
    points = len(of_tile[0]), len(of_tile[1])
    tiles = _columns_then_rows(of_tile, tiles.flatten(2)).view(math.prod(points), -1, phases)
    taps = _columns_then_rows(of_kernel, taps).view(math.prod(points), phases, filters)
    products = torch.bmm(tiles, taps).view(points[0], -1)  # (row points, column points * tiles * N * filters)
    # Rows first here: fewer outputs than points are left for the second product.
    outputs = torch.mm(to_output[0], products).view(rows.outputs, points[1], -1)
    outputs = torch.bmm(to_output[1].expand(rows.outputs, -1, -1), outputs)
    outputs = outputs.view(rows.outputs, columns.outputs, rows.tiles, columns.tiles, count, filters)
    outputs = outputs.permute(4, 5, 2, 0, 3, 1).reshape(count, filters, rows.tiles * rows.outputs, -1)
    outputs = outputs[:, :, : rows.wanted, : columns.wanted]
    return outputs if bias is None else outputs + bias[:, None, None]


class TiledConvolutions(TorchFunctionMode):
    """Within it a `conv2d` on the CPU whose kernel has at least `FEWEST_TAPS` taps is `tiled_conv2d`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.conv2d and not kwargs and _suits(*args):
            return tiled_conv2d(*args[:5])
        return func(*args, **(kwargs or {}))


def _suits(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> bool:
    plain = isinstance(stride, tuple) and isinstance(padding, tuple) and dilation == (1, 1) and groups == 1
    if not plain or inputs.ndim != 4 or inputs.device.type != "cpu" or inputs.dtype != weight.dtype:
        return False
    large = math.prod(weight.shape[2:]) >= FEWEST_TAPS
    return large and all(axis.wanted > 0 for axis in _axes(inputs, weight, stride, padding))


def _axes(inputs: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> tuple[_Axis, _Axis]:
    rows, columns = zip(inputs.shape[2:], weight.shape[2:], stride, padding, strict=True)
    return _Axis(*rows), _Axis(*columns)


def _columns_then_rows(
    matrices: list[Tensor], values: Float[Tensor, "rows columns rest"]
) -> Float[Tensor, "row_points column_points_rest"]:
    """Both transforms, each as one product that leaves its result where the next one reads it."""
    by_row, by_column = matrices
    values = torch.bmm(by_column.expand(len(values), -1, -1), values)
    return torch.mm(by_row, values.flatten(1))


@functools.cache
def _transforms(taps: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices B (P, outputs + taps - 1), A (P, taps), C (outputs, P) of a correlation in one dimension, in float64.

    C ((B x) * (A w)) has entries sum_k w_k x_{i+k}. With X and W the transforms over n = outputs + taps - 1 inputs it
    is the first `outputs` entries of the inverse transform of X conj(W), none of which wraps round. A complex product
    of X = a + ib and conj(W) = c + id is (p - r) + i(p + q) with p = c (a + b), q = a (d - c), r = b (c + d).
    """
    size = outputs + taps - 1
    frequency = torch.arange(size // 2 + 1, dtype=torch.float64)
    single = torch.tensor([k for k in range(len(frequency)) if 2 * k % size == 0])
    paired = torch.tensor([k for k in range(len(frequency)) if 2 * k % size != 0], dtype=torch.int64)

    angles = 2 * math.pi / size * torch.outer(frequency, torch.arange(size, dtype=torch.float64))
    cosine, sine = angles.cos(), angles.sin()
    a, b, c, d = cosine[paired], -sine[paired], cosine[paired, :taps], sine[paired, :taps]
    of_input = torch.cat([cosine[single], a + b, a, b])
    of_kernel = torch.cat([cosine[single, :taps], c, d - c, c + d])
    real, imaginary = 2 / size * cosine[paired, :outputs].T, -2 / size * sine[paired, :outputs].T
    to_output = torch.cat([cosine[single, :outputs].T / size, real + imaginary, imaginary, -real], 1)
    return of_input, of_kernel, to_output


class _Tiles(torch.autograd.Function):
    """Overlapping windows of (rows, columns, N, C), copied out."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
        ctx.axes = rows, columns
        windows = grid.unfold(0, rows.window, rows.outputs).unfold(1, columns.window, columns.outputs)
        return windows.permute(4, 5, 0, 1, 2, 3).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _Overlapped.apply(gradients[0], *ctx.axes), None, None


class _Overlapped(torch.autograd.Function):
    """The transpose: windows added up where they overlap; torch's own goes through them value by value."""

    @staticmethod
    def forward(ctx: Any, windows: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
        ctx.axes = rows, columns
        joined = windows.new_zeros(rows.window, columns.length, rows.tiles, *windows.shape[4:])
        for k, window in enumerate(windows.unbind(3)):
            joined[:, k * columns.outputs :][:, : columns.window] += window
        grid = windows.new_zeros(rows.length, columns.length, *windows.shape[4:])
        for k, window in enumerate(joined.unbind(2)):
            grid[k * rows.outputs :][: rows.window] += window
        return grid

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _Tiles.apply(gradients[0], *ctx.axes), None, None
