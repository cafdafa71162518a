"""Of a long prompt the parity test's plain run keeps no pattern but the query's rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from interp.subject.parity import last_rows
from interp.validation.architectures import save_architecture

KEYS, ROWS = 21, 5


@pytest.mark.parametrize("name", ["llama", "gpt_neo", "bloom", "mpt", "gpt_oss", "qwen3_5"])
def test_the_last_rows_are_those_of_the_whole_pattern(name: str, tmp_path: Path) -> None:
    model = save_architecture(name, tmp_path / "model")
    hf = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").eval()
    ids = torch.arange(3, 3 + KEYS)[None]
    with torch.no_grad():
        whole = hf(ids, output_attentions=True)
        with last_rows(hf, ROWS, KEYS):
            cut = hf(ids, output_attentions=True)
        again = hf(ids, output_attentions=True)
    assert torch.equal(cut.logits, whole.logits)
    patterns = [pattern for pattern in whole.attentions if pattern is not None]
    kept = [pattern for pattern in cut.attentions if pattern is not None]
    assert patterns
    for full, own in zip(patterns, kept, strict=True):
        assert full.shape[-2:] == (KEYS, KEYS)
        assert torch.equal(own, full[:, :, -ROWS:])
        assert own.untyped_storage().nbytes() == own.nbytes
    assert [p.shape for p in again.attentions if p is not None] == [p.shape for p in patterns]
