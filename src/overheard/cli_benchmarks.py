"""The command line of benchmarks; see `cli`."""

from pathlib import Path


def bench_second_order(*, threads: int = 1) -> None:
    """Time and weigh CTC, recurrences and matching steps against torch's own and naive ones; prints every ratio.

    Takes minutes and 2 GB: the references do.

    Example: overheard bench second-order --threads 1

    Args:
        threads: for torch
    """
    from overheard.commands import benchmarks

    benchmarks.second_order_ratios(threads)


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
