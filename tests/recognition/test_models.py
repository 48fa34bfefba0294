"""The contract that every registered model keeps, and the numbers of the published ones."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overheard.errors import InputError
from overheard.recognition.models import MODELS, ModelSpec, build_model, model_spec, parameter_shapes, spec_of
from overheard.recognition.recogniser import Recogniser
from overheard.recognition.recurrence import set_engine
from overheard.speech.alphabet import Alphabet
from overheard.speech.features import LOG_MEL_80, SPECTROGRAM_161, FrontEndConfig

NARROW = FrontEndConfig(n_fft=160, window=160, hop=160)  # 81 frequencies: the fewest that unpadded convolutions take

SPECS = {
    "deepspeech1": model_spec("deepspeech1", hidden_size=24, context=3),
    "deepspeech1-gru-no-context": model_spec("deepspeech1", hidden_size=24, context=0, cell="gru"),
    "deepspeech2": model_spec("deepspeech2", front_end=NARROW, channels=4, hidden_size=12, num_layers=3),
    "deepspeech2-group-lstm": model_spec(
        "deepspeech2", front_end=NARROW, channels=6, hidden_size=12, num_layers=2, norm="group", cell="lstm"
    ),
    "deepspeech2-padded-tanh": model_spec(
        "deepspeech2",
        front_end=NARROW,
        channels=4,
        hidden_size=12,
        num_layers=1,
        padding=((20, 5), (10, 5)),
        cell="tanh",
    ),
    "transformer": model_spec(
        "transformer", channels=20, hidden_size=24, num_layers=2, num_heads=3, feedforward_size=32
    ),
    "transformer-every-frame": model_spec(
        "transformer", kernel=1, stride=1, channels=9, hidden_size=8, num_layers=1, num_heads=1, feedforward_size=8
    ),
}


@pytest.fixture(params=SPECS, name="spec")
def _spec(request: pytest.FixtureRequest) -> ModelSpec:
    return SPECS[request.param]


def speech(model: nn.Module, num_frames: list[int], padded_to: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Utterances of these lengths, each the same at whatever padding; NaN where an utterance has ended."""
    assert isinstance(model, Recogniser)
    features = torch.full((padded_to, len(num_frames), model.front_end.num_features), torch.nan)
    for index, length in enumerate(num_frames):
        generator = torch.Generator().manual_seed(seed + 1000 * index + length)
        features[:length, index] = torch.randn(length, features.shape[2], generator=generator)
    return features, torch.tensor(num_frames)


def gradients(model: nn.Module, features: Tensor, num_frames: Tensor) -> dict[str, Tensor]:
    """Of a sum over every valid logit, each weighted by its own cosine."""
    logits, _ = model(features, num_frames)
    weights = torch.arange(logits.numel() // logits.shape[1]).reshape(logits.shape[0], 1, -1).cos()
    loss = (logits.log_softmax(-1) * weights * (logits != 0)).sum()
    names = dict(model.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))


def shortest(model: Any) -> int:
    """The fewest frames that make an output frame."""
    return next(length for length in range(1, 100) if model.output_lengths(torch.tensor([length]))[0] > 0)


def test_every_registered_model_is_under_contract() -> None:
    assert {spec.name for spec in SPECS.values()} == set(MODELS)


def test_shapes_and_lengths(spec: ModelSpec) -> None:
    model = build_model(spec)
    assert isinstance(model, Recogniser)
    assert model.alphabet == Alphabet(spec.config["characters"])
    features, num_frames = speech(model, [40, 31, 23], 43)
    logits, lengths = model(features, num_frames)
    assert torch.equal(lengths, model.output_lengths(num_frames))
    assert logits.shape == (int(model.output_lengths(torch.tensor([43]))[0]), 3, model.alphabet.num_symbols)
    assert logits.isfinite().all()
    for index, length in enumerate(lengths.tolist()):
        assert (logits[:length, index] != 0).all()
        assert (logits[length:, index] == 0).all()


def test_logits_in_training_as_in_evaluation(spec: ModelSpec) -> None:
    model = build_model(spec)
    features, num_frames = speech(model, [40], 40)
    for mode in (True, False):
        logits, _ = model.train(mode)(features, num_frames)
        assert (logits < 0).any()
        assert not torch.allclose(logits.exp().sum(-1), torch.ones(()), atol=1e-2)


def test_the_minimum_is_enough_and_less_is_refused(spec: ModelSpec) -> None:
    model = build_model(spec).eval()
    length = shortest(model)
    logits, lengths = model(*speech(model, [length], length))
    assert (logits.shape[0], lengths.tolist()) == (1, [1])
    with pytest.raises(InputError, match=rf"num_frames: {length - 1} frames in utterance 1; .* {length} to the 40"):
        model(*speech(model, [40, length - 1], 40))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_padding_changes_nothing(spec: ModelSpec, training: bool) -> None:
    lengths = [33, 46, 27]
    results = []
    for padded_to in (46, 71):
        model = build_model(spec).train(training)
        logits, output_lengths = model(*speech(model, lengths, padded_to))
        buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        grads = gradients(build_model(spec).train(training), *speech(model, lengths, padded_to))
        results.append((logits, output_lengths, buffers, grads))
    (tight, tight_lengths, tight_buffers, tight_grads), (loose, loose_lengths, loose_buffers, loose_grads) = results
    assert torch.equal(tight_lengths, loose_lengths)
    torch.testing.assert_close(loose[: len(tight)], tight, atol=1e-5, rtol=0)
    torch.testing.assert_close(loose_buffers, tight_buffers, atol=1e-6, rtol=1e-5)
    largest = max(gradient.norm() for gradient in tight_grads.values())
    for name, gradient in tight_grads.items():
        # Batch norm cancels the bias before it: the gradient of that is rounding alone.
        assert (loose_grads[name] - gradient).norm() <= 1e-4 * max(gradient.norm(), 1e-2 * largest), name


def test_a_longer_neighbour_changes_nothing(spec: ModelSpec) -> None:
    # Batch norm in training mixes utterances by design; everything else keeps them apart.
    modes = [False] if spec.config.get("norm") == "batch" else [False, True]
    for training in modes:
        model = build_model(spec).train(training)
        alone, alone_lengths = model(*speech(model, [33], 33))
        together, lengths = model(*speech(model, [33, 80], 80))
        assert lengths[0] == alone_lengths[0]
        torch.testing.assert_close(together[: len(alone), :1], alone, atol=1e-5, rtol=0)


def test_gradient_flows_to_every_parameter(spec: ModelSpec) -> None:
    model = build_model(spec).eval()
    for name, gradient in gradients(model, *speech(model, [40, 30], 40)).items():
        assert gradient.isfinite().all(), name
        assert gradient.norm() > 0, name


def test_second_derivatives_exist_and_do_not_depend_on_padding(spec: ModelSpec) -> None:
    model = build_model(spec).train()
    set_engine(model, "analytic")
    found = []
    for padded_to in (36, 50):
        features, num_frames = speech(model, [36, 29], padded_to)
        features.requires_grad_()
        logits, _ = model(features, num_frames)
        (first,) = torch.autograd.grad(logits.square().sum(), model.get_parameter("output.weight"), create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), features)[0][:36])
    assert found[0].norm() > 0
    assert (found[1] - found[0]).norm() <= 1e-4 * found[0].norm()


def test_padding_gets_no_gradient(spec: ModelSpec) -> None:
    model = build_model(spec).eval()
    features, num_frames = speech(model, [30, 40], 40)
    features.requires_grad_()
    (gradient,) = torch.autograd.grad(model(features, num_frames)[0].square().sum(), features)
    assert (gradient[30:, 0] == 0).all()
    assert (gradient[:30, 0] != 0).any()


def test_weights_come_from_the_seed_alone(spec: ModelSpec) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    model = build_model(spec)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    torch.testing.assert_close(build_model(spec).state_dict(), model.state_dict(), atol=0, rtol=0)
    other = build_model(ModelSpec(spec.name, spec.config, spec.seed + 1))
    assert not torch.equal(other.get_parameter("output.weight"), model.get_parameter("output.weight"))


def test_shapes_without_memory_are_those_with(spec: ModelSpec) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    shapes = parameter_shapes(spec)
    assert torch.equal(torch.get_rng_state(), state)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in build_model(spec).named_parameters()}


def test_specification_round_trip(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert spec_of(build_model(spec)) == spec
    assert set(json.loads(spec.to_json())) == {"name", "config", "seed"}


def test_dropout_in_training_alone() -> None:
    spec, plain = (model_spec("deepspeech1", hidden_size=24, dropout=dropout) for dropout in (0.5, 0.0))
    model = build_model(spec)
    inputs = speech(model, [20], 20)
    assert not torch.equal(model(*inputs)[0], model(*inputs)[0])
    torch.testing.assert_close(model.eval()(*inputs)[0], build_model(plain).eval()(*inputs)[0], atol=0, rtol=0)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_transformer_output_length_is_that_of_its_convolution(stride: int) -> None:
    sizes = {"channels": 4, "hidden_size": 4, "num_layers": 1, "num_heads": 1, "feedforward_size": 4}
    model: Any = build_model(model_spec("transformer", kernel=7, stride=stride, **sizes)).eval()
    for frames in range(1, 20):
        logits, lengths = model(*speech(model, [frames], frames))
        assert len(logits) == lengths[0] == -(-frames // stride)


def test_a_transformer_tells_where_it_is() -> None:
    model = build_model(SPECS["transformer"]).eval()
    logits, _ = model(torch.ones(90, 1, 80), torch.tensor([90]))
    middle = logits[5:-5, 0]
    assert (middle[1:] - middle[:-1]).norm(dim=1).min() > 1e-4, "equal frames, equal logits: no positions"


def test_a_transformers_layers_start_with_weights_of_their_own() -> None:
    model = build_model(SPECS["transformer"])
    first, second = (model.get_parameter(f"encoder.layers.{index}.linear1.weight") for index in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("frames", "expected"), [(10, 0), (11, 1), (12, 1), (13, 2), (79, 35), (1000, 495), (1, 0)])
def test_deepspeech2_output_length(frames: int, expected: int) -> None:
    model: Any = build_model(SPECS["deepspeech2"])
    assert expected == max(0, (frames - 9) // 2)
    assert model.output_lengths(torch.tensor([frames])).tolist() == [expected]


@pytest.mark.parametrize("padding", [((0, 10), (0, 0)), ((20, 5), (10, 5)), ((0, 0), (0, 0)), ((0, 3), (2, 10))])
def test_deepspeech2_output_length_is_that_of_its_convolutions(padding: Any) -> None:
    spec = model_spec("deepspeech2", front_end=NARROW, channels=2, hidden_size=4, num_layers=1, padding=padding)
    model: Any = build_model(spec).eval()
    for frames in range(shortest(model), 45):
        logits, lengths = model(*speech(model, [frames], frames))
        assert len(logits) == lengths[0]


def test_parameter_count_of_deepspeech1() -> None:
    size, window, symbols = 2048, 13 * 26, 29
    layers = (window + 1) * size + 2 * (size + 1) * size + (2 * size + 1) * size + (size + 1) * symbols
    recurrence = 2 * 4 * size * (size + size + 2)  # two directions, four gates, two biases each
    shapes = parameter_shapes(model_spec("deepspeech1"))
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == layers + recurrence == 84_678_685
    assert shapes["input_layers.0.weight"] == (2048, 338)
    assert parameter_shapes(model_spec("deepspeech1", context=9))["input_layers.0.weight"] == (2048, 19 * 26)


def test_parameter_count_of_deepspeech2() -> None:
    channels, size, symbols, frequencies = 32, 800, 29, 45
    convolutions = channels * (41 * 11 + 1) + channels * (channels * 21 * 11 + 1) + 2 * 2 * channels
    recurrences = 2 * 3 * size * (channels * frequencies + size) + 4 * 2 * 3 * size * (size + size)
    shapes = parameter_shapes(model_spec("deepspeech2"))
    expected = convolutions + recurrences + 5 * 2 * size + size * symbols
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == expected == 41_754_368
    assert shapes["convolutions.0.weight"] == (32, 1, 41, 11)
    assert shapes["recurrences.0.weight_ih_l0"] == (3 * 800, 32 * 45)


@pytest.mark.parametrize(("front_end", "frequencies"), [(SPECTROGRAM_161, 41), (LOG_MEL_80, 20)])
def test_deepspeech2_on_narrower_front_ends(front_end: FrontEndConfig, frequencies: int) -> None:
    spec = model_spec("deepspeech2", front_end=front_end, padding=((20, 5), (10, 5)))
    assert parameter_shapes(spec)["recurrences.0.weight_ih_l0"] == (2400, 32 * frequencies)


def test_one_output_frame_cannot_train_batch_norm() -> None:
    model = build_model(SPECS["deepspeech2"])
    with pytest.raises(InputError, match=r"batch norm in training needs two"):
        model(*speech(model, [11], 11))
    group = build_model(SPECS["deepspeech2-group-lstm"])
    assert group(*speech(group, [11], 11))[0].isfinite().all()


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("deepspeech3", {}, r"model: 'deepspeech3'; choose one of deepspeech1, deepspeech2, transformer"),
        ("deepspeech1", {"units": 3}, r"deepspeech1: unknown setting 'units'; choose from front_end, context"),
        ("deepspeech1", {"context": -1}, r"context: -1; give a whole number from 0"),
        ("deepspeech1", {"hidden_size": 0}, r"hidden_size: 0; give a whole number from 1"),
        ("deepspeech1", {"hidden_size": 10**12}, r"hidden_size: 1000000000000; .* to 65536"),
        ("deepspeech1", {"hidden_size": True}, r"hidden_size: True; give a whole number"),
        ("deepspeech1", {"cell": "elman"}, r"cell: 'elman'; choose one of .*lstm"),
        ("deepspeech1", {"clip": 0.0}, r"clip: 0.0; give a number above 0"),
        ("deepspeech1", {"clip": "20"}, r"clip: '20'; give a number"),
        ("deepspeech1", {"dropout": 1.0}, r"dropout: 1.0; give a share"),
        ("deepspeech1", {"dropout": -0.1}, r"dropout: -0.1"),
        ("deepspeech1", {"characters": "AAB"}, r"alphabet: 'AAB'"),
        ("deepspeech1", {"characters": ["A"]}, r"characters: \['A'\]; give text"),
        ("deepspeech1", {"front_end": "mfcc"}, r"front_end: 'mfcc'; give an object with kind"),
        ("deepspeech1", {"front_end": {"bins": 3}}, r"front_end: unknown setting 'bins'; choose from kind"),
        ("deepspeech2", {"norm": "layer"}, r"norm: 'layer'; choose one of batch, group"),
        ("deepspeech2", {"num_layers": 10**9}, r"num_layers: 1000000000"),
        ("deepspeech2", {"padding": [[0, 10]]}, r"padding: \[\[0, 10\]\]; give a list of 2"),
        ("deepspeech2", {"padding": 3}, r"padding: 3; give a list of 2"),
        ("deepspeech2", {"padding": [[0, 10], [0, 11]]}, r"padding: 11; give a whole number from 0 to 10"),
        ("deepspeech2", {"front_end": LOG_MEL_80}, r"front_end: 80 features per frame; raise padding"),
        ("transformer", {"kernel": 6}, r"kernel: 6; give an odd number"),
        ("transformer", {"stride": 8}, r"stride: 8; give a whole number from 1 to 7"),
        ("transformer", {"num_heads": 3}, r"num_heads: 3 for a width of 512; give a divisor"),
        ("transformer", {"num_layers": 0}, r"num_layers: 0"),
        ("transformer", {"dropout": 1.5}, r"dropout: 1.5; give a share"),
    ],
)
def test_wrong_configurations_are_refused(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model_spec(name, **config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not JSON", r"model specification: no JSON"),
        ("[" * 100_000, r"model specification: no JSON"),
        ("[]", r"model specification: \[\]; give an object with name, config, seed"),
        ('{"config": {}}', r"model specification: no name; give an object with name, config, seed"),
        ('{"name": "deepspeech1", "weights": 1}', r"unknown setting 'weights'; choose from name, config, seed"),
        ('{"name": "deepspeech1", "config": 3}', r"config: 3; give an object"),
        ('{"name": "deepspeech1", "seed": -1}', r"seed: -1"),
        ('{"name": ["deepspeech1"]}', r"name: \['deepspeech1'\]; give text"),
    ],
)
def test_wrong_specifications_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelSpec.from_json(text)


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        ((40, 1, 25), [40], r"features: shape \(40, 1, 25\); give \(T, N, 26\)"),
        ((40, 1, 26), [41], r"num_frames: 41 frames in utterance 0; the model takes from 1 to the 40 frames"),
        ((40, 1, 26), [0], r"num_frames: 0 frames in utterance 0"),
        ((40, 0, 26), [], r"num_frames: shape \(0,\) .* at least one utterance"),
    ],
)
def test_wrong_inputs_are_refused(shape: tuple[int, ...], lengths: list[int], message: str) -> None:
    model = build_model(SPECS["deepspeech1"])
    with pytest.raises(InputError, match=message):
        model(torch.zeros(shape), torch.tensor(lengths, dtype=torch.long))
