"""`Batch`: what a recogniser and CTC are given. Shapes and lengths are checked once, here."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from overheard.errors import InputError
from overheard.speech.alphabet import BLANK


@dataclass(frozen=True)
class Batch:
    """N utterances, padded with zeros behind their own frames and labels.

    Attributes:
        features: (T, N, F).
        num_frames: (N,) frames of each utterance before padding, input frames and not output frames.
        targets: (N, L) labels; entries past `target_lengths` are ignored.
        target_lengths: (N,) labels of each utterance.
    """

    features: Float[Tensor, "T N F"]
    num_frames: Int[Tensor, " N"]
    targets: Int[Tensor, "N L"]
    target_lengths: Int[Tensor, " N"]

    @property
    def size(self) -> int:
        """N."""
        return self.features.shape[1]

    def utterance_features(self, index: int) -> Float[Tensor, "T F"]:
        """Features of one utterance without padding."""
        return self.features[: int(self.num_frames[index]), index]

    def utterance_labels(self, index: int) -> list[int]:
        """Labels of one utterance without padding."""
        return self.targets[index, : int(self.target_lengths[index])].tolist()

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(*(tensor.to(device) for tensor in self.tensors().values()))

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name, in order: what a batch file holds."""
        return {
            "features": self.features,
            "num_frames": self.num_frames,
            "targets": self.targets,
            "target_lengths": self.target_lengths,
        }


def collate(features: Sequence[Float[Tensor, "_ F"]], labels: Sequence[Sequence[int]]) -> Batch:
    """One batch of utterances of any lengths.

    Args:
        features: N matrices (T_i, F).
        labels: N label sequences; an empty one is allowed here (CTC then wants blanks alone).
    """
    num_frames = torch.tensor([len(matrix) for matrix in features])
    target_lengths = torch.tensor([len(sequence) for sequence in labels])
    targets = torch.full((len(labels), max(1, int(target_lengths.max()))), BLANK)
    for row, sequence in zip(targets, labels, strict=True):
        row[: len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return Batch(torch.nn.utils.rnn.pad_sequence(list(features)), num_frames, targets, target_lengths)


def check_batch(tensors: dict[str, Tensor], num_features: int, num_symbols: int, source: str) -> Batch:
    """A batch from tensors of unknown origin.

    Raises:
        InputError: a tensor is missing, has the wrong shape or type, a length exceeds its tensor, a label is no symbol.
    """
    wanted = ("features", "num_frames", "targets", "target_lengths")
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise InputError(source, f"no tensor {missing[0]!r}", f"give all of {', '.join(wanted)}")
    features, num_frames, targets, target_lengths = (tensors[name] for name in wanted)
    if features.ndim != 3 or not features.is_floating_point():
        found = f"features of shape {tuple(features.shape)} and type {features.dtype}"
        raise InputError(source, found, "give floating-point features of shape (T, N, F)")
    if features.shape[2] != num_features:
        remedy = f"the model takes {num_features}; compute them with its own front end"
        raise InputError(source, f"{features.shape[2]} features per frame", remedy)
    if targets.ndim != 2:
        remedy = "CTC wants (N, L): one padded row of labels for each utterance"
        raise InputError(source, f"targets are {targets.ndim}-D, shape {tuple(targets.shape)}", remedy)
    size = features.shape[1]
    for name, lengths, limit, per_row in (
        ("num_frames", num_frames, features.shape[0], "frames in features"),
        ("target_lengths", target_lengths, targets.shape[1], "labels in targets"),
    ):
        if lengths.shape != (size,) or lengths.is_floating_point():
            found = f"{name} of shape {tuple(lengths.shape)} and type {lengths.dtype}"
            raise InputError(source, found, f"give {size} integers, one for each utterance in features (T, N, F)")
        if size and (int(lengths.max()) > limit or int(lengths.min()) < 0):
            worst = int(lengths.max()) if int(lengths.max()) > limit else int(lengths.min())
            remedy = f"each must be between 0 and the {limit} {per_row}"
            raise InputError(source, f"{name} has a length of {worst}", remedy)
    if size == 0 or targets.shape[0] != size:
        found = f"features for {size} utterances and targets for {targets.shape[0]}"
        raise InputError(source, found, "give the same number of both, and at least one")
    if not bool(torch.isfinite(features).all()):
        raise InputError(source, "features hold NaN or infinity", "leave that utterance out")
    for row, length in zip(targets, target_lengths.tolist(), strict=True):
        labels = row[:length]
        if length and (int(labels.min()) <= BLANK or int(labels.max()) >= num_symbols):
            found = f"labels from {int(labels.min())} to {int(labels.max())}"
            raise InputError(source, found, f"labels go from 1 to {num_symbols - 1}; {BLANK} is the blank")
    return Batch(features, num_frames.long(), targets.long(), target_lengths.long())
