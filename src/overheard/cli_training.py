"""The command line of training and transcribing; see `cli`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes, Positional

from overheard.errors import InputError
from overheard.options import Choice, Machine, RecipeName, selection_of


@dataclass(frozen=True)
class Changes:
    """Settings that replace the recipe's.

    Attributes:
        epochs: passes over the corpus
        batch_seconds: audio in one batch of one process, s
        accumulate: batches that make one step
        optimiser: adamw, sgd or novograd
        learning_rate: the highest of the schedule
        schedule: cosine, one-cycle or constant
        precision: 32, bf16 or 16
        clip_norm: largest norm of the gradient
        evaluate_every: epochs between two measurements of the word error rate
        checkpoint_every: steps between two checkpoints
        keep: how many of the last checkpoints stay, beside the best
        most_skipped: steps that may be skipped before the run ends with an error
    """

    epochs: int | None = None
    batch_seconds: float | None = None
    accumulate: int | None = None
    optimiser: Literal["adamw", "sgd", "novograd"] | None = None
    learning_rate: float | None = None
    schedule: Literal["cosine", "one-cycle", "constant"] | None = None
    precision: Literal["32", "bf16", "16"] | None = None
    clip_norm: float | None = None
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    keep: int | None = None
    most_skipped: int | None = None


def train(
    *,
    corpus: Path,
    out: Path,
    recipe: RecipeName = "digits",
    extra_corpus: Path | None = None,
    dev_corpus: Path | None = None,
    model: str | None = None,
    hold_out: tuple[str, ...] = (),
    leave_one_out: bool = False,
    adapt: int = 0,
    augment: bool = True,
    devices: int = 1,
    hosts: int = 1,
    workers: int = 0,
    changes: OmitArgPrefixes[Changes] = Changes(),
    choice: OmitArgPrefixes[Choice] = Choice(),
    machine: OmitArgPrefixes[Machine] = Machine(),
) -> None:
    """Train a recogniser by a recipe. Writes checkpoints, metrics.jsonl, TensorBoard's events and curves to OUT.

    Started again with the same flags it goes on from the last checkpoint, bit for bit on a CPU.

    Example: overheard train --recipe digits --corpus corpora/digits --out runs/digits

    Example: torchrun --nproc-per-node 2 -m overheard train --recipe librispeech-960 --corpus corpora/LibriSpeech
    --device cuda --out runs/librispeech

    Args:
        corpus: folder in LibriSpeech's layout, or a manifest
        out: the run's folder; give it to --model of any command, or to overheard transcribe
        recipe: model, choice of utterances and settings
        extra_corpus: further speech to learn from, all of it but speakers held out
        dev_corpus: where the word error rate is measured, if not in the same corpus
        model: instead of the recipe's: a name, or a file or run whose weights to start from
        hold_out: speakers to learn nothing from; the word error rate is measured on them
        leave_one_out: one run for each speaker, held out of it; prints a table
        adapt: rounds in which it then learns from what it hears the speakers held out say, without their transcripts
        augment: change speed, tempo, noise and masks as the recipe says
        devices: processes on this host, one GPU each with --device cuda; torchrun's count goes before
        hosts: computers that run this command through torchrun
        workers: processes beside each training process that prepare batches
    """
    from overheard.commands import training
    from overheard.training.devices import Devices

    if adapt < 0:
        raise InputError("adapt", adapt, "give a number of rounds, or 0 for none")
    if adapt and not (hold_out or leave_one_out):
        raise InputError("adapt", adapt, "say to whom: add --hold-out SPEAKER, or --leave-one-out")
    order = training.Order(
        recipe=recipe,
        corpus=corpus,
        extra_corpus=extra_corpus,
        dev_corpus=dev_corpus,
        out=out,
        model=model,
        selection=selection_of(choice, machine),
        hold_out=hold_out,
        augment=augment,
        changes={name: value for name, value in asdict(changes).items() if value is not None},
        devices=Devices(machine.device, devices, hosts),
        workers=workers,
        threads=machine.threads,
        adapt=adapt,
    )
    (training.train_each if leave_one_out else training.train)(order)


def transcribe(
    model: Positional[str],
    paths: Positional[tuple[Path, ...]],
    *,
    format: Literal["text", "jsonl"] = "text",
    decoder: Literal["greedy", "beam"] = "greedy",
    lm: Path | None = None,
    lexicon: Path | None = None,
    lm_weight: float = 1.0,
    word_score: float = 0.0,
    beam: int = 100,
    alternatives: int = 1,
    times: bool = False,
    machine: OmitArgPrefixes[Machine] = Machine(),
) -> None:
    """Print the words of audio files, a line each: any rate, any number of channels.

    Example: overheard transcribe runs/digits recordings --format jsonl

    Example: overheard transcribe runs/librispeech talk.wav --decoder beam --lm 4-gram.arpa --lexicon words.txt

    Args:
        model: a run's folder, a model file, a name, or module:function
        paths: audio files, or folders that hold some
        format: text, or JSON lines with the keys utterance, transcript, score
        decoder: the best symbol of each frame, or a beam search
        lm: n-gram for the beam search, ARPA or KenLM: of words with a lexicon, of characters without one
        lexicon: the words that there are, one a line
        lm_weight: of the n-gram
        word_score: added for each word of a lexicon
        beam: hypotheses kept
        alternatives: so many hypotheses of each utterance, in JSON lines
        times: start and end of each word, s, in JSON lines
    """
    from overheard.commands import transcription
    from overheard.recognition.beam import BeamConfig

    if decoder == "greedy" and (lm is not None or lexicon is not None):
        raise InputError("decoder", "greedy with a language model", "add --decoder beam")
    config = None
    if decoder == "beam":
        config = BeamConfig(beam=beam, language_model=lm, lexicon=lexicon, lm_weight=lm_weight, word_score=word_score)
    transcription.transcribe_files(
        model, paths, format, config, alternatives, times, machine.seed, machine.device, machine.threads
    )


def bench_train(
    *,
    corpus: Path,
    limit: int = 48,
    batch_seconds: float = 60.0,
    cell: Literal["gru", "lstm", "tanh"] = "gru",
    layers: int = 5,
    hidden_size: int = 800,
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Time one epoch our way against torch's own recurrences over random batches: every part, memory, ratios.

    Example: overheard bench train --corpus corpora/LibriSpeech --threads 2

    Args:
        corpus: folder in LibriSpeech's layout, or a manifest
        limit: so many of its utterances, drawn by the seed
        batch_seconds: audio in one batch, s
        cell: of the recurrences
        layers: recurrences
        hidden_size: units in each direction
        seed: of utterances, weights and order
        threads: for torch
    """
    from overheard.benchmarks.training import TrainingLoad
    from overheard.commands.training_benchmark import training_ratios

    training_ratios(TrainingLoad(corpus, limit, batch_seconds, cell, layers, hidden_size, threads, seed))
