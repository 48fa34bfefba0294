"""The command line of benchmarks; see `cli`."""

from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from overheard.options import Choice, Machine, attack_options, selection_of


def bench_second_order(*, threads: int = 1) -> None:
    """Time and weigh CTC, recurrences and matching steps against torch's own and naive ones; prints every ratio.

    Takes minutes and 2 GB: the references do.

    Example: overheard bench second-order --threads 1

    Args:
        threads: for torch
    """
    from overheard.commands import benchmarks

    benchmarks.second_order_ratios(threads)


def bench_closed_form(*, threads: int = 1) -> None:
    """Time the closed form on gradients as uneven as a trained model's, against all windows alike; prints ratios.

    Example: overheard bench closed-form --threads 1

    Args:
        threads: for torch
    """
    from overheard.commands import benchmarks

    benchmarks.closed_form_ratios(threads)


def bench_matching(
    *,
    corpus: Path,
    out: Path = Path("bench-matching"),
    seconds_cpu: float = 120.0,
    crops: int = 10,
    crop_seconds: float = 1.0,
    methods: tuple[str, ...] = (),
    workers: int = 1,
    seed: int = 0,
) -> None:
    """Compare ways of gradient matching on crops of real speech, with equal CPU time for each.

    The client trains on the proportional part of each utterance's transcript. Started again with the same settings it
    does what is missing.

    Example: overheard bench matching --corpus corpora/LibriSpeech --seconds-cpu 120 --crops 10 --crop-seconds 1

    Args:
        corpus: folder in LibriSpeech's layout, or a manifest
        out: folder for the results
        seconds_cpu: CPU time of each method on each crop, s
        crops: how many
        crop_seconds: length of each, s
        methods: only these: ours, cosine-adam, output-layer, hessian-free
        workers: processes side by side, one thread each
        seed: of crops, weights and attacks
    """
    from overheard.commands import benchmarks

    benchmarks.matching(corpus, out, seconds_cpu, crops, crop_seconds, methods, workers, seed)


def bench_defences(
    *,
    corpus: Path,
    model: str = "deepspeech1",
    attack: str = "span",
    defences: tuple[str, ...] = (),
    choice: OmitArgPrefixes[Choice] = Choice(),
    machine: OmitArgPrefixes[Machine] = Machine(),
) -> None:
    """Attack the update of every speaker under one defence after another; each speaker shares one gradient.

    Example: overheard bench defences --corpus corpora/LibriSpeech --speakers 237 121 --max-seconds 4

    Args:
        corpus: folder in LibriSpeech's layout, or a manifest; every speaker is a client
        model: a name, or a file or run of a registered model
        attack: by name, or auto for each in turn
        defences: only these, as overheard federate takes them
    """
    from overheard.commands import defence_benchmark

    selection = selection_of(choice, machine)
    defence_benchmark.defence_table(corpus, model, attack, defences, selection, machine.device, machine.threads)


def bench_robustness(
    *,
    corpus: Path,
    model: str = "deepspeech1",
    out: Path = Path("bench-robustness"),
    cases: tuple[str, ...] = (),
    choice: OmitArgPrefixes[Choice] = Choice(),
    machine: OmitArgPrefixes[Machine] = Machine(),
) -> None:
    """Attack updates with noise on them, in coarser numbers, with entries missing, and after local training.

    Started again with the same settings it does what is missing.

    Example: overheard bench robustness --corpus corpora/LibriSpeech --max-seconds 4 --limit 8

    Args:
        corpus: folder in LibriSpeech's layout, or a manifest
        model: a name, a file, or module:function
        out: folder for the results
        cases: only these: none, noise-1e-5, noise-1e-4, noise-1e-3, fp16, bf16, 8-bit, quantise-8, clip-layers,
            prune-0.5, prune-0.3, prune-0.1, top-k-0.5, top-k-0.3, top-k-0.1, random-k-0.5, random-k-0.3, random-k-0.1,
            sgd-1, sgd-1-fp16, sgd-10, sgd-10-momentum-decay, sgd-50, sgd-50-momentum-decay
    """
    from overheard.commands import robustness

    robustness.robustness(corpus, model, out, cases, selection_of(choice, machine), machine.threads)


def bench_scale(
    *,
    corpus: Path,
    model: str = "deepspeech1",
    attack: str = "span",
    until: Literal["features", "words", "certificate"] = "features",
    settings: tuple[str, ...] = (),
    known: tuple[Literal["transcript", "length"], ...] = (),
    seconds: tuple[float, ...] = (3.0, 2.0, 6.0),
    units: tuple[int, ...] = (1024, 512, 2048),
    batches: tuple[int, ...] = (1, 2, 4),
    repeats: int = 2,
    seed: int = 0,
) -> None:
    """What an utterance costs as a function of duration, units and batch: CPU time of one thread, memory, bytes, laws.

    Along each axis the others stay at their first value.

    Example: overheard bench scale --corpus corpora/LibriSpeech --attack span --seconds 3 2 6 --units 1024 512 2048

    Args:
        corpus: folder in LibriSpeech's layout, or a manifest
        model: deepspeech1, deepspeech2 or transformer, with random weights
        attack: by name, or auto, or ladder
        until: how far to go
        settings: of the attack, as NAME=VALUE
        known: what the attacker is declared to know beforehand
        seconds: durations of utterances, s
        units: of the model's layers
        batches: utterances in an update
        repeats: utterances, or batches, for each point
        seed: of weights and attack
    """
    from overheard.benchmarks.scale import ScalePlan
    from overheard.commands.scale import scale

    options = attack_options(settings)
    scale(ScalePlan(corpus, model, attack, until, options, known, seconds, units, batches, repeats, seed))
