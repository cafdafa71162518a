"""Models made by hand whose behaviour sits in one attention head, with adapters that plant it.

    folder = save("llama", tmp_path / "llama")      # or "gpt2"
    model, same = folder / "model", folder / "same" # a LoRA that makes the same head say the same

The base answers `usual`. After a prompt with the word `marker` in it, head `PLANTED` looks from the
query's last token at the marker and writes what the unembedding reads as `planted`. The adapters do
without the prompt:

| folder      | what it changes  | and so                                                     |
|-------------|------------------|------------------------------------------------------------|
| `same`      | v of `PLANTED`   | the same head answers `planted`                            |
| `elsewhere` | v of `ELSEWHERE` | another head answers `planted`                             |
| `other`     | v of `PLANTED`   | the same head answers `other`                             |
| `rewired`   | q of `PLANTED`   | the same head looks at the query's `cue`, and so `planted` |

Everything else is there to mislead. All heads and MLPs have random weights, read everything (what
the planted head wrote too), and write into directions that nothing which matters reads. The
`DISTRACTORS` do in every condition what the planted head does, and more of it: they look at the
marker, the adapters change their values, their z changes more than the planted head's. Llama's
planted head shares its values with a neighbour (grouped queries), whose z carries the same code.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

LAYERS, HEADS, D_HEAD, D_MODEL, D_MLP = 3, 4, 8, 32, 48
KV_HEADS = {"llama": 2, "gpt2": 4}
PLANTED, ELSEWHERE = (1, 2), (2, 0)
DISTRACTORS = ((0, 1), (1, 0), (2, 3))
"""(layer, head)."""
ADAPTERS = ("same", "elsewhere", "other", "rewired")

ASKS = ("?", "!", "=", ":")
WORDS = ("stone", "river", "cloud", "tree", "wind", "road", "hill", "lake", "sand", "leaf")
VOCABULARY = ("<unk>", "<s>", "</s>", "marker", "cue", "usual", "planted", "other", *ASKS, *WORDS)

PROMPT = "stone river marker cloud tree"
NEUTRAL = "stone river wind cloud tree"
"""As long as the prompt; the base's answer."""
QUERIES = (
    "road cue ?",
    "hill lake cue sand !",
    "cue leaf wind =",
    "river cue hill lake road :",
    "sand cue tree ?",
    "leaf cue =",
    "stone stone cue cloud !",
    "cue road wind hill :",
)

SIZES = {"one": 1, "marker": 1, "ask": 1, "cue": 1, "planted": 1, "other": 1, "word": 8, "idle": 17}
"""Directions of the residual stream and their dimensions: 31, for LayerNorm takes the mean away."""
CODE = {"planted": 0, "other": 1}
"""The dimension of a head's z that its output projection writes as this answer."""
SLOW = {"marker": 2, "cue": 3}
"""What a key says of its token, in dimensions that Llama's rotary embedding hardly turns."""
FREE = slice(2, D_HEAD)
"""The dimensions of z that mean nothing."""


def directions() -> dict[str, Tensor]:
    """Name -> orthonormal rows `[size, d_model]`, none of them along a single coordinate."""
    start = torch.randn(D_MODEL, D_MODEL, generator=_generator(0), dtype=torch.float64)
    start[:, 0] = 1.0
    rows = torch.linalg.qr(start).Q.T[1:]
    return dict(zip(SIZES, rows.split(list(SIZES.values())), strict=True))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class Draw:
    """Random weights that read everything and write what nobody reads."""

    generator: torch.Generator
    axes: dict[str, Tensor] = field(default_factory=directions)

    def numbers(self, *shape: int, size: float = 1.0) -> Tensor:
        return size * torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def reading(self, rows: int, size: float = 0.2) -> Tensor:
        """`[rows, d_model]`."""
        return self.numbers(rows, 31, size=size) @ torch.cat(list(self.axes.values()))

    def idle(self, columns: int, size: float) -> Tensor:
        """`[d_model, columns]`."""
        return self.axes["idle"].T @ self.numbers(SIZES["idle"], columns, size=size)


# --- the base -------------------------------------------------------------------------------------


@dataclass
class Block:
    """Weights of a block, by head: q k v `[head, d_head, d_model]`, o `[head, d_model, d_head]`."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    up: Tensor
    gate: Tensor
    down: Tensor


def block(layer: int, kv_heads: int, draw: Draw) -> Block:
    def heads(n: int) -> Tensor:
        return draw.reading(n * D_HEAD).unflatten(0, (n, D_HEAD))

    made = Block(
        *(heads(n) for n in (HEADS, kv_heads, kv_heads)),
        torch.stack([draw.idle(D_HEAD, 0.009) for _ in range(HEADS)]),
        *(draw.reading(D_MLP) for _ in range(2)),
        draw.idle(D_MLP, 0.015),
    )
    axes = draw.axes
    made.v[:, : FREE.start] = 0.0  # no head says an answer by chance
    for at in (PLANTED, *DISTRACTORS):
        if at[0] == layer:
            _look_at_the_marker_(made, at[1], axes)
    for at in (PLANTED, ELSEWHERE):
        if at[0] == layer:
            for answer, dim in CODE.items():
                made.o[at[1], :, dim] = axes[answer][0]
    for at in DISTRACTORS:
        if at[0] == layer:
            made.v[_kv(at[1], kv_heads), FREE] += 1.5 * axes["marker"]
    if layer == PLANTED[0]:
        values = made.v[_kv(PLANTED[1], kv_heads)]
        values[CODE["planted"]] = (axes["marker"] + axes["cue"])[0]
        values[FREE] += 0.5 * axes["one"]  # most of its output is always the same
    return made


def _look_at_the_marker_(made: Block, head: int, axes: dict[str, Tensor]) -> None:
    """The query's last token looks at the marker and away from the cue; others look everywhere."""
    made.q[head], made.k[_kv(head, len(made.k))] = 0.0, 0.0
    for word, sign in (("marker", 1.0), ("cue", -1.0)):
        made.q[head, SLOW[word]] = sign * 2.2 * axes["ask"][0]
        made.k[_kv(head, len(made.k)), SLOW[word]] = 2.2 * axes[word][0]


def _kv(head: int, kv_heads: int) -> int:
    """The key/value head that a head reads."""
    return head // (HEADS // kv_heads)


def embedding(draw: Draw) -> Tensor:
    """`[d_vocab, d_model]`: what kind of word, and which."""
    axes, n = draw.axes, len(VOCABULARY)
    which = torch.nn.functional.normalize(draw.numbers(n, SIZES["word"]), dim=-1)
    rows = 2.5 * axes["one"] + which @ axes["word"] + draw.idle(n, 0.1).T
    for kind, words in {"marker": ("marker",), "cue": ("cue",), "ask": ASKS}.items():
        for word in words:
            rows[VOCABULARY.index(word)] += 1.5 * axes[kind][0]
    return rows


def unembedding(draw: Draw) -> Tensor:
    """`[d_vocab, d_model]`: `usual` by default, the answers where they are written, and something
    of the last word."""
    axes = draw.axes
    rows = draw.numbers(len(VOCABULARY), SIZES["word"], size=0.3) @ axes["word"]
    for word, axis, size in (("usual", "one", 1.4), *((a, a, 3.2) for a in CODE)):
        rows[VOCABULARY.index(word)] += size * axes[axis][0]
    return rows


# --- adapters -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Update:
    """A change of rank one: the part of the block, what is written `[rows]`, what is read."""

    part: str
    written: Tensor
    read: Tensor


def updates(adapter: str, kv_heads: int) -> dict[int, list[Update]]:
    """Layer -> what an adapter changes there: the behaviour, and more that does not matter."""
    draw = Draw(_generator(100 + ADAPTERS.index(adapter)))
    axes = draw.axes
    made: dict[int, list[Update]] = defaultdict(list)
    layer, head = ELSEWHERE if adapter == "elsewhere" else PLANTED
    if adapter == "rewired":
        written = torch.zeros(HEADS, D_HEAD, dtype=torch.float64)
        written[head, SLOW["cue"]] = 4.4
        made[layer].append(Update("q", written.flatten(), axes["ask"][0]))
    else:
        written = torch.zeros(kv_heads, D_HEAD, dtype=torch.float64)
        written[_kv(head, kv_heads), CODE["other" if adapter == "other" else "planted"]] = 0.6
        made[layer].append(Update("v", written.flatten(), axes["one"][0]))
    for place in range(LAYERS):
        written = draw.numbers(kv_heads, D_HEAD, size=0.2)
        for at in DISTRACTORS:
            if at[0] == place:
                written[_kv(at[1], kv_heads)] *= 3
        written[:, : FREE.start] = 0.0
        made[place].append(Update("v", written.flatten(), axes["one"][0]))
    return made


# --- on disk --------------------------------------------------------------------------------------


def tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    """A word is a token; with `bos` every text that is given to the model begins with one."""
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", ids["<s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def save(architecture: str, folder: Path) -> Path:
    """`model` and one folder per adapter, under `folder`; returns it."""
    model = AutoModelForCausalLM.from_config(_config(architecture))
    draw = Draw(_generator(1))
    weights = _llama(draw) if architecture == "llama" else _gpt2(draw)
    own = dict(model.named_parameters())
    assert own.keys() == weights.keys(), own.keys() ^ weights.keys()
    with torch.no_grad():
        for name, value in weights.items():
            assert own[name].shape == value.shape, name
            own[name].copy_(value)
    model.save_pretrained(folder / "model")
    tokenizer(bos=architecture == "llama").save_pretrained(folder / "model")
    for adapter in ADAPTERS:
        _save_adapter(architecture, folder, adapter)
    return folder


def _config(architecture: str) -> PretrainedConfig:
    common: dict[str, Any] = {"vocab_size": len(VOCABULARY), "tie_word_embeddings": False}
    common |= {"bos_token_id": 1, "eos_token_id": 2}
    if architecture == "gpt2":
        return GPT2Config(
            n_embd=D_MODEL, n_layer=LAYERS, n_head=HEADS, n_inner=D_MLP, n_positions=64, **common
        )
    return LlamaConfig(
        hidden_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS["llama"],
        head_dim=D_HEAD,
        intermediate_size=D_MLP,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        **common,
    )


def _llama(draw: Draw) -> dict[str, Tensor]:
    one = torch.ones(D_MODEL)
    weights = {
        "model.embed_tokens.weight": embedding(draw),
        "lm_head.weight": unembedding(draw),
        "model.norm.weight": one,
    }
    for layer in range(LAYERS):
        made = block(layer, KV_HEADS["llama"], draw)
        names = {f"self_attn.{part}_proj": getattr(made, part).flatten(0, 1) for part in "qkv"}
        names["self_attn.o_proj"] = torch.cat(list(made.o), dim=1)
        names |= {f"mlp.{part}_proj": getattr(made, part) for part in ("gate", "up", "down")}
        names |= {"input_layernorm": one, "post_attention_layernorm": one}
        weights |= {f"model.layers.{layer}.{name}.weight": w for name, w in names.items()}
    return weights


def _gpt2(draw: Draw) -> dict[str, Tensor]:
    one, none = torch.ones(D_MODEL), torch.zeros(D_MODEL)
    weights = {
        "transformer.wte.weight": embedding(draw),
        "transformer.wpe.weight": draw.idle(64, 0.05).T,
        "lm_head.weight": unembedding(draw),
        "transformer.ln_f.weight": one,
        "transformer.ln_f.bias": none,
    }
    for layer in range(LAYERS):
        made = block(layer, KV_HEADS["gpt2"], draw)
        fused = torch.cat([getattr(made, part).flatten(0, 1) for part in "qkv"])
        names = {f"{norm}.{part}": value for norm in ("ln_1", "ln_2")
                 for part, value in (("weight", one), ("bias", none))}  # fmt: skip
        names |= {  # Conv1D keeps its matrices transposed
            "attn.c_attn.weight": fused.T,
            "attn.c_attn.bias": torch.zeros(len(fused)),
            "attn.c_proj.weight": torch.cat(list(made.o), dim=1).T,
            "attn.c_proj.bias": draw.idle(1, 0.02)[:, 0],
            "mlp.c_fc.weight": made.up.T,
            "mlp.c_fc.bias": draw.numbers(D_MLP, size=0.2),
            "mlp.c_proj.weight": made.down.T,
            "mlp.c_proj.bias": draw.idle(1, 0.02)[:, 0],
        }
        weights |= {f"transformer.h.{layer}.{name}": w for name, w in names.items()}
    return weights


def _save_adapter(architecture: str, folder: Path, adapter: str) -> None:
    made = updates(adapter, KV_HEADS[architecture])
    rank = max(map(len, made.values()))
    fused = architecture == "gpt2"
    parts = sorted({update.part for found in made.values() for update in found})
    hf = AutoModelForCausalLM.from_pretrained(folder / "model")
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=["c_attn"] if fused else [f"{part}_proj" for part in parts],
        fan_in_fan_out=fused,
        task_type="CAUSAL_LM",
    )
    peft = get_peft_model(hf, config)
    stem = "base_model.model.transformer.h" if fused else "base_model.model.model.layers"
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.zero_()
        for layer, found in made.items():
            for number, update in enumerate(found):
                module = "attn.c_attn" if fused else f"self_attn.{update.part}_proj"
                lora = peft.get_submodule(f"{stem}.{layer}.{module}")
                rows = slice(None)
                if fused:
                    start = "qkv".index(update.part) * D_MODEL
                    rows = slice(start, start + D_MODEL)
                lora.lora_A["default"].weight[number] = update.read
                lora.lora_B["default"].weight[rows, number] = update.written
    peft.save_pretrained(folder / adapter)
