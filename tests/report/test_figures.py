"""Figures: what is drawn, that it is the same each time, and that it takes on the page's colours."""

# ruff: noqa: RUF001

import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest
import torch
from audited_run import failed, mixed_records, record

from overheard.audit.records import AuditRecord
from overheard.report.feature_errors import error_plot
from overheard.report.figures import feature_maps, spectrum_plot
from overheard.report.svg import PAGE_COLOURS
from overheard.report.titles import Titles

FRONT_END = {"kind": "mfcc", "hop": 320, "sample_rate": 16000}


def parsed(svg: str) -> ElementTree.Element:
    """As XML, with the namespace that HTML implies."""
    return ElementTree.fromstring(str(svg).replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))


def test_maps_share_a_scale_and_the_difference_has_its_own(generator: torch.Generator) -> None:
    true = torch.randn(60, 26, generator=generator)
    found = feature_maps("one", true, true + 1e-5, FRONT_END)
    assert found.recovered is not None
    assert found.difference is not None
    assert found.largest == pytest.approx(1e-5, rel=0.1)
    texts = [[text.text for text in parsed(svg).iter("text")] for svg in (found.true, found.recovered)]
    assert texts[0] == texts[1]
    assert "1e−5" in found.difference
    assert "time (s)" in found.true


def test_what_did_not_come_back_is_not_drawn(generator: torch.Generator) -> None:
    found = feature_maps("one", torch.randn(60, 26, generator=generator), None, {})
    assert (found.recovered, found.difference, found.largest) == (None, None, None)
    assert "frame" in found.true


@pytest.mark.parametrize("frames", [1, 40, 75])
def test_maps_of_other_lengths_and_equal_values(frames: int) -> None:
    found = feature_maps("one", torch.zeros(60, 26), torch.zeros(frames, 26), FRONT_END)
    assert found.largest == 0.0
    assert f"over {min(frames, 60)} frames" in (found.difference or "")


def test_a_lone_error_survives_thinning() -> None:
    true = torch.zeros(4000, 257)
    wrong = true.clone()
    wrong[1777, 100] = -3.0
    found = feature_maps("one", true, wrong, FRONT_END)
    assert found.largest == 3.0
    assert len(found.difference or "") < 60_000


def test_same_bytes_own_colours_and_no_stray_ids(generator: torch.Generator) -> None:
    spectrum = torch.logspace(0, -7, 80, dtype=torch.float64)
    first, second = (spectrum_plot("spectrum-1", spectrum, 51, 60) for _ in range(2))
    assert first == second
    assert not any(colour in first for colour in PAGE_COLOURS)
    assert "currentColor" in first
    ids = re.findall(r'\bid="([^"]+)"', first)
    assert len(ids) == len(set(ids))
    assert all(f"#{name}" in first for name in ids)
    assert "51 frames read off. 60 frames were there." in first
    assert matplotlib.rcParams["svg.hashsalt"] is None


def test_spectrum_without_marks() -> None:
    svg = spectrum_plot("spectrum-1", torch.tensor([1.0, 0.0], dtype=torch.float64), None, None)
    assert "read off" not in svg


def plot_of(records: list[AuditRecord]) -> str | None:
    return error_plot("error", records, Titles.of(each.model for each in records))


def test_no_error_plot_where_nothing_was_recovered() -> None:
    assert plot_of([]) is None
    assert plot_of(mixed_records()[9:]) is None
    assert plot_of([failed(0, "silence")]) is None


def test_error_plot_escapes_names_and_survives_dollars() -> None:
    svg = plot_of([record(0, model="$\\broken{<b>", feature_mae=0.0), *mixed_records()])
    assert svg is not None
    assert "<b>" not in svg
    assert "DeepSpeech 1, not recovered" in "".join(parsed(svg).itertext())


def test_error_plot_of_many_is_thinned() -> None:
    svg = plot_of([record(index) for index in range(4000)])
    assert svg is not None
    assert "of 4,000 attacks" in svg
    assert len(svg) < 400_000
