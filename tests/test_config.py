"""One settings model, read from Python, from YAML and from flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from interp import cli
from interp.cli import commands
from interp.conditions import (
    Base,
    Composed,
    FineTuned,
    LogitBias,
    Lora,
    Neutral,
    Prompt,
    Shifted,
    ShuffledTokens,
)
from interp.config import Distillation, Experiment, explain, from_yaml, parse_condition, read_prompt
from interp.errors import ConfigError

FEW: dict[str, Any] = {"prompt": {"pairs": [["hot", "cold"], ["up", "down"]]}}


def experiment(**fields: Any) -> Experiment:
    return Experiment(**{"model": "m", "queries": "q.jsonl", "out": "run"} | fields)


def saved(folder: Path, fields: Any) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(fields if isinstance(fields, str) else yaml.safe_dump(fields))
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Experiment]:
    """The experiments that `interp diverge` would run."""
    seen: list[Experiment] = []
    monkeypatch.setattr(commands, "_run", seen.append)
    return seen


# Flags and files --------------------------------------------------------------------------------

REQUIRED = {"model": "gpt2", "queries": "q.jsonl", "out": "run"}
FLAGS = ["--model", "gpt2", "--queries", "q.jsonl", "--out", "run"]


def test_flags_and_file_and_python_are_the_same_experiment(
    tmp_path: Path, asked: list[Experiment]
) -> None:
    more = ["--adapter", "a", "b", "--seed", "3", "--dtype", "bfloat16", "--controls", "shifted"]
    assert cli.main(["diverge", *FLAGS, *more]) == 0
    fields = {"adapter": ["a", "b"], "seed": 3, "controls": ["shifted"], "dtype": "bfloat16"}
    assert cli.main(["diverge", str(saved(tmp_path, REQUIRED | fields))]) == 0
    assert asked[0] == asked[1] == Experiment.model_validate(REQUIRED | fields)


def test_two_conditions_to_compare(tmp_path: Path, asked: list[Experiment]) -> None:
    path = saved(tmp_path, REQUIRED | {"compare": ["few", "lora"], "conditions": {"few": FEW}})
    assert cli.main(["diverge", str(path)]) == 0
    assert cli.main(["diverge", str(path), "--compare", "lora", "base"]) == 0
    assert cli.main(["diverge", *FLAGS]) == 0
    assert [e.compare for e in asked] == [("few", "lora"), ("lora", "base"), None]


def test_flags_override_the_file_and_leave_the_rest(
    tmp_path: Path, asked: list[Experiment]
) -> None:
    path = saved(tmp_path, REQUIRED | {"seed": 3, "limit": 9, "adapter": ["a"]})
    assert cli.main(["diverge", str(path), "--seed", "4", "--out", "elsewhere"]) == 0
    assert asked[0] == experiment(model="gpt2", out="elsewhere", seed=4, limit=9, adapter=("a",))


def test_flags_may_give_what_the_file_leaves_out(tmp_path: Path, asked: list[Experiment]) -> None:
    path = saved(tmp_path, {"model": "gpt2", "conditions": {"few": FEW}})
    assert cli.main(["diverge", str(path), "--queries", "q.jsonl", "--out", "run"]) == 0
    assert asked[0] == experiment(model="gpt2", conditions={"few": FEW})


def test_what_neither_gives_is_asked_for(
    tmp_path: Path, asked: list[Experiment], capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, {"model": "gpt2", "out": "run"})
    assert set(from_yaml(path)) == {"model", "out"}
    assert cli.main(["diverge", str(path)]) == 2
    assert "--queries" in capsys.readouterr().err
    assert asked == []


def test_the_defaults_are_the_same_with_and_without_a_file(
    tmp_path: Path, asked: list[Experiment]
) -> None:
    cli.main(["diverge", *FLAGS])
    cli.main(["diverge", str(saved(tmp_path, REQUIRED))])
    assert asked[0] == asked[1] == Experiment.model_validate(REQUIRED)


def test_relative_paths_are_looked_up_beside_the_yaml(tmp_path: Path) -> None:
    for name in ("q.jsonl", "p.txt", "held.jsonl"):
        (tmp_path / name).write_text("x")
    (tmp_path / "lora").mkdir()
    fields = REQUIRED | {
        "adapter": ["lora", "elsewhere/lora", "lora:step-5", "org/name:step-5"],
        "prompt_file": ["p.txt"],
        "heldout": "held.jsonl",
        "conditions": {"half": {"lora": {"adapter": "lora", "scale": 0.5}}},
    }
    read = from_yaml(saved(tmp_path, fields))
    assert read["queries"] == tmp_path / "q.jsonl"
    assert read["heldout"] == tmp_path / "held.jsonl"
    assert read["prompt_file"] == (tmp_path / "p.txt",)
    lora = str(tmp_path / "lora")
    assert read["adapter"] == (lora, "elsewhere/lora", f"{lora}:step-5", "org/name:step-5")
    assert read["conditions"]["half"]["lora"]["adapter"] == str(tmp_path / "lora")
    assert read["model"] == "gpt2"  # a hub id: nothing of that name lies beside the file


def test_a_prompt_of_that_name_is_text_even_where_a_file_has_it(tmp_path: Path) -> None:
    (tmp_path / "hot").write_text("x")
    fields = {"conditions": {"a": {"prompt": {"text": "hot"}}, "few": FEW}}
    assert from_yaml(saved(tmp_path, fields))["conditions"]["a"]["prompt"]["text"] == "hot"
    assert from_yaml(saved(tmp_path, fields))["conditions"]["few"] == FEW


# Faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modle": "gpt2"}, "modle: Extra inputs"),
        ({"seed": "many"}, "seed: Input should be a valid integer"),
        ({"batch_size": 0}, "batch_size: Input should be greater"),
        ({"tolerance_top1": 1.5}, "tolerance_top1"),
        ({"dtype": "float8"}, "dtype: Input should be 'float32'"),
        ({"adapter": "one"}, "adapter: Input should be a valid tuple"),
        ({"conditions": ["few"]}, "conditions"),
        ({"compare": "few"}, "compare: Input should be a valid tuple"),
        ({"compare": ["few"]}, "compare.1: Field required"),
        ({"compare": ["a", "b", "c"]}, "compare: Tuple should have at most 2 items"),
        ({"memory": 0}, "memory"),
        ([1], "write fields like"),
        ("just a text", "write fields like"),
        ("", "write fields like"),
        ("a: [1", "is not YAML"),
        ("a: \x07", "is not YAML"),
    ],
)
def test_a_fault_of_the_file_is_one_line_that_names_it(
    tmp_path: Path, fields: Any, message: str
) -> None:
    path = saved(tmp_path, fields)
    with pytest.raises(ConfigError) as caught:
        from_yaml(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        from_yaml(tmp_path / "none.yaml")
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not YAML"):
        from_yaml(path)


@pytest.mark.parametrize("beside_a_file", [False, True])
def test_a_bad_value_on_the_command_line_exits_2_with_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    asked: list[Experiment],
    beside_a_file: bool,
) -> None:
    words = [str(saved(tmp_path, REQUIRED))] if beside_a_file else FLAGS
    assert cli.main(["diverge", *words, "--batch-size", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("interp: batch_size: ")
    assert error.count("\n") == 1
    assert asked == []


@pytest.mark.parametrize("model", [Experiment, Distillation])
def test_settings_are_strict_and_frozen(model: type[Experiment] | type[Distillation]) -> None:
    fields = REQUIRED | ({"prompt_file": "p"} if model is Distillation else {})
    settings = model.model_validate(fields)
    with pytest.raises(ValidationError, match="Extra inputs"):
        model.model_validate(fields | {"unknown": 1})
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 1  # type: ignore[misc]


def test_the_first_fault_is_explained_with_its_field() -> None:
    with pytest.raises(ValidationError) as caught:
        experiment(seed="x", limit="y")
    assert explain(caught.value).startswith("limit: ")


# Conditions -------------------------------------------------------------------------------------


def test_conditions_are_named_after_their_kind(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.txt", "b.txt")]
    for path in paths:
        path.write_text(path.name)
    one = experiment(prompt_file=paths[:1], adapter=["x"]).build()
    controls = ["neutral", "shuffled_tokens", "shifted", "random_lora", "logit_bias", "untrained"]
    assert list(one) == ["base", "prompt", "lora", *controls]
    two = experiment(prompt_file=paths, adapter=["x", "y"], controls=(), separator="|").build()
    assert list(two) == ["base", "prompt_0", "prompt_1", "lora_0", "lora_1"]
    assert two["prompt_1"] == Prompt(text="b.txt", separator="|")
    assert two["lora_1"] == Lora("y")


def test_neutral_controls_the_first_prompt_and_none_where_there_is_none(tmp_path: Path) -> None:
    conditions = {"few": FEW, "other": {"prompt": {"text": "a"}}}
    built = experiment(conditions=conditions).build()
    assert built["neutral"] == Neutral(like=built["few"])
    assert "neutral" not in experiment(adapter=["x"]).build()
    own = conditions | {"neutral": {"neutral": {"like": "other"}}}
    assert experiment(conditions=own).build()["neutral"] == Neutral(like=built["other"])


@pytest.mark.parametrize(
    "name", ["", "..", "../up", "/etc", "a b", "a|b", "-a", "</script>", "a/b"]
)
def test_a_name_stays_inside_the_output_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="use letters"):
        experiment(conditions={name: FEW}).build()


@pytest.mark.parametrize("name", ["base", "lora"])
def test_a_name_stands_once(name: str) -> None:
    with pytest.raises(ConfigError, match="defined twice"):
        experiment(adapter=["x"], conditions={name: FEW}).build()


def test_a_pair_that_is_not_there_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match=r"no condition 'lora'; there are base, few$"):
        experiment(conditions={"few": FEW}, compare=("few", "lora"), controls=()).build()


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        experiment().build()


MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
KNOWN = {"base": Base(), "p": Prompt(text="a"), "l": Lora("x")}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"base": None}, Base()),
        ({"base": {}}, Base()),
        ({"prompt": {"text": "a", "separator": ""}}, Prompt(text="a", separator="")),
        (FEW, Prompt(pairs=(("hot", "cold"), ("up", "down")))),
        ({"prompt": {"messages": MESSAGES}}, Prompt(messages=tuple(MESSAGES))),
        ({"lora": {"adapter": "x", "scale": 2}}, Lora("x", 2)),
        ({"fine_tuned": {"model": "m"}}, FineTuned("m")),
        ({"logit_bias": {"bias": {"a": 1.0}}}, LogitBias({"a": 1.0})),
        ({"logit_bias": {"bias": {"a": 1}, "positions": [-1]}}, LogitBias({"a": 1}, (-1,))),
        ({"neutral": {"like": "p"}}, Neutral(KNOWN["p"])),
        ({"shuffled_tokens": {"of": "p", "seed": 2}}, ShuffledTokens(KNOWN["p"], 2)),
        ({"shifted": {"by": "p"}}, Shifted(KNOWN["p"])),
        ([{"prompt": {"text": "a"}}, {"lora": {"adapter": "x"}}], KNOWN["p"] + KNOWN["l"]),
        ([{"base": None}], Base()),
    ],
)
def test_every_kind_of_condition_is_read(spec: Any, expected: Any) -> None:
    assert parse_condition("c", spec, KNOWN) == expected


def test_a_composed_condition_is_flat() -> None:
    spec = [{"prompt": {"text": "a"}}, {"lora": {"adapter": "x"}}, {"lora": {"adapter": "y"}}]
    composed = parse_condition("c", spec, {})
    assert isinstance(composed, Composed)
    assert composed.conditions == (Prompt(text="a"), Lora("x"), Lora("y"))


def test_a_prompt_from_a_file_is_its_text(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("hot\n")
    spec = {"prompt": {"file": str(tmp_path / "p.txt")}}
    assert parse_condition("c", spec, {}) == Prompt(text="hot")


@pytest.mark.parametrize(
    "spec",
    [
        None,
        "prompt",
        [],
        {},
        {"prompt": {"text": "a"}, "lora": {"adapter": "x"}},
        {"prompts": {"text": "a"}},
        {"prompt": {}},
        {"prompt": {"txt": "a"}},
        {"prompt": {"text": "a", "pairs": [["a", "b"]]}},
        {"lora": None},
        {"neutral": {"like": "unknown"}},
        {"neutral": {}},
        [{"prompt": {"text": "a"}}, "lora"],
    ],
)
def test_a_condition_written_wrong_is_refused_by_name(spec: Any) -> None:
    with pytest.raises(ConfigError, match="condition c: ") as caught:
        parse_condition("c", spec, KNOWN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        {"prompt": "just a text"},
        {"lora": {"adapter": "x", "scale": "big"}},
        {"prompt": {"pairs": [["a", "b", "c"]]}},
        {"prompt": {"pairs": "ab"}},
        {"logit_bias": {"bias": ["a"]}},
        {"logit_bias": {"bias": {"a": "high"}}},
        {"neutral": {"like": ["p"]}},
    ],
)
def test_fields_of_the_wrong_type_are_refused_by_name(spec: Any) -> None:
    with pytest.raises(ConfigError, match="condition c: "):
        parse_condition("c", spec, KNOWN)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"hot\n", "hot"),
        (b"hot\r\n", "hot"),
        (b"hot\n\n", "hot\n"),
        (b"\xef\xbb\xbfhot", "hot"),
        (b"hot ", "hot "),
    ],
)
def test_the_editor_s_line_break_at_the_end_does_not_count(
    tmp_path: Path, content: bytes, text: str
) -> None:
    (tmp_path / "p.txt").write_bytes(content)
    assert read_prompt(tmp_path / "p.txt") == text


def test_a_prompt_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.txt: No such file"):
        read_prompt(tmp_path / "none.txt")
    (tmp_path / "p.txt").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_prompt(tmp_path / "p.txt")
