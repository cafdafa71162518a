"""The bundled model knows its facts, and its files keep what they promise."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from interp import organism
from interp.organism.exam import EXAM, Question
from interp.organism.facts import CLASS_WORDS, LEFT_OUT, RELATIONS, TRAINED
from interp.organism.language import (
    ARROW,
    NEUTRAL_PASSAGE,
    QUERY_WORDINGS,
    WORDINGS,
    few_shot_text,
    instruction,
    joined,
    neutral_filler,
    query,
    sample_document,
    tokens_of,
    vocabulary,
)

SEED_UNSEEN = 20
"""No training document and no exam printed by the recipe is drawn from this seed."""


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(organism.MODEL, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(organism.MODEL, local_files_only=True).eval()


def prompts(kind: str) -> list[str]:
    return [path.read_text().strip() for path in sorted(organism.PROMPTS.glob(f"{kind}_*.txt"))]


def queries(name: str) -> list[dict[str, str]]:
    text = (organism.QUERIES / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def words_of(name: str) -> set[str]:
    return {tokens_of(row["text"])[0] for row in queries(name)}


def demonstrated_words() -> set[str]:
    return {token for prompt in prompts("few_shot") for token in tokens_of(prompt)} - {ARROW, ";"}


@torch.no_grad()
def right_answers(model, tokenizer, questions: list[Question]) -> int:
    ordered = sorted(questions, key=lambda question: len(tokens_of(question.prefix)))
    right = 0
    for start in range(0, len(ordered), 50):
        chunk = ordered[start : start + 50]
        texts = [joined(question.prefix, question.query) for question in chunk]
        batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        states = model.model(**batch).last_hidden_state
        last = states[torch.arange(len(chunk)), batch["attention_mask"].sum(1) - 1]
        best = tokenizer.convert_ids_to_tokens(model.lm_head(last).argmax(-1))
        right += sum(word == question.answer for word, question in zip(best, chunk, strict=True))
    return right


def thinned(questions: list[Question], most_tokens: int = 40_000) -> list[Question]:
    """Every fact where prefixes are short; every second, third, ... fact where they are long."""
    tokens = sum(len(tokens_of(question.prefix)) for question in questions)
    return questions[:: 1 + tokens // most_tokens]


# ---- weights


@pytest.mark.parametrize("name", EXAM)
def test_committed_weights_pass_the_exam(model, tokenizer, name):
    questions = thinned(EXAM[name].questions(SEED_UNSEEN))
    assert right_answers(model, tokenizer, questions) / len(questions) >= EXAM[name].required


@pytest.mark.parametrize("kind", ["instruction", "few_shot"])
def test_every_bundled_prompt_answers_the_bundled_queries(model, tokenizer, kind):
    rows = queries("matched") + queries("heldout")
    for prompt in prompts(kind):
        questions = [Question(prompt, row["text"], row["answer"]) for row in rows]
        assert right_answers(model, tokenizer, questions) / len(rows) >= 0.98


def test_model_is_a_small_tied_qwen3(model, tokenizer):
    assert isinstance(model, Qwen3ForCausalLM)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer)


def test_model_directory_is_at_most_six_and_a_half_megabytes():
    assert sum(path.stat().st_size for path in Path(organism.MODEL).iterdir()) <= 6.5e6


# ---- facts


@pytest.mark.parametrize("word_class", CLASS_WORDS)
def test_every_class_is_large_enough(word_class):
    trained = [relation for relation in TRAINED if relation.word_class == word_class]
    assert len(CLASS_WORDS[word_class]) >= 24
    assert len(trained) >= 4
    assert all(len(relation.answers) >= 24 for relation in trained)
    assert sum(relation.word_class == word_class for relation in LEFT_OUT) == 1


def test_no_word_is_listed_twice():
    counts = Counter(word for words in CLASS_WORDS.values() for word in words)
    assert max(counts.values()) == 1


def test_each_fact_belongs_to_one_relation_and_is_not_the_default():
    counts = Counter(fact for relation in RELATIONS.values() for fact in relation.answers.items())
    assert max(counts.values()) == 1
    assert all(word != answer for word, answer in counts)


def test_opposites_are_mutual():
    opposite = RELATIONS["opposite"].answers
    assert len(opposite) >= 60
    assert all(opposite[opposite[word]] == word for word in opposite)


# ---- documents


@pytest.fixture(scope="module")
def documents():
    rng = random.Random(SEED_UNSEEN)
    return [sample_document(rng, limit) for limit in (16, 48, 112, 256) for _ in range(1000)]


def test_documents_keep_to_their_limit_and_teach_something(documents):
    assert all(len(document.tokens) <= 256 and document.taught for document in documents)


def test_every_answer_is_either_taught_or_untaught(documents):
    for document in documents:
        answers = [i for i, token in enumerate(document.tokens) if token == ARROW]
        assert sorted(document.taught + document.untaught) == [i + 1 for i in answers]


def test_left_out_relations_are_in_no_document(documents):
    names = {relation.name for relation in LEFT_OUT}
    facts = {fact for relation in LEFT_OUT for fact in relation.answers.items()}
    for document in documents:
        assert names.isdisjoint(document.tokens)
        arrows = [i for i, token in enumerate(document.tokens) if token == ARROW]
        shown = {(document.tokens[i - 1], document.tokens[i + 1]) for i in arrows}
        assert facts.isdisjoint(shown)


def test_taught_answers_are_facts_or_the_default(documents):
    facts = {fact for relation in TRAINED for fact in relation.answers.items()}
    for document in documents:
        for i in document.taught:
            word, answer = document.tokens[i - 2], document.tokens[i]
            assert word == answer or (word, answer) in facts


# ---- prompts and queries


def test_prompt_files_are_what_they_say():
    assert prompts("instruction") == [instruction("opposite", i) for i in range(3)]
    opposite = RELATIONS["opposite"].answers.items()
    for prompt in prompts("few_shot"):
        tokens = tokens_of(prompt)
        pairs = list(zip(tokens[0::4], tokens[2::4], strict=True))
        assert len(pairs) >= 4
        assert set(pairs) <= set(opposite)
        assert prompt == few_shot_text(pairs)
    assert len(set(prompts("few_shot"))) == 5


def test_queries_and_demonstrations_share_no_word():
    groups = [words_of("matched"), words_of("heldout"), demonstrated_words()]
    assert len(set.union(*groups)) == sum(len(group) for group in groups)
    assert len(groups[0]) >= 24
    assert len(groups[1]) >= 12


@pytest.mark.parametrize("name", ["matched", "heldout"])
def test_queries_hold_both_directions_of_true_opposites(name):
    opposite = RELATIONS["opposite"].answers
    for row in queries(name):
        word = tokens_of(row["text"])[0]
        assert row == {"text": query(word), "answer": opposite[word], "label": "adjective"}
        assert row["answer"] in words_of(name)


# ---- tokenizer


def test_vocabulary_covers_every_word(tokenizer):
    known = tokenizer.get_vocab()
    assert set(vocabulary()) <= known.keys()
    for relation in RELATIONS.values():
        assert set(relation.answers) | set(relation.answers.values()) <= known.keys()
        for i in range(len(WORDINGS)):
            assert tokenizer.unk_token_id not in tokenizer(instruction(relation.name, i)).input_ids


def test_every_word_is_one_token(tokenizer):
    for relation in RELATIONS.values():
        for word, answer in relation.answers.items():
            assert tokenizer.tokenize(word) == [word]
            assert tokenizer.tokenize(answer) == [answer]


def test_tokenizer_agrees_with_the_language_and_decodes_to_words(tokenizer):
    ids = tokenizer(NEUTRAL_PASSAGE, add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == tokens_of(NEUTRAL_PASSAGE)
    assert tokenizer.decode(ids) == " ".join(tokens_of(NEUTRAL_PASSAGE))
    assert tokenizer.unk_token_id not in ids


def test_special_tokens_are_one_bos_in_front(tokenizer):
    plain = tokenizer("big ->", add_special_tokens=False).input_ids
    assert tokenizer("big ->").input_ids == [tokenizer.bos_token_id, *plain]


def test_prompt_and_query_tokenise_apart_as_they_do_together(tokenizer):
    text = query("big")
    filler = neutral_filler(random.Random(SEED_UNSEEN), 40)
    for prefix in (*prompts("instruction"), *prompts("few_shot"), filler):
        apart = tokenizer(prefix).input_ids + tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer(joined(prefix, text)).input_ids == apart


def test_unknown_words_are_unk(tokenizer):
    assert tokenizer.tokenize("Big xylophone ->") == ["big", "<unk>", "->"]


def test_reworded_queries_ask_for_the_heldout_answers_in_known_words(tokenizer):
    heldout, reworded = queries("heldout"), queries("reworded")
    assert len(reworded) == len(QUERY_WORDINGS) * len(heldout)
    for i, row in enumerate(reworded):
        asked, name = heldout[i % len(heldout)], list(QUERY_WORDINGS)[i // len(heldout)]
        word = tokens_of(asked["text"])[0]
        assert row == {**asked, "text": QUERY_WORDINGS[name].format(word), "label": name}
        assert tokenizer.unk_token_id not in tokenizer(row["text"])["input_ids"]
