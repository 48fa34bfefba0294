"""What every recogniser is, whoever wrote it: features and lengths in, logits and lengths out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from overheard.errors import InputError
from overheard.speech.alphabet import Alphabet
from overheard.speech.features import FrontEndConfig


@runtime_checkable
class Recogniser(Protocol):
    """An `nn.Module` that hears utterances and writes symbols; a user's own model needs these five names and no base.

    Attributes:
        front_end: what turns a waveform into the features it takes.
        alphabet: the symbols it writes; V counts the blank, which is symbol 0.
    """

    front_end: FrontEndConfig
    alphabet: Alphabet

    def forward(
        self, features: Float[Tensor, "T N F"], num_frames: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, "T_out N V"], Int[Tensor, " N"]]:
        """Logits, in training as in evaluation, and how many output frames of each utterance count.

        What stands behind `num_frames` in `features` must not matter.
        """
        ...

    def output_lengths(self, num_frames: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Output frames of utterances with `num_frames` input frames; 0 for one that is too short."""
        ...

    def __call__(
        self, features: Float[Tensor, "T N F"], num_frames: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, "T_out N V"], Int[Tensor, " N"]]:
        """`forward`, with the module's hooks."""
        ...


def as_recogniser(model: nn.Module) -> Recogniser:
    """The same model under the type that says what a recogniser has."""
    return cast(Recogniser, model)


def check_inputs(features: Tensor, num_frames: Tensor, num_features: int, minimum_frames: int) -> None:
    """What `forward` can be given.

    Args:
        features: (T, N, F).
        num_frames: (N,).
        num_features: F that the model takes.
        minimum_frames: frames that one utterance needs for one output frame.

    Raises:
        InputError: a wrong shape; an utterance longer than the tensor or shorter than the minimum.
    """
    if features.ndim != 3 or features.shape[2] != num_features:
        remedy = f"give (T, N, {num_features}), computed with the model's own front end"
        raise InputError("features", f"shape {tuple(features.shape)}", remedy)
    if num_frames.shape != (features.shape[1],) or features.shape[1] == 0:
        found = f"shape {tuple(num_frames.shape)} beside features of shape {tuple(features.shape)}"
        raise InputError("num_frames", found, "give one length for each utterance, and at least one utterance")
    for index, length in enumerate(num_frames.tolist()):
        if not minimum_frames <= length <= features.shape[0]:
            remedy = f"the model takes from {minimum_frames} to the {features.shape[0]} frames of the tensor"
            raise InputError("num_frames", f"{length} frames in utterance {index}", remedy)


def frame_mask(lengths: Int[Tensor, " N"], num_frames: int) -> Bool[Tensor, "T N"]:
    """True where a frame belongs to its utterance, False where it is padding."""
    return torch.arange(num_frames, device=lengths.device)[:, None] < lengths


def without_padding(values: Float[Tensor, "T N *rest"], lengths: Int[Tensor, " N"]) -> Float[Tensor, "T N *rest"]:
    """The same with zeros behind each utterance's own frames, whatever stood there, NaN included."""
    padding = ~frame_mask(lengths, values.shape[0])
    return values.masked_fill(padding.reshape(*padding.shape, *[1] * (values.ndim - 2)), 0.0)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's CPU generator as if freshly seeded, and leave it as it was found.

    Initialisers of `nn` layers take no generator, so this is the one place that reaches for the global one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
