"""The page of a grid: each model and defence with its price, voices beside the original, records beyond those shown."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from audited_run import BuildRun, record, write_run
from many_records import grid
from test_html import Page, squeezed

from overheard.metrics.intervals import median_estimate, ratio_estimate, wilson
from overheard.report import wording
from overheard.report.html import REDACTED, write_page, write_report
from overheard.report.paper import write_paper
from overheard.report.run_folder import read_run
from overheard.report.voices import voices


@pytest.fixture(scope="module")
def page_of_a_grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("grid") / "run", list(grid(240)), examples=[]))


def test_numbers_of_a_condition_are_those_of_its_records(page_of_a_grid: Path) -> None:
    records = list(grid(240))
    text = Page(page_of_a_grid).text
    group = [each for each in records if each.model == "deepspeech1" and each.defence == "none"]
    rate = wilson(sum(each.recovered for each in group), len(group))
    assert rate is not None
    row = text[text.index("By condition") :]
    assert f"{rate.successes} / {rate.trials}" in row
    assert squeezed(f"{wording.percent(rate.value)} ({wording.interval(rate)})") in row
    errors = median_estimate([each.feature_mae for each in group if each.recovered])
    assert squeezed(wording.estimate_text(errors)) in row
    read = [each for each in group if each.transcript_recovered is not None]
    words = ratio_estimate([each.words_recovered or 0 for each in read], [each.words_true or 0 for each in read])
    assert squeezed(wording.share_text(words)) in row
    assert "12.0\u00a0%" in row or "12.0 %" in row


def test_price_and_duration_are_drawn_and_told(page_of_a_grid: Path) -> None:
    labels = [value or "" for _, name, value in Page(page_of_a_grid).attributes if name == "aria-label"]
    assert any("word error rate 19.0" in label and "noise $1_{a}&% <b>" in label for label in labels)
    assert any("by duration" in label for label in labels)


def test_voices_are_compared_with_the_original(page_of_a_grid: Path) -> None:
    text = Page(page_of_a_grid).text
    found = [each for each in voices(list(grid(240))) if each.model == "deepspeech1" and each.defence == "none"]
    assert [each.source for each in found] == ["original", "true_features", "recovered"]
    table = text[text.index("Voice and words in the audio") :]
    for each in found:
        assert each.speaker is not None
        top1 = each.speaker.top1
        assert squeezed(f"{top1.successes} / {top1.trials} ({wording.interval(top1)})") in table
        assert squeezed(wording.share_text(each.wer)) in table
    assert "model.safetensors" in table
    assert "The audio of 30 utterances is compared" in table
    assert "Audio made from features by griffin-lim, voices by timbre, words by model.safetensors." in table


def test_what_is_heard_again_under_other_conditions_is_no_other_utterance(build_run: BuildRun) -> None:
    records = [replace(each, utterance="u", attack=attack) for each in grid(3) for attack in ("span", "sequential")]
    text = Page(write_report(build_run(records, examples=[]))).text
    assert "The audio of 1 utterance, in 6 records, is compared" in text


def test_a_redacted_page_has_no_speech(build_run: BuildRun) -> None:
    folder = build_run([record(index, transcript_true="said in confidence") for index in range(3)], examples=[0, 1])
    whole = write_report(folder)
    assert "said in confidence" in whole.read_text(encoding="utf-8")
    redacted = write_report(folder, redact=True)
    assert redacted.name == REDACTED
    text = redacted.read_text(encoding="utf-8")
    for spoken in ("said in confidence", "go do hear", "data:audio", "<audio"):
        assert spoken not in text
    assert "Audio, features and transcripts are left out" in Page(redacted).text
    assert Page(whole).tags["audio"] == 6


def test_the_page_of_many_records_stays_small(build_run: BuildRun) -> None:
    folder = build_run(list(grid(700)), examples=[])
    run = read_run(folder)
    path = write_page(run)
    write_paper(run)
    assert path.stat().st_size < 2_000_000
    text = Page(path).text
    assert "shows 500 of 700 records" in text
    assert len(re.findall("By condition", text)) == 1
