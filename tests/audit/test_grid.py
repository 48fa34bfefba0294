"""A grid's file, its jobs, and a folder that mixes no settings; every job in this process."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from overheard.audit import grid_run
from overheard.audit.grid import Grid, Job, jobs_of, read_grid
from overheard.audit.grid_run import finish, opened, probe
from overheard.audit.records import AuditRecord, load_records, timeless
from overheard.audit.workers import Workers
from overheard.errors import InputError
from overheard.report.html import write_report
from overheard.speech.corpus import load_corpus

MODEL = '{"name": "deepspeech1", "config": {"hidden_size": 96, "context": 2}}'


@pytest.fixture
def file(noises: Path, tmp_path: Path) -> Path:
    return write(tmp_path / "grid.toml", corpus=str(noises), models=[MODEL], attacks=["span"], limit=2)


def write(path: Path, **values: object) -> Path:
    # JSON's lists, strings and numbers are TOML's too; its objects are not.
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return path


def run(grid: Grid, out: Path) -> list[AuditRecord]:
    with opened(grid, out, Workers()) as folder:
        list(finish(folder, Workers()))
    return load_records(out)


def test_every_axis_is_a_factor(noises: Path, tmp_path: Path) -> None:
    path = write(
        tmp_path / "grid.toml",
        corpus=str(noises),
        models=["deepspeech1", "deepspeech2"],
        defences=["none", "clip:norm=1 noise:std=0.1", "sign"],
        batches=[1, 2],
        attacks=["span", "auto"],
        seeds=[0, 1],
        durations=[[0, 0.55], [0.55, 0.7]],
    )
    with path.open("a") as file:
        file.write('[[clients]]\n[[clients]]\nkind = "delta"\nlearning_rate = 0.1\nlocal_steps = 4\n')
    grid = read_grid(path)
    jobs = jobs_of(grid, load_corpus(noises))
    # Of each duration there are two utterances: two updates of one, or one of both.
    assert len(jobs) == 2 * 3 * 2 * 2 * 2 * 2 * (2 + 1)
    assert len({(job.settings, job.utterances) for job in jobs}) == len(jobs)
    # Seeds draw who shares an update; with one of two utterances to a batch there is one way.
    assert len({job.settings for job in jobs}) == 2 * 3 * 2 * 2 * 2 + 2 * 3 * 2 * 2 * 2 * 2
    assert {job.plan.defences for job in jobs} == {(), ("clip:norm=1", "noise:std=0.1"), ("sign",)}
    assert {job.plan.client.local_steps for job in jobs} == {1, 4}


def test_records_example_page_and_a_second_start(file: Path, tmp_path: Path, here: list[Job]) -> None:
    grid, out = replace(read_grid(file), defences=("none", "quantise-16"), examples=1), tmp_path / "out"
    records = run(grid, out)
    assert [each.status for each in records] == ["ok"] * 4
    assert {each.defence: each.recovered for each in records}["none"]
    first = records[0]
    assert [each.example for each in records if each.example] == [f"examples/{first.utterance}-{first.settings}"]
    assert len(here) == 4
    assert run(grid, out) == records
    assert len(here) == 4, "what is there was done again"
    assert out.stat().st_mode & 0o077 == 0
    text = write_report(out).read_text(encoding="utf-8")
    assert "quantise-16" in text


def test_everything_is_its_owners_alone(file: Path, tmp_path: Path, here: list[Job]) -> None:
    grid, out = replace(read_grid(file), examples=1), tmp_path / "out"
    run(grid, out)
    left = out / "examples" / ".half.flac.0.part"
    left.write_bytes(b"speech")
    run(grid, out)
    write_report(out)
    assert not left.exists(), "what a killed run was writing is still there"
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 6
    assert [path for path in files if path.stat().st_mode & 0o077] == []


def test_a_grid_grows_and_never_mixes(file: Path, tmp_path: Path, here: list[Job]) -> None:
    grid, out = read_grid(file), tmp_path / "out"
    first = run(grid, out)
    grown = replace(grid, seeds=(0, 1), limit=None)
    assert len(run(grown, out)) == 12
    assert len(here) == 12
    assert load_records(out)[:2] == first
    with pytest.raises(InputError, match="holds records of other settings"):
        run(replace(grid, seeds=(2,)), out)
    with pytest.raises(InputError, match="holds records of other settings"):
        run(replace(grown, corpus=str(tmp_path / "corpus" / "part")), out)
    assert len(here) == 12


def test_a_line_cut_short_is_done_again(file: Path, tmp_path: Path, here: list[Job]) -> None:
    grid, out = read_grid(file), tmp_path / "out"
    whole = run(grid, out)
    results = out / "results.jsonl"
    results.write_text(results.read_text()[:-40])
    assert timeless(run(grid, out)) == timeless(whole)
    assert len(here) == 3


def test_a_batch_whose_records_were_cut_off_gets_those_alone(file: Path, tmp_path: Path, here: list[Job]) -> None:
    grid, out = replace(read_grid(file), batches=(2,), models=(MODEL.replace("96", "192"),)), tmp_path / "out"
    whole = run(grid, out)
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text(lines[0])
    again = run(grid, out)
    assert again[0] == whole[0]
    assert timeless(again) == timeless(whole)


def test_what_the_corpus_cannot_give_is_a_record(file: Path, tmp_path: Path, noises: Path, here: list[Job]) -> None:
    (noises / "part" / "12" / "1" / "12-1-0001.flac").write_bytes(b"fLaC?")
    grid = replace(read_grid(file), limit=None, durations=((0.0, 0.6), (0.6, 1.0)))
    records = run(grid, tmp_path / "out")
    assert len(records) == 6
    assert ["corrupt" in str(each.reason) for each in records if each.status == "failed"] == [True]


def test_probes_are_of_each_kind_and_kept(file: Path, tmp_path: Path, here: list[Job]) -> None:
    grid, out = replace(read_grid(file), defences=("none", "sign"), limit=None), tmp_path / "out"
    with opened(grid, out, Workers()) as folder:
        estimate = probe(folder, Workers())
        assert len(folder.missing()) == 10
    assert estimate.probes == len(load_records(out)) == 2
    assert estimate.seconds > 0


def test_two_do_not_write_at_once(file: Path, tmp_path: Path) -> None:
    grid, out = read_grid(file), tmp_path / "out"
    with (
        opened(grid, out, Workers()),
        pytest.raises(InputError, match="another process writes there"),
        opened(grid, out, Workers()),
    ):
        pass


def test_a_full_disk_is_said_and_loses_nothing(
    file: Path, tmp_path: Path, here: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, out = read_grid(file), tmp_path / "out"

    def full(folder: Path, record: AuditRecord) -> None:
        with (folder / "results.jsonl").open("a") as results:
            results.write('{"utterance": "11')
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(grid_run, "append_record", full)
        with pytest.raises(InputError, match="No space left on device"):
            run(grid, out)
    assert [each.status for each in run(grid, out)] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corpus = ", "no TOML"),
        ("models = ['x']", "no corpus"),
        ("corpus = 'x'\nmodel = ['x']", "unknown setting 'model'"),
        ("corpus = 'x'\nseeds = []", "an axis without a value"),
        ("corpus = 'x'\nseeds = [1, 1]", "a value twice"),
        ("corpus = 'x'\nseeds = ['one']", "give a whole number"),
        ("corpus = 'x'\ndurations = [[0, 4], [3, 8]]", "do not overlap"),
        ("corpus = 'x'\ndurations = [[4, 4]]", "do not overlap"),
        ("corpus = 'x'\ndefences = ['armour']", "choose from clip"),
        ("corpus = 'x'\ndefences = ['user-dp']", "a cohort's sum"),
        ("corpus = 'x'\nattacks = [{name = 'span', known = ['name']}]", "choose from transcript"),
        ("corpus = 'x'\nattacks = ['magic']", "choose one of auto"),
        ("corpus = 'x'\nattacks = [{name = 'span', options = {speed = 1}}]", "unknown setting 'speed'"),
        ("corpus = 'x'\nclients = [{kind = 'delta'}]", "positive rate"),
        ("corpus = 'x'\nclients = [{kind = 'sum'}]", "choose one of gradient"),
        ("x" * (1 << 21), "more than"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_grid(path)
    with pytest.raises(InputError, match="no such file"):
        read_grid(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"number": 0}, "workers"),
        ({"threads": 0}, "threads"),
        ({"address": "head:6379"}, "--backend ray"),
    ],
)
def test_wrong_workers_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Workers(**changes)
