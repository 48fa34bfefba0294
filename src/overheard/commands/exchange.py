"""overheard share | attack | score: one update on its way, through files."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from overheard.attacks.complete import Until, attack_until
from overheard.attacks.observation import Observation, Prior, load_reconstruction
from overheard.attacks.rank import LayerRank, rank_scan
from overheard.audit.curves import error_curve
from overheard.audit.steps import make_batch, model_name, public_model, read_batch, score, share
from overheard.commands.machine import set_up
from overheard.errors import InputError
from overheard.federation.client import ClientSettings
from overheard.federation.update import load_update
from overheard.metrics.truth import load_truth
from overheard.recognition.weights import resolve_model, weights_fingerprint
from overheard.report.error_curve import draw_error_curve
from overheard.speech.corpus import Selection, load_corpus, load_utterance, select

RANK = "rank"
"""The rank scan under the name of an attack; it brings no features back."""


def share_update(
    out: Path,
    truth: Path,
    corpus: Path | None,
    batch: Path | None,
    model: str,
    selection: Selection,
    client: ClientSettings,
    device: str,
    threads: int,
) -> None:
    """Compute one client's update from the selected utterances or a batch file; write update and truth."""
    if (corpus is None) == (batch is None):
        raise InputError("corpus", "neither or both of --corpus and --batch", "give one of them")
    if out.resolve() == truth.resolve():
        raise InputError("truth", f"the same file as the update, {out}", "keep the truth apart")
    where = set_up(device, threads)
    recogniser = resolve_model(model, selection.seed)
    if corpus is not None:
        cuts, problems = select(load_corpus(corpus), selection)
        if problems:
            raise problems[0].error()
        made, said = make_batch(recogniser, [load_utterance(cut) for cut in cuts])
    else:
        assert batch is not None
        made, said = read_batch(recogniser, batch)
    weights = weights_fingerprint(recogniser)
    update = share(recogniser.to(where), made, client, model_name(recogniser, model), weights)
    update.save(out)
    said.save(truth)
    print(f"{out}: {client.kind} of {made.size} utterance(s) of {made.num_frames.tolist()} frames, {client.mode} mode")
    print(f"{truth}: the truth, for overheard score alone")


def attack_update(
    update: Path,
    out: Path,
    attack: str,
    until: Until,
    model: str | None,
    transcripts: tuple[str, ...],
    num_frames: tuple[int, ...],
    options: dict[str, Any],
    seed: int,
    device: str,
    threads: int,
) -> None:
    """Attack one update file and write what came back.

    Raises:
        InputError: nothing came back; the reason. The reconstruction with its diagnostics is written all the same.
    """
    where = set_up(device, threads)
    shared = load_update(update)
    for name, values in (("known-transcript", transcripts), ("known-frames", num_frames)):
        if values and len(values) != shared.protocol.num_utterances:
            found = f"{len(values)} given, the update is of {shared.protocol.num_utterances} utterances"
            raise InputError(name, found, "give one for each utterance")
    public = public_model(shared, model, seed, str(update)).to(where)
    observation = Observation(public, shared, Prior(transcripts or None, num_frames or None))
    if attack == RANK:
        Console().print(rank_table(rank_scan(observation)))
        return
    console = Console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(f"attack {attack}")
        found = attack_until(observation, attack, options, seed, until)
    found.save(out)
    if not found.features:
        raise InputError(str(update), f"nothing came back ({found.reason})", f"see the diagnostics in {out}")
    frames = [len(matrix) for matrix in found.features]
    print(f"{out}: attack {found.attack} brought back {frames} frames in {found.seconds:.2f} s, unique: {found.unique}")
    for text in found.transcripts:
        if text is not None:
            print(f"said: {text!r}, certified: {found.certified}")


def score_files(reconstruction: Path, truth: Path) -> None:
    """Print one JSON record for each true utterance, or for each iterate of a folder, whose curve is drawn too."""
    if reconstruction.is_dir():
        points = error_curve(reconstruction, load_truth(truth))
        for point in points:
            print(json.dumps(asdict(point)))
        draw_error_curve(points, reconstruction)
        return
    for record in score(load_reconstruction(reconstruction), load_truth(truth)):
        print(json.dumps(asdict(record), ensure_ascii=False))


def rank_table(rows: list[LayerRank]) -> Table:
    """The rank scan as a table."""
    table = Table(title="Rank scan: what each layer's update spans", title_justify="left")
    for column in ("layer", "type", "outputs", "inputs", "rank", "margin", "verdict"):
        table.add_column(column, justify="left" if column in ("layer", "type", "verdict") else "right")
    for row in rows:
        cells = (row.layer, row.kind, row.rows, row.columns, row.rank, f"{row.margin:.3g}", row.verdict)
        table.add_row(*map(str, cells))
    return table
