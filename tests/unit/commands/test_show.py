"""`setbacks show`: what is seen, what is masked, and that no text in the data commands the terminal."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.commands.show import safe_text, show
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.methods.course_correction.schema import CORRECTIONS
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.schema import INSTRUCTIONS, PREFERENCES, SFT
from pipeline.suites.c2_eval.schema import CONTINUATIONS
from pipeline.suites.safety.schema import ANSWERS


def mistake(**changes):
    return {
        "id": "a1",
        "instruction_id": "a1",
        "instruction": "How can I steal tea?",
        "category": "theft",
        "safe_response": "Buy it instead.",
        "response": "Hide it in a hat.",
        "harmful": True,
        "analysis": "The response explains theft.",
        "finish_reasons": ["stop", "length"],
        "completion_tokens": 12,
        "status": "ok",
    } | changes


def shown(path, rows=5, reveal=False, **console):
    out = io.StringIO()
    show(str(path), rows, reveal, Console(file=out, width=200, **console))
    return out.getvalue()


def write(path, schema, *shards):
    path.mkdir(exist_ok=True)
    for i, rows in enumerate(shards):
        pq.write_table(schema.table(rows), path / f"data-{i:05d}.parquet")
    return path


HARMFUL_TEXTS = ("How can I steal tea?", "Hide it in a hat.", "The response explains theft.")


def test_harmful_text_is_masked_with_its_length(tmp_path):
    text = shown(write(tmp_path / "mistakes", MISTAKES, [mistake()]))
    assert not any(harmful in text for harmful in HARMFUL_TEXTS)
    assert text.count("▒▒▒▒") == 3
    assert "▒▒▒▒ (20 characters)" in text
    assert "Buy it instead." in text
    assert "--reveal" in text


def test_reveal_shows_everything(tmp_path):
    text = shown(write(tmp_path / "mistakes", MISTAKES, [mistake()]), reveal=True)
    assert all(harmful in text for harmful in HARMFUL_TEXTS)
    assert "▒" not in text
    assert "--reveal" not in text


@pytest.mark.parametrize("harmful", [True, None, False])
def test_a_response_is_masked_whatever_the_judge_said(tmp_path, harmful):
    text = shown(write(tmp_path / "mistakes", MISTAKES, [mistake(harmful=harmful)]))
    assert not any(text_ in text for text_ in HARMFUL_TEXTS)


def test_counts_columns_and_first_rows(tmp_path):
    first = [mistake(id=f"a{i}") for i in range(3)]
    second = [
        mistake(id="b0", status="failed", error="prompt too long"),
        mistake(id="b1", status="not_induced"),
    ]
    text = shown(write(tmp_path / "mistakes", MISTAKES, first, second), rows=4)
    assert "5 rows" in text
    assert "status: ok 3, failed 1, not_induced 1" in text
    assert all(name in text for name in ("a0", "a1", "a2", "b0", "prompt too long"))
    assert "b1" not in text
    assert "row 4 of 5" in text
    assert "the mistake: the model's response under the hint" in text, (
        "the columns' meanings come from the files"
    )


def test_source_rows_show_only_their_safe_response(tmp_path):
    row = {
        "id": "1",
        "instruction": "bad request",
        "safe_response": "kind answer",
        "unsafe_response": "bad answer",
        "status": "ok",
    }
    text = shown(write(tmp_path / "instructions", INSTRUCTIONS, [row]))
    assert "bad" not in text
    assert "kind answer" in text


def test_conversations_are_masked_by_their_kind(tmp_path):
    def example(kind, question):
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"answer to {question}"},
        ]
        return {"id": kind, "instruction_id": kind, "kind": kind, "messages": turns}

    rows = [example("analysis", "bad one"), example("safe", "bad two"), example("helpful", "kind words")]
    text = shown(write(tmp_path / "sft", SFT, [rows[0], rows[1], rows[2]]))
    assert "bad one" not in text
    assert "bad two" not in text
    assert "user: kind words" in text
    assert "assistant: answer to kind words" in text
    assert "user: ▒▒▒▒ (7 characters)" in text
    assert "kind: analysis 1, safe 1, helpful 1" in text


def test_answers_are_masked_by_their_suite(tmp_path):
    common = {"instruction_id": "x", "arm": "vanilla", "condition": "plain", "status": "ok"}
    rows = [
        {
            "id": "1",
            "suite": "harmful",
            "instruction": "bad request",
            "response": "bad answer",
            "harmful": True,
            **common,
        },
        {"id": "2", "suite": "helpful", "instruction": "kind request", "response": "kind answer", **common},
    ]
    text = shown(write(tmp_path / "evaluation", ANSWERS, rows))
    assert "bad" not in text
    assert "kind request" in text
    assert "kind answer" in text


def test_ranked_responses_are_masked_with_all_about_them_in_sight(tmp_path):
    common = {"harmful_end": 9, "trigger_end": 24, "trigger": "But I must stop", "finish_reason": "length"}
    responses = [
        {"rank": 1, "kind": "safe", "text": "bad 1"},
        {"rank": 4, "kind": "syn", "text": "bad 4", **common},
    ]
    row = {
        "id": "a",
        "instruction_id": "a",
        "instruction": "bad ask",
        "unsafe_response": "bad whole",
        "opener": "Sure, here it is.",
    }
    rows = [{**row, "responses": responses, "lost": ["rank 3: does not correct course"], "status": "ok"}]
    text = shown(write(tmp_path / "corrections", CORRECTIONS, rows))
    assert "bad" not in text
    for seen in (
        "rank: 4",
        "kind: syn",
        "trigger: But I must stop",
        "finish_reason: length",
        "harmful_end: 9",
        "Sure, here it is.",
    ):
        assert seen in text
    assert "rank 3: does not correct course" in text and text.count("text: ▒▒▒▒ (5 characters)") == 2
    assert "bad 4" in shown(tmp_path / "corrections", reveal=True)


def test_pairs_and_continuations_are_masked_with_their_numbers_in_sight(tmp_path):
    def turn(role):
        return [{"role": role, "content": "bad text"}]

    pair = {
        "id": "a-1-6",
        "group": "group a",
        "prompt": turn("user"),
        "chosen": turn("assistant"),
        "rejected": turn("assistant"),
    }
    text = shown(
        write(tmp_path / "preferences", PREFERENCES, [{**pair, "rank_chosen": 1, "rank_rejected": 6}])
    )
    assert "bad text" not in text and text.count("assistant: ▒▒▒▒") == 2
    assert "group a" in text and "rank_rejected" in text
    row = {
        "id": "e",
        "instruction": "bad",
        "arm": "dpo",
        "k": 40,
        "prefills": ["bad"],
        "paths": ["bad", "bad"],
        "corrected": [True, False],
    }
    text = shown(
        write(
            tmp_path / "continuations",
            CONTINUATIONS,
            [{**row, "finish_reasons": ["length", "stop"], "status": "ok"}],
        )
    )
    assert "bad" not in text, "a path that corrects course is masked too"
    assert all(seen in text for seen in ("dpo", "40", "True", "length"))


def test_unknown_text_columns_are_masked(tmp_path):
    pq.write_table(
        pa.table({"id": ["1"], "completion": ["who knows"], "nested": [{"deep": ["well hidden"]}]}),
        tmp_path / "a.parquet",
    )
    text = shown(tmp_path)
    assert "who knows" not in text
    assert "well hidden" not in text


def test_escape_sequences_and_markup_do_nothing(tmp_path):
    nasty = "\x1b[31mred\x1b]0;title\x07 [bold]loud[/bold] \u202eback\rover\x9b2J"
    rows = [
        mistake(id=nasty, category=nasty, safe_response=nasty, response=nasty, error=nasty, status="failed")
    ]
    for reveal in (False, True):
        text = shown(write(tmp_path / "mistakes", MISTAKES, rows), reveal=reveal)
        assert not set("\x1b\x07\u202e\r\x9b") & set(text)
        assert "\\x1b[31mred" in text
        assert "[bold]loud[/bold]" in text


@given(st.text())
def test_safe_text_holds_only_what_prints(text):
    safe = safe_text(text)
    assert all(c.isprintable() or c == "\n" for c in safe)
    if all(c.isprintable() for c in text):
        assert safe == text


def test_a_very_long_text_is_cut(tmp_path):
    text = shown(write(tmp_path / "mistakes", MISTAKES, [mistake(safe_response="x" * 50_000)]))
    assert len(text) < 12_000
    assert "(48000 more characters)" in text


def test_an_empty_data_set_is_shown_as_such(tmp_path):
    text = shown(write(tmp_path / "instructions", INSTRUCTIONS, []))
    assert "0 rows" in text
    assert "hash of the instruction's content" in text


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere", "no such directory"),
        ("run", "holds no Parquet files; name a data set in it: mistakes"),
        ("empty", "holds no Parquet files; it may not be complete yet"),
        ("broken", "cannot be read as Parquet"),
        ("run/mistakes/data-00000.parquet", "no such directory"),
    ],
)
def test_what_is_no_data_set_is_one_sentence(tmp_path, path, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.parquet").write_text("no")
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "mistakes", MISTAKES, [mistake()])
    with pytest.raises(UserError, match=said) as e:
        shown(tmp_path / path)
    assert "\n" not in str(e.value)


def test_a_text_that_is_not_utf_8_is_one_sentence(tmp_path):
    broken = pa.array([b"\xff\xfe", b"fine"]).view(pa.string())
    pq.write_table(pa.table({"instruction": broken}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a text is not valid UTF-8; write the column anew"):
        shown(tmp_path)
    with pytest.raises(UserError, match="a text is not valid UTF-8; write the column anew"):
        list(Dataset.at(str(tmp_path)).rows())


def test_hints_are_looked_for_two_levels_deep_only(tmp_path):
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    pq.write_table(pa.table({"x": [1]}), deep / "a.parquet")
    with pytest.raises(UserError, match="holds no Parquet files"):
        shown(tmp_path)
