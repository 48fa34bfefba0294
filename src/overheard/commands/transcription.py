"""overheard transcribe: audio files to words."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from torch import Tensor

from overheard.commands.machine import set_up
from overheard.errors import InputError
from overheard.recognition.beam import BeamConfig, beam_decoder
from overheard.recognition.transcription import Transcript, transcribe
from overheard.recognition.weights import resolve_model
from overheard.speech.audio import audio_files, read_audio
from overheard.speech.features import FrontEndConfig

TOGETHER_SECONDS = 60.0
"""Audio that is transcribed in one batch, s."""


def transcribe_files(
    model: str,
    paths: tuple[Path, ...],
    style: Literal["text", "jsonl"],
    beam: BeamConfig | None,
    alternatives: int,
    times: bool,
    seed: int,
    device: str,
    threads: int,
) -> None:
    """Print one line for each file, in order.

    Raises:
        InputError: some file could not be transcribed; the others are.
    """
    where = set_up(device, threads)
    files = audio_files(paths)
    recogniser = resolve_model(model, seed).to(where)
    front_end, alphabet = recogniser.front_end, recogniser.alphabet
    assert isinstance(front_end, FrontEndConfig)
    search = None if beam is None else beam_decoder(beam, alphabet)  # pyright: ignore[reportArgumentType]
    failed: list[InputError] = []
    for batch in _batches(files, front_end, failed):
        names = [file for file, _ in batch]
        try:
            heard = transcribe(recogniser, [waveform for _, waveform in batch], search, times=times)
        except InputError as error:
            # One of a single file is reported under its name; of several, each is tried alone.
            heard = []
            for file, waveform in batch:
                try:
                    heard += transcribe(recogniser, [waveform], search, times=times)
                except InputError:
                    names.remove(file)
                    failed.append(_report(InputError(str(file), error.found, error.remedy)))
        for file, transcript in zip(names, heard, strict=True):
            print(_line(file, transcript, style, alternatives, times), flush=True)
    if failed:
        raise InputError(f"{len(failed)} of {len(files)} files", "not transcribed", "see the lines above")


def _batches(
    files: list[Path], front_end: FrontEndConfig, failed: list[InputError]
) -> Iterator[list[tuple[Path, Tensor]]]:
    """Files in their order, as many together as fit."""
    batch: list[tuple[Path, Tensor]] = []
    for file in files:
        try:
            waveform = read_audio(file, front_end.sample_rate)
        except InputError as error:
            failed.append(_report(error))
            continue
        longest = max([len(waveform), *(len(each) for _, each in batch)])
        if batch and longest * (len(batch) + 1) > TOGETHER_SECONDS * front_end.sample_rate:
            yield batch
            batch = []
        batch.append((file, waveform))
    if batch:
        yield batch


def _line(file: Path, transcript: Transcript, style: str, alternatives: int, times: bool) -> str:
    if style == "text":
        return transcript.text
    line = {"utterance": file.stem, "transcript": transcript.text, "score": transcript.hypotheses[0].score}
    if alternatives > 1:
        line["alternatives"] = [asdict(each) for each in transcript.hypotheses[:alternatives]]
    if times:
        line["words"] = [asdict(each) for each in transcript.words]
    return json.dumps(line, ensure_ascii=False)


def _report(error: InputError) -> InputError:
    print(f"overheard: {error}", file=sys.stderr)
    return error
