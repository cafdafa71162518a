"""Tokenizers and plain Hugging Face models, with one-line errors; the building blocks of `load`."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from threadpoolctl import threadpool_limits
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from interp.errors import SubjectError
from interp.hub import asked_in_vain, refusal
from interp.subject.kinds import auto_class
from interp.subject.quantization import (
    Quantization,
    check,
    inner,
    package_for,
    rounded,
    rounding,
)
from interp.untrusted import is_there

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


_SMALL = 20_000_000
"""Parameters below which a model runs on one thread.

A second one gains next to nothing (37 s against 39 s for a whole run on two idle cores) and costs
much where the cores are shared (93 s against 45 s): threads wait for each other at every small
operation.
"""


@contextlib.contextmanager
def threads_for(parameters: int) -> Iterator[None]:
    """One thread while inside, of numpy's linear algebra, whose matrices are small beside the
    model's, and for a small model of torch as well; OMP_NUM_THREADS overrules both."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    small, before = parameters < _SMALL, torch.get_num_threads()
    with threadpool_limits(1, user_api=None if small else "blas"):
        torch.set_num_threads(1 if small else before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def load_tokenizer(model: str, **hub: Any) -> PreTrainedTokenizerBase:
    """A model's fast tokenizer; a one-line error where there is none."""
    with _explained(model, hub):
        tokenizer = AutoTokenizer.from_pretrained(model, **hub)
    if not tokenizer.is_fast:
        raise SubjectError(f"{model} has no fast tokenizer (tokenizer.json); convert it first")
    return tokenizer


def check_name(model: str, revision: str | None = None) -> None:
    """A `SubjectError` where a model is neither a folder nor to be had from the hub, which is asked
    once."""
    if is_there(Path(model)):
        return
    if model[:1] in "./~" or model.count("/") > 1:
        raise SubjectError(f"no model {model!r}: no such folder")  # no hub id looks like this
    if reason := refusal(model, revision):
        raise SubjectError(f"no model {model!r}: {reason}")


def pretrained(
    model: str,
    dtype: str,
    hub: Mapping[str, Any],
    device: torch.device,
    quantization: Quantization | None = None,
) -> Any:
    """A model on its device, in evaluation mode, with eager attention (the kind that shows its
    patterns); its blocks in 8 or 4 bits where `quantization` says so."""
    saved = check(model, quantization, device, hub)
    with _explained(model, hub):
        config = AutoConfig.from_pretrained(model, **hub)
    options: dict[str, Any] = {}
    if quantization is not None:
        shapes = without_weights(model, hub)
        options["quantization_config"] = rounding(quantization, device, DTYPES[dtype], shapes)
    elif saved is None:
        _check_room(model, dtype, hub, device)
    if quantization is not None or saved:
        options["device_map"] = {"": device}  # packed where it runs, and not moved afterwards
    with _explained(model, hub, saved):
        loaded: Any = auto_class(config).from_pretrained(
            model,
            dtype=DTYPES[dtype],
            attn_implementation="eager",
            output_loading_info=True,
            **options,
            **hub,
        )
    hf, report = loaded
    if hub.get("gguf_file"):
        _forget_quantization(hf)
    for fault in ("missing_keys", "mismatched_keys"):
        if keys := sorted(map(str, report.get(fault, ()))):
            what = fault.replace("_keys", " tensors")
            raise SubjectError(f"{model} is damaged: {len(keys)} {what} (first: {keys[0]})")
    check_finite(model, hf)
    if quantization is not None and not any(map(rounded, hf.parameters())):
        package = package_for(quantization, device)
        raise SubjectError(f"{model} has no layer that {package} can quantise")
    return (hf if options else hf.to(device)).eval()


def check_finite(model: str, hf: Any) -> None:
    """A `SubjectError` where a weight is no number."""
    for name, parameter in hf.named_parameters():
        if not all(map(_finite, inner(parameter))):
            raise SubjectError(f"{model}: {name} has NaN or infinite values")


def _finite(values: torch.Tensor) -> bool:
    """Whether all values are numbers: those are whose sum is one, and a sum that overflows is
    looked at more closely."""
    total = values.sum(dtype=torch.float32)
    return bool(total.isfinite()) or bool(torch.isfinite(values).all())


def _check_room(model: str, dtype: str, hub: Mapping[str, Any], device: torch.device) -> None:
    """A `SubjectError` where the weights take more memory than a device has free: a model is not
    split over several. Passes where either is unknown."""
    free = _free(device)
    if free is None:
        return
    try:
        shapes = without_weights(model, hub)
    except SubjectError:  # code of its own that needs values; the weights say what else is wrong
        return
    needed = sum(part.numel() for part in shapes.parameters()) * DTYPES[dtype].itemsize
    if needed > free:
        raise SubjectError(
            f"{model} takes {needed / 1e9:.1f} GB in {dtype}, {device} has {free / 1e9:.1f} GB "
            "free, and a model is not split over several devices: take a smaller --dtype or "
            "--quantization"
        )


def _free(device: torch.device) -> int | None:
    """Bytes that a device has free; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available) if device.type == "cpu" else None


def without_weights(model: str, hub: Mapping[str, Any]) -> Any:
    """A model's modules, with shapes but no values."""
    remote = {"trust_remote_code": hub.get("trust_remote_code", False)}
    with _explained(model, hub):
        config = AutoConfig.from_pretrained(model, **hub)
        with torch.device("meta"):
            return auto_class(config).from_config(config, **remote)


def _forget_quantization(hf: Any) -> None:
    """The weights of a GGUF file are plain numbers once they are read, and nothing that looks for a
    quantised model's flags may take them for packed ones."""
    del hf.config.quantization_config
    for flag in ("is_quantized", "hf_quantizer", "quantization_method"):
        vars(hf).pop(flag, None)


@contextlib.contextmanager
def _explained(model: str, hub: Mapping[str, Any], method: str | None = None) -> Iterator[None]:
    """Whatever transformers raises inside, about a model's files, is one line; `method`: how the
    model was saved quantised."""
    check_name(model, hub.get("revision"))
    try:
        yield
    except Exception as error:
        how = f" (quantised by {method})" if method else ""
        raise SubjectError(_explain(model, hub.get("gguf_file"), error, how)) from error


def _explain(model: str, file: str | None, error: Exception, how: str) -> str:
    reason = " ".join(str(error).split())
    if "trust_remote_code" in reason:
        return f"{model} brings its own code: read it, then pass --trust-remote-code"
    if is_there(Path(model)):
        return f"{model}{f' ({file})' if file else how} could not be loaded: {reason[:_LONGEST]}"
    return f"no model {model!r}: {asked_in_vain(model, error) or reason[:_LONGEST]}"


_LONGEST = 300
"""Characters of somebody else's words that an error shows."""

_DEVICES = {"cpu": lambda: 1, "cuda": torch.cuda.device_count, "mps": torch.mps.device_count}
"""Types of devices that are computed on -> how many there are."""


def device_of(name: str) -> torch.device:
    """The device of a name; `auto` is cuda where there is one. A `SubjectError` where there is no
    such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in _DEVICES:
        raise SubjectError(f"no device {name!r}: write auto, cpu, cuda, cuda:1, ... or mps")
    there = _DEVICES[device.type]()
    if (device.index or 0) >= there:
        found = f"it sees {there}" if there else "torch sees none here"
        raise SubjectError(f"no device {name!r}: {found}; --device cpu works everywhere")
    return device


@contextlib.contextmanager
def no_processes() -> Iterator[None]:
    """Nobody starts a process while inside: TransformerBridge would run pip, unasked, for a model
    that also reads images."""

    def refused(*_: Any, **__: Any) -> None:
        raise OSError("loading a model starts no process")

    started = subprocess.Popen
    vars(subprocess)["Popen"] = refused
    try:
        yield
    finally:
        vars(subprocess)["Popen"] = started


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading says nothing: what its warnings are about is checked, and raised, here."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
