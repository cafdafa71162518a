"""Half precision: a subject's runs lie within the bounds that are written beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import all_targets, save_adapter, save_model, separator_of
from torch import Tensor
from transformers import AutoTokenizer

from interp.conditions import Base, Lora, Prompt
from interp.noise import NOISE
from interp.queries import Query, encode
from interp.subject import Batch, Subject, load
from interp.subject.parity import TOLERANCE

QUERY = "hot is the opposite of cold"
TEXT = "the weather was mild that day. people walked along the road"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma3"])
def paths(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root: Path = tmp_path_factory.mktemp(request.param)
    model = save_model(request.param, root / "model")
    return [model, save_adapter(model, root / "lora", all_targets(request.param))]


def opened(paths: list[str], dtype: str) -> Subject:
    model, lora = paths
    prompt = Prompt(text=TEXT + separator_of(AutoTokenizer.from_pretrained(model)))
    conditions = {"base": Base(), "lora": Lora(lora), "both": prompt + Lora(lora)}
    return load(model, conditions, [QUERY], dtype=dtype)


def logits(subject: Subject, name: str) -> Tensor:
    batch = Batch.of(encode([Query(QUERY)], subject.tokenizer))
    setting = subject.settings[name]
    return subject.run(setting, batch, subject.prefill(setting)).double()


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_passes_parity_and_stays_near_single(paths: list[str], dtype: str) -> None:
    """Near: ten times what one block's rounding moves, for three blocks and an unembedding; and
    farther than single precision is, so that it is half precision that was run."""
    half, single = opened(paths, dtype), opened(paths, "float32")
    assert half.dtype == DTYPES[dtype]
    assert max(half.parity.values()) <= TOLERANCE[half.dtype]
    for name in ("base", "lora", "both"):
        found, exact = logits(half, name), logits(single, name)
        moved = (found - exact).abs().max() / exact.square().mean().sqrt().clamp(min=1)
        assert NOISE["float32"] < moved < 10 * NOISE[dtype]
