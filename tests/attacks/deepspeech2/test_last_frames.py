"""An odd and an even number of frames have as many windows; which one it was is told by what fits."""

import torch
from sparse_speech import model_of, spoken
from torch.nn import functional

from overheard.attacks.deepspeech2.activation_equations import ActivationEquations
from overheard.attacks.deepspeech2.conv_features import Evidence, make_evidence, solve_features
from overheard.attacks.deepspeech2.conv_front import make_front, make_second
from overheard.attacks.deepspeech2.last_frames import fitted_ends, open_frames, small_ends
from overheard.attacks.deepspeech2.line_up import LineUp, line_up
from overheard.recognition.deepspeech2 import STRIDES, DeepSpeech2

LONGEST = (24, 20)


def case(lacking: tuple[int, int], error: float) -> tuple[Evidence, LineUp, torch.Tensor]:
    """What two utterances have shown, of which each may lack its last frame; frames are off by an error."""
    model = model_of(channels=8)
    assert isinstance(model, DeepSpeech2)
    utterances = line_up(model.config, LONGEST, torch.device("cpu"))
    front, second = make_front(model, utterances), make_second(model)
    features = torch.zeros(len(utterances.features), 161, dtype=torch.float64)
    both = spoken(*(longest - count for longest, count in zip(LONGEST, lacking, strict=True)))
    for index, (start, end) in enumerate(utterances.spans):
        features[start : end - lacking[index]] = both.utterance_features(index).double()
    activations = front.pre_activations(features).clamp(0.0, 20.0)
    before = second.convolve(activations) + second.bias[:, None, None]
    active = (before > 0) & utterances.outputs
    generator = torch.Generator().manual_seed(0)
    off = error * before.std() * torch.randn(before.shape, generator=generator, dtype=torch.float64)
    delta = active * torch.randn(before.shape, generator=generator, dtype=torch.float64)
    weight = second.weight.requires_grad_()
    shown = functional.conv2d(activations[None], weight, None, STRIDES[1], second.padding)[0]
    (update,) = torch.autograd.grad((shown * delta).sum(), weight)
    equations = ActivationEquations(front, delta, update, (activations.shape[1], activations.shape[2]))
    seen = torch.ones(8, 1, 1, dtype=torch.bool) & utterances.outputs
    second = make_second(model)
    return make_evidence(front, second, equations, before.clamp(min=0.0) + off, active, seen), utterances, features


def test_only_frames_of_the_same_number_of_windows_are_open() -> None:
    model = model_of()
    assert isinstance(model, DeepSpeech2)
    for num_frames in ((24, 20), (23, 20), (24, 19)):
        utterances = line_up(model.config, num_frames, torch.device("cpu"))
        lengths = tuple(map(model.config.output_length, num_frames))
        assert open_frames(model.config, utterances, lengths) == tuple(1 - count % 2 for count in num_frames)


def test_ends_near_zero_are_padding() -> None:
    utterances = line_up(model_of().config, LONGEST, torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    features = torch.ones(len(utterances.features), 161, dtype=torch.float64)
    features[utterances.spans[1][1] - 1] = 1e-3
    assert small_ends(features, utterances, (1, 1), 1e-4) == (0, 1)
    assert small_ends(features, utterances, (1, 1), 1e-8) == (0, 0)


def test_both_lengths_are_fitted_where_features_are_rough() -> None:
    lacking = (0, 1)
    evidence, utterances, features = case(lacking, error=0.03)
    rough = solve_features(evidence, features + 0.05 * torch.randn_like(features), 1, 1e-9)
    solution, found = fitted_ends(evidence, rough, utterances, (1, 1), 1e-9)
    assert found == lacking
    for (_, end), count in zip(utterances.spans, lacking, strict=True):
        assert (float(solution.features[end - 1].norm()) == 0.0) == bool(count)
