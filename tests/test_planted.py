"""A divergence planted in one module of one block is found there, to the bit, and nowhere before.

Nine architectures, every module type, fused projections whole and one slice at a time; and the
negative controls: what moves no state, what is the same condition twice, what must leave no trace.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import interp.subject.opening
from interp.capture import capture, keep
from interp.conditions import Base, FineTuned, Lora, Prompt, Shifted
from interp.config import Experiment
from interp.errors import SubjectError
from interp.names import Site
from interp.queries import Encoded, Query, encode
from interp.runs.view import Run, load_run
from interp.study import run_study
from interp.subject import Batch, Subject, load

ARCHITECTURES = tuple(tiny_models.CONFIGS)
MIDDLE = 1
PROMPT = "hot is the opposite of cold."
TEXTS = ("the", "up is the opposite of", "lily said: yes", "a river is wide; a hill is high")

ORDER = (
    "resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "resid_mid", "mlp_out", "resid_post",
)  # fmt: skip
"""The sites of a block in the order in which it computes them."""

Modules = dict[str, str]
"""Module type -> the name that peft targets."""

SPLIT_MODULES: Modules = {
    "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj",
    "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
}  # fmt: skip
MODULES: dict[str, Modules] = {
    **dict.fromkeys(ARCHITECTURES, SPLIT_MODULES),
    "gpt2": {"qkv": "attn.c_attn", "o": "attn.c_proj", "up": "c_fc", "down": "mlp.c_proj"},
    "neox": {
        "qkv": "query_key_value", "o": "attention.dense",
        "up": "dense_h_to_4h", "down": "dense_4h_to_h",
    },
    "phi3": {"qkv": "qkv_proj", "o": "o_proj", "gate_up": "gate_up_proj", "down": "down_proj"},
}  # fmt: skip
FUSED = ("gpt2", "neox", "phi3")

PLANTED = [
    *((name, module) for name in ARCHITECTURES for module in MODULES[name]),
    *((name, f"qkv:{part}") for name in FUSED for part in "qkv"),
    *(("phi3", f"gate_up:{part}") for part in ("gate", "up")),
]
"""(architecture, module type, or slice of a fused module)."""

FIRST = {
    **{part: {part} for part in "qkv"},
    "qkv": {"q", "k", "v"},
    "o": {"attn_out"},
    **{part: {"mlp_out"} for part in ("gate", "up", "gate_up", "down")},
}
"""Module type -> the sites at which an adapter on it must be seen first."""

FOLLOWING = {
    **dict.fromkeys("qk", ("pattern",)),
    "v": ("z",),
    "pattern": ("z",),
    "z": ("attn_out",),
    "attn_out": ("resid_mid", "resid_post"),
    "resid_mid": ("mlp_out",),
    "mlp_out": ("resid_post",),
    "resid_post": (),
}
"""Site -> the sites computed from it. The MLP reads the attention's output through `resid_mid`;
where a block has none (NeoX), the two are siblings."""


def reached(first: set[str], known: list[str]) -> set[str]:
    """All sites of a block that a change at `first` changes."""
    found, new = set(first), set(first)
    while new:
        new = {site for name in new for site in FOLLOWING[name]} & set(known) - found
        found |= new
    return found


# --- materials -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Architecture -> a folder with `model`, `tuned` (other weights) and `lora` (all modules)."""

    @functools.cache
    def save(architecture: str) -> Path:
        folder = tmp_path_factory.mktemp(architecture)
        model = tiny_models.save_model(architecture, folder / "model")
        tiny_models.save_model(architecture, folder / "tuned", seed=5)
        tiny_models.save_adapter(model, folder / "lora", tiny_models.all_targets(architecture))
        for module, target in MODULES[architecture].items():
            tiny_models.save_adapter(model, folder / module, [target], layers=[MIDDLE])
            if architecture in FUSED and module in ("qkv", "gate_up"):
                for part in ("gate", "up") if module == "gate_up" else "qkv":
                    keep_slice(folder / module, folder / f"{module}:{part}", architecture, part)
        return folder

    return save


def keep_slice(source: Path, target: Path, architecture: str, part: str) -> None:
    """A copy of an adapter on a fused module that changes one part of its output only."""
    target.mkdir()
    (target / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
    tensors = load_file(source / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        if "lora_B" in name:
            rows = part_of_rows(architecture, part, len(tensor))
            assert 0 < rows.sum() < len(rows)
            tensor[~rows] = 0
    save_file(tensors, target / "adapter_model.safetensors")


def part_of_rows(architecture: str, part: str, size: int) -> Tensor:
    """Which output rows of a fused projection are its part (one row of lora_B each)."""
    if part in ("gate", "up"):
        return (torch.arange(size) < size // 2) == (part == "gate")
    index, rows = "qkv".index(part), torch.arange(size)
    d_head, heads = tiny_models.D_HEAD, tiny_models.N_HEADS
    if architecture == "neox":  # q, k, v of one head stand side by side
        return (rows // d_head) % 3 == index
    width = heads * d_head
    key_width = (size - width) // 2
    start = (0, width, width + key_width)[index]
    return (rows >= start) & (rows < start + (width if index == 0 else key_width))


@pytest.fixture(scope="session")
def planted(saved: Callable[[str], Path]) -> Callable[[str], Subject]:
    """Architecture -> one subject with every planted adapter, the LoRA, the tuned model and a
    prompt."""

    @functools.cache
    def open_subject(architecture: str) -> Subject:
        folder = saved(architecture)
        modules = [module for name, module in PLANTED if name == architecture]
        conditions = {
            "base": Base(),
            "prompt": Prompt(text=PROMPT),
            "lora": Lora(str(folder / "lora")),
            "tuned": FineTuned(str(folder / "tuned")),
            "both": Prompt(text=PROMPT) + Lora(str(folder / "lora"), scale=0.5),
            "shifted": Shifted(by=Prompt(text=PROMPT)),
            **{module: Lora(str(folder / module)) for module in modules},
        }
        return load(str(folder / "model"), conditions, [TEXTS[1]], device="cpu")

    return open_subject


def queries(subject: Subject) -> list[Encoded]:
    return encode(map(Query, TEXTS), subject.tokenizer)


def names(subject: Subject) -> list[str]:
    """The sites of `ORDER` that this architecture has."""
    return [name for name in ORDER if subject.anatomy.layers(name)]


def states(subject: Subject, condition: str, batch: Batch) -> dict[Site, Tensor]:
    """Everything in `ORDER`, whole, on the query rows."""
    setting = subject.settings[condition]
    sites = {site: keep for name in names(subject) for site in subject.sites(name)}
    return capture(subject, setting, batch, subject.prefill(setting), sites).values


# --- one module of one block -----------------------------------------------------------------


def changed_sites(subject: Subject, module: str) -> dict[Site, bool]:
    """Whether each site differs from base in any bit, in computing order."""
    batch = Batch.of(queries(subject))
    base, own = states(subject, "base", batch), states(subject, module, batch)
    layers = range(subject.n_layers)
    ordered = [Site(name, layer) for layer in layers for name in names(subject)]
    return {site: not torch.equal(base[site], own[site]) for site in ordered}


@pytest.mark.parametrize(("architecture", "module"), PLANTED)
def test_a_planted_divergence_is_found_at_its_site_and_nowhere_before(
    planted: Callable[[str], Subject], architecture: str, module: str
) -> None:
    subject = planted(architecture)
    changed = changed_sites(subject, module)
    first = FIRST[module.rpartition(":")[2]]
    earlier = [site for site in changed if site.layer < MIDDLE]
    later = [site for site in changed if site.layer > MIDDLE]
    assert [site for site in earlier if changed[site]] == []
    assert [site for site in later if not changed[site]] == []
    within = {site.name for site in changed if site.layer == MIDDLE and changed[site]}
    assert within == reached(first, names(subject))
    assert next(site for site in changed if changed[site]).name in first


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_site_is_looked_at(planted: Callable[[str], Subject], architecture: str) -> None:
    parallel = architecture == "neox"
    expected = [name for name in ORDER if not (parallel and name == "resid_mid")]
    assert names(planted(architecture)) == expected


# --- the negative controls -----------------------------------------------------------------------


@pytest.fixture(scope="session", params=["gpt2", "neox", "llama", "gemma3"])
def control(
    request: pytest.FixtureRequest,
    saved: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """Base against a logit bias and against itself."""
    folder = tmp_path_factory.mktemp("control")
    lines = [f'{{"text": "{text}"}}' for text in TEXTS]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    experiment = Experiment(
        model=str(saved(request.param) / "model"),
        queries=folder / "queries.jsonl",
        out=folder / "run",
        conditions={
            "bias": {"logit_bias": {"bias": {"h": 3.0}}},
            "again": {"base": {}},
        },
        device="cpu",
        batch_size=3,
        bootstrap=5,
        permutations=9,
        max_positions=2,
    )
    return load_run(run_study(experiment))


def values(run: Run, condition: str, measure: str, output: bool) -> Any:
    table = run.table
    rows = (table["condition"] == condition) & (table["measure"] == measure)
    rows &= (table["site"] == "output") == output
    return table[rows & (table["reference"] == "base")]["value"]


@pytest.mark.parametrize("condition", ["bias", "again"])
def test_identical_states_differ_by_exactly_nothing(control: Run, condition: str) -> None:
    for measure in ("relative_l2", "content_js"):
        found = values(control, condition, measure, output=False)
        assert len(found) > 0
        assert (found == 0).all(), measure
    for measure in ("cosine", "sim_am"):
        found = values(control, condition, measure, output=False)
        assert len(found) > 0
        assert ((found - 1).abs() < 1e-12).all(), measure
    assert values(control, condition, "rewiring_share", output=False).isna().all()


@pytest.mark.parametrize("condition", ["bias", "again"])
def test_attention_of_identical_states_is_the_same_bits(control: Run, condition: str) -> None:
    place = ["measure", "layer", "head", "position"]
    alone = control.table[
        control.table["measure"].isin(["entropy", "content_entropy", "prefix_mass"])
    ]
    base, own = (
        alone[alone["condition"] == name].set_index(place)["value"].sort_index()
        for name in ("base", condition)
    )
    assert len(base) > 0
    assert base.equals(own)


def test_a_logit_bias_moves_the_output(control: Run) -> None:
    for measure in ("js_divergence", "kl_divergence"):
        assert (values(control, "bias", measure, output=True) > 1e-6).all()


def test_base_says_exactly_what_base_says(control: Run) -> None:
    for measure, expected in {"js_divergence": 0, "kl_divergence": 0, "top1_agreement": 1}.items():
        found = values(control, "again", measure, output=True)
        assert len(found) > 0
        assert (found == expected).all(), measure


# --- batches, caches, hooks and weights ----------------------------------------------------------

CONDITIONS = ("base", "prompt", "lora", "tuned", "both", "shifted")


def plain(subject: Subject, folder: Path, condition: str) -> list[reference.States]:
    """The same setting in plain Hugging Face, one query at a time, without a cache."""
    setting = subject.settings[condition]
    adapter, scale = setting.adapters[0] if setting.adapters else (None, 1.0)
    asked = reference.Condition(setting.prefix, setting.shift, adapter, scale, setting.model)
    model = reference.open_model(str(folder / "model"), *asked.weights)
    return [reference.run(model, asked, query.ids) for query in queries(subject)]


def largest_difference(found: Tensor, expected: Any) -> float:
    """Relative to the larger of 1 and the largest expected value. Keys out of a sliding window's
    cache are not in `found`: their pattern must be 0."""
    wanted = torch.from_numpy(expected)
    missing = wanted.shape[-1] - found.shape[-1]
    padded = torch.nn.functional.pad(found.double(), (missing, 0))
    return float((padded - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cached_padded_batch_equals_one_query_at_a_time(
    planted: Callable[[str], Subject],
    saved: Callable[[str], Path],
    architecture: str,
    condition: str,
) -> None:
    subject = planted(architecture)
    batch = Batch.of(queries(subject))
    setting = subject.settings[condition]
    sites = ("resid_pre", "attn_out", "mlp_out", "resid_post", "z")
    read = {site: keep for name in sites for site in subject.sites(name)}
    read |= dict.fromkeys(subject.sites("pattern"), Tensor.clone)
    got = capture(subject, setting, batch, subject.prefill(setting), read)
    past = len(setting.prefix)
    for row, states in enumerate(plain(subject, saved(architecture), condition)):
        n = states.length
        assert largest_difference(got.logits[row, :n], states.logits) <= 1e-5
        for site, value in got.values.items():
            own = value[row]
            if site.name == "pattern":  # past the query's end there is only padding
                own = own[:, :n, : own.shape[-1] - batch.ids.shape[1] + n]
                assert own.shape[-1] <= past + n
            else:
                own = own[..., :n, :]
            expected = getattr(states, site.name)[site.layer]
            assert largest_difference(own, expected) <= 1e-5, site


def hooks_in(subject: Subject) -> int:
    modules = subject.bridge.modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hooks_are_gone_after_an_error_in_a_reader(
    planted: Callable[[str], Subject], architecture: str
) -> None:
    subject = planted(architecture)
    batch = Batch.of(queries(subject))
    setting = subject.settings["lora"]
    cache = subject.prefill(setting)
    before, hooks = subject.run(setting, batch, cache), hooks_in(subject)

    def broken(value: Tensor) -> None:
        raise ZeroDivisionError

    sites = [*subject.sites("resid_pre"), *subject.sites("pattern"), Site("z", MIDDLE)]
    read = dict.fromkeys(sites, keep) | {Site("z", MIDDLE): broken}
    with pytest.raises(ZeroDivisionError):
        capture(subject, setting, batch, cache, read)
    assert hooks_in(subject) == hooks
    assert torch.equal(subject.run(setting, batch, cache), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_do_not_leak_from_one_condition_into_the_next(
    planted: Callable[[str], Subject], architecture: str
) -> None:
    subject = planted(architecture)
    batch = Batch.of(queries(subject))

    def logits(condition: str) -> Tensor:
        setting = subject.settings[condition]
        return subject.run(setting, batch, subject.prefill(setting))

    first = {condition: logits(condition) for condition in CONDITIONS}
    for condition in reversed(CONDITIONS):
        assert torch.equal(logits(condition), first[condition]), condition
        assert torch.equal(logits("base"), first["base"]), f"base after {condition}"
    for condition in ("lora", "tuned", "both"):
        assert not torch.equal(first[condition], first["base"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_do_not_leak_after_an_error(
    planted: Callable[[str], Subject], architecture: str
) -> None:
    subject = planted(architecture)
    batch = Batch.of(queries(subject))
    base = subject.settings["base"]
    before = subject.run(base, batch, subject.prefill(base))

    def broken(value: Tensor) -> None:
        raise ZeroDivisionError

    for condition in ("tuned", "both"):
        setting = subject.settings[condition]
        cache = subject.prefill(setting)
        with pytest.raises(ZeroDivisionError):
            capture(subject, setting, batch, cache, {Site("z", MIDDLE): broken})
        assert torch.equal(subject.run(base, batch, subject.prefill(base)), before)


# --- the parity self-test ------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", FUSED)
def test_stale_slices_of_a_fused_projection_are_refused(
    saved: Callable[[str], Path], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interp.subject.opening, "mend", lambda bridge: None)
    folder = saved(architecture)
    conditions = {"base": Base(), "planted": Lora(str(folder / "qkv"))}
    with pytest.raises(SubjectError, match="condition planted"):
        load(str(folder / "model"), conditions, [TEXTS[1]], device="cpu")
