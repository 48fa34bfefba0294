"""What an outside recogniser hears in audio made from recovered features; a measure only beside what the same
recogniser hears in the original."""

from collections.abc import Callable
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from overheard.errors import InputError
from overheard.recognition.transcription import transcribe
from overheard.recognition.weights import resolve_model
from overheard.speech.features import FrontEndConfig

SAMPLE_RATE = 16000
"""Hz, of all that is recognised."""
WHISPER = "whisper:"

Listener = Callable[[Float[Tensor, " S"]], str]
"""A waveform at `SAMPLE_RATE` to words."""


def listener(name: str) -> Listener:
    """A recogniser by name: a run of `overheard train` or a model file by its path, or `whisper:SIZE`.

    Whisper (Radford et al. 2022) needs the package openai-whisper, and a network for its weights the first time.

    Raises:
        InputError: no such file, a model of other audio, or whisper is not installed.
    """
    if name.startswith(WHISPER):
        return _whisper(name.removeprefix(WHISPER))
    if not Path(name).exists():
        raise InputError("recogniser", repr(name), "give a trained model's path, or whisper:base")
    return _checkpoint(name)


def _checkpoint(path: str) -> Listener:
    model = resolve_model(path, seed=0)
    front_end = model.front_end
    assert isinstance(front_end, FrontEndConfig)
    if front_end.sample_rate != SAMPLE_RATE:
        raise InputError("recogniser", f"a model of {front_end.sample_rate} Hz", f"give one of {SAMPLE_RATE} Hz")

    def listen(waveform: Float[Tensor, " S"]) -> str:
        return transcribe(model, [waveform.float()])[0].text

    return listen


def _whisper(size: str) -> Listener:
    try:
        import whisper  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("recogniser", "whisper is not installed", "pip install openai-whisper") from error
    if size not in whisper.available_models():
        raise InputError("recogniser", f"whisper {size!r}", f"choose one of {', '.join(whisper.available_models())}")
    model = whisper.load_model(size, device="cpu")

    def listen(waveform: Float[Tensor, " S"]) -> str:
        heard = model.transcribe(waveform.float().numpy(), language="en", temperature=0.0, fp16=False)["text"]
        # The letters that transcripts have: whisper writes punctuation and small letters.
        return " ".join("".join(each if each.isalnum() or each == "'" else " " for each in heard).upper().split())

    return listen
