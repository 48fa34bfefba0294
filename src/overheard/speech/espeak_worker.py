"""Speaks one utterance with espeak-ng and ends: text on standard input, WAV on standard output.

espeak-ng keeps state between utterances, so the same text sounds different the second time, and the noise of its
breathy voices is seeded with the clock: only a fresh process with a fixed seed speaks a text the same way each time.
Run as a file, not as a module, and with the standard library alone, so that it starts fast:

    python -I -S espeak_worker.py LIBRARY VOICE WORDS_PER_MINUTE PITCH < text > speech.wav

in the folder that holds `espeak-ng-data`: espeak-ng cuts longer paths to its data off, and would not find it.
Constants are those of espeak-ng's `speak_lib.h`.
"""

import ctypes
import io
import sys
import wave

AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
RATE, PITCH = 1, 3
POSITION_CHARACTER = 1
CHARACTERS_UTF8 = 1
DATA_PARENT = b"."
RANDOM_SEED = 1

Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(library: str, voice: str, words_per_minute: int, pitch: int, text: bytes) -> bytes:
    """WAV of the text, 16-bit mono at espeak-ng's own rate.

    Raises:
        OSError: espeak-ng cannot be loaded, has no such voice, or refuses the text.
    """
    espeak = ctypes.CDLL(library)
    sample_rate = espeak.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, DATA_PARENT, INITIALIZE_DONT_EXIT)
    if sample_rate <= 0:
        raise OSError("espeak-ng finds no espeak-ng-data in the working directory")
    pieces: list[bytes] = []

    @Callback
    def keep(samples, num_samples, _events):
        if samples and num_samples > 0:
            pieces.append(ctypes.string_at(samples, 2 * num_samples))
        return 0

    espeak.espeak_ng_SetRandSeed(ctypes.c_long(RANDOM_SEED))
    espeak.espeak_SetSynthCallback(keep)
    if espeak.espeak_SetVoiceByName(voice.encode()):
        raise OSError(f"espeak-ng has no voice {voice}")
    espeak.espeak_SetParameter(RATE, words_per_minute, 0)
    espeak.espeak_SetParameter(PITCH, pitch, 0)
    size = ctypes.c_size_t(len(text) + 1)
    if espeak.espeak_Synth(ctypes.c_char_p(text), size, 0, POSITION_CHARACTER, 0, CHARACTERS_UTF8, None, None):
        raise OSError("espeak-ng refused the text")
    espeak.espeak_Synchronize()
    espeak.espeak_Terminate()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(b"".join(pieces))
    return buffer.getvalue()


if __name__ == "__main__":
    library, voice, words_per_minute, pitch = sys.argv[1:]
    speech = speak(library, voice, int(words_per_minute), int(pitch), sys.stdin.buffer.read())
    sys.stdout.buffer.write(speech)
