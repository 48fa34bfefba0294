"""The command line: typed functions become subcommands. Each hands its arguments on and prints what comes back."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import OmitArgPrefixes, Positional, subcommand

from overheard import __version__, cli_benchmarks, cli_federation, cli_grid, cli_training
from overheard.errors import InputError
from overheard.options import DEFAULT_THREADS, Choice, Client, Machine, attack_options, client_settings, selection_of


def demo(*, out: Path = Path("demo"), seed: int = 0, threads: int = DEFAULT_THREADS) -> None:
    """The main job on a synthetic corpus: updates, attacks, scores, report. Needs no network and no data.

    Example: overheard demo --out demo

    Args:
        out: folder for corpus, records and page
        seed: of corpus, weights and attacks
        threads: for torch
    """
    from overheard.commands import audits

    audits.demo(out, seed, threads)


def data_download(subset: Positional[str], directory: Positional[Path], *, mirror: str | None = None) -> None:
    """Download a part of LibriSpeech: resumed where it broke off, checked against its published checksum.

    Example: overheard data download test-clean corpora

    Args:
        subset: dev-clean, dev-other, test-clean, test-other, train-clean-100, train-clean-360 or train-other-500
        directory: where the folder LibriSpeech will be
        mirror: URL of a folder that holds the archives, instead of OpenSLR
    """
    from overheard.commands import corpora

    corpora.download(subset, directory, mirror)


def data_prepare(*, corpus: Path, out: Path) -> None:
    """Write a Lhotse manifest of a folder in LibriSpeech's layout; parts of subsets are fine.

    Example: overheard data prepare --corpus corpora/LibriSpeech --out librispeech.jsonl.gz

    Args:
        corpus: the folder
        out: the manifest, ending in .jsonl.gz
    """
    from overheard.commands import corpora

    corpora.write_manifest(corpus, out)


def data_synthesize(
    directory: Positional[Path],
    *,
    speakers: int = 12,
    utterances_per_speaker: int = 4,
    seed: int = 0,
    sentences: Path | None = None,
) -> None:
    """Speak a corpus with espeak-ng: many voices, known text, the same bytes for the same seed.

    Example: overheard data synthesize corpora/synthetic --speakers 12

    Args:
        directory: where the corpus will be, in LibriSpeech's layout
        speakers: how many voices
        utterances_per_speaker: sentences of each
        seed: of voices and sentences
        sentences: text file with one in each line, such as digits in words; a built-in text unless given
    """
    from overheard.commands import corpora

    corpora.speak(directory, speakers, utterances_per_speaker, seed, sentences)


def data_inspect(
    *,
    corpus: Path | None = None,
    batch: Path | None = None,
    model: str = "deepspeech2",
    batch_size: int = 4,
    batches: bool = False,
    batch_seconds: float = 120.0,
    buckets: int = 10,
    choice: OmitArgPrefixes[Choice] = Choice(),
    machine: OmitArgPrefixes[Machine] = Machine(),
) -> None:
    """Every utterance's shapes and lengths on the way to CTC, feasible or why not; a histogram; one batch in full.

    Example: overheard data inspect --corpus corpora/LibriSpeech --model deepspeech2 --limit 20

    Args:
        corpus: folder in LibriSpeech's layout, or a manifest
        batch: a batch of your own instead: safetensors with features, num_frames, targets, target_lengths
        model: whose front end and output lengths to use: a name, a file, or module:function
        batch_size: utterances in the batch whose shapes are shown
        batches: show instead which batches training would make, and how much of them is padding
        batch_seconds: audio in one of those, s
        buckets: classes of duration that they come from
    """
    from overheard.commands import corpora

    selection = selection_of(choice, machine)
    if batches:
        if corpus is None:
            raise InputError("batches", "no corpus to make them from", "give one with --corpus")
        from overheard.commands.batches import inspect_batches

        inspect_batches(corpus, model, batch_seconds, buckets, selection, machine.device, machine.threads)
        return
    corpora.inspect(corpus, batch, model, batch_size, selection, machine.device, machine.threads)


def share(
    *,
    out: Path,
    truth: Path,
    corpus: Path | None = None,
    batch: Path | None = None,
    model: str = "deepspeech1",
    choice: OmitArgPrefixes[Choice] = Choice(),
    client: OmitArgPrefixes[Client] = Client(),
    machine: OmitArgPrefixes[Machine] = Machine(),
) -> None:
    """Compute the update that one client would share, and write the truth to a file of its own.

    Example: overheard share --corpus corpora/synthetic --utterance 7001-1-0000 --out update.safetensors
    --truth truth.safetensors

    Args:
        out: file for the update
        truth: file for what was said
        corpus: folder in LibriSpeech's layout, or a manifest
        batch: a batch of your own instead: safetensors with features, num_frames, targets, target_lengths
        model: a name, a file, or module:function
    """
    from overheard.commands import exchange

    selection, settings = selection_of(choice, machine), client_settings(client)
    exchange.share_update(out, truth, corpus, batch, model, selection, settings, machine.device, machine.threads)


def attack(
    update: Positional[Path],
    *,
    out: Path,
    attack: str = "auto",
    until: Literal["features", "words", "certificate"] = "words",
    model: str | None = None,
    known_transcript: tuple[str, ...] = (),
    known_frames: tuple[int, ...] = (),
    settings: tuple[str, ...] = (),
    machine: OmitArgPrefixes[Machine] = Machine(),
) -> None:
    """Recover speech from an update. Sees the update and the public model, nothing else.

    Example: overheard attack update.safetensors --out rec.safetensors

    Args:
        update: file that overheard share wrote
        out: file for the reconstruction
        attack: by name, or auto for each in turn, or rank for the rank scan alone
        until: how far to go: features, then words, then a certificate by running the client again
        model: the public model, where the update does not name one that can be built
        known_transcript: declared prior knowledge: what each utterance says
        known_frames: declared prior knowledge: input frames of each utterance
        settings: of the attack, as NAME=VALUE: iterations=200 schedule.learning_rate=0.1 iterates=FOLDER
    """
    from overheard.commands import exchange

    exchange.attack_update(
        update,
        out,
        attack,
        until,
        model,
        known_transcript,
        known_frames,
        attack_options(settings),
        machine.seed,
        machine.device,
        machine.threads,
    )


def score(reconstruction: Positional[Path], truth: Positional[Path]) -> None:
    """Compare a reconstruction with the truth; prints one JSON record for each utterance.

    For a folder of iterates, one for each of them: how near a run of gradient matching came, iteration by iteration,
    with the curve as curve.png and curve.pdf in the folder.

    Example: overheard score rec.safetensors truth.safetensors

    Args:
        reconstruction: file that overheard attack wrote, or the folder named by its setting iterates
        truth: file that overheard share --truth wrote
    """
    from overheard.commands import exchange

    exchange.score_files(reconstruction, truth)


def audit(
    *,
    out: Path,
    corpus: Path | None = None,
    run: Path | None = None,
    model: tuple[str, ...] = ("deepspeech1",),
    attack: str = "auto",
    until: Literal["features", "words", "certificate"] = "words",
    known: tuple[Literal["transcript", "length"], ...] = (),
    settings: tuple[str, ...] = (),
    defences: tuple[str, ...] = (),
    batch: int = 1,
    batch_seconds: float | None = None,
    examples: int = 4,
    choice: OmitArgPrefixes[Choice] = Choice(),
    client: OmitArgPrefixes[Client] = Client(),
    machine: OmitArgPrefixes[Machine] = Machine(),
) -> None:
    """Share, attack and score every utterance; appends to OUT/results.jsonl and writes OUT/report.html.

    Started again with the same settings it does what is missing.

    Example: overheard audit --corpus corpora/LibriSpeech --model deepspeech1 --max-seconds 6.2 --out runs/ds1

    Example: overheard audit --run runs/federated --out runs/federated-audit

    Of a TOML file, it is overheard grid, with the flags of that: overheard audit grid.toml --out runs/grid

    Args:
        out: folder for records, examples and page
        corpus: folder in LibriSpeech's layout, or a manifest
        run: folder of overheard federate --capture instead: attack what its server saw
        model: one or more: names, files, or module:function
        attack: by name, or auto for each in turn
        until: how far to go: features, then words, then a certificate by running the client again
        known: what the attacker is declared to know beforehand
        settings: of the attack, as NAME=VALUE
        defences: of the client, in their order, as overheard federate takes them
        batch: utterances in each client's batch, drawn by --seed; each is one record
        batch_seconds: audio of such a batch at most, s
        examples: so many utterances, the first ones, keep their signals for the page
    """
    from overheard.audit.plan import AuditPlan
    from overheard.commands import audits

    if run is not None:
        from overheard.audit.federated import FederatedAudit
        from overheard.commands import federated_audits

        federated = FederatedAudit(run, attack, attack_options(settings), until, examples, machine.seed)
        federated_audits.audit_federated(federated, out, machine.device, machine.threads)
        return
    if corpus is None:
        raise InputError("corpus", "neither --corpus nor --run", "give one of them")
    plan = AuditPlan(
        corpus=corpus,
        selection=selection_of(choice, machine),
        models=model,
        client=client_settings(client),
        defences=defences,
        batch=batch,
        batch_seconds=batch_seconds,
        attack=attack,
        options=attack_options(settings),
        until=until,
        known=known,
        examples=examples,
        seed=machine.seed,
    )
    audits.audit(plan, out, machine.device, machine.threads)


def listen(
    directory: Positional[Path],
    *,
    corpus: Path | None = None,
    speakers: str | None = None,
    recogniser: str | None = None,
    vocoder: str | None = None,
    threads: int = DEFAULT_THREADS,
) -> None:
    """Listen to the audio that an audit kept: whose voice it is, what another recogniser hears, how close it sounds.

    Adds to the records and writes the page anew. How many utterances were kept is the audit's --examples.

    Example: overheard listen runs/ds1 --corpus corpora/LibriSpeech --speakers resemblyzer --recogniser runs/trained

    Args:
        directory: the --out folder of an audit
        corpus: whose other utterances teach what each speaker sounds like
        speakers: what compares voices: resemblyzer, or timbre, which needs nothing and hears little
        recogniser: what listens for words: a trained model's path, or whisper:base
        vocoder: makes the audio of the features anew: griffin-lim, as audits do, or vocos, which needs a network once
        threads: for torch
    """
    from overheard.commands import audits

    audits.listen_to(directory, corpus, speakers, recogniser, vocoder, threads)


def report(
    directories: Positional[tuple[Path, ...]],
    *,
    out: Path | None = None,
    utility: tuple[Path, ...] = (),
    redact: bool = False,
) -> None:
    """Write report.html and, for a paper, the folder paper anew from an audit's records; of several audits, one report.

    The folder paper holds figures as PDF, tables as LaTeX and CSV, a paragraph on methods and BibTeX.

    Example: overheard report runs/ds1

    Example: overheard report runs/plain runs/noise --utility runs/federated runs/federated-noise --out runs/all

    Args:
        directories: the --out folders of audits or a demo
        out: folder for what several audits come to; without it, the one audit's own
        utility: runs of overheard federate, one for each defence: what it costs in word errors, and what it guarantees
        redact: leave out audio, features and transcripts, to show the page to others: report-redacted.html
    """
    from overheard.commands import reports

    reports.report_on(directories, out, utility, redact)


DESCRIPTION = """Measure what a speech recogniser's training updates give away about the people who spoke.

For models and speech that you are authorised to test."""


def _command(name: str, function: Callable[..., None]) -> Any:
    return Annotated[Any, subcommand(name, constructor=function)]


DATA = Union[  # noqa: UP007 (built from values)
    _command("download", data_download),
    _command("prepare", data_prepare),
    _command("synthesize", data_synthesize),
    _command("inspect", data_inspect),
]

BENCH = Union[  # noqa: UP007
    _command("second-order", cli_benchmarks.bench_second_order),
    _command("closed-form", cli_benchmarks.bench_closed_form),
    _command("matching", cli_benchmarks.bench_matching),
    _command("train", cli_training.bench_train),
    _command("robustness", cli_benchmarks.bench_robustness),
    _command("defences", cli_benchmarks.bench_defences),
    _command("utility", cli_federation.bench_utility),
    _command("rounds", cli_federation.bench_rounds),
    _command("scale", cli_benchmarks.bench_scale),
    _command("workers", cli_grid.bench_workers),
]

COMMANDS = Union[  # noqa: UP007
    _command("demo", demo),
    Annotated[DATA, subcommand("data", description="Corpora: download, prepare, synthesize, inspect.")],
    _command("train", cli_training.train),
    _command("transcribe", cli_training.transcribe),
    _command("federate", cli_federation.federate),
    _command("share", share),
    _command("attack", attack),
    _command("score", score),
    _command("audit", audit),
    _command("grid", cli_grid.grid),
    _command("listen", listen),
    _command("report", report),
    Annotated[BENCH, subcommand("bench", description="Ratios and tables, measured when asked.")],
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit code 0 for success, 2 for wrong input, with one line that says what is wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(f"overheard {__version__}")
        return
    if list(arguments[:1]) == ["audit"] and arguments[1:2] and arguments[1].endswith(".toml"):
        arguments = ["grid", *arguments[1:]]
    try:
        tyro.cli(COMMANDS, prog="overheard", args=arguments, description=DESCRIPTION)  # pyright: ignore
    except InputError as error:
        print(f"overheard: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("overheard: stopped; what was done is kept", file=sys.stderr)
        sys.exit(130)
