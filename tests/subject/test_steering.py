"""A steering vector is added to one block's output on the query rows, before anyone reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    CONFIGS,
    N_LAYERS,
    all_targets,
    save_adapter,
    save_model,
    save_prefix,
    save_steering,
)
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from interp.capture import Captured, capture, keep
from interp.conditions import Base, Condition, FineTuned, Lora, Prefix, Prompt, Steering, Untrained
from interp.edits import Edit, replace
from interp.errors import SubjectError
from interp.names import Site
from interp.queries import Encoded, Query, encode
from interp.subject import Batch, Subject, load

QUERIES = ["hot is the opposite", "a river"]
PROMPT = Prompt(text="up is the opposite of down")


class Case(NamedTuple):
    model: str
    vector: Tensor
    lora: str
    subject: Subject
    queries: list[Encoded]

    def capture(self, name: str, sites: list[Site], edits: Sequence[Edit] = ()) -> Captured:
        setting = self.subject.settings[name]
        batch = Batch.of(self.queries)
        read = dict.fromkeys(sites, keep)
        return capture(self.subject, setting, batch, self.subject.prefill(setting), read, edits)


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp(request.param)
    model = save_model(request.param, root / "model")
    file = save_steering(model, root / "v.safetensors")
    folder = save_adapter(model, root / "lora", all_targets(request.param))
    conditions: dict[str, Condition] = {
        "base": Base(),
        "lora": Lora(folder),
        "prompt": PROMPT,
        **{f"layer_{layer}": Steering(file, layer) for layer in range(N_LAYERS)},
        "half": Steering(file, 1, scale=0.5),
        "twice_half": Steering(file, 1, scale=0.5) + Steering(file, 1, scale=0.5),
        "two_layers": Steering(file, 0) + Steering(file, 2, scale=-1),
        "prompt_steered": PROMPT + Steering(file, 1),
        "lora_steered": Lora(folder) + Steering(file, 1),
        "prefix_steered": Prefix(save_prefix(model, root / "prefix")) + Steering(file, 1),
        "untrained_steered": Untrained() + Steering(file, 1),
    }
    subject = load(model, conditions, QUERIES)
    queries = encode(map(Query, QUERIES), subject.tokenizer)
    return Case(model, load_file(file)["vector"], folder, subject, queries)


def plain(case: Case, prefix: tuple[int, ...], layer: int, lora: str | None = None) -> list[Tensor]:
    """Logits of the query rows: one whole sequence at a time, a hook on the block itself."""
    from peft import PeftModel

    hf: Any = AutoModelForCausalLM.from_pretrained(case.model).eval()
    (blocks,) = (m for m in hf.modules() if isinstance(m, nn.ModuleList) and len(m) == N_LAYERS)

    def add(_: Any, __: Any, out: Any) -> Any:
        stream = out[0] if isinstance(out, tuple) else out
        rows = torch.arange(stream.shape[1]) >= len(prefix)
        steered = stream + rows[None, :, None] * case.vector
        return (steered, *out[1:]) if isinstance(out, tuple) else steered

    blocks[layer].register_forward_hook(add)
    hf = PeftModel.from_pretrained(hf, lora) if lora else hf
    with torch.no_grad():
        return [
            hf(torch.tensor([[*prefix, *query.ids]])).logits[0, len(prefix) :]
            for query in case.queries
        ]


def difference(case: Case, got: Tensor, rows: list[Tensor]) -> float:
    lengths = [len(query.ids) for query in case.queries]
    return max(float((a[:n] - b).abs().max()) for a, b, n in zip(got, rows, lengths, strict=True))


@pytest.mark.parametrize(
    ("name", "layer", "lora"),
    [
        *((f"layer_{layer}", layer, False) for layer in range(N_LAYERS)),
        ("prompt_steered", 1, False),
        ("lora_steered", 1, True),
    ],
)
def test_it_is_what_a_hook_on_the_block_does(case: Case, name: str, layer: int, lora: bool) -> None:
    prefix = case.subject.settings[name].prefix
    expected = plain(case, prefix, layer, case.lora if lora else None)
    assert difference(case, case.capture(name, []).logits, expected) < 1e-4


def test_every_condition_moves_the_outputs(case: Case) -> None:
    logits = {name: case.capture(name, []).logits for name in case.subject.settings}
    del logits["twice_half"]  # is layer_1
    names = list(logits)
    for index, a in enumerate(names):
        for b in names[:index]:
            assert (logits[a] - logits[b]).abs().max() > 1e-3, (a, b)
    assert case.subject.notes == []


def test_readers_of_the_site_see_it_steered_and_earlier_sites_see_nothing(case: Case) -> None:
    streams = [
        Site(name, layer) for layer in range(N_LAYERS) for name in ("resid_pre", "resid_post")
    ]
    sites = [*streams, *(Site("pattern", layer) for layer in range(N_LAYERS))]
    base, steered = (case.capture(name, sites).values for name in ("base", "layer_1"))
    for site in sites:
        before = site.layer < 1 or (site.layer == 1 and site.name != "resid_post")
        assert torch.equal(base[site], steered[site]) == before, site
    post = Site("resid_post", 1)
    assert torch.equal(steered[post], base[post] + case.vector)
    assert torch.equal(steered[Site("resid_pre", 2)], steered[post])


def test_the_prefix_is_not_steered(case: Case) -> None:
    caches = [case.subject.prefill(case.subject.settings[n]) for n in ("prompt", "prompt_steered")]
    for a, b in zip(caches[0].layers, caches[1].layers, strict=True):
        assert torch.equal(a.keys, b.keys)
        assert torch.equal(a.values, b.values)


def test_a_pinned_site_is_what_it_is_pinned_to(case: Case) -> None:
    post = Site("resid_post", 1)
    value = case.capture("base", [post]).values[post]
    pinned = case.capture("layer_1", [], [Edit(post, replace(value))])
    assert torch.equal(pinned.logits, case.capture("base", []).logits)


def test_steering_adds_up(case: Case) -> None:
    once, twice = (case.capture(name, []).logits for name in ("layer_1", "twice_half"))
    assert (once - twice).abs().max() < 1e-4


def test_the_vectors_of_a_setting(case: Case) -> None:
    settings = case.subject.settings
    assert case.subject.steering(settings["base"]) == []
    ((layer, vector),) = case.subject.steering(settings["half"])
    assert layer == 1
    assert torch.equal(vector, 0.5 * case.vector)
    layers = case.subject.steering(settings["two_layers"])
    assert [layer for layer, _ in layers] == [0, 2]
    assert torch.equal(layers[1][1], -case.vector)


def test_hooks_are_gone_after_a_run(case: Case) -> None:
    case.capture("layer_1", [])
    assert all(not point.fwd_hooks for point in case.subject.bridge.hook_dict.values())


# One architecture is enough for these -----------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("qwen3", tmp_path_factory.mktemp("models") / "base")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_runs_in_half_precision(model: str, tmp_path: Path, dtype: str) -> None:
    file = save_steering(model, tmp_path / "v.safetensors")
    conditions: dict[str, Condition] = {"base": Base(), "it": PROMPT + Steering(file, 1)}
    assert load(model, conditions, QUERIES, dtype=dtype).notes == []


def test_it_steers_fine_tuned_weights(model: str, tmp_path: Path) -> None:
    file = save_steering(model, tmp_path / "v.safetensors")
    other = save_model("qwen3", tmp_path / "base", seed=3)
    swapped = load(model, {"base": Base(), "it": FineTuned(other) + Steering(file, 1)}, QUERIES)
    directly = load(other, {"base": Base(), "it": Steering(file, 1)}, QUERIES)
    batch = Batch.of(encode(map(Query, QUERIES), swapped.tokenizer))
    logits = [one.run(one.settings["it"], batch, None) for one in (swapped, directly)]
    assert torch.equal(*logits)


def test_a_vector_that_changes_nothing_is_refused_unless_allowed(
    model: str, tmp_path: Path
) -> None:
    file = save_steering(model, tmp_path / "v.safetensors", size=0)
    conditions = {"base": Base(), "it": Steering(file, 1)}
    with pytest.raises(SubjectError, match="condition it changes nothing") as caught:
        load(model, conditions, QUERIES)
    assert file in str(caught.value)
    assert "--allow-idle" in str(caught.value)
    (note,) = load(model, conditions, QUERIES, allow_idle=True).notes
    assert note == "condition it changes nothing: its steering gives the outputs of base"


def refused(model: str, file: Path, layer: int = 1) -> str:
    with pytest.raises(SubjectError) as caught:
        load(model, {"base": Base(), "it": Steering(str(file), layer)}, QUERIES)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    return message


def test_a_missing_file_is_named(model: str, tmp_path: Path) -> None:
    assert "no such file" in refused(model, tmp_path / "v.safetensors")


def test_what_is_no_safetensors_file_is_refused(model: str, tmp_path: Path) -> None:
    (tmp_path / "v.pt").write_bytes(b"pickled")
    assert "is no .safetensors file" in refused(model, tmp_path / "v.pt")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"other": torch.ones(32)}, "has ['other'], not one tensor `vector`"),
        ({"vector": torch.ones(32), "more": torch.ones(1)}, "has ['more', 'vector']"),
        ({"vector": torch.ones(31)}, "has shape (31,), the model needs (32,)"),
        ({"vector": torch.ones(1, 32)}, "has shape (1, 32), the model needs (32,)"),
        ({"vector": torch.full((32,), torch.nan)}, "has NaN or infinite values"),
        ({"vector": torch.full((32,), torch.inf)}, "has NaN or infinite values"),
    ],
)
def test_another_tensor_is_refused(
    model: str, tmp_path: Path, tensors: dict[str, Tensor], reason: str
) -> None:
    save_file(tensors, tmp_path / "v.safetensors")
    assert reason in refused(model, tmp_path / "v.safetensors")


@pytest.mark.parametrize("layer", [-1, N_LAYERS, 99])
def test_a_layer_that_is_not_there_is_named(model: str, tmp_path: Path, layer: int) -> None:
    file = save_steering(model, tmp_path / "v.safetensors")
    assert f"no layer {layer}; there are 0 to 2" in refused(model, Path(file), layer)
