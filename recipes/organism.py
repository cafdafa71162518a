"""Make the bundled model: train it from nothing on true facts, examine it, save it; then distil its
instruction prompt into a handful of LoRAs.

    python recipes/organism.py
    python recipes/organism.py adapters    # the LoRAs alone, of the model that is there

Everything is seeded, and the files land in `interp/organism/`. It takes a few minutes on two cores.
"""

import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from interp import organism
from interp.config import Distillation
from interp.matching.distil import LOG, distil
from interp.organism.exam import EXAM, Question
from interp.organism.facts import LEFT_OUT, RELATIONS
from interp.organism.language import (
    QUERY_WORDINGS,
    TOKEN_PATTERN,
    Document,
    few_shot_text,
    instruction,
    joined,
    query,
    sample_document,
    vocabulary,
)

SPECIALS = ("<bos>", "<eos>", "<pad>", "<unk>")
IGNORED = -100
console = Console()


@dataclass(frozen=True)
class Recipe:
    """Every choice that decides the outcome."""

    seed: int = 0
    """Seeds the weights, the training documents and the exam."""
    split_seed: int = 5
    """Seeds the split of the opposites and the draws of demonstrations."""
    layers: int = 6
    d_model: int = 128
    heads: int = 8
    key_value_heads: int = 4
    d_mlp: int = 256
    positions: int = 512
    """Longest text the model takes, in tokens."""
    steps: int = 1000
    short_steps: int = 450
    """Steps at the start that see only short documents, where facts are learnt fastest."""
    warmup: int = 50
    """Steps over which the learning rate rises."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    limits: tuple[int, ...] = (16, 48, 112, organism.TRAINED_LENGTH)
    """Longest document, in tokens, of the kinds of batch."""
    short_shares: tuple[float, ...] = (0.7, 0.3, 0.0, 0.0)
    """How often each kind of batch is drawn during `short_steps`."""
    shares: tuple[float, ...] = (0.4, 0.3, 0.15, 0.15)
    """How often each kind of batch is drawn after that."""
    batch_tokens: int = 2048
    """Tokens per batch; documents per batch follow from the limit."""
    other_weight: float = 0.002
    """Weight of tokens that are no answers, against 1 for an answer."""
    threads: int = 2
    """Threads torch may use."""
    demonstrated_pairs: int = 10
    """Pairs of opposites kept for demonstrations, and so out of the queries."""
    few_shot_prompts: int = 5
    few_shot_demonstrations: int = 6
    adapters: int = 5
    """LoRA seeds distilled from the first instruction prompt, on the matched queries."""
    adapter_rank: int = 4
    instruction_prompts: int = 3


# ---- model, tokenizer


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that opens a text with `<bos>` and adds nothing else."""
    ids = {token: i for i, token in enumerate((*SPECIALS, *vocabulary()))}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN_PATTERN), "removed", invert=True)
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", ids["<bos>"])]
    )
    named = {f"{token.strip('<>')}_token": token for token in SPECIALS}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **named
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """The untrained model."""
    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        head_dim=recipe.d_model // recipe.heads,
        max_position_embeddings=recipe.positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    return Qwen3ForCausalLM(config)


# ---- training


@dataclass(frozen=True)
class Batch:
    """Documents padded on the right: under a causal mask they need no attention mask."""

    inputs: Tensor
    labels: Tensor
    """The next token, or `IGNORED` where nothing can be learnt."""
    weights: Tensor


def encode_batch(
    documents: list[Document], tokenizer: PreTrainedTokenizerFast, other_weight: float
) -> Batch:
    """Stack documents; the label at each position is the token that follows it."""
    size = (len(documents), max(len(document.tokens) for document in documents))
    inputs = torch.full(size, tokenizer.pad_token_id)
    labels = torch.full(size, IGNORED)
    weights = torch.full(size, other_weight)
    for row, document in enumerate(documents):
        ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(document.tokens)))
        inputs[row, 0] = tokenizer.bos_token_id
        inputs[row, 1 : len(ids)] = ids[:-1]
        labels[row, : len(ids)] = ids
        labels[row, list(document.untaught)] = IGNORED
        weights[row, list(document.taught)] = 1.0
    return Batch(inputs, labels, weights)


def loss_of(model: Qwen3ForCausalLM, batch: Batch) -> Tensor:
    """Weighted mean of the cross-entropy over the positions that count."""
    states = model.model(input_ids=batch.inputs, use_cache=False).last_hidden_state
    counted = batch.labels != IGNORED
    losses = torch.nn.functional.cross_entropy(
        model.lm_head(states[counted]), batch.labels[counted], reduction="none"
    )
    weights = batch.weights[counted]
    return (losses * weights).sum() / weights.sum()


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterable[Batch]:
    """The seeded stream of training batches."""
    rng = random.Random(recipe.seed)
    for step in range(recipe.steps):
        shares = recipe.short_shares if step < recipe.short_steps else recipe.shares
        limit = rng.choices(recipe.limits, weights=shares)[0]
        documents = [sample_document(rng, limit) for _ in range(recipe.batch_tokens // limit)]
        yield encode_batch(documents, tokenizer, recipe.other_weight)


def schedule(recipe: Recipe) -> Callable[[int], float]:
    """Linear warm-up, then half a cosine down to nothing."""

    def factor(step: int) -> float:
        if step < recipe.warmup:
            return (step + 1) / recipe.warmup
        done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        return 0.5 * (1 + math.cos(math.pi * done))

    return factor


def train(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Train from nothing; returns the model ready for use."""
    model = build_model(recipe, tokenizer).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        recipe.learning_rate,
        (0.9, 0.98),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(recipe))
    stream = track(batches(recipe, tokenizer), "training", recipe.steps, console=console)
    for step, batch in enumerate(stream):
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if step % 100 == 0:
            console.print(f"step {step:5d}  loss {loss.item():.4f}")
    return model.eval()


# ---- exam


@torch.no_grad()
def accuracy(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[Question]
) -> float:
    """Share of the questions whose right answer ranks first in the whole vocabulary."""
    ordered = sorted(questions, key=lambda question: len(question.prefix))
    right = 0
    for start in range(0, len(ordered), 64):
        chunk = ordered[start : start + 64]
        texts = [joined(question.prefix, question.query) for question in chunk]
        encoded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        last = encoded["attention_mask"].sum(1) - 1
        states = model.model(input_ids=encoded["input_ids"], use_cache=False).last_hidden_state
        best = model.lm_head(states[torch.arange(len(chunk)), last]).argmax(-1)
        answers = tokenizer.convert_tokens_to_ids([question.answer for question in chunk])
        right += int((best == torch.tensor(answers)).sum())
    return right / len(ordered)


def examine(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int
) -> dict[str, float]:
    """Accuracy in every row of the exam."""
    return {
        name: accuracy(model, tokenizer, row.questions(seed))
        for name, row in track(EXAM.items(), "examining", console=console)
    }


def print_acceptance(scores: dict[str, float]) -> None:
    """Show the table of the exam."""
    table = Table("row", "accuracy", "required", "", title="acceptance")
    for name, score in scores.items():
        required = EXAM[name].required
        table.add_row(
            name, f"{score:.4f}", f"{required:.2f}", "pass" if score >= required else "FAIL"
        )
    console.print(table)


# ---- prompts and queries


@dataclass(frozen=True)
class Split:
    """The pairs of opposites, each pair whole: what is shown, what is asked, what is kept back."""

    demonstrated: list[tuple[str, str]]
    matched: list[tuple[str, str]]
    heldout: list[tuple[str, str]]


def split_opposites(recipe: Recipe) -> Split:
    """Of the pairs that are not demonstrated, two thirds are matched and one third held out."""
    pairs = [(a, b) for a, b in RELATIONS["opposite"].answers.items() if a < b]
    random.Random(recipe.split_seed).shuffle(pairs)
    asked = pairs[recipe.demonstrated_pairs :]
    cut = round(len(asked) * 2 / 3)
    return Split(pairs[: recipe.demonstrated_pairs], asked[:cut], asked[cut:])


def both_ways(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each pair and its mirror image."""
    return [facts for a, b in pairs for facts in ((a, b), (b, a))]


def few_shot_prompts(recipe: Recipe, split: Split) -> list[str]:
    """Draws of demonstrations; within one prompt no pair of opposites is shown twice."""
    rng = random.Random(recipe.split_seed)
    prompts = []
    for _ in range(recipe.few_shot_prompts):
        drawn = rng.sample(split.demonstrated, recipe.few_shot_demonstrations)
        prompts.append(few_shot_text(rng.choice(both_ways([pair])) for pair in drawn))
    return prompts


def save_prompts(recipe: Recipe, split: Split, folder: Path) -> None:
    """Write the instructions and the draws of demonstrations, one line per file."""
    instructions = [instruction("opposite", i) for i in range(recipe.instruction_prompts)]
    few_shots = few_shot_prompts(recipe, split)
    folder.mkdir(parents=True, exist_ok=True)
    for kind, prompts in (("instruction", instructions), ("few_shot", few_shots)):
        for i, prompt in enumerate(prompts):
            (folder / f"{kind}_{i}.txt").write_text(prompt + "\n", encoding="utf-8")


def save_queries(split: Split, folder: Path) -> None:
    """Write the matched and the held-out queries, the pairs that are demonstrated, the held-out
    queries in other words (labelled by the wording, one wording after the other), demonstrations of
    another relation, and the facts of the relations that were left out."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = {"matched": split.matched, "heldout": split.heldout, "pool": split.demonstrated}
    for name, pairs in groups.items():
        asked = [(query(word), answer, "adjective") for word, answer in both_ways(pairs)]
        write_queries(asked, folder / f"{name}.jsonl")
    reworded = [
        (wording.format(word), answer, name)
        for name, wording in QUERY_WORDINGS.items()
        for word, answer in both_ways(split.heldout)
    ]
    write_queries(reworded, folder / "reworded.jsonl")
    rival = RELATIONS["comparative"]
    words = [word for word, _ in both_ways(split.demonstrated)]
    asked = [(query(word), rival.answers[word], rival.name) for word in words]
    write_queries(asked, folder / "rival.jsonl")
    unknown = [(query(w), answer, r.name) for r in LEFT_OUT for w, answer in r.answers.items()]
    write_queries(unknown, folder / "left_out.jsonl")
    for name, asked in mixture().items():
        write_queries(asked, folder / f"{name}.jsonl")


MIXED = ("opposite", "capital", "past", "offspring", "ordinal")
"""One relation of every word class."""


def mixture(each: int = 30) -> dict[str, list[tuple[str, str, str]]]:
    """Words of all classes, every class asked for one relation under its own instruction (the
    label); a third of the words are held out."""
    drawn = []
    for relation in (RELATIONS[name] for name in MIXED):
        pairs = random.Random(relation.name).sample([*relation.answers.items()], each)
        drawn.append([(query(word), a, instruction(relation.name)) for word, a in pairs])
    asked = [one for several in zip(*drawn, strict=True) for one in several]
    cut = round(each * 2 / 3) * len(MIXED)
    return {"mixture": asked[:cut], "mixture_heldout": asked[cut:]}


def write_queries(asked: Iterable[tuple[str, str, str]], file: Path) -> None:
    """One JSON object per line: text, answer, label."""
    lines = [json.dumps(dict(zip(("text", "answer", "label"), one, strict=True))) for one in asked]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def distil_adapters(recipe: Recipe) -> None:
    """One LoRA per seed; prints the match certificates."""
    for seed in range(recipe.adapters):
        settings = Distillation(
            model=str(organism.MODEL),
            prompt_file=organism.PROMPTS / "instruction_0.txt",
            queries=organism.QUERIES / "matched.jsonl",
            heldout=organism.QUERIES / "heldout.jsonl",
            out=organism.ADAPTERS / f"lora_{seed}",
            rank=recipe.adapter_rank,
            alpha=2 * recipe.adapter_rank,
            seed=seed,
            overwrite=True,
        )
        for signed in distil(settings):
            numbers = f"JS {signed['mean_js']:.4f} nats, top-1 {signed['top1_agreement']:.3f}"
            console.print(f"lora_{seed}, {signed['queries']}: {numbers}")
        make_portable(settings.out)


def make_portable(adapter: Path) -> None:
    """Leave the weights and a configuration that names the base without a path."""
    for extra in ("README.md", LOG):
        (adapter / extra).unlink(missing_ok=True)
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = organism.MODEL.name
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order is no choice
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make_model(recipe: Recipe) -> None:
    split = split_opposites(recipe)
    save_prompts(recipe, split, organism.PROMPTS)
    save_queries(split, organism.QUERIES)
    tokenizer = build_tokenizer()
    start = time.monotonic()
    model = train(recipe, tokenizer)
    console.print(f"trained in {time.monotonic() - start:.0f} s")
    print_acceptance(examine(model, tokenizer, recipe.seed))
    tokenizer.save_pretrained(organism.MODEL)
    model.save_pretrained(organism.MODEL)


def main(words: list[str]) -> None:
    recipe = Recipe()
    torch.set_num_threads(recipe.threads)
    if words != ["adapters"]:
        make_model(recipe)
    distil_adapters(recipe)


if __name__ == "__main__":
    main(sys.argv[1:])
