"""Make the separating toy of Petrov, Torr & Bibi: pretrain, then prefix tuning against LoRA.

    python recipes/petrov_toy.py             # everything, into interp/toy/
    python recipes/petrov_toy.py adapters    # the adapters alone, of the model that is there

The experiment (arXiv 2310.19698, section 6; the authors' code is at github.com/AleksandarPetrov/
prefix-tuning-theory): a GPT learns from nothing to sort digits up or down or to add 1 or 2 to each,
without being told which. Then a prefix and a rank-1 LoRA of equally many numbers are trained on
"double histogram": how often each digit stands in the input. Published: 0.31 % of 3,200 outputs
wholly right under the prefix, 92.38 % under the LoRA. A prefix cannot move a head's attention among
the digits, it only adds to what the head writes; a task that the model knows it still elicits.

Measured here on 2,000 held-out inputs, whole outputs, greedy (`interp/toy/report.json`):

    model        four known tasks, told which        100 % each
    model        double histogram                    0.1 %
    prefix       double histogram, 12,500 steps      4.65 %    5,376 numbers (7 virtual tokens)
    LoRA         double histogram, 2,500 steps       98.4 %    5,376 numbers
    prefix       ascending, 500 steps                100 %     5,376 numbers

The prefix's rate, 0.3, is the best of six, and neither the lowest nor the highest. It gets 43 % of
the single digits right; always giving the most frequent output would be right in 2 %. On 8,000
other draws it is right in 4.3 %, the LoRA in 98.6 %. One seed. A step takes 46 to 55 ms of one
thread, so everything about 17 minutes; the committed stages were run one by one on busy cores,
hence the seconds in the report, which was put together from their logs.

Deviations. Smaller, for two CPU cores: 7 digits of 4 kinds instead of 10 of 8 (not 8 digits, of
which two kinds four times each is 4 % of the inputs); 0.32M parameters in 6 layers of width 64
instead of 3.2M in 4 of 256; 2,500 steps of pretraining, 2,500 of LoRA and 12,500 of prefix instead
of 40,000, 10,000 and 100,000. Another model: a Qwen3, whose rotary positions let a prefix stand
before the digits without moving them into positions it was not trained on (the original pads), no
dropout, rates that rise and fall. Another prefix: peft's keys and values, not inputs of attention.
As in the original: batches of 64, a quarter of all inputs held out, inputs of many different digits
thinned, and a LoRA on the MLP and on the attention's output projection. The paper speaks of the
MLP, but its code adapts every `c_proj`, which is in both, and only so has the 12,288 numbers that
it prints. On the MLP alone (4,608 numbers) it reaches 74.1 % here in the same 2,500 steps.
"""

import copy
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, get_peft_model
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from interp import toy

console = Console()


@dataclass(frozen=True)
class Recipe:
    """Every choice that decides the outcome."""

    seed: int = 0
    layers: int = 6
    d_model: int = 64
    heads: int = 4
    d_mlp: int = 192
    batch: int = 64
    steps: int = 2500
    """Of pretraining, every input with one of the four tasks."""
    learning_rate: float = 4e-3
    warmup: float = 0.05
    """Share of the steps over which a learning rate rises; after that half a cosine down."""
    lora_targets: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj", "o_proj")
    """The MLP, and what writes the heads' outputs: what the original code adapts."""
    lora_steps: int = 2500
    lora_rate: float = 1.5e-2
    virtual_tokens: int = 7
    """Keys and values of 7 tokens are as many numbers as the LoRA has."""
    prefix_steps: int = 12500
    prefix_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """Swept; the one of the lowest validation loss is trained for `prefix_steps`."""
    sweep_steps: int = 500
    old_prefix_steps: int = 500
    check_every: int = 250
    """Steps between two looks at the validation inputs; the best state is kept."""
    validation: int = 512
    """Inputs apart from the training stream, none of them held out."""
    examined: int = 2000
    """Held-out inputs of every reported accuracy."""


# ---- model and tokenizer


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Digits apart by spaces; a text opens with `<bos>`."""
    ids = {**{str(digit): digit for digit in range(toy.DIGITS)}, "<bos>": toy.BOS}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<bos>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", toy.BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", clean_up_tokenization_spaces=False
    )


def build_model(recipe: Recipe) -> Qwen3ForCausalLM:
    """The untrained model. Rotary positions: a prefix does not move the digits from each other."""
    torch.manual_seed(recipe.seed)
    config = Qwen3Config(
        vocab_size=toy.BOS + 1,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.d_model // recipe.heads,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=toy.BOS,
        eos_token_id=None,
        pad_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def load_model() -> Qwen3ForCausalLM:
    """The saved, rounded weights, named without a path, since adapters write down the name."""
    model = Qwen3ForCausalLM.from_pretrained(toy.MODEL, dtype=torch.float32)
    model.name_or_path = toy.MODEL.name
    return model


# ---- training


def draw(rng: np.random.Generator, size: int, tasks: Sequence[str]) -> Tensor:
    """`<bos>`, an input that may be trained on, and its output under a task drawn at random."""
    digits = toy.sample_inputs(rng, size, held_out=False)
    outputs = np.stack([toy.TASKS[task](digits) for task in tasks])
    chosen = outputs[rng.integers(len(tasks), size=size), np.arange(size)]
    return torch.from_numpy(np.concatenate([np.full((size, 1), toy.BOS), digits, chosen], axis=1))


def loss_of(model: Any, ids: Tensor) -> Tensor:
    """Cross-entropy of the output digits, each predicted after those before it."""
    logits = model(input_ids=ids[:, :-1]).logits[:, toy.LENGTH :]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1 + toy.LENGTH :].flatten()
    )


def factor(step: int, steps: int, warmup: float) -> float:
    """Of the learning rate: linear warm-up, then half a cosine down to nothing."""
    done = (step / steps - warmup) / (1 - warmup)
    return (step + 1) / (steps * warmup) if done < 0 else 0.5 * (1 + math.cos(math.pi * done))


def fit(model: Any, tasks: Sequence[str], steps: int, rate: float, recipe: Recipe) -> float:
    """Train what requires a gradient; leaves the state of the lowest loss on the validation
    inputs in the model, and returns that loss (nats per digit)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, rate, (0.9, 0.98), weight_decay=0.0)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: factor(step, steps, recipe.warmup)
    )
    rng = np.random.default_rng(recipe.seed)
    validation = draw(np.random.default_rng(recipe.seed + 1), recipe.validation, tasks)
    best, kept, start = math.inf, copy.deepcopy(trained), time.monotonic()
    for step in range(1, steps + 1):
        loss = loss_of(model, draw(rng, recipe.batch, tasks))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        rates.step()
        if step % recipe.check_every == 0 or step == steps:
            with torch.no_grad():
                now = float(loss_of(model, validation))
            console.print(f"step {step:6d}  loss {now:.4f}  {time.monotonic() - start:.0f} s")
            if now < best:
                best, kept = now, copy.deepcopy(trained)
    with torch.no_grad():
        for parameter, value in zip(trained, kept, strict=True):
            parameter.copy_(value)
    return best


# ---- accuracy


@torch.no_grad()
def completed(model: Any, ids: Tensor) -> Tensor:
    """`ids` continued greedily to the end of the output."""
    while ids.shape[1] < 1 + 2 * toy.LENGTH:
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids


def accuracy(model: Any, task: str, recipe: Recipe, *, told: bool) -> float:
    """Share of held-out inputs whose whole output is right, told its first digit or not."""
    ids = torch.from_numpy(toy.exam(recipe.seed + 2, recipe.examined, task, told=told))
    answers = completed(model, ids[:, : 1 + toy.LENGTH + told])
    return round(float((answers == ids).all(1).float().mean()), 4)


# ---- stages


def pretrain(recipe: Recipe) -> dict[str, Any]:
    """Make, examine and save the model, in half precision."""
    start = time.monotonic()
    model = build_model(recipe)
    fit(model, list(toy.PRETRAINED), recipe.steps, recipe.learning_rate, recipe)
    model.half().save_pretrained(toy.MODEL)
    build_tokenizer().save_pretrained(toy.MODEL)
    model = load_model()
    scores = {task: accuracy(model, task, recipe, told=True) for task in toy.PRETRAINED}
    scores[toy.NEW_TASK] = accuracy(model, toy.NEW_TASK, recipe, told=False)
    return {"accuracy": scores, "seconds": round(time.monotonic() - start)}


def adapt(
    config: PeftConfig, task: str, steps: int, rate: float, recipe: Recipe, out: Path | None = None
) -> dict[str, Any]:
    """Train one adapter on one task, examine it, and save it if `out` is given."""
    console.print(f"[bold]{type(config).__name__}: {task}, {steps} steps at {rate}")
    torch.manual_seed(recipe.seed)
    model = get_peft_model(load_model(), copy.deepcopy(config))
    start = time.monotonic()
    loss = fit(model, [task], steps, rate, recipe)
    facts = {
        "task": task,
        "steps": steps,
        "learning_rate": rate,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds": round(time.monotonic() - start),
        "validation_loss": round(loss, 4),
        "accuracy": accuracy(model, task, recipe, told=False),
    }
    console.print(f"accuracy {facts['accuracy']}")
    if out:
        save(model, out)
    return facts


def save(model: Any, out: Path) -> None:
    """Weights and configuration as peft writes them, without what it adds or leaves to chance."""
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)
    file = out / "adapter_config.json"
    config = json.loads(file.read_text())
    if targets := config.get("target_modules"):
        config["target_modules"] = sorted(targets)  # a set: its order is no choice
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def adapters(recipe: Recipe) -> dict[str, Any]:
    """The LoRA, the prefix with its sweep, and the prefix on a task that the model knows."""
    lora = LoraConfig(
        r=1, lora_alpha=1, target_modules=list(recipe.lora_targets), task_type="CAUSAL_LM"
    )
    prefix = PrefixTuningConfig(num_virtual_tokens=recipe.virtual_tokens, task_type="CAUSAL_LM")
    made: dict[str, Any] = {
        "lora": adapt(lora, toy.NEW_TASK, recipe.lora_steps, recipe.lora_rate, recipe, toy.LORA)
    }
    sweep = [
        adapt(prefix, toy.NEW_TASK, recipe.sweep_steps, rate, recipe)
        for rate in recipe.prefix_rates
    ]
    rate = min(sweep, key=lambda tried: tried["validation_loss"])["learning_rate"]
    made["prefix"] = adapt(prefix, toy.NEW_TASK, recipe.prefix_steps, rate, recipe, toy.PREFIX)
    made["prefix"]["sweep"] = sweep
    made["old_prefix"] = adapt(
        prefix, toy.OLD_TASK, recipe.old_prefix_steps, rate, recipe, toy.OLD_PREFIX
    )
    return made


def main(words: list[str]) -> None:
    recipe = Recipe()
    torch.set_num_threads(1)
    if words != ["adapters"]:
        write_report({"model": pretrain(recipe)})
    known = json.loads(toy.RECIPE_REPORT.read_text())["model"]
    report = {"recipe": asdict(recipe), "model": known, **adapters(recipe)}
    write_report(report)
    console.print_json(data=report)


def write_report(report: dict[str, Any]) -> None:
    toy.RECIPE_REPORT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
