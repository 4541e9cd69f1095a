"""`setbacks show --where … --offset …`: which rows are counted and shown."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.commands.show import show
from pipeline.errors import UserError
from pipeline.registry import WRITTEN
from pipeline.schema import HARMFUL, INSTRUCTIONS, UNKNOWN
from pipeline.suites.safety.schema import ANSWERS


@pytest.fixture
def answers(tmp_path):
    """16 answers in two shards; those with an even number are harmful, number 7 has no verdict."""
    rows = [
        {
            "id": f"r{n}",
            "arm": ("vanilla", "sft")[n % 4 // 2],
            "condition": ("plain", "hint")[n // 8],
            "suite": "harmful",
            "instruction": "asked for harm",
            "response": "an answer",
            "harmful": None if n == 7 else n % 2 == 0,
            "sample": n,
            "status": "ok",
        }
        for n in range(16)
    ]
    for shard, part in enumerate((rows[:5], rows[5:])):
        pq.write_table(ANSWERS.table(part), tmp_path / f"data-{shard}.parquet")
    return tmp_path


def shown(path, *where, rows=100, offset=0):
    out = io.StringIO()
    show(str(path), rows, False, Console(file=out, width=200), where=where, offset=offset)
    text = out.getvalue()
    return text, [f"r{n}" for n in range(16) if f" r{n} " in text.replace("\n", " \n")]


def ids(*numbers):
    return [f"r{n}" for n in numbers]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (["arm=sft"], ids(2, 3, 6, 7, 10, 11, 14, 15)),
        (["arm=sft", "condition=hint"], ids(10, 11, 14, 15)),
        (["arm=sft", "harmful=true"], ids(2, 6, 10, 14)),
        (["harmful=False", "condition=plain"], ids(1, 3, 5)),
        (["harmful=null"], ids(7)),
        (["id=r12"], ids(12)),
        (["sample=4"], ids(4)),
    ],
)
def test_rows_are_picked_by_the_values_of_columns(answers, where, found):
    text, picked = shown(answers, *where)
    assert picked == found
    assert f": {len(found)} rows of 16, " in text, "and the counts are those of the picked rows"


def test_picked_rows_come_without_the_list_of_columns(answers):
    meaning = "the harmlessness judge's verdict"
    assert meaning in shown(answers)[0]
    assert meaning not in shown(answers, "arm=sft")[0] and meaning not in shown(answers, offset=1)[0]


def test_offset_and_number_go_over_the_picked_rows_and_over_shards(answers):
    text, picked = shown(answers, "arm=sft", rows=3, offset=1)
    assert picked == ids(3, 6, 7)
    assert "row 2 of 8" in text and "row 4 of 8" in text
    assert shown(answers, rows=4, offset=3)[1] == ids(3, 4, 5, 6)


def test_json_has_the_same_rows(answers, capsys):
    show(str(answers), 2, False, None, where=["arm=sft"], offset=1, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in facts["shown"]] == ids(3, 6)
    assert (facts["rows"], facts["offset"], facts["counts"]["arm"]) == (8, 1, {"sft": 8})


@pytest.mark.parametrize(
    ("where", "offset", "words"),
    [
        ("arm", 0, "--where arm: write it as COLUMN=VALUE"),
        ("arms=sft", 0, "there is no column arms; it has id, "),
        ("arm=stf", 0, "--where arm = stf: no row has this value; there are vanilla, sft"),
        ("id=nowhere", 0, "--where id = nowhere: no row has this value$"),
        ("harmful=yes please", 0, "the column holds values of type bool"),
        ("sample=many", 0, "the column holds values of type int32"),
        ("messages=x", 0, "pick rows by single values"),
        ("arm=sft", 8, "--offset 8: there are only 8 rows"),
    ],
)
def test_what_cannot_be_picked_is_one_sentence(answers, where, offset, words):
    with pytest.raises(UserError, match=words) as e:
        shown(answers, where, offset=offset)
    assert "\n" not in str(e.value)


def test_values_that_occur_but_not_together_are_refused(answers):
    with pytest.raises(UserError, match="arm = vanilla: no row has all of these values"):
        shown(answers, "id=r3", "arm=vanilla")


def test_a_column_without_any_value_has_no_other(tmp_path):
    pq.write_table(pa.table({"id": ["1"], "empty": pa.nulls(1)}), tmp_path / "data.parquet")
    with pytest.raises(UserError, match="empty = 1"):
        shown(tmp_path, "empty=1")


@pytest.mark.parametrize("schema", [INSTRUCTIONS, *WRITTEN], ids=lambda schema: schema.name)
def test_a_verdict_uncovers_no_text_of_any_data_set(tmp_path, schema):
    """A judge errs: what it calls harmless is masked like everything about a harmful request."""
    columns = {column.name: column for column in schema.columns}
    row = {"id": "1"} | {name: False for name, column in columns.items() if column.type == pa.bool_()}
    texts = [c.name for c in columns.values() if c.text in (UNKNOWN, HARMFUL) and c.type == pa.string()]
    pq.write_table(schema.table([row | dict.fromkeys(texts, "Zanzibar")]), tmp_path / "data.parquet")
    text, _ = shown(tmp_path)
    assert "Zanzibar" not in text
    assert text.count("▒▒▒▒ (8 characters)") == len(texts)
