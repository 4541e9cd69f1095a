"""Reading instruction sources: malformed rows are kept as failed ones, and a source that is of no use is one
sentence."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.schema import FAILED, INSTRUCTIONS, OK
from pipeline.settings.base import Columns, Source
from pipeline.sources.instructions import MAX_CHARACTERS, Counts, check, read
from tests.unit.sources.written import TABLE, THREE, only, rows_of, write_csv, write_jsonl

# -- malformed rows

LONG = "x" * 1_000_000
BAD_LINES = {
    b'{"instruction": null}': "instruction is null",
    b'{"other": 1}': "instruction is null",
    b'{"instruction": 5}': "instruction is not a string but int",
    b'{"instruction": " \\n"}': "instruction is empty",
    b'{"instruction": "\\ud800"}': "instruction has half of a surrogate pair",
    b'{"instruction": "\xff"}': "not valid UTF-8",
    b'{"instruction": "cut off': "not valid JSON",
    b'["instruction"]': "not a JSON object",
    b'{"instruction": "one", "instruction": "other"}': "a key is there twice",
    b'{"instruction": "x", "output": 5}': "safe_response is not a string but int",
    b'{"instruction": "x", "input": {"a": 1}}': "input is a dict, not a string",
    b"[" * 100_000: "not valid JSON",
    json.dumps(
        {"instruction": LONG}
    ).encode(): f"instruction is too long: 1000000 characters, of at most {MAX_CHARACTERS}",
}


def test_malformed_lines_are_kept_as_failed_rows(tmp_path):
    good = b'{"instruction": "fine"}'
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([good, *BAD_LINES, *BAD_LINES, b"", good]))
    counts = Counts()
    rows = list(read(Source(path=str(path)), counts))
    failed = [r for r in rows if r["status"] == FAILED]
    assert [r["error"] for r in failed] == list(BAD_LINES.values()) * 2
    assert (counts.read, counts.ok, counts.duplicates) == (2 + len(failed), 1, 1)
    assert counts.malformed == counts.reasons.total() == len(failed)
    assert len({r["id"] for r in rows}) == len(rows), (
        "equal malformed rows in different places are different rows"
    )
    assert all(len(r["instruction"]) <= 200 for r in failed)
    INSTRUCTIONS.table(rows).validate(full=True)


def test_ids_of_malformed_rows_do_not_depend_on_where_the_source_lies(tmp_path):
    ids = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "a.jsonl", [{"instruction": None}, {"instruction": "x"}])
        ids.append([r["id"] for r in rows_of(tmp_path / folder)])
    assert ids[0] == ids[1]


def test_a_line_without_end_is_not_kept(tmp_path, monkeypatch):
    from pipeline.sources import readers

    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 2**20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"instruction": "a"}\n'
        + b"z" * (3 * 2**20)
        + b"\n"
        + b'{"instruction": "b"}\n'
        + b"z" * (2**20 + 1)
    )
    assert [r["error"] for r in rows_of(path)] == [
        None,
        "the line is longer than 1 MiB",
        None,
        "the line is longer than 1 MiB",
    ]


def test_invalid_utf8_in_parquet_spoils_only_its_row(tmp_path):
    bad = _unchecked([b"good", b"\xff\xfe bad", b"fine"])
    pq.write_table(pa.table({"instruction": bad}), tmp_path / "a.parquet")
    assert [(r["status"], r["error"]) for r in rows_of(tmp_path / "a.parquet")] == [
        (OK, None),
        (FAILED, "instruction is not valid UTF-8"),
        (OK, None),
    ]


def _unchecked(values):
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers())


def test_malformed_csv_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'instruction,output\nfine,ok\none,two,three\n,x\n\xff,y\n"'
        + b"x" * 1_000_000
        + b'",z\n"quoted\nlines",ok\n'
    )
    assert [r["error"] for r in rows_of(path)] == [
        None,
        "more fields than the header has",
        "instruction is empty",
        "instruction is not valid UTF-8",
        f"instruction is too long: 1000000 characters, of at most {MAX_CHARACTERS}",
        None,
    ]


def test_malformed_elements_of_a_json_array(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"instruction": "a"}, 5, null, {"instruction": "\xff"}, {"instruction": []}]')
    assert [r["error"] for r in rows_of(path)] == [
        None,
        "not a JSON object",
        "not a JSON object",
        "instruction is not valid UTF-8",
        "instruction is not a string but list",
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"chosen": "no transcript", "rejected": ""},
            "chosen is not a transcript of Human and Assistant turns",
        ),
        ({"chosen": None, "rejected": ""}, "instruction is null"),
        (
            {"chosen": "\n\nAssistant: Hello", "rejected": ""},
            "chosen has no human turn before its last response",
        ),
        ({"messages": []}, "messages has no user turn"),
        ({"messages": "hi"}, "messages is not a list of messages"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "messages has a message without text content",
        ),
        ({"instruction": "x", "instances": []}, "instances holds no input and output"),
    ],
)
def test_malformed_content_of_a_shape(tmp_path, row, reason):
    assert only(write_jsonl(tmp_path / "a.jsonl", [row]))["error"] == reason


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3),
)
shapely_rows = st.dictionaries(
    st.sampled_from(
        [
            "instruction",
            "input",
            "output",
            "instances",
            "messages",
            "chosen",
            "rejected",
            "prompt",
            "category",
        ]
    ),
    json_values | st.just([{"role": "user", "content": "x"}]) | st.just("\n\nHuman: x\n\nAssistant: y"),
).map(lambda row: json.dumps(row).encode())


@given(st.lists(st.binary(max_size=20) | shapely_rows, min_size=1, max_size=12))
@example([b'{"instruction": "a"}', b"\x00", b"\xff", b"1" * 5000, b'{"instruction": NaN}'])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_whatever_the_bytes_every_line_is_accounted_for(tmp_path, lines):
    path = tmp_path / "a.jsonl"
    content = b"\n".join(lines)
    path.write_bytes(content)
    counts = Counts()
    try:
        rows = list(read(Source(path=str(path)), counts))
    except UserError as e:
        assert "\n" not in str(e)
        return
    lines_read = sum(bool(line.strip()) for line in content.split(b"\n"))
    statuses = Counter(r["status"] for r in rows)
    assert lines_read == counts.read == statuses[OK] + statuses[FAILED] + counts.duplicates
    assert (statuses[OK], statuses[FAILED]) == (counts.ok, counts.malformed)
    assert len({r["id"] for r in rows}) == len(rows)
    INSTRUCTIONS.table(rows).validate(full=True)


# -- bad sources: one sentence each


def _broken(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    write_jsonl(tmp_path / "mixed" / "a.jsonl", THREE)
    write_csv(tmp_path / "mixed" / "a.csv")
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "header.csv").write_text("instruction,output\n")
    (tmp_path / "bad.json").write_text('[{"instruction": ')
    (tmp_path / "bad.parquet").write_text("hello")
    (tmp_path / "bad.jsonl.gz").write_text("hello")
    (tmp_path / "text.jsonl").write_text("hello\nworld\n")
    pq.write_table(TABLE.slice(0, 0), tmp_path / "none.parquet")
    write_jsonl(tmp_path / "odd.jsonl", [{"title": "x", "text": "y"}])
    return tmp_path


@pytest.mark.parametrize(
    ("path", "said"),
    {
        "missing.jsonl": "no such file or directory",
        "missing/*.jsonl": "matches no ",
        "empty": "the directory holds no ",
        "mixed": "holds CSV and JSONL files; name one kind with a glob",
        "a.txt": "unknown kind of file",
        "none.jsonl": "is empty",
        "blank.jsonl": "is empty",
        "none.json": "is empty",
        "none.parquet": "is empty",
        "header.csv": "is empty",
        "bad.json": "not valid JSON",
        "bad.parquet": "cannot be read as Parquet",
        "bad.jsonl.gz": "cannot be read as JSONL",
        "text.jsonl": "none of its first 2 rows can be read (not valid JSON: 2)",
        "odd.jsonl": "no known shape has the columns text, title; name the column of the instruction",
    }.items(),
)
@pytest.mark.parametrize("function", [check, read])
def test_a_bad_source_is_one_sentence_before_the_first_row(tmp_path, path, said, function):
    source = Source(path=str(_broken(tmp_path) / path))
    with pytest.raises(UserError) as e:
        function(source)
    assert str(e.value).startswith(source.path)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


def test_a_mapped_column_that_is_not_there(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "x", "text": "y"}])
    with pytest.raises(
        UserError, match=r"columns\.category = topic is not one of its columns; found are question, text"
    ):
        check(Source(path=path, columns=Columns(instruction="question", category="topic")))


def test_a_source_without_unsafe_responses(tmp_path):
    bad = {"instruction": "bad", "unsafe_response": "do"}
    rows = [{"instruction": str(i), "unsafe_response": None} for i in range(5)]
    check(Source(path=write_jsonl(tmp_path / "some.jsonl", [*rows, bad])), ["unsafe_response"])
    none = write_jsonl(tmp_path / "none.jsonl", rows)
    with pytest.raises(
        UserError,
        match=(
            r"none\.jsonl: none of its first 5 rows has an unsafe response; name .* columns\.unsafe_response"
        ),
    ):
        check(Source(path=none), ["unsafe_response"])
    with pytest.raises(UserError, match="none of its first 5 rows"):
        check(Source(path=write_jsonl(tmp_path / "some.jsonl", [*rows, bad]), limit=5), ["unsafe_response"])


def test_the_search_for_an_unsafe_response_ends(tmp_path, monkeypatch):
    from pipeline.sources import instructions

    monkeypatch.setattr(instructions, "_SEARCHED_ROWS", 3)
    rows = [{"instruction": str(i), "unsafe_response": "do" if i == 3 else None} for i in range(5)]
    with pytest.raises(UserError, match="none of its first 3 rows"):
        check(Source(path=write_jsonl(tmp_path / "a.jsonl", rows)), ["unsafe_response"])


def test_an_unknown_scheme():
    with pytest.raises(UserError, match=r"nope://x/a\.jsonl: cannot be opened"):
        check(Source(path="nope://x/a.jsonl"))


def test_a_hub_set_that_cannot_be_loaded(monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        UserError, match="hub:org/name: split test cannot be loaded from the hub \\(no route to the hub\\)"
    ):
        check(Source(path="hub:org/name", split="test"))


def test_a_category_that_is_no_text_is_a_malformed_row(tmp_path):
    times = pa.array([2**62, None], pa.timestamp("us"))  # Python has no such year
    pq.write_table(pa.table({"instruction": ["one?", "two?"], "category": times}), tmp_path / "a.parquet")
    counts = Counts()
    rows = list(read(Source(path=str(tmp_path / "a.parquet")), counts))
    assert [row["status"] for row in rows] == [FAILED, OK]
    assert rows[0]["error"] == "category cannot be written as text (OverflowError)"
