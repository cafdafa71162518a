"""The passes that any study must make: plain Hugging Face (eager attention) and peft.

    bare = Bare.of(reference)
    bare()                      # logits of all queries, in base, prompt, neutral text, the adapters

What precedes the query is computed once; all queries go in one batch.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from reference import Reference
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = "base"


def plain(found: Reference) -> PeftModel:
    """The model with its adapters, named 0, 1, ... (peft wants no `lora_` in a name)."""
    base = AutoModelForCausalLM.from_pretrained(
        found.model, attn_implementation="eager", dtype=found.fields.get("dtype", "float32")
    ).to(found.fields.get("device", "cpu"))
    model: PeftModel = PeftModel.from_pretrained(base, found.loras[0], adapter_name="0")
    for number, lora in enumerate(found.loras[1:], 1):
        model.load_adapter(lora, adapter_name=str(number))
    return model.eval()


class Bare:
    """A plain model under its conditions: its adapters, and what stands before the query.

    `prefixes`: condition (`lora_0` is adapter 0) -> ids `[1, pos]`, of no token where none.
    `ids`, `mask`: the queries `[query, pos]`, padded on the left.
    """

    def __init__(
        self, model: PeftModel, prefixes: Mapping[str, Tensor], ids: Tensor, mask: Tensor
    ) -> None:
        self.model, self.ids, self.mask = model, ids, mask
        self.prefixes = dict(prefixes)
        with torch.no_grad():
            self.caches = {name: self._prefilled(name) for name in self.prefixes}

    @classmethod
    def of(cls, found: Reference) -> Bare:
        """Raw text: queries alone, behind the prompt, and behind as many other tokens."""
        tokenizer = AutoTokenizer.from_pretrained(found.model, padding_side="left")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.convert_ids_to_tokens(0)
        options = {"return_tensors": "pt", "add_special_tokens": False}
        queries = tokenizer(found.texts, padding=True, **options)
        prompt = tokenizer(found.prompt, **options).input_ids
        nothing = prompt[:, :0]
        prefixes = {BASE: nothing, "prompt": prompt, "neutral": prompt.flip(1)}
        prefixes |= {f"lora_{number}": nothing for number in range(len(found.loras))}
        model = plain(found)
        prefixes = {name: prefix.to(model.device) for name, prefix in prefixes.items()}
        ids, mask = queries.input_ids, queries.attention_mask
        return cls(model, prefixes, ids.to(model.device), mask.to(model.device))

    @torch.no_grad()
    def __call__(self) -> list[Tensor]:
        """Logits of all queries under every condition."""
        return [self.forward(name, self.ids, self.mask)[0] for name in self.prefixes]

    @torch.no_grad()
    def again(self, queries: int) -> Tensor:
        """The first queries behind the prompt, which is computed again for each."""
        prefix = self.prefixes["prompt"].expand(queries, -1)
        with self.condition(BASE):
            return self.model(torch.cat([prefix, self.ids[:queries]], 1)).logits

    @torch.no_grad()
    def answers(self, name: str, tokens: int) -> Tensor:
        """What a condition answers to every query, greedily, `[query, token]`."""
        logits, cache, mask = self.forward(name, self.ids, self.mask)
        written = [logits[:, -1].argmax(-1)]
        for _ in range(tokens - 1):
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            logits = self.continued(name, written[-1][:, None], mask, cache)
            written.append(logits[:, -1].argmax(-1))
        return torch.stack(written, 1)

    def forward(self, name: str, ids: Tensor, mask: Tensor) -> tuple[Tensor, Any, Tensor]:
        """Logits, the cache of prefix and queries, and their mask."""
        prefix = self.prefixes[name]
        whole = torch.cat([torch.ones_like(prefix).expand(len(ids), -1), mask], 1)
        cache = copy.deepcopy(self.caches[name])
        if cache is not None:
            cache.batch_repeat_interleave(len(ids))
        with self.condition(name):
            out = self.model(
                ids,
                attention_mask=whole,
                position_ids=self.positions(whole)[:, prefix.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            )
        return out.logits, out.past_key_values, whole

    def continued(self, name: str, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """Logits of tokens that follow those of a cache, which holds them afterwards."""
        with self.condition(name):
            return self.model(
                ids,
                attention_mask=mask,
                position_ids=self.positions(mask)[:, -ids.shape[1] :],
                past_key_values=cache,
                use_cache=True,
            ).logits

    @staticmethod
    def positions(mask: Tensor) -> Tensor:
        """Padding has no place."""
        return (mask.cumsum(1) - 1).clamp(min=0)

    @contextlib.contextmanager
    def condition(self, name: str) -> Iterator[None]:
        """The weights of a condition, inside."""
        if name.startswith("lora_"):
            self.model.set_adapter(name.removeprefix("lora_"))
            yield
        else:
            with self.model.disable_adapter():
                yield

    def _prefilled(self, name: str) -> Any:
        prefix = self.prefixes[name]
        if not prefix.shape[1]:
            return None
        with self.condition(name):
            return self.model(prefix, use_cache=True).past_key_values


class BareChat:
    """The bare passes of a chat: every condition writes its own answers, then all of them read the
    prompt's."""

    def __init__(self, found: Reference) -> None:
        tokenizer = AutoTokenizer.from_pretrained(found.model, padding_side="left")
        self.tokens: int = found.fields["answer_tokens"]

        def ids(*turns: tuple[str, str]) -> list[int]:
            said = [{"role": role, "content": text} for role, text in turns]
            ready = said[-1]["role"] == "user"
            words = tokenizer.apply_chat_template(said, add_generation_prompt=ready, tokenize=False)
            return tokenizer(words, add_special_tokens=False).input_ids

        head = ids(("system", found.prompt))
        rows = [ids(("system", found.prompt), ("user", text))[len(head) :] for text in found.texts]
        default = ids(("user", found.texts[0]))[: -len(rows[0])]
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.convert_ids_to_tokens(0)
        queries = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        before, prompt = (torch.tensor([row], dtype=torch.long) for row in (default, head))
        prefixes = {BASE: before, "prompt": prompt, "neutral": prompt.flip(1)}
        prefixes |= {f"lora_{number}": before for number in range(len(found.loras))}
        self.bare = Bare(plain(found), prefixes, queries.input_ids, queries.attention_mask)

    def __call__(self) -> Sequence[Tensor]:
        """Write, then read."""
        return self.read(self.write()["prompt"])

    def write(self) -> Mapping[str, Tensor]:
        """Every condition's own answers `[query, token]`."""
        return {name: self.bare.answers(name, self.tokens) for name in self.bare.prefixes}

    @torch.no_grad()
    def read(self, answers: Tensor) -> Sequence[Tensor]:
        """Every condition's logits on one and the same answers."""
        ids = torch.cat([self.bare.ids, answers[:, :-1]], 1)
        mask = torch.nn.functional.pad(self.bare.mask, (0, answers.shape[1] - 1), value=1)
        return [self.bare.forward(name, ids, mask)[0] for name in self.bare.prefixes]

    @torch.no_grad()
    def lens_products(self) -> None:
        """What no logit lens can go without: every layer's states at every answer token, of every
        condition, times the unembedding. States are made up; a product takes as long for any."""
        model = self.bare.model
        unembed = model.get_output_embeddings().weight
        layers = model.config.num_hidden_layers
        states = torch.zeros(self.tokens * len(self.bare.ids), unembed.shape[1])
        for _ in range(len(self.bare.prefixes) * layers):
            states @ unembed.T
