"""docs/scale.md says what benchmarks/scale.py computes, and that computes with what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import scale

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["measured", "assumed", "work", "bytes", "grace"])
def test_the_tables_are_those_that_are_computed(name: str) -> None:
    """Every table of the page is the script's, line for line."""
    assert "\n".join(scale.tables()[name]) + "\n\n" in (ROOT / "docs/scale.md").read_text()


@pytest.mark.parametrize("name", scale.MEASURED)
def test_a_measured_constant_stands_where_it_was_measured(name: str) -> None:
    """Each names a document and the words in it that have the figure."""
    one = scale.MEASURED[name]
    assert one.text
    assert one.text in (ROOT / one.file).read_text()


def test_the_arithmetic() -> None:
    """By hand: 600 B tokens at 532,538 tokens/s are 313 hours of an H100; 1,000 documents of 1 MB would be a GB."""
    figures = scale.of(scale.CORPORA[1])
    assert scale.speed("h100") == pytest.approx(989e12 * 0.35 / 0.65e9)
    assert figures["h100_hours"] == pytest.approx(600e9 / 532_538 / 3600, rel=1e-4)
    assert figures["shards"] == 61_036
    assert figures["window"] == 2 * 16 * 4 * 973
    assert figures["vectors"] == 2.08e12
    assert scale.rows_in("l4", 5) == 540  # 5 s of 65,154 tokens/s, 600 each: 542.9
    assert figures["cold"] == pytest.approx(16 * 301.04 / 3600)
    assert [scale.big(value, "B") for value in (2.08e12, 40_900, 973, 0.5)] == ["2.08 TB", "40.9 kB", "973 B", "0.5 B"]
