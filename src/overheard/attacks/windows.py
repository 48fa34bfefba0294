"""Which layer of a model sees overlapping windows of its input frames, found by looking.

A probe whose every value is a different whole number runs through the model; a layer whose inputs are those very
numbers, untouched, in windows that move on by a fixed stride, is open to the closed form of `span`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

PROBE_FRAMES = (61, 62, 63, 67)
"""Lengths of the probes: several, so that zero padding behind the last frame shows in the number of positions."""


@dataclass(frozen=True)
class WindowedLayer:
    """An affine layer that is shown windows of k frames, every `stride` frames, with zero padding at both ends.

    Attributes:
        name: the module's name.
        frame: for each input column, the frame within the window, 0 to k - 1.
        feature: for each input column, the feature within the frame.
        window: k.
        stride: frames from one position to the next.
        before: frames of zero padding ahead of the first frame.
        after: frames of zero padding behind the last.
        num_features: F.
    """

    name: str
    frame: Int[Tensor, " C"]
    feature: Int[Tensor, " C"]
    window: int
    stride: int
    before: int
    after: int
    num_features: int

    @property
    def order(self) -> Int[Tensor, " C"]:
        """Permutation that sorts the columns by frame, then feature."""
        return torch.argsort(self.frame * self.num_features + self.feature)

    @property
    def capacity(self) -> int:
        """Most positions at which the closed form is determined: (k - s) F."""
        return (self.window - self.stride) * self.num_features

    @property
    def first_unknowns(self) -> int:
        """Numbers of the first window that are no padding."""
        return (self.window - self.before) * self.num_features

    def num_positions(self, num_frames: int) -> int:
        """P for an utterance of so many frames."""
        return max(0, (num_frames + self.before + self.after - self.window) // self.stride + 1)

    def lengths(self, num_positions: int) -> list[int]:
        """Every number of frames that gives so many positions."""
        longest = (num_positions - 1) * self.stride + self.window - self.before - self.after + self.stride - 1
        return [
            length
            for length in range(max(1, longest - self.stride + 1), longest + 1)
            if self.num_positions(length) == num_positions
        ]

    def windows(self, features: Float[Tensor, "T F"]) -> Float[Tensor, "P C"]:
        """What the layer is shown, columns sorted by frame, then feature."""
        return self.cut(nn.functional.pad(features, (0, 0, self.before, self.after)))

    def cut(self, rows: Float[Tensor, "R F"]) -> Float[Tensor, "P C"]:
        """Every window of rows that hold the padding already."""
        return rows.unfold(0, self.window, self.stride).transpose(1, 2).flatten(1)

    def turned(self, weight: Float[Tensor, "H C"]) -> Float[Tensor, "H C"]:
        """A weight, columns sorted by frame, for windows whose frames stand in the opposite order."""
        return weight.view(len(weight), self.window, self.num_features).flip(1).flatten(1).contiguous()

    def held(self, rows: Float[Tensor, "R F"], count: int) -> Float[Tensor, " K"]:
        """What a window that ends `count` frames behind these rows holds of them."""
        return rows[len(rows) + count - self.window :].flatten()

    def first_that_holds(self, row: int) -> int:
        """Position of the first window that holds this row of frames and padding."""
        return max(0, -((self.window - 1 - row) // self.stride))


def find_windowed_layer(model: nn.Module, num_features: int) -> WindowedLayer | None:
    """The first layer of a recogniser that sees windows of the input, or None.

    Args:
        model: `features (T, N, F), num_frames (N,) -> ...`; run in evaluation mode, left as it was.
        num_features: F.
    """
    seen = [_first_windows(model, num_frames, num_features) for num_frames in PROBE_FRAMES]
    names = {name for name, _ in seen}
    if len(names) != 1 or "" in names:
        return None
    return _from_rows(names.pop(), [rows for _, rows in seen], num_features)


class _Seen(Exception):
    """No error: it ends a forward pass that has shown enough."""

    def __init__(self, name: str, rows: Tensor) -> None:
        super().__init__(name)
        self.name, self.rows = name, rows


def _probe(num_frames: int, num_features: int) -> Float[Tensor, "T F"]:
    return torch.arange(1, num_frames * num_features + 1, dtype=torch.float32).view(num_frames, num_features)


def _first_windows(model: nn.Module, num_frames: int, num_features: int) -> tuple[str, Float[Tensor, "P C"]]:
    """Name and input rows of the first layer that is shown several frames of the probe at once; "" if none is."""

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = _rows(module, inputs[0].detach())
            whole = bool((rows == rows.round()).all()) and float(rows.max()) <= num_frames * num_features
            if rows.shape[1] > num_features and len(rows) > 2 and whole and float(rows.min()) >= 0:
                raise _Seen(name, rows)

        return hook

    handles = [
        module.register_forward_pre_hook(look(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv1d) and module.groups == 1)
    ]
    was_training = model.training
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            probe = _probe(num_frames, num_features)[:, None].to(parameter)
            model.eval()(probe, torch.tensor([num_frames], device=parameter.device))
    except _Seen as seen:
        return seen.name, seen.rows
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return "", torch.empty(0, 0)


def _rows(module: nn.Module, inputs: Tensor) -> Float[Tensor, "P C"]:
    if isinstance(module, nn.Conv1d):
        left = list(module._reversed_padding_repeated_twice)  # also set where padding is "same"
        padded = nn.functional.pad(inputs, left)
        reach = module.dilation[0] * (module.kernel_size[0] - 1) + 1
        patches = padded.unfold(2, reach, module.stride[0])[..., :: module.dilation[0]]  # (N, F, P, k)
        return patches.permute(0, 2, 1, 3).flatten(2)[0].cpu()
    return inputs.reshape(-1, inputs.shape[-1]).cpu()


def _from_rows(name: str, seen: list[Tensor], num_features: int) -> WindowedLayer | None:
    """Read window, stride and padding off what a layer was shown; None if one layout does not explain all probes."""
    first = seen[0]
    middle = first[len(first) // 2]
    ids = middle.long() - 1
    if int(ids.min()) < 0:
        return None
    frame, feature = ids // num_features, ids % num_features
    following = first[len(first) // 2 + 1]
    stride = int((following - middle).max()) // num_features
    window = int(frame.max() - frame.min()) + 1
    if stride < 1 or window <= stride or window * num_features != first.shape[1] or ids.unique().numel() != ids.numel():
        return None
    before = stride * (len(first) // 2) - int(frame.min())
    for candidate in range(window):
        layer = WindowedLayer(name, frame - frame.min(), feature, window, stride, before, candidate, num_features)
        if _explains(layer, seen):
            return layer
    return None


def _explains(layer: WindowedLayer, seen: list[Tensor]) -> bool:
    for num_frames, rows in zip(PROBE_FRAMES, seen, strict=True):
        expected = layer.windows(_probe(num_frames, layer.num_features))
        if expected.shape != rows.shape or not torch.equal(expected, rows[:, layer.order].float()):
            return False
    return True
