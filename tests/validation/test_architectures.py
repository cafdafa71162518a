"""The identities of `interp validate` hold on architectures that have peculiar parts.

Among them: an adapter on one part of one block, or on one head of it, is found at its very site.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from interp.validation import architectures
from interp.validation.identities import IDENTITY_CHECKS
from interp.validation.planted import places_of
from interp.validation.specimen import Specimen, open_specimen

HEADS = {"q", "k", "v", "o"}
PARTS = {
    "gpt_oss": HEADS,  # its MLPs are experts, which are tensors
    "gemma4": HEADS | {"mlp", "per_layer"},
    "deepseek_v3": HEADS,  # peft puts adapters on its MLPs on experts
    "qwen3_5": HEADS | {"mixer", "mlp"},
    "cohere2": HEADS | {"mlp"},
    "falcon": HEADS | {"mlp"},
    "falcon_grouped": HEADS | {"mlp"},
    "bitnet": HEADS | {"mlp"},
}
"""Architecture -> the parts that can be planted."""


@pytest.fixture(scope="module", params=PARTS)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Specimen]:
    folder = tmp_path_factory.mktemp(request.param)
    model = architectures.save_architecture(request.param, folder / "model")
    return request.param, open_specimen(model, folder, device="cpu")


def test_every_part_is_planted_whole_and_heads_alone(case: tuple[str, Specimen]) -> None:
    name, specimen = case
    planted = specimen.planted.values()
    assert {place.part for place in planted if place.head is None} == PARTS[name]
    assert {place.part for place in planted if place.head is not None} == HEADS


@pytest.mark.parametrize("check", [name for name in IDENTITY_CHECKS if name != "implicit update"])
def test_an_identity_holds(case: tuple[str, Specimen], check: str) -> None:
    reading = IDENTITY_CHECKS[check](case[1])
    assert reading.passed, reading


def test_heads_are_as_wide_as_in_their_layer(tmp_path: Path) -> None:
    """Gemma 4's are wider in its global layers; its last two layers read keys and values of earlier
    ones."""
    places = places_of(architectures.save_architecture("gemma4", tmp_path / "model"))
    for part in "kv":
        widths = [
            [len(p.piece.rows) for p in places if (p.layer, p.part) == (i, part) and p.head]
            for i in range(4)
        ]
        assert widths == [[8], [16], [], []]
