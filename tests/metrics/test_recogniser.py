"""Outside recognisers: a model file of ours, and Whisper where it is installed."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from a_voice import voice

from builders import small_deepspeech1
from overheard.errors import InputError
from overheard.metrics.recogniser import listener
from overheard.recognition.transcription import transcribe
from overheard.recognition.weights import save_model


def test_a_model_file_hears_what_transcribe_hears(tmp_path: Path) -> None:
    model = small_deepspeech1()
    save_model(model, tmp_path / "model.safetensors")
    heard = listener(str(tmp_path / "model.safetensors"))(voice(1.0))
    assert heard == transcribe(model, [voice(1.0)])[0].text


def test_whisper_writes_letters_as_transcripts_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(transcribe=lambda samples, **settings: {"text": " Don't go, he said."})
    stand_in = SimpleNamespace(available_models=lambda: ["base"], load_model=lambda size, device: model)
    monkeypatch.setitem(sys.modules, "whisper", stand_in)
    assert listener("whisper:base")(voice(0.5)) == "DON'T GO HE SAID"
    with pytest.raises(InputError, match="choose one of base"):
        listener("whisper:huge")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "whisper", None)
    with pytest.raises(InputError, match="pip install openai-whisper"):
        listener("whisper:base")
    with pytest.raises(InputError, match="give a trained model's path"):
        listener("nowhere")
