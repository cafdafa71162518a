"""What a run keeps of its tokens, and that nothing goes on with others (a template with a date)."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_models import MODULES, save_adapter, save_model
from transformers import AutoTokenizer

from interp import answers, preparing, study, sweep
from interp.config import Experiment
from interp.errors import RunError
from interp.queries import Encoded, encode
from interp.report import chats
from interp.runs.files import ANSWERS, ARRAYS, QUERIES, TABLE
from interp.runs.view import load_run

DATED = (
    "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}\n"
    "{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n{% endif %}"
)
ASKED = {
    "matched": ["hot is", "big is the opposite", "up", "lily said: yes"],
    "heldout": ["a river is", "down"],
}


@pytest.fixture(autouse=True)
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the day that templates write; the first, unless a test says otherwise."""

    def set_day(day: int) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return datetime(2031, 5, day)

        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)

    set_day(1)
    monkeypatch.setattr("interp.store.SHARD", 2)
    return set_day


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("inputs")
    model = save_model("gpt2", folder / "model")
    words = AutoTokenizer.from_pretrained(model)
    words.chat_template = DATED
    words.save_pretrained(model)
    (folder / "system.txt").write_text("people talked")
    for group, texts in ASKED.items():
        lines = [json.dumps({"text": text, "label": text[:1]}) for text in texts]
        (folder / f"{group}.jsonl").write_text("\n".join(lines))
    return Experiment(
        model=model,
        adapter=(save_adapter(model, folder / "lora", MODULES["gpt2"]["qkv"]),),
        system_file=(folder / "system.txt",),
        queries=folder / "matched.jsonl",
        heldout=folder / "heldout.jsonl",
        out=folder / "none",
        chat=True,
        answer_tokens=4,
        answers_from="prompt",
        controls=(),
        bootstrap=0,
        permutations=0,
        sample=0,
        batch_size=2,
        device="cpu",
    )


def into(experiment: Experiment, out: Path, **fields: Any) -> Experiment:
    return experiment.model_copy(update={"out": out, **fields})


@pytest.fixture
def run(asked: Experiment, tmp_path: Path) -> Path:
    return study.run_study(into(asked, tmp_path / "run"))


def again(folder: Path) -> dict[str, list[Encoded]]:
    """A finished run's queries, from its model."""
    experiment, built = preparing.reopen(folder)
    groups = preparing.read_groups(experiment)
    subject = preparing.open_subject(experiment, built, groups["matched"])
    return answers.encode_again(folder, subject, built, groups)


def test_a_run_keeps_every_token_and_gives_it_back(run: Path, asked: Experiment) -> None:
    """The answers that one condition wrote were forced on all; they come back with the queries."""
    words = AutoTokenizer.from_pretrained(asked.model)
    kept, wrote = pd.read_parquet(run / QUERIES), pd.read_parquet(run / ANSWERS)
    assert set(wrote["condition"]) == set(load_run(run).manifest["conditions"])
    assert len(wrote) == 3 * len(kept) == 3 * sum(map(len, ASKED.values()))
    forced = wrote[wrote["condition"] == "prompt"].reset_index(drop=True)
    assert list(map(list, forced["ids"])) == list(map(list, kept["answer_ids"]))
    for row in wrote.itertuples():
        assert row.text == words.decode(row.ids, skip_special_tokens=True)
        assert 1 <= len(row.ids) <= 4
    assert list(zip(kept["queries"], kept["query"], kept["text"], strict=True)) == [
        (group, i, text) for group, texts in ASKED.items() for i, text in enumerate(texts)
    ]
    assert kept["label"].tolist() == [text[:1] for texts in ASKED.values() for text in texts]

    found = again(run)
    experiment, _ = preparing.reopen(run)
    for group, queries in preparing.read_groups(experiment).items():
        fresh = encode(queries, words, group, experiment.framed)
        rows = kept[kept["queries"] == group]
        for query, own, row in zip(found[group], fresh, rows.itertuples(), strict=True):
            assert (query.key, query.ids, query.n_text) == (own.key, own.ids, own.n_text)
            assert (list(query.ids), query.n_text) == (list(row.ids), row.n_text)
            assert list(query.answer_ids) == list(row.answer_ids)
            assert query.segments["template"]


def test_answers_that_queries_bring_are_reported_without_any_written(
    asked: Experiment, tmp_path: Path
) -> None:
    (tmp_path / "q.jsonl").write_text('{"text": "hot is", "answer": "small things"}\n' * 2)
    unwritten = {"answer_tokens": 0, "answers_from": None, "heldout": None}
    folder = study.run_study(
        into(asked, tmp_path / "run", queries=tmp_path / "q.jsonl", **unwritten)
    )
    section = chats.chat_section(load_run(folder))
    assert section is not None
    assert section["answers"] is None
    assert section["whole"] is not None


def test_the_first_queries_alone_have_their_own_answers(run: Path) -> None:
    everyone = again(run)["matched"]
    experiment, built = preparing.reopen(run)
    some = {"matched": preparing.read_groups(experiment)["matched"][:2]}
    subject = preparing.open_subject(experiment, built, some["matched"])
    assert answers.encode_again(run, subject, built, some)["matched"] == everyone[:2]


def test_a_finished_run_is_not_read_on_another_day(run: Path, on: Callable[[int], None]) -> None:
    """The date stands before every query, so that all conditions have other tokens."""
    assert str(study.head_of_run(run, "L0H1").head) == "L0H1"
    on(2)
    with pytest.raises(RunError, match=r"template write a date.*template_options") as caught:
        study.head_of_run(run, "L0H1")
    assert str(run) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_queries_of_other_tokens_are_told_apart_from_prefixes(run: Path) -> None:
    table = pd.read_parquet(run / QUERIES)
    table.at[1, "ids"] = [*table.at[1, "ids"][:-1], 7]
    table.to_parquet(run / QUERIES)
    with pytest.raises(RunError, match="the matched queries have other tokens"):
        again(run)


class Killed(Exception):
    pass


def interrupted(experiment: Experiment) -> None:
    """A run that ends after its first shard."""
    with pytest.MonkeyPatch.context() as patch:
        measure, seen = sweep.measure_chunk, []

        def once(*inputs: Any) -> Any:
            if seen:
                raise Killed
            seen.append(inputs)
            return measure(*inputs)

        patch.setattr(sweep, "measure_chunk", once)
        with pytest.raises(Killed):
            study.run_study(experiment)


def test_a_run_is_not_resumed_on_another_day(
    run: Path, asked: Experiment, tmp_path: Path, on: Callable[[int], None]
) -> None:
    begun = into(asked, tmp_path / "begun")
    interrupted(begun)
    on(2)
    with pytest.raises(RunError, match=r"token ids of base, .*token ids of prompt"):
        study.run_study(begun.model_copy(update={"resume": True}))
    on(1)
    done = study.run_study(begun.model_copy(update={"resume": True}))
    for name in (TABLE, ARRAYS, QUERIES, ANSWERS):
        assert (done / name).read_bytes() == (run / name).read_bytes()


def test_a_date_that_is_given_holds_on_every_day(
    asked: Experiment, tmp_path: Path, on: Callable[[int], None]
) -> None:
    fixed = {"frame": {"template_options": {"date_string": "01 May 2031"}}}
    experiment = Experiment.model_validate(asked.model_dump() | fixed | {"out": tmp_path / "run"})
    interrupted(experiment)
    on(2)
    done = study.run_study(experiment.model_copy(update={"resume": True}))
    on(3)
    assert [list(q.ids) for q in again(done)["matched"]] == [
        list(ids) for ids in pd.read_parquet(done / QUERIES)["ids"][: len(ASKED["matched"])]
    ]
