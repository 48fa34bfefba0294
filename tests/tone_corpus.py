"""A corpus of tones: each letter is a tone of its own pitch, so that a tiny recogniser learns it in seconds."""

from pathlib import Path

import numpy as np
import soundfile

from overheard.recognition.models import ModelSpec, model_spec
from overheard.speech.corpus import Selection
from overheard.training.plan import TrainingPlan
from overheard.training.settings import TrainingSettings

SAMPLE_RATE = 16000
WORDS = ("AB", "BA", "CA", "BC", "ACB", "CAB")
FRONT_END = {"kind": "log_mel", "n_fft": 512, "window": 512, "hop": 320, "num_mel": 40, "normalise": "feature"}


def tiny_model(seed: int = 0, **config: object) -> ModelSpec:
    """DeepSpeech 1 of some thousand parameters."""
    return model_spec("deepspeech1", seed=seed, **{"front_end": FRONT_END, "context": 1, "hidden_size": 24, **config})


def normed_model(norm: str = "batch", seed: int = 0) -> ModelSpec:
    """DeepSpeech 2 of some thousand parameters: one whose norms have statistics of their own."""
    sizes = {"channels": 2, "num_layers": 1, "hidden_size": 24, "front_end": FRONT_END}
    return model_spec("deepspeech2", seed=seed, padding=((20, 10), (10, 0)), norm=norm, **sizes)


def write_tones(folder: Path, speakers: int = 2, each: int = 6) -> Path:
    """Utterances of two words, 0.2 s a letter and 0.2 s between words, each speaker at a pitch of their own."""
    random = np.random.default_rng(0)
    for speaker in range(speakers):
        chapter = folder / "tones" / str(100 + speaker) / "1"
        chapter.mkdir(parents=True)
        lines = []
        for index in range(each):
            said = " ".join(random.choice(WORDS, size=2))
            name = f"{100 + speaker}-1-{index:04d}"
            soundfile.write(chapter / f"{name}.flac", _sound(said, 1 + 0.05 * speaker, random), SAMPLE_RATE)
            lines.append(f"{name} {said}\n")
        (chapter / f"{100 + speaker}-1.trans.txt").write_text("".join(lines))
    return folder


def tone_plan(corpus: Path, **changes: object) -> TrainingPlan:
    """Two epochs of five or so steps each."""
    settings = {
        "epochs": 2,
        "batch_seconds": 4.0,
        "buckets": 2,
        "checkpoint_every": 2,
        "learning_rate": 5e-3,
        **changes,
    }
    return TrainingPlan(corpus, Selection(), corpus, Selection(), TrainingSettings(**settings))


def _sound(said: str, pitch: float, random: np.random.Generator) -> np.ndarray:
    time = np.arange(int(0.2 * SAMPLE_RATE)) / SAMPLE_RATE
    pieces = [
        np.zeros_like(time) if letter == " " else 0.3 * np.sin(2 * np.pi * pitch * 500 * (1 + ord(letter) - 65) * time)
        for letter in said
    ]
    sound = np.concatenate(pieces)
    return sound + 0.003 * random.standard_normal(len(sound))
