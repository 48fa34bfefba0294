"""Recipes: a model, its data and its settings under one name."""

from dataclasses import dataclass, replace

from overheard.errors import InputError
from overheard.recognition.models import ModelSpec, model_spec
from overheard.speech.augmentation import AugmentationConfig
from overheard.speech.corpus import Selection
from overheard.speech.features import FrontEndConfig
from overheard.training.settings import TrainingSettings


@dataclass(frozen=True)
class Recipe:
    """One way to train one recogniser on one corpus.

    Attributes:
        about: the data it names and what is to be expected.
        model: what is trained.
        train: which utterances of the corpus it learns from.
        dev: which it is measured on.
        settings: how it is trained.
    """

    about: str
    model: ModelSpec
    train: Selection
    dev: Selection
    settings: TrainingSettings


SPEC_AUGMENT = AugmentationConfig(
    speed=(0.9, 1.1), time_masks=2, time_mask_frames=50, frequency_masks=2, frequency_mask_share=0.17
)

_SMALL_MODEL = model_spec("deepspeech2", channels=16, num_layers=3, hidden_size=256)
"""Spectrograms every 20 ms; narrow enough for a CPU."""


_MEL_MODEL = model_spec(
    "deepspeech2",
    front_end=FrontEndConfig(kind="log_mel", n_fft=512, window=400, hop=200, num_mel=40),
    padding=((20, 10), (10, 0)),
    channels=16,
    num_layers=3,
    hidden_size=256,
)
"""Forty mel bands every 12.5 ms: a fifth of the convolutions' products for each frame.

Read speech has up to 20 letters a second: 40 output frames a second leave room for them, 25 hardly do.
"""


def recipe_names() -> tuple[str, ...]:
    """Every recipe."""
    return tuple(_recipes())


def recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        InputError: no such recipe; lists them.
    """
    recipes = _recipes()
    if name not in recipes:
        raise InputError("recipe", repr(name), f"choose one of {', '.join(recipes)}")
    return recipes[name]


def _recipes() -> dict[str, Recipe]:
    librispeech = ("train-clean-100", "train-clean-360", "train-other-500")
    digits = Recipe(
        about="connected digits, parts digits-train and digits-test: 560 and 60 utterances of five speakers",
        model=_SMALL_MODEL,
        train=Selection(subsets=("digits-train",)),
        dev=Selection(subsets=("digits-test",)),
        settings=TrainingSettings(
            epochs=14,
            batch_seconds=24.0,
            buckets=8,
            learning_rate=1.5e-3,
            warmup=0.1,
            augmentation=AugmentationConfig(speed=(0.92, 1.09), warp=0.06, tilt=0.2, time_masks=1, time_mask_frames=4),
        ),
    )
    return {
        "librispeech-960": Recipe(
            about="LibriSpeech, 960 hours; DeepSpeech 2 of 5 x 800 GRU, 42 million parameters",
            model=model_spec("deepspeech2"),
            train=Selection(min_seconds=1.0, max_seconds=20.0, subsets=librispeech),
            dev=Selection(subsets=("dev-clean",)),
            settings=TrainingSettings(
                epochs=40,
                batch_seconds=600.0,
                buckets=30,
                learning_rate=5e-4,
                warmup=0.03,
                precision="bf16",
                augmentation=SPEC_AUGMENT,
            ),
        ),
        "librispeech-100": Recipe(
            about="LibriSpeech's train-clean-100; the same model with more epochs",
            model=model_spec("deepspeech2"),
            train=Selection(min_seconds=1.0, max_seconds=20.0, subsets=librispeech[:1]),
            dev=Selection(subsets=("dev-clean",)),
            settings=TrainingSettings(
                epochs=80,
                batch_seconds=400.0,
                buckets=30,
                learning_rate=5e-4,
                warmup=0.05,
                precision="bf16",
                augmentation=SPEC_AUGMENT,
            ),
        ),
        "librispeech-mini": Recipe(
            about="short utterances of any part of LibriSpeech, learnt by heart: measured on what it learnt from",
            model=_MEL_MODEL,
            train=Selection(max_seconds=8.0),
            dev=Selection(max_seconds=8.0),
            # CTC begins with a plateau of letter frequencies that is left after some number of steps, not of hours
            # heard: batches are small at first.
            settings=TrainingSettings(
                epochs=100,
                batch_seconds=12.0,
                grown_batch=(0.6, 40.0),
                buckets=8,
                learning_rate=1.5e-3,
                weight_decay=0.0,
                evaluate_every=10,
            ),
        ),
        "digits": digits,
        "digits-new-voices": replace(
            digits,
            about="the same speech, augmented for speakers who are not among the five",
            settings=replace(
                digits.settings,
                epochs=12,
                augmentation=AugmentationConfig(
                    speed=(0.82, 1.22),
                    warp=0.15,
                    tilt=0.4,
                    time_masks=1,
                    time_mask_frames=6,
                    frequency_masks=2,
                    frequency_mask_share=0.1,
                ),
            ),
        ),
        "synthetic": Recipe(
            about="a corpus of overheard data synthesize: every voice is learnt, and measured on what it said",
            model=_SMALL_MODEL,
            train=Selection(),
            dev=Selection(),
            settings=TrainingSettings(
                epochs=40, batch_seconds=24.0, buckets=8, learning_rate=1.5e-3, warmup=0.1, evaluate_every=5
            ),
        ),
    }
