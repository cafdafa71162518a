"""Chat templates in the styles of the field, in words of our own, on tiny tokenizers.

style = STYLES["llama3"]
words = tokenizer_of("llama3")                       # saved and loaded back
ids = reference(words, [user("big ->")], style)      # what transformers writes for a conversation
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import tiny_models
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Style:
    """A template, the special tokens it writes, the tokenizer under it, and (`ends`) what it
    writes after a user's text up to the model's answer; `joins`: what stands between a system
    message and a query that it is merged with."""

    template: str
    specials: tuple[str, ...]
    ends: str
    words: str = "gpt2"
    bos: str = "<s>"
    options: dict[str, Any] = field(default_factory=dict)
    trims: bool = False
    swallows: bool = False


CHATML_TURN = "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
CHATML = (
    "{% for m in messages %}" + CHATML_TURN + "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nthe hill is high and wide<|im_end|>\\n' }}{% endif %}" + CHATML
)
LLAMA3_TURN = (
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}"
)
LLAMA3 = (
    "{{ bos_token }}"
    "{% if date_string is not defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set words = messages[0]['content'] | trim %}{% set turns = messages[1:] %}"
    "{% else %}{% set words = '' %}{% set turns = messages %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nthat day: ' + date_string + '\\n\\n' "
    "+ words + '<|eot_id|>' }}"
    "{% for m in turns %}" + LLAMA3_TURN + "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA_TURNS = (
    "{% for m in turns %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns of user and model must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\\n' "
    "+ (first if loop.first else '') + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}" + GEMMA_TURNS
)
GEMMA_STRICT = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('there is no system role\\nhere') }}{% endif %}"
    "{% set first = '' %}{% set turns = messages %}" + GEMMA_TURNS
)


def mistral(opening: str, closing: str) -> str:
    """System text before the last message of the user."""
    return (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{% set words = messages[0]['content'] %}{% set turns = messages[1:] %}"
        "{% else %}{% set turns = messages %}{% endif %}"
        "{% for m in turns %}{% if m['role'] == 'user' %}"
        "{% if loop.last and words is defined %}"
        "{{ '" + opening + "' + words + '\\n\\n' + m['content'] + '" + closing + "' }}"
        "{% else %}{{ '" + opening + "' + m['content'] + '" + closing + "' }}{% endif %}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )


THINKING = (
    "{% for m in messages %}{% set said = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in said %}"
    "{% set said = said.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + said + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
TRIMMING = CHATML.replace("m['content']", "m['content'] | trim")
DROPPING = CHATML.replace(
    "{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"
)
RAISING = (
    "{% for m in messages %}{% if not m['content'] %}"
    "{{ raise_exception('a message without content') }}{% endif %}"
    + CHATML_TURN
    + "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)

IM = ("<|im_start|>", "<|im_end|>")
TURN = ("<start_of_turn>", "<end_of_turn>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
INST = ("[INST]", "[/INST]")
CHATML_ENDS = "<|im_end|>\n<|im_start|>assistant\n"
LLAMA3_ENDS = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
GEMMA_ENDS = "<end_of_turn>\n<start_of_turn>model\n"

STYLES: dict[str, Style] = {
    "chatml": Style(CHATML, IM, CHATML_ENDS),
    "chatml_bos": Style(CHATML, IM, CHATML_ENDS, bos="<|im_start|>"),
    "default": Style(WITH_DEFAULT, IM, CHATML_ENDS, words="lines"),
    "llama3": Style(LLAMA3, HEADERS, LLAMA3_ENDS, words="lines_bos", trims=True),
    "llama3_dated": Style(
        LLAMA3,
        HEADERS,
        LLAMA3_ENDS,
        words="lines_bos",
        options={"date_string": "1 Dec 2024"},
        trims=True,
    ),
    "gemma": Style(GEMMA, TURN, GEMMA_ENDS, words="llama", trims=True),
    "gemma_lines": Style(GEMMA, TURN, GEMMA_ENDS, words="lines_bos", trims=True),
    "gemma_strict": Style(GEMMA_STRICT, TURN, GEMMA_ENDS, words="llama", trims=True),
    "mistral": Style(mistral("[INST]", "[/INST]"), INST, "[/INST]", words="lines_bos"),
    "mistral_spaced": Style(mistral("[INST] ", " [/INST]"), INST, " [/INST]", words="llama"),
    "thinking": Style(THINKING, (*IM, "<think>", "</think>"), CHATML_ENDS, words="lines"),
    "not_thinking": Style(
        THINKING,
        (*IM, "<think>", "</think>"),
        CHATML_ENDS + "<think>\n\n</think>\n\n",
        words="lines",
        options={"enable_thinking": False},
    ),
    "trimming": Style(TRIMMING, IM, CHATML_ENDS, trims=True),
    "dropping": Style(DROPPING, IM, CHATML_ENDS),
    "raising": Style(RAISING, IM, CHATML_ENDS),
    "phi": Style(
        PHI,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|end|>\n<|assistant|>\n",
        swallows=True,
    ),
    "plain": Style(PLAIN, (), "\nassistant:", words="lines"),
}


@cache
def lines() -> str:
    """A byte-level tokenizer that splits as Llama-3, Qwen and Tekken do, with its tokens for
    punctuation that ends a line."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(
        [tiny_models.TEXT, "day.\n\nday.\nday:\n\nday\n\nday:\nday\nday:. a:. "], trainer
    )
    return core.to_str()


def words_of(convention: str) -> Any:
    """A tokenizer in memory: those of the tiny models, or `lines` with a BOS before every text or
    without."""
    if not convention.startswith("lines"):
        return tiny_models.tokenizer(convention)
    core = Tokenizer.from_str(lines())
    if convention == "lines_bos":
        core.post_processor = tiny_models.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def made(style: Style) -> Any:
    """A style's tokenizer in memory, its special tokens real ones."""
    words = words_of(style.words)
    tokens = [
        AddedToken(t, special=True, normalized=False, rstrip=style.swallows) for t in style.specials
    ]
    words.add_special_tokens({"additional_special_tokens": tokens})
    words.bos_token = style.bos
    words.chat_template = style.template
    return words


@cache
def tokenizer_of(name: str) -> Any:
    """A style's tokenizer, saved and loaded back as users load theirs."""
    with tempfile.TemporaryDirectory() as folder:
        made(STYLES[name]).save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


def reference(words: Any, messages: Sequence[dict[str, str]], **options: Any) -> list[int]:
    """What transformers makes of a conversation."""
    return words.apply_chat_template(
        list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **options
    )


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}
