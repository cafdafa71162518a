"""Edits: on plain tensors by their laws, in a model by the same done to Hugging Face's modules.

The reference runs one whole sequence at a time, without a cache, and changes the output of a block
or what enters the projection of the heads by PyTorch's own hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from tiny_models import D_MODEL, N_HEADS, N_LAYERS, all_targets, save_adapter, save_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from interp.capture import Captured, Reader, capture, keep
from interp.conditions import Base, Condition, Lora, Prompt
from interp.edits import (
    BY_HEAD,
    Change,
    Edit,
    PlacedEdit,
    add,
    content_rows,
    hooks,
    project,
    replace,
    whole_rows,
    zero_ablation,
)
from interp.errors import ConfigError
from interp.names import HOOKS, Site
from interp.queries import Encoded, Query, encode
from interp.subject import Batch, Subject, load

BATCH, POS, KEYS = 2, 3, 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_of(*shape: int, seed: int = 0) -> Tensor:
    """Rows that sum to 1."""
    return drawn(*shape, seed=seed).softmax(-1)


# --- what a hook makes of a value -----------------------------------------------------------------


def value_at(name: str) -> Tensor:
    """A site's value as the model has it."""
    if name in BY_HEAD:
        return drawn(BATCH, POS, N_HEADS, 8)
    if name in ("pattern", "attn_scores"):
        return rows_of(BATCH, N_HEADS, POS, KEYS)
    return drawn(BATCH, POS, D_MODEL)


def hooked(value: Tensor, *edits: Edit | PlacedEdit) -> Tensor:
    """The value after edits of one site."""
    placed = [one if isinstance(one, PlacedEdit) else PlacedEdit(one) for one in edits]
    [hook] = hooks(placed).values()
    return hook(value)


@pytest.mark.parametrize("name", HOOKS)
def test_a_change_sees_heads_before_positions(name: str) -> None:
    seen: list[Tensor] = []

    def look(own: Tensor) -> Tensor:
        seen.append(own.clone())
        return own

    value = value_at(name)
    assert torch.equal(hooked(value, Edit(Site(name, 1), look)), value)
    expected = value.transpose(1, 2) if name in BY_HEAD else value
    assert torch.equal(seen[0], expected)
    if value.ndim == 4:
        hooked(value, Edit(Site(name, 1), look, head=2))
        assert torch.equal(seen[1], expected[:, 2])


@pytest.mark.parametrize("name", ["q", "k", "v", "z", "pattern"])
def test_one_head_at_some_tokens_changes_and_nothing_else(name: str) -> None:
    value = value_at(name)
    before = value.clone()
    where = torch.tensor([[False, True, False], [False, False, True]])
    out = hooked(value, Edit(Site(name, 0), zero_ablation(), head=1, where=where))
    assert torch.equal(value, before)  # the model's own tensor is not written to
    for query in range(BATCH):
        for position in range(POS):
            for head in range(N_HEADS):
                at = (query, position, head) if name in BY_HEAD else (query, head, position)
                touched = head == 1 and bool(where[query, position])
                assert torch.equal(out[at], 0 * value[at] if touched else value[at])


@pytest.mark.parametrize("name", ["resid_post", "attn_out", "z", "pattern"])
def test_a_mask_without_a_head_holds_for_all_heads(name: str) -> None:
    value = value_at(name)
    where = torch.tensor([[True, False, False], [False, False, False]])
    out = hooked(value, Edit(Site(name, 0), zero_ablation(), where=where))
    changed = out != value
    rows = changed.transpose(1, 2) if name == "pattern" else changed
    touched = rows.reshape(BATCH, POS, -1)
    assert touched[0, 0].all()
    assert not touched[0, 1:].any()
    assert not touched[1].any()


def test_edits_of_a_site_act_in_their_order() -> None:
    site, value = Site("z", 0), value_at("z")
    up, wipe = Edit(site, add(torch.tensor(2.0)), head=1), Edit(site, zero_ablation(), head=1)
    assert (hooked(value, up, wipe)[:, :, 1] == 0).all()
    assert (hooked(value, wipe, up)[:, :, 1] == 2).all()


def test_an_edit_keeps_to_its_rows_and_to_its_site() -> None:
    value = value_at("resid_post")
    edits = [
        PlacedEdit(Edit(Site("resid_post", i), zero_ablation()), slice(i, i + 1)) for i in range(2)
    ]
    for layer in range(2):
        out = hooks(edits)[Site("resid_post", layer)](value)
        assert (out[layer] == 0).all()
        assert torch.equal(out[1 - layer], value[1 - layer])


def test_a_mean_broadcasts_and_the_dtype_stays() -> None:
    value = value_at("z").bfloat16()
    mean = value.float().transpose(1, 2).mean((0, 2))  # [head, d_head]
    out = hooked(value, Edit(Site("z", 0), replace(mean[:, None])))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, mean.bfloat16().expand_as(value))
    assert hooked(value, Edit(Site("z", 0), add(mean[:, None]))).dtype == torch.bfloat16


# --- projections ----------------------------------------------------------------------------------

seeds = st.integers(0, 10_000)
ranks = st.integers(1, 5)


@given(seeds, ranks)
def test_a_removed_part_is_gone_and_the_rest_is_there(seed: int, rank: int) -> None:
    own, basis = drawn(4, 6, seed=seed).double(), drawn(6, rank, seed=seed + 1).double()
    left = project(basis)(own)
    fitted = torch.linalg.lstsq(basis, own.T).solution  # least squares: another way there
    assert torch.allclose(left, own - (basis @ fitted).T, atol=1e-8)
    assert torch.allclose(left @ basis, torch.zeros(4, rank).double(), atol=1e-9)
    assert torch.allclose(project(basis)(left), left, atol=1e-9)


@given(seeds, ranks)
def test_only_the_span_counts(seed: int, rank: int) -> None:
    own, towards = drawn(4, 6, seed=seed).double(), drawn(4, 6, seed=seed + 2).double()
    basis = drawn(6, rank, seed=seed + 1).double()
    mixed = basis @ (torch.eye(rank).double() + 0.1 * drawn(rank, rank, seed=seed + 3))
    twice = torch.cat([basis, 3 * basis, torch.zeros(6, 1)], dim=1)
    for other in (mixed, twice):
        for target in (None, towards):
            a, b = project(basis, target)(own), project(other, target)(own)
            assert torch.allclose(a, b, atol=1e-6)


@given(seeds, ranks)
def test_a_part_taken_from_another_run(seed: int, rank: int) -> None:
    own, towards = drawn(4, 6, seed=seed).double(), drawn(4, 6, seed=seed + 2).double()
    basis = drawn(6, rank, seed=seed + 1).double()
    moved = project(basis, towards)(own)
    assert torch.allclose(moved @ basis, towards @ basis, atol=1e-9)
    assert torch.allclose(project(basis)(moved), project(basis)(own), atol=1e-9)
    assert torch.allclose(project(basis, own)(moved), own, atol=1e-9)  # and back


def test_of_everything_it_is_an_interchange_and_of_nothing_nothing() -> None:
    own, towards = drawn(4, 6), drawn(4, 6, seed=1)
    everything = drawn(6, 6, seed=2)
    assert torch.allclose(project(everything, towards)(own), replace(towards)(own), atol=1e-5)
    assert torch.allclose(project(everything)(own), zero_ablation()(own), atol=1e-5)
    assert torch.equal(project(torch.zeros(6, 2), towards)(own), own)


# --- patterns -------------------------------------------------------------------------------------


@given(seeds, st.integers(0, 3))
def test_content_rows_keep_the_mass_before_the_query(seed: int, before: int) -> None:
    own = rows_of(BATCH, N_HEADS, POS, before + POS, seed=seed).double()
    content = rows_of(BATCH, N_HEADS, POS, POS, seed=seed + 1).double()
    out = content_rows(content)(own)
    assert torch.equal(out[..., :before], own[..., :before])
    assert torch.allclose(out.sum(-1), torch.ones(BATCH, N_HEADS, POS).double())
    inside = out[..., before:]
    assert torch.allclose(inside / inside.sum(-1, keepdim=True), content)
    theirs = own[..., before:] / own[..., before:].sum(-1, keepdim=True)
    assert torch.allclose(content_rows(theirs)(out), own)  # its own division, put back


def test_a_row_that_divides_nothing_leaves_the_row_alone() -> None:
    """A source that looks before its query alone (an attention sink) has no content row: NaN."""
    own = rows_of(BATCH, POS, KEYS)
    content = rows_of(BATCH, POS, POS, seed=1)
    content[1, 2] = torch.nan
    out = content_rows(content)(own)
    assert torch.equal(out[1, 2], own[1, 2])
    assert torch.allclose(out.sum(-1), torch.ones(BATCH, POS))
    assert not torch.equal(out[1, 1], own[1, 1])


def test_whole_rows_are_the_other_rows() -> None:
    own, other = rows_of(BATCH, N_HEADS, POS, KEYS), rows_of(BATCH, N_HEADS, POS, KEYS, seed=1)
    assert torch.equal(whole_rows(other)(own), other)


def test_whole_rows_of_another_length_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        whole_rows(rows_of(BATCH, POS, KEYS + 2))(rows_of(BATCH, POS, KEYS))
    message = str(caught.value)
    assert "as many keys in both runs, not 7 and 5: use content rows" in message
    assert "\n" not in message


# --- in a model -----------------------------------------------------------------------------------

QUERIES = ["hot is the opposite", "a river"]
PROMPT = Prompt(text="up is the opposite of down")
CONDITIONS = ("base", "prompt", "lora", "both")
HEADS_OUT = {"gpt2": "attn.c_proj", "llama": "self_attn.o_proj", "phi3": "self_attn.o_proj"}


class Case(NamedTuple):
    """A model under four conditions."""

    architecture: str
    model: str
    lora: str
    subject: Subject
    queries: list[Encoded]

    @property
    def batch(self) -> Batch:
        return Batch.of(self.queries)

    def run(self, name: str, edits: Sequence[Edit] = (), read: Sequence[Site] = ()) -> Captured:
        setting = self.subject.settings[name]
        readers: dict[Site, Reader] = {
            site: Tensor.clone if site.name == "pattern" else keep for site in read
        }
        cache = self.subject.prefill(setting)
        return capture(self.subject, setting, self.batch, cache, readers, edits)

    def each(self, logits: Tensor) -> Iterator[Tensor]:
        """Every query's own rows."""
        return (row[: len(q.ids)] for row, q in zip(logits, self.queries, strict=True))


@pytest.fixture(scope="module", params=HEADS_OUT)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp(request.param)
    model = save_model(request.param, root / "model")
    folder = save_adapter(model, root / "lora", all_targets(request.param))
    conditions: dict[str, Condition] = {
        "base": Base(),
        "prompt": PROMPT,
        "lora": Lora(folder),
        "both": PROMPT + Lora(folder),
    }
    subject = load(model, conditions, QUERIES)
    queries = encode(map(Query, QUERIES), subject.tokenizer)
    return Case(request.param, model, folder, subject, queries)


ByHand = Callable[[int, Tensor], Tensor]
"""From a query's number and its rows `[query_pos, ...]` to what takes their place."""


def plain(case: Case, name: str, layer: int, stage: str, change: ByHand) -> list[Tensor]:
    """Logits of the query rows where a plain hook changes a block's output (`stage` "block") or
    what enters the projection of its heads, `[query_pos, head, d_head]` (`stage` "heads")."""
    hf: Any = AutoModelForCausalLM.from_pretrained(case.model, attn_implementation="eager").eval()
    if name in ("lora", "both"):
        hf = PeftModel.from_pretrained(hf, case.lora).eval()
    [blocks] = [m for m in hf.modules() if isinstance(m, nn.ModuleList) and len(m) == N_LAYERS]
    prefix = case.subject.settings[name].prefix
    number = 0

    def changed(value: Tensor) -> Tensor:
        value = value.clone()
        value[0, len(prefix) :] = change(number, value[0, len(prefix) :])
        return value

    def at_block(_: nn.Module, __: Any, out: Any) -> Any:
        return (changed(out[0]), *out[1:]) if isinstance(out, tuple) else changed(out)

    def at_heads(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (changed(inputs[0].unflatten(-1, (N_HEADS, -1))).flatten(-2), *inputs[1:])

    if stage == "block":
        blocks[layer].register_forward_hook(at_block)
    else:
        module = blocks[layer].get_submodule(HEADS_OUT[case.architecture])
        module.register_forward_pre_hook(at_heads)
    found = []
    for query in case.queries:
        with torch.no_grad():
            ids = torch.tensor([[*prefix, *query.ids]])
            found.append(hf(ids).logits[0, len(prefix) :])
        number += 1
    return found


def same(case: Case, got: Tensor, expected: Sequence[Tensor]) -> bool:
    pairs = zip(case.each(got), expected, strict=True)
    return all(torch.allclose(a, b, atol=2e-5, rtol=2e-5) for a, b in pairs)


VALUE = drawn(2, 32, D_MODEL, seed=5)  # more positions than any query has
HEAD = drawn(2, 32, D_MODEL // N_HEADS, seed=6)
BASIS, MEAN = drawn(D_MODEL, 3, seed=7), drawn(D_MODEL // N_HEADS, seed=8)


def one_head(rows: Tensor, head: int, value: Tensor | float) -> Tensor:
    rows = rows.clone()
    rows[:, head] = value
    return rows


def at_last(rows: Tensor, value: Tensor) -> Tensor:
    return torch.cat([rows[:-1], value[None]])


def without_span(rows: Tensor) -> Tensor:
    return rows - (BASIS @ torch.linalg.lstsq(BASIS, rows.T).solution).T


DONE: dict[str, tuple[str, int, Callable[[Tensor], Edit], ByHand]] = {
    "replace a state": (
        "block",
        1,
        lambda where: Edit(Site("resid_post", 1), replace(VALUE[:, : where.shape[1]])),
        lambda i, rows: VALUE[i, : len(rows)],
    ),
    "the last token alone": (
        "block",
        0,
        lambda where: Edit(Site("resid_post", 0), replace(VALUE[:, :1]), where=where),
        lambda i, rows: at_last(rows, VALUE[i, 0]),
    ),
    "add": (
        "block",
        1,
        lambda where: Edit(Site("resid_post", 1), add(VALUE[:, : where.shape[1]])),
        lambda i, rows: rows + VALUE[i, : len(rows)],
    ),
    "project": (
        "block",
        0,
        lambda _: Edit(Site("resid_post", 0), project(BASIS)),
        lambda _, rows: without_span(rows),
    ),
    "replace a head": (
        "heads",
        1,
        lambda where: Edit(Site("z", 1), replace(HEAD[:, : where.shape[1]]), head=2),
        lambda i, rows: one_head(rows, 2, HEAD[i, : len(rows)]),
    ),
    "ablate a head by its mean": (
        "heads",
        0,
        lambda _: Edit(Site("z", 0), replace(MEAN), head=3),
        lambda _, rows: one_head(rows, 3, MEAN),
    ),
    "zero all heads": (
        "heads",
        2,
        lambda _: Edit(Site("z", 2), zero_ablation()),
        lambda _, rows: 0 * rows,
    ),
}  # fmt: skip


def last_token(batch: Batch) -> Tensor:
    return torch.arange(batch.ids.shape[1]) == batch.lengths[:, None] - 1


@pytest.mark.parametrize("what", DONE)
@pytest.mark.parametrize("name", CONDITIONS)
def test_an_edit_is_what_a_plain_hook_does(case: Case, name: str, what: str) -> None:
    stage, layer, make, change = DONE[what]
    edited = case.run(name, [make(last_token(case.batch))]).logits
    assert same(case, edited, plain(case, name, layer, stage, change))
    assert not same(case, case.run(name).logits, list(case.each(edited)))


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_pattern_is_edited_as_the_sum_over_values_says(case: Case, name: str) -> None:
    """The head's output by hand: the edited rows times the values before and in the query."""
    read = [Site("pattern", 1), Site("v", 1)]
    got = case.run(name, read=read).values
    pattern, values = (got[site] for site in read)
    cache = case.subject.prefill(case.subject.settings[name])
    if cache is not None:
        before = cache.layers[1].values.expand(len(values), -1, -1, -1)
        values = torch.cat([before, values], dim=2)
    head, length = 2, pattern.shape[2]
    kv = values[:, head // (N_HEADS // values.shape[1])]
    content = rows_of(2, length, length, seed=3).tril()
    content /= content.sum(-1, keepdim=True)
    whole = pattern.roll(1, 1)[:, head]  # another head's rows
    own = pattern[:, head]
    mass = own[..., -length:].sum(-1, keepdim=True)
    kept = torch.cat([own[..., :-length], mass * content], dim=-1)
    for change, rows in ((content_rows(content), kept), (whole_rows(whole), whole)):
        z = rows @ kv
        edited = case.run(name, [Edit(Site("pattern", 1), change, head=head)]).logits
        by_hand = plain(case, name, 1, "heads", lambda i, r, z=z: one_head(r, head, z[i, : len(r)]))
        assert same(case, edited, by_hand)


def test_other_tokens_and_earlier_sites_pass_to_the_bit(case: Case) -> None:
    where = torch.zeros(case.batch.ids.shape, dtype=torch.bool)
    where[0, 1] = True
    below = [Site(n, i) for i in range(2) for n in ("resid_pre", "attn_out", "resid_post")]
    beside = [Site("resid_pre", 2), Site("pattern", 2)]
    before, after = (
        case.run("both", edits, [*below, *beside])
        for edits in ([], [Edit(Site("z", 2), zero_ablation(), head=0, where=where)])
    )
    for site in (*below, *beside):
        assert torch.equal(before.values[site], after.values[site]), site
    unlike = (before.logits != after.logits).any(-1)
    assert torch.equal(unlike, where)  # in the last block nobody reads the token


@pytest.mark.parametrize("name", ["resid_post", "attn_out", "mlp_out", "z", "v"])
def test_a_value_put_back_changes_nothing(case: Case, name: str) -> None:
    site = Site(name, 1)
    own = case.run("both", read=[site])
    back = case.run("both", [Edit(site, replace(own.values[site]))])
    assert torch.equal(own.logits, back.logits)


def listening(case: Case) -> int:
    """How many hooks the bridge has."""
    return sum(len(p.fwd_hooks) + len(p.bwd_hooks) for p in case.subject.bridge.hook_dict.values())


def test_hooks_are_gone_after_a_run_and_after_an_error(case: Case) -> None:
    def fail(_: Tensor) -> Tensor:
        raise ZeroDivisionError

    def failing() -> Change:
        return fail

    before = case.run("both").logits
    case.run("both", [Edit(Site("z", 1), zero_ablation())])
    assert listening(case) == 0
    with pytest.raises(ZeroDivisionError):
        case.run(
            "both", [Edit(Site("z", 0), zero_ablation()), Edit(Site("resid_post", 1), failing())]
        )
    assert listening(case) == 0
    assert torch.equal(case.run("both").logits, before)


def test_rows_of_another_prefix_are_refused_in_the_model(case: Case) -> None:
    """And the model is as before."""
    site = Site("pattern", 1)
    theirs = case.run("prompt", read=[site]).values[site]
    with pytest.raises(ConfigError, match="use content rows"):
        case.run("base", [Edit(site, whole_rows(theirs))])
    assert listening(case) == 0


def test_a_site_is_read_or_edited(case: Case) -> None:
    site = Site("z", 1)
    with pytest.raises(ValueError, match=r"L1\.z cannot be read and edited in one run"):
        case.run("base", [Edit(site, zero_ablation())], [site])
