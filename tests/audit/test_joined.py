"""Several audits as one: records together, examples beside them, prices read from federated runs alone."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from overheard.audit.joined import join_audits
from overheard.audit.price import Price, price_of
from overheard.audit.records import AuditRecord, append_record, load_records
from overheard.errors import InputError
from overheard.recognition.models import model_spec
from overheard.report.html import write_report
from overheard.report.paper import write_paper
from overheard.report.run_folder import read_run


def audit(folder: Path, defence: str = "none", model: str = "deepspeech1", **changes: Any) -> Path:
    """An audit's folder with two records; one of them has an example that lost all but its description."""
    (folder / "examples" / "a").mkdir(parents=True)
    (folder / "examples" / "a" / "example.json").write_text("{}")
    for name in ("a", "b"):
        record = AuditRecord(name, "7", 2.0, model, defence=defence, attack="span", reason="noise", seed=0)
        append_record(folder, replace(record, example="examples/a" if name == "a" else None))
    config = {
        "command": f"overheard audit --out {folder.name}",
        "created": f"2025-05-1{len(folder.name)}T12:00:00+00:00",
        "versions": {"overheard": "0.1.0", "torch": "2.9.0"},
        "threat_model": {"given": ["the model", f"an update under {defence}"], "not_given": ["the audio"]},
        "settings": {"attack": "span"},
        "corpus": {"path": "speech", "utterances": 2, "speakers": 1},
        "threads": 2,
        "device": "cpu",
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    scan = {"model": model, "attacked": True, "note": None, "layers": [], "frames": None, "seconds": 1.0}
    (folder / "ranks.json").write_text(json.dumps([scan]))
    return folder


def federated(folder: Path, *defences: str, wer: float | None = 0.25, rounds: int = 2, planned: int = 2) -> Path:
    """The record of a federated run, as `overheard federate` leaves it."""
    folder.mkdir()
    spec = model_spec("deepspeech1", hidden_size=64)
    config = {
        "model": {"name": spec.name, "config": spec.config, "seed": 0},
        "settings": {"defences": list(defences), "rounds": planned, "local": {"kind": "delta"}},
        "train": {"path": "digits"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    private = {"epsilon": 3.5, "delta": 1e-5} if "sample-dp" in "".join(defences) else {"epsilon": None, "delta": None}
    lines = [{"kind": "step", "step": number, **private} for number in range(1, rounds + 1)]
    lines += [{"kind": "evaluation", "step": rounds, "wer": wer, "utterances": 60}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cut short')
    return folder


@pytest.fixture
def audits(tmp_path: Path) -> list[Path]:
    """One without a defence, one with."""
    return [audit(tmp_path / "one"), audit(tmp_path / "other", "sample-dp:multiplier=1")]


def test_records_examples_and_settings_come_together(audits: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    records = join_audits(audits, out, [])
    assert load_records(out) == records
    assert [(record.utterance, record.defence) for record in records] == [
        ("a", "none"),
        ("b", "none"),
        ("a", "sample-dp:multiplier=1"),
        ("b", "sample-dp:multiplier=1"),
    ]
    assert [record.example for record in records] == ["examples/00-one/a", None, "examples/01-other/a", None]
    assert (out / "examples/01-other/a/example.json").is_file()
    config = json.loads((out / "config.json").read_text())
    assert config["created"] == "2025-05-13T12:00:00+00:00 to 2025-05-15T12:00:00+00:00"
    assert config["corpus"] == {"path": "speech", "utterances": 2, "speakers": 1}
    assert config["threat_model"]["given"] == [
        "the model",
        "an update under none (in some of the audits)",
        "an update under sample-dp:multiplier=1 (in some of the audits)",
    ]
    assert [each["records"] for each in config["joined"]] == [2, 2]
    assert len(json.loads((out / "ranks.json").read_text())) == 1
    assert out.stat().st_mode & 0o077 == 0
    # Again into the same place, of one of them alone: nothing of the other stays.
    assert len(join_audits(audits[:1], out, [])) == 2
    assert [path.name for path in (out / "examples").iterdir()] == ["00-one"]


def test_prices_come_from_the_runs_that_trained_under_the_defence(audits: list[Path], tmp_path: Path) -> None:
    plain = price_of(federated(tmp_path / "plain", wer=0.125))
    private = price_of(federated(tmp_path / "private", "sample-dp:multiplier=1"))
    assert plain.model == '{"name": "deepspeech1", "config": {"hidden_size": 64}}'
    records = join_audits(audits, tmp_path / "out", [plain, private])
    assert [(each.utility_wer, each.epsilon, each.delta) for each in records] == [
        (0.125, None, None),
        (0.125, None, None),
        (0.25, 3.5, 1e-5),
        (0.25, 3.5, 1e-5),
    ]
    # The audits themselves stay as they were.
    assert all(record.utility_wer is None for each in audits for record in load_records(each))


def test_the_page_and_the_tables_show_price_and_guarantee(audits: list[Path], tmp_path: Path) -> None:
    for each in audits:
        (each / "examples" / "a" / "example.json").unlink()
        (each / "examples" / "a").rmdir()
    prices = [price_of(federated(tmp_path / "plain")), price_of(federated(tmp_path / "dp", "sample-dp:multiplier=1"))]
    join_audits(audits, tmp_path / "out", prices)
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert 'class="number" data-value="3.5">3.50</td>' in page
    assert (prices[0].kind, page.count("<td>delta</td>")) == ("delta", 2)
    for said in ("What the defences cost and guarantee", "The audits that it joins", "DeepSpeech 1 (64 units)"):
        assert said in page
    table = (write_paper(read_run(tmp_path / "out")) / "tables" / "frontier.csv").read_text(encoding="utf-8")
    heading, plain, private = table.splitlines()
    assert heading.startswith("model,defence,ε,δ,WER of the recogniser")
    assert plain.startswith("DeepSpeech 1,none,,,0.25,")
    assert private.startswith("DeepSpeech 1,sample-dp:multiplier=1,3.5,1e-05,0.25,")


def unfinished(place: Path) -> Price:
    return price_of(federated(place, rounds=1))


def unmeasured(place: Path) -> Price:
    return price_of(federated(place, wer=None))


def of_another_defence(place: Path) -> Price:
    return price_of(federated(place, "sign"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (unfinished, "1 of 2 rounds done"),
        (unmeasured, "measured no word error rate"),
        (of_another_defence, "trained under 'sign', which no record has"),
    ],
)
def test_a_price_that_cannot_be_had_is_refused(
    audits: list[Path], tmp_path: Path, build: Callable[[Path], Price], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        join_audits(audits, tmp_path / "out", [build(tmp_path / "run")])


def test_two_prices_of_one_defence_are_refused(audits: list[Path], tmp_path: Path) -> None:
    prices = [price_of(federated(tmp_path / name)) for name in ("first", "second")]
    with pytest.raises(InputError, match="both trained under none"):
        join_audits(audits, tmp_path / "out", prices)


def test_what_is_no_run_has_no_price(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="of a federated run"):
        price_of(tmp_path)
    with pytest.raises(InputError, match="not one round done"):
        price_of(federated(tmp_path / "run", rounds=0))


def test_an_audit_counts_once(audits: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hold the same attack on a"):
        join_audits([*audits, audit(tmp_path / "copy")], tmp_path / "out", [])


def test_other_things_are_not_overwritten(audits: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one of the audits themselves"):
        join_audits(audits, audits[0], [])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="a folder with other things in it"):
        join_audits(audits, tmp_path / "out", [])
    with pytest.raises(InputError, match="no configuration of an audit"):
        join_audits([tmp_path / "out"], tmp_path / "new", [])


def test_an_example_outside_is_not_copied(tmp_path: Path) -> None:
    folder = audit(tmp_path / "one")
    (tmp_path / "secret").mkdir()
    text = (folder / "results.jsonl").read_text().replace("examples/a", "../secret")
    (folder / "results.jsonl").write_text(text)
    with pytest.raises(InputError, match="lies outside"):
        join_audits([folder], tmp_path / "out", [])
