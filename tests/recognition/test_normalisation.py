"""Masked normalisation beside torch's own, on the frames that count."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from overheard.recognition.normalisation import NORMS, MaskedBatchNorm, MaskedGroupNorm


def padded(lengths: list[int], channels: int, positions: int, seed: int = 0) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(N, C, K, T) with large values where padding is, the lengths, and the utterances without it."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.full((len(lengths), channels, positions, max(lengths) + 2), 1e4)
    utterances = []
    for index, length in enumerate(lengths):
        utterances.append(3 + 2 * torch.randn(channels, positions, length, generator=generator))
        values[index, :, :, :length] = utterances[-1]
    return values, torch.tensor(lengths), utterances


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    channels=st.integers(1, 5),
    positions=st.integers(2, 4),
)
def test_batch_norm_is_that_of_torch_over_valid_frames(lengths: list[int], channels: int, positions: int) -> None:
    masked, plain = MaskedBatchNorm(channels), nn.BatchNorm1d(channels)
    values, num_frames, utterances = padded(lengths, channels, positions)
    joined = torch.cat(utterances, dim=2).flatten(1).unsqueeze(0)  # (1, C, all valid values)
    for _ in range(2):
        found, expected = masked(values, num_frames), plain(joined)
    valid = [found[index, :, :, :length] for index, length in enumerate(lengths)]
    torch.testing.assert_close(torch.cat(valid, dim=2).flatten(1).unsqueeze(0), expected)
    torch.testing.assert_close(masked.state_dict(), plain.state_dict())
    assert all((found[index, :, :, length:] == 0).all() for index, length in enumerate(lengths))


def test_batch_norm_and_torch_exchange_states() -> None:
    plain = nn.BatchNorm2d(3)
    plain(5 + 2 * torch.randn(4, 3, 6, 7))
    masked = MaskedBatchNorm(3)
    masked.load_state_dict(plain.state_dict())
    values = torch.randn(2, 3, 5, 6)
    found = masked.eval()(values, torch.tensor([6, 6]))
    torch.testing.assert_close(found, plain.eval()(values))
    plain.load_state_dict(masked.state_dict())


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    channels=st.sampled_from([1, 4, 6, 32, 48]),
    positions=st.integers(2, 4),  # torch refuses a single value per channel
)
def test_group_norm_is_that_of_torch_on_each_utterance_alone(lengths: list[int], channels: int, positions: int) -> None:
    masked = MaskedGroupNorm(channels)
    plain = nn.GroupNorm(masked.num_groups, channels)
    values, num_frames, utterances = padded(lengths, channels, positions)
    found = masked(values, num_frames)
    assert masked.state_dict().keys() == plain.state_dict().keys()
    for index, utterance in enumerate(utterances):
        expected = plain(utterance.unsqueeze(0))[0]
        torch.testing.assert_close(found[index, :, :, : lengths[index]], expected, atol=2e-5, rtol=2e-5)
        assert (found[index, :, :, lengths[index] :] == 0).all()


@pytest.mark.parametrize(("channels", "groups"), [(32, 2), (800, 50), (4, 1), (24, 3), (5, 5)])
def test_group_sizes(channels: int, groups: int) -> None:
    assert MaskedGroupNorm(channels).num_groups == groups


@pytest.mark.parametrize("norm", NORMS)
def test_variance_survives_a_large_mean_in_single_precision(norm: str) -> None:
    module = NORMS[norm](4)
    values, num_frames, _ = padded([50, 30], 4, 3)
    found = module(values + 3000.0, num_frames)
    expected = NORMS[norm](4).double()(values.double() + 3000.0, num_frames)
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm", NORMS)
def test_first_and_second_derivatives(norm: str, training: bool) -> None:
    module = NORMS[norm](2).double().train(training)
    values, num_frames, _ = padded([4, 1, 3], 2, 2)
    values = values.double().clamp(max=9.0).requires_grad_()

    def normalised(inputs: Tensor) -> Tensor:
        return module(inputs, num_frames)

    assert torch.autograd.gradcheck(normalised, values)
    assert torch.autograd.gradgradcheck(normalised, values)
