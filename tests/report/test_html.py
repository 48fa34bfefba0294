"""The page: what it says, that nothing from the data becomes markup, and what it refuses."""

import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from audited_run import HOSTILE, BuildRun, failed, mixed_records, rank_scans, record

from overheard.errors import InputError
from overheard.report import html
from overheard.report.html import write_report
from overheard.report.summary import summarise
from overheard.report.wording import headline, model_sentence
from overheard.storage import write_tensors


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; checks that tags nest."""

    VOID = frozenset({"meta", "link", "input", "br", "img"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.rows = 0
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_the_numbers_are_those_of_the_records(report: Path) -> None:
    page = Page(report)
    summary = summarise(mixed_records())
    assert squeezed(headline(summary)) in page.text
    assert squeezed(model_sentence(summary)) in page.text
    assert "12 records, 3 of them not recovered" in page.text
    assert "longer than the capacity: 620 frames, 312 at most" in page.text


def test_what_is_not_attacked_is_said_plainly(report: Path) -> None:
    page = Page(report)
    assert "DeepSpeech 2 was not attacked in this run" in page.text
    assert "Its first layer is a convolution, whose update is saturated." in page.text
    assert "exposed" in page.text
    assert "no clear rank" in page.text


def test_data_never_becomes_markup(report: Path) -> None:
    page = Page(report)
    assert page.tags["script"] == 1
    assert page.tags["img"] == 0
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    for place in ("Why utterances did not come back", "Not given", "Words", "Records", "Command"):
        assert squeezed(HOSTILE) in page.text[page.text.index(place) :], place
    assert json.dumps(HOSTILE) in page.text


def test_nothing_refers_to_the_outside(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    for _, name, value in Page(report).attributes:
        if name in {"src", "href", "xlink:href"} and value is not None:
            assert value.startswith(("#", "data:"))
    assert re.search(r"url\((?!#)", text) is None
    assert "@import" not in text


def test_ids_are_unique_and_references_resolve(report: Path) -> None:
    attributes = Page(report).attributes
    ids = [value for _, name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [(value or "").removeprefix("#") for _, name, value in attributes if name == "aria-labelledby"]
    targets += [value[1:] for tag, name, value in attributes if (tag, name) == ("a", "href") and value]
    assert set(targets) <= set(ids)
    # A screen reader lists landmarks by their names.
    names = [value for tag, name, value in attributes if name == "aria-labelledby" and tag in ("section", "div")]
    assert len(names) == len(set(names))


def test_same_folder_same_bytes(report: Path) -> None:
    first = report.read_bytes()
    assert write_report(report.parent).read_bytes() == first


def test_an_example_stays_small(build_run: BuildRun) -> None:
    folder = build_run([record(16)], examples=[0])
    assert write_report(folder).stat().st_size < 700_000


def test_nothing_recovered_is_said_and_not_drawn(build_run: BuildRun) -> None:
    folder = build_run([failed(index, "digital silence") for index in range(4)], examples=[0])
    path = write_report(folder)
    page = Page(path)
    assert "None of 4 utterances was recovered" in page.text
    assert "No attack in this run recovered an utterance" in page.text
    assert "Feature error against duration" not in path.read_text(encoding="utf-8")
    assert "Nothing came back." in page.text
    assert page.tags["audio"] == 2


def test_no_records_at_all(build_run: BuildRun) -> None:
    page = Page(write_report(build_run([], examples=[])))
    assert "No utterance was attacked" in page.text
    assert page.tags["audio"] == 0


def test_many_records_stay_light_and_keep_failures(build_run: BuildRun) -> None:
    records = [record(index) for index in range(700)]
    records += [failed(700, "the last of them")]
    folder = build_run(records, examples=[])
    path = write_report(folder)
    page = Page(path)
    assert "700 of 701 utterances recovered" in page.text
    assert "shows 500 of 701 records" in page.text
    assert path.read_text(encoding="utf-8").count('<th scope="row" data-value') == 500
    assert page.text.count("the last of them") == 2
    assert path.stat().st_size < 1_500_000


def test_conditions_that_differ_get_a_table(build_run: BuildRun) -> None:
    records = [record(0), record(1, defence="sign"), failed(2, "noise")]
    assert "By condition" in Page(write_report(build_run(records, examples=[]))).text


def test_one_condition_needs_no_table(report: Path) -> None:
    assert "By condition" not in Page(report).text


def test_examples_beyond_the_limit_are_counted(build_run: BuildRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "EXAMPLES", 2)
    records = [record(0, utterance=f"u{index}") for index in range(3)]
    page = Page(write_report(build_run(records, examples=range(3))))
    assert "2 of 3 examples are shown" in page.text


def test_examples_of_several_attacks_say_which(build_run: BuildRun) -> None:
    kinds = [("span", "none"), ("sequential", "sign")]
    records = [
        record(0, utterance=f"u{index}", attack=attack, defence=defence)
        for index, (attack, defence) in enumerate(kinds)
    ]
    text = Page(write_report(build_run(records, examples=range(2)))).text
    assert "u0 DeepSpeech 1, span recovered" in text
    assert "u1 DeepSpeech 1, sign, sequential recovered" in text


def test_an_example_that_was_deleted_is_left_out(build_run: BuildRun) -> None:
    folder = build_run()
    for place in (folder / "examples").iterdir():
        place.rename(folder / place.name)
    page = Page(write_report(folder))
    assert page.tags["audio"] == 0
    assert "9 of 12 utterances recovered" in page.text


def break_nothing_there(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def break_config_entry(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["command"]
    (folder / "config.json").write_text(json.dumps(config))


def break_threat_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["threat_model"] = {}
    (folder / "config.json").write_text(json.dumps(config))


def break_results(folder: Path) -> None:
    (folder / "results.jsonl").unlink()


def break_ranks(folder: Path) -> None:
    (folder / "ranks.json").write_text("{}")


def break_ranks_entry(folder: Path) -> None:
    scans = rank_scans()
    del scans[0]["frames"]
    (folder / "ranks.json").write_text(json.dumps(scans))


def break_features(folder: Path) -> None:
    path = next((folder / "examples").rglob("features.safetensors"))
    path.write_bytes(path.read_bytes()[:100])


def break_sound(folder: Path) -> None:
    next((folder / "examples").rglob("original.flac")).write_bytes(b"fLaC")


def break_example_place(folder: Path) -> None:
    text = (folder / "results.jsonl").read_text()
    (folder / "results.jsonl").write_text(text.replace('"examples/', '"../../'))


def saying(**entries: object) -> Callable[[Path], None]:
    """Example.json with other entries."""

    def damage(folder: Path) -> None:
        path = next((folder / "examples").rglob("example.json"))
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return damage


def break_front_end(folder: Path) -> None:
    path = next((folder / "examples").rglob("features.safetensors"))
    write_tensors(path, {"true": torch.zeros(9, 26)}, {"front_end": {"hop": 0}})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (saying(spectrum=["a"]), "no usable entry 'spectrum'"),
        (saying(spectrum=[1.0, -1.0]), "no usable entry 'spectrum'"),
        (saying(audio_method={}), "no usable entry 'audio_method'"),
        (saying(recovered_audio_reanalysis_mae="0.1"), "no usable entry 'recovered_audio_reanalysis_mae'"),
        (break_front_end, "no usable front end"),
        (break_nothing_there, "config.json: no such file"),
        (break_config, "config.json: no JSON"),
        (break_config_entry, "no usable entry 'command'"),
        (break_threat_model, "threat_model has no list 'given'"),
        (break_results, "no results.jsonl"),
        (break_ranks, "no list of rank scans"),
        (break_ranks_entry, "not a rank scan"),
        (break_features, "not a whole safetensors file"),
        (break_sound, "no readable audio"),
        (break_example_place, "lies outside the run"),
    ],
)
def test_what_is_broken_is_named(build_run: BuildRun, damage: Callable[[Path], None], message: str) -> None:
    folder = build_run()
    damage(folder)
    with pytest.raises(InputError, match=re.escape(message)):
        write_report(folder)


def test_long_sounds_are_cut_and_it_is_said(build_run: BuildRun) -> None:
    path = write_report(build_run([record(60)], examples=[0]))
    assert re.search(r"first [\d.]+ s of 23\.2 s", Page(path).text)
    assert path.stat().st_size < 700_000
