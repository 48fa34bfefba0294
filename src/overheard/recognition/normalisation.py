"""Normalisation that padding cannot reach: statistics over each utterance's own frames and over nothing else."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from overheard.recognition.recogniser import frame_mask


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the frames that are speech (Ioffe and Szegedy 2015; Baidu's sequence-wise form).

    Parameters, buffers and their names are those of `nn.BatchNorm1d`, and so are momentum and the unbiased running
    variance: on a batch without padding it is that module.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Float[Tensor, "N C K T"], lengths: Int[Tensor, " N"]
    ) -> Float[Tensor, "N C K T"]:
        """Normalise each channel over utterances, valid frames and K; padding comes back as zero.

        Args:
            inputs: C channels, K positions of each (frequencies, or 1).
            lengths: valid frames of each utterance.

        Raises:
            ValueError: training mode with a single value per channel, as from torch.
        """
        valid = frame_mask(lengths, inputs.shape[3]).T  # (N, T)
        if not self.training or bool(valid.all()):
            normalised = super().forward(inputs.flatten(2)).view_as(inputs)
            return normalised.masked_fill(~valid[:, None, None, :], 0.0)
        frames = super().forward(inputs.permute(0, 3, 1, 2)[valid])  # (valid frames, C, K)
        padded = frames.new_zeros(*valid.shape, *frames.shape[1:])
        padded[valid] = frames
        return padded.permute(0, 2, 3, 1)


class MaskedGroupNorm(nn.Module):
    """Group normalisation over the frames that are speech (Wu and He 2018).

    Statistics belong to one utterance, so no utterance learns of another: it is what differential privacy by sample
    needs. Groups are of 16 channels, the paper's other good choice, or of the greatest common divisor with 16: it
    suits layers of 32 channels, where the paper's 32 groups would be of one channel each.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_groups = num_channels // math.gcd(num_channels, 16)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, inputs: Float[Tensor, "N C K T"], lengths: Int[Tensor, " N"]) -> Float[Tensor, "N C K T"]:
        """Standardise, then scale and shift each channel; padding comes back as zero."""
        scaled = self.standardise(inputs, lengths) * self.weight[:, None, None] + self.bias[:, None, None]
        valid = frame_mask(lengths, inputs.shape[3]).T  # (N, T)
        return scaled.masked_fill(~valid[:, None, None, :], 0.0)

    def standardise(self, inputs: Float[Tensor, "N C K T"], lengths: Int[Tensor, " N"]) -> Float[Tensor, "N C K T"]:
        """Mean 0 and variance 1 over the valid frames of each utterance and group; padding comes back as zero."""
        grouped = inputs.unflatten(1, (self.num_groups, -1))  # (N, groups, C / groups, K, T)
        padding = ~frame_mask(lengths, inputs.shape[3]).T[:, None, None, None, :]
        count = (lengths * grouped.shape[2] * grouped.shape[3]).clamp(min=1)[:, None, None, None, None]
        mean = grouped.masked_fill(padding, 0.0).sum((2, 3, 4), keepdim=True) / count
        # Centred first and squared then: the mean of squares minus the squared mean cancels in float32.
        centred = (grouped - mean).masked_fill(padding, 0.0)
        variance = centred.square().sum((2, 3, 4), keepdim=True) / count
        return (centred * torch.rsqrt(variance + self.eps)).flatten(1, 2)


NORMS: dict[str, type[MaskedBatchNorm] | type[MaskedGroupNorm]] = {"batch": MaskedBatchNorm, "group": MaskedGroupNorm}
