"""The records of measures: complete, and what the documentation says of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from interp.registry import MEASURES, SECTIONS, named

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    found = importlib.util.spec_from_file_location("metrics", ROOT / "recipes" / "metrics.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_page_is_what_the_records_say(recipe: ModuleType) -> None:
    text = recipe.PAGE.read_text(encoding="utf-8")
    assert recipe.page(text) == text
    assert all(f"| `{name}` |" in text for name in MEASURES)


def test_a_page_without_a_section_is_refused(recipe: ModuleType) -> None:
    with pytest.raises(ValueError, match="no place for Output"):
        recipe.page("# What is measured\n")


def test_every_measure_stands_in_one_section_with_its_definition() -> None:
    assert sum(map(len, SECTIONS.values())) == len(MEASURES)
    for name, measure in MEASURES.items():
        assert measure.title, name
        assert measure.units, name
        assert measure.definition, name


def test_records_are_found_by_what_they_hold() -> None:
    assert "content_js" in named(rounding="divergence", head="pattern")
    assert "content_js" not in named(rounding="cosine")
    assert named(group="routing") == {"router_js", "expert_overlap"}
    assert named(position="answer", units="nats") == {"sequence_kl"}


def test_what_is_signed_or_bounded_is_named_by_its_units() -> None:
    """Cosines are signed; a divergence is in nats, and so is an entropy, which is not signed."""
    for name in named(rounding="cosine"):
        assert MEASURES[name].signed, name
        assert MEASURES[name].units == "cosine", name
    for name in named(rounding="divergence"):
        assert MEASURES[name].units == "nats", name
        assert not MEASURES[name].signed, name
