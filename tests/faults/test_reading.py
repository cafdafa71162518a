"""Bytes of people and other programs: what no parser would refuse by itself is one line."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.conditions import Lora, Prompt, read_config
from interp.config import Distillation, Experiment, from_yaml, parse_condition, read_prompt
from interp.errors import ConditionError, ConfigError, QueryError
from interp.queries import read_queries
from interp.untrusted import check_text, is_there, read_json, read_yaml

DEEP = 2_000
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
"""A hundred milliard values in a few lines."""

BAD_JSON = {
    b'{"a": 1, "a": 2}': "'a' stands twice",
    b"[" * DEEP + b"]" * DEEP: "nested",
    b"[" * 100 + b"]" * 100: "nested",
    b'{"a": ' + b"9" * 5_000 + b"}": "digits",
    b'{"a": ' + b"9" * 30 + b"}": "64 bits",
    b'{"a": 1e999}': "infinite",
    b'{"a": NaN}': "NaN is no number",
    b'{"a": -Infinity}': "-Infinity is no number",
    rb'{"a": "\ud800"}': "surrogate",
    rb'{"\udfff": 1}': "surrogate",
    b'{"a": "\xff"}': "utf-8",
    b"{": "Expecting",
}
BAD_YAML = {
    "a: 1\nb: 2\na: 3\n": "line 3: the key 'a' stands twice, first in line 1",
    "a: &b [*b]": "stands for itself",
    "&a {b: *a}": "stands for itself",
    BOMB: "aliases stand for more than",
    "[" * DEEP + "]" * DEEP: "nested",
    "- " * DEEP + "a": "nested",
    "[" * 100 + "]" * 100: "nested",
    "a: " + "9" * 5_000: "digits",
    "a: " + "9" * 30: "64 bits",
    r'a: "\ud800"': "surrogate",
    "a: .inf": "infinite",
    "a: !!python/object/apply:os.system ['true']": "python/object",
    "a: !!bool maybe": "",
    "a: !!int ''": "",
    "a: !!timestamp soon": "",
    "a: 2020-13-45": "",
    "? [a]\n: b": "hashable",
    "a: [": "",
    "\x07": "",
}


@pytest.mark.parametrize(("content", "said"), BAD_JSON.items(), ids=range(len(BAD_JSON)))
def test_json_that_would_be_taken_or_fail_is_one_line(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_json(content)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "said"), BAD_YAML.items(), ids=range(len(BAD_YAML)))
def test_yaml_that_would_be_taken_hang_or_fail_is_one_line(content: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_yaml(content.encode())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(
        st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@given(plain)
def test_ordinary_json_is_read_as_it_was_written(value: Any) -> None:
    assert read_json(json.dumps(value).encode()) == value
    assert read_json(b"\xef\xbb\xbf" + json.dumps(value, ensure_ascii=False).encode()) == value


def test_anchors_are_of_use_where_they_are_few() -> None:
    shared = "x: &x {lora: {adapter: a}}\ny: *x\nz: {<<: *x, more: 1}\n"
    assert read_yaml(shared.encode())["z"] == {"lora": {"adapter": "a"}, "more": 1}


def test_a_name_that_no_file_can_have_is_not_there(tmp_path: Path) -> None:
    assert is_there(tmp_path)
    for name in ("a" * 400, "a\0b", "/".join("ab" * 3_000)):
        assert not is_there(tmp_path / name)


@pytest.mark.parametrize("text", ["", "a", "é", "\0", "\U0001f600", "\u202e"])
def test_every_text_but_half_a_character_is_one(text: str) -> None:
    check_text(text)
    with pytest.raises(ValueError, match="U\\+D83D is half a character"):
        check_text(f"{text}\ud83d")


# Where such bytes come in ------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["text", "answer", "label"])
@pytest.mark.parametrize("value", [r'"\ud83d"', "9" * 5_000, "[" * DEEP + "]" * DEEP])
def test_a_query_of_them_is_named_with_its_line(tmp_path: Path, field: str, value: str) -> None:
    path = tmp_path / "queries.jsonl"
    other = "" if field == "text" else '"text": "hot is", '
    path.write_text(f'{{"text": "fine"}}\n{{{other}"{field}": {value}}}\n')
    with pytest.raises(QueryError, match=r"queries\.jsonl, line 2: ") as caught:
        read_queries(path)
    assert "\n" not in str(caught.value)


def test_a_field_of_a_query_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q").write_text('{"text": "hot", "text": "cold"}\n')
    with pytest.raises(QueryError, match=r"line 1: .*'text' stands twice"):
        read_queries(tmp_path / "q")


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf", b"\r\n"])
def test_an_empty_prompt_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"p\.txt is empty"):
        read_prompt(tmp_path / "p.txt")


ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "m", "target_modules": ["q"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(ADAPTER | {"base_model_name_or_path": 7}), "is 7, not a text"),
        (json.dumps(ADAPTER | {"peft_type": ["LORA"]}), "not a text"),
        (json.dumps(ADAPTER | {"target_modules": "(q"}), "no regular expression"),
        (json.dumps(ADAPTER | {"exclude_modules": "*"}), "no regular expression"),
        (json.dumps(ADAPTER | {"rank_pattern": {"[": 1}}), "no regular expression"),
        ("[" * DEEP + "]" * DEEP, "nested"),
        ('{"r": 8, "r": 16}', "'r' stands twice"),
        ('{"r": NaN}', "NaN"),
        ("[]", "no fields"),
    ],
)
def test_a_configuration_of_an_adapter_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ConditionError) as caught:
        read_config(str(tmp_path))
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


REQUIRED = "model: m\nqueries: q\nout: o\n"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("memory: .inf", "infinite"),
        ("memory: .nan", "memory: Input should be a finite number"),
        ("seed: -1", "seed: Input should be greater than or equal to 0"),
        (f"seed: {2**40}", "seed: Input should be less than"),
        ("bootstrap: 1000000000000", "bootstrap: Input should be less than"),
        ("seed: 1\nseed: 2", "'seed' stands twice"),
        ("adaptor: [a]", "adaptor: Extra inputs are not permitted; did you mean adapter?"),
        ("conditions: {a: &a [*a]}", "stands for itself"),
    ],
)
def test_an_experiment_of_them_is_one_line(tmp_path: Path, more: str, said: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(f"{REQUIRED}{more}\n")
    with pytest.raises(ConfigError) as caught:
        from_yaml(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("settings", [Experiment, Distillation])
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_every_seed_is_bounded(settings: Any, seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        settings(model="m", queries="q", out="o", seed=seed)


def test_a_long_name_in_an_experiment_is_taken_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(f"{REQUIRED}adapter: [{'a' * 400}]\n")
    assert from_yaml(tmp_path / "e.yaml")["adapter"] == ("a" * 400,)
    with pytest.raises(ConditionError, match="is not a peft adapter"):
        read_config("a" * 400)
    with pytest.raises(ConfigError, match="too long"):
        read_prompt(Path("a" * 400))


@pytest.mark.parametrize("template", ["{quer}", "{", "{0}", "{query.a}", "{query:>9}", "{query!r}"])
def test_a_template_that_writes_no_demonstration_is_refused(template: str) -> None:
    pairs = [["hot", "cold"]]
    with pytest.raises(ConfigError, match=r"condition few: .*template"):
        parse_condition("few", {"prompt": {"pairs": pairs, "template": template}}, {})
    with pytest.raises(ConditionError, match="template"):
        Prompt(pairs=(("hot", "cold"),), template=template)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"lora": {"adaptor": "x"}}, "did you mean adapter?"),
        ({"lorra": {"adapter": "x"}}, "did you mean lora?"),
        ({"lora": {"adapter": "x", "scale": float("inf")}}, "finite"),
        ({"logit_bias": {"bias": {"a": float("nan")}}}, "finite"),
        ({"prompt": {"file": 3}}, "not a file's name"),
    ],
)
def test_a_condition_of_them_is_one_line(spec: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_condition("c", spec, {"l": Lora("x")})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_are_one_line(content: bytes) -> None:
    for read in (read_json, read_yaml):
        with contextlib.suppress(ValueError):
            read(content)


def test_no_module_of_the_library_unpickles() -> None:
    """Nothing is ever unpickled from a file: only results of Ray's own workers are."""
    root = Path(__file__).resolve().parents[2] / "interp"
    words = ("pickle.load", "torch.load(", "allow_pickle=True", "joblib.load", "yaml.load(")
    found = {
        f"{path.relative_to(root)}: {word}"
        for path in root.rglob("*.py")
        for word in words
        if word in path.read_text(encoding="utf-8")
    }
    assert found <= {f"engines{os.sep}on_ray.py: pickle.load"}
