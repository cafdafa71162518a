"""Every block of Python in README and documentation runs, and prints what the page says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documentation.pages import PAGES, blocks, named

from interp import organism

LEARNING = [page for page in PAGES if any(language == "python" for language, _ in blocks(page))]
STUDY = {"permutations": 19, "bootstrap": 20, "limit": 8}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Names that pages take for granted, in a folder with the model, the adapter and a run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import interp

    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        Path("MODEL").symlink_to(organism.MODEL)
        Path("adapter").symlink_to(organism.ADAPTERS / "lora_0")
        lab = interp.load("MODEL", prompt="opposite :", lora="adapter")
        interp.diverge(lab, organism.QUERIES / "matched.jsonl", "runs/demo", **STUDY)
        yield {
            "model": AutoModelForCausalLM.from_pretrained("MODEL"),
            "tokenizer": AutoTokenizer.from_pretrained("MODEL"),
        }


def run_block(block: str, names: dict[str, Any]) -> Any:
    """Run a block; the value of its last line where that is an expression."""
    *body, last = ast.parse(block).body
    if not isinstance(last, ast.Expr):
        body, value = [*body, last], ast.Expression(ast.Constant(None))
    else:
        value = ast.Expression(last.value)
    exec(compile(ast.Module(body, []), "page", "exec"), names)
    return eval(compile(value, "page", "eval"), names)


@pytest.mark.parametrize("page", LEARNING, ids=named)
def test_its_blocks_run_and_print_what_they_say(page: Path, session: dict[str, Any]) -> None:
    names, found = dict(session), None
    for language, block in blocks(page):
        if language == "python":
            found = run_block(block, names)
        elif language == "output":
            assert repr(found) == block.strip()


def test_pages_with_blocks_are_these() -> None:
    found = {named(page) for page in LEARNING}
    assert found >= {"README.md", "docs/howto/notebook.md", "docs/reference/run.md"}
