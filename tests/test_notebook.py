"""`overheard.audit` on what is in memory, and the notebook of the documentation, executed."""

import json
from pathlib import Path

import pytest
import torch

import overheard
from overheard.audit.records import AuditRecord, load_records
from overheard.errors import InputError
from overheard.notebook import AuditResult
from overheard.recognition.weights import resolve_model
from overheard.speech.corpus import Utterance

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "audit.ipynb"
MODEL = '{"name": "deepspeech1", "config": {"hidden_size": 96, "context": 2}}'


def utterance(name: str, transcript: str, seconds: float = 0.6) -> Utterance:
    """Coloured noise."""
    generator = torch.Generator().manual_seed(len(name))
    noise = torch.randn(round(16000 * seconds), generator=generator)
    smooth = torch.nn.functional.avg_pool1d(noise[None, None], 5, 1, 2)[0, 0]
    return Utterance(name, "11", "part", 0.1 * smooth, 16000, transcript)


@pytest.fixture(scope="module")
def result() -> AuditResult:
    return overheard.audit(resolve_model(MODEL, 0), [utterance("one", "ONE"), utterance("two <b>", "2")])


def test_each_utterance_has_its_record(result: AuditResult) -> None:
    good, bad = result.records
    assert good.recovered
    assert (good.model, good.transcript_recovered, good.words_recovered) == ("DeepSpeech1", "ONE", 1)
    assert not bad.recovered
    assert "unknown symbol" in str(bad.reason)
    assert str(result).replace("\u00a0", " ") == "1 of 2 utterances recovered"


def test_it_shows_itself_and_escapes(result: AuditResult) -> None:
    shown = result._repr_html_()
    assert "two &lt;b&gt;" in shown
    assert "<b>" not in shown
    assert "1 of 2" in shown.replace("\u00a0", " ")
    many = AuditResult((result.records[0],) * 25, (None,) * 25, (None,) * 25, {})
    assert "5 more are in records" in many._repr_html_()


def test_it_is_kept_as_a_run_with_a_page(result: AuditResult, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    page = result.save(tmp_path / "run")
    assert (tmp_path / "run").stat().st_mode & 0o077 == 0
    kept = load_records(tmp_path / "run")
    assert [record.utterance for record in kept] == ["one", "two <b>"]
    assert kept[0].example == "examples/0000"
    assert "<audio" in page.read_text(encoding="utf-8")
    with pytest.raises(InputError, match="other things in it"):
        result.save(tmp_path / "run")


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(InputError, match="give at least one"):
        overheard.audit(MODEL, [])
    with pytest.raises(InputError, match="choose one of auto"):
        overheard.audit(MODEL, [utterance("one", "ONE")], attack="magic")


def test_the_package_is_still_a_package() -> None:
    from overheard.audit import records

    assert records.AuditRecord is AuditRecord


def test_the_notebook_runs() -> None:
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed: pip install overheard[synthetic]")
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    shown = json.dumps([cell.get("outputs") for cell in notebook.cells])
    assert "2 of 2" in shown
    assert "report.html" in shown
