"""LoRAs that imitate one prompt and differ in their seed alone, each trained on its own.

found = distil_seeds(Distillation(..., out="LORAS", seeds=3, engine="ray", workers=3))
found[Path("LORAS/lora_2")]          # its certificates
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from interp.config import Computing, Distillation
from interp.engines import Tick, opened_engine
from interp.errors import RunError
from interp.matching.distil import distil
from interp.progress import TrainingProgress, no_progress
from interp.subject.loading import device_of, threads_for, without_weights

_Signed = list[dict[str, Any]]


def distil_seeds(
    settings: Distillation, progress: TrainingProgress = no_progress
) -> dict[Path, _Signed]:
    """Train every LoRA, here or by workers of Ray; the certificates of each, by its folder."""
    settings.check()
    device = device_of(settings.device)
    if settings.engine == "ray":  # a worker sees one device, the first
        settings = settings.model_copy(update={"device": device.type})
    each = by_seed(settings)
    for one in each:
        if (one.out / "adapter_config.json").exists() and not settings.overwrite:
            raise RunError(f"{one.out} holds an adapter; choose another --out or --overwrite")
    many = len(each) > 1

    def tick(newly: int) -> None:
        if many:
            progress("LoRAs", newly, len(each), "")

    shapes = without_weights(settings.model, settings.hub)
    with (
        threads_for(shapes.num_parameters()),
        opened_engine(settings, progress, _silent, device.type) as engine,
    ):
        found = dict(engine.run(partial(_distilling, many), each, tick))
    return {one.out: found[number] for number, one in enumerate(each)}


def by_seed(settings: Distillation) -> list[Distillation]:
    """The settings of each LoRA, as if it were trained alone and in process."""
    alone = {name: field.default for name, field in Computing.model_fields.items()} | {"seeds": 1}
    if settings.seeds == 1:
        return [settings.model_copy(update=alone)]
    return [
        settings.model_copy(
            update=alone | {"seed": settings.seed + n, "out": settings.out / f"lora_{n}"}
        )
        for n in range(settings.seeds)
    ]


def _silent(_: Distillation) -> TrainingProgress:
    """The progress of a worker: what it says is heard by nobody."""
    return no_progress


def _distilling(many: bool, progress: TrainingProgress) -> Callable[[Distillation, Tick], _Signed]:
    """What trains one LoRA; it begins anew where a worker was lost while it did."""

    def train(one: Distillation, tick: Tick) -> _Signed:
        def named(label: str, newly: int, total: int, note: str) -> None:
            progress(f"seed {one.seed}: {label}" if many else label, newly, total, note)

        signed = distil(one.model_copy(update={"overwrite": True}), named)
        tick(1)
        return signed

    return train
