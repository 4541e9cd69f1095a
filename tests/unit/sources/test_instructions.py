"""Reading instruction sources: formats, shapes, ids."""

import gzip
import json
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.schema import FAILED, INSTRUCTIONS, OK
from pipeline.settings.base import Columns, Source
from pipeline.sources.instructions import MAX_CHARACTERS, Counts, instruction_id, read
from pipeline.sources.values import is_missing, is_null_text
from tests.unit.sources.written import TABLE, THREE, only, rows_of, write_csv, write_jsonl

REAL_SAMPLE = Path(__file__).parents[4] / "shared/data/pku_saferlhf_sample.jsonl"


def fields(row):
    return row["instruction"], row["safe_response"], row["unsafe_response"], row["category"]


def _write_parquet(path):
    pq.write_table(TABLE, path)


def _write_gz(path):
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, THREE)).encode()))


def _write_zst(path):
    with pa.CompressedOutputStream(str(path), "zstd") as out:
        out.write("\n".join(map(json.dumps, THREE)).encode())


WRITERS = {
    "a.parquet": _write_parquet,
    "a.csv": write_csv,
    "a.jsonl.gz": _write_gz,
    "a.ndjson.zst": _write_zst,
    "a.json": lambda path: path.write_text(json.dumps(THREE, indent=2)),
    "lines.json": lambda path: write_jsonl(path, THREE),
    "a.jsonl": lambda path: write_jsonl(path, THREE),
    "bom.jsonl": lambda path: path.write_bytes(
        b"\xef\xbb\xbf" + "\r\n\r\n".join(map(json.dumps, THREE)).encode()
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)
    rows = rows_of(tmp_path / name)
    assert [(r["instruction"], r["safe_response"]) for r in rows] == [
        (r["instruction"], r["output"]) for r in THREE
    ]
    assert [r["id"] for r in rows] == [instruction_id(r["instruction"]) for r in THREE]
    assert {r["status"] for r in rows} == {OK}
    assert INSTRUCTIONS.table(rows).num_rows == 3


def test_file_uri_directory_and_globs(tmp_path):
    for i, row in enumerate(THREE):
        (tmp_path / f"d{i}").mkdir()
        write_jsonl(tmp_path / f"d{i}" / "part.jsonl", [row])
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "_state.json").write_text("{}")
    whole = [r["id"] for r in rows_of(tmp_path)]
    assert len(whole) == 3
    assert [r["id"] for r in rows_of(tmp_path.as_uri())] == whole
    assert [r["id"] for r in rows_of(f"{tmp_path}/**/*.jsonl")] == whole
    assert [r["id"] for r in rows_of(f"{tmp_path}/d[01]/part.jsonl")] == whole[:2]
    assert [r["id"] for r in rows_of(f"{tmp_path.as_uri()}/d*/part.jsonl")] == whole
    assert only(f"{tmp_path}/d2/part.json?")["source"] == f"{tmp_path}/d2/part.jsonl#1"


def test_relative_glob(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", THREE)
    monkeypatch.chdir(tmp_path)
    assert [r["source"] for r in rows_of("*.jsonl")] == ["./a.jsonl#1", "./a.jsonl#2", "./a.jsonl#3"]


def test_a_wildcard_in_a_real_name_is_no_wildcard(tmp_path):
    write_jsonl(tmp_path / "a[1].jsonl", THREE)
    assert len(rows_of(tmp_path / "a[1].jsonl")) == 3


def test_toy_source_is_read_by_its_split(monkeypatch):
    from pipeline.toy import world

    asked = []
    row = {
        "instruction": "How can I steal tea?",
        "category": "theft",
        "safe_response": "Don't.",
        "unsafe_response": "Grab it.",
    }
    monkeypatch.setattr(world, "rows", lambda split: asked.append(split) or [row, row])
    [read_row] = rows_of("toy:train")
    assert fields(read_row) == ("How can I steal tea?", "Don't.", "Grab it.", "theft")
    assert set(asked) == {"train"}


def test_a_hub_set_is_streamed(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(name, **options):
        asked.update(options, name=name)
        return datasets.Dataset.from_list(
            [{"prompt": "Hi", "id": 1}, {"prompt": None, "id": 2}]
        ).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [(r["status"], r["source"]) for r in rows_of("hub:org/name", split="test")] == [
        (OK, "hub:org/name#1"),
        (FAILED, "hub:org/name#2"),
    ]
    assert asked == {"name": "org/name", "split": "test", "streaming": True}


# -- shapes


def pku(safe_0, safe_1, safer, **more):
    return {
        "prompt": "p",
        "response_0": "zero",
        "response_1": "one",
        "is_response_0_safe": safe_0,
        "is_response_1_safe": safe_1,
        "safer_response_id": safer,
        **more,
    }


@pytest.mark.parametrize(
    ("safe_0", "safe_1", "safer", "safe", "unsafe"),
    [
        (True, False, 0, "zero", "one"),
        (False, True, 1, "one", "zero"),
        (True, False, 1, "zero", "one"),  # the label of safety outweighs the preference
        (True, True, 1, "one", None),
        (True, True, 0, "zero", None),
        (False, False, 1, None, "zero"),
        (False, False, 0, None, "one"),
        (None, None, 0, None, None),
        ("False", "True", "1", "one", "zero"),  # as CSV has it
    ],
)
def test_pku_responses(tmp_path, safe_0, safe_1, safer, safe, unsafe):
    row = only(write_jsonl(tmp_path / "a.jsonl", [pku(safe_0, safe_1, safer)]))
    assert fields(row) == ("p", safe, unsafe, None)


@pytest.mark.parametrize(
    ("row", "unsafe"),
    [
        (pku(False, False, 1), ["zero", "one"]),  # in the source's order, whichever is preferred
        (pku(False, False, 0), ["zero", "one"]),
        (pku(True, False, 1), ["one"]),
        (pku(False, True, 1), ["zero"]),
        (pku(True, True, 1), []),
        (pku(None, None, 0), []),
        (pku(False, False, 0) | {"response_0": " "}, ["one"]),
        ({"instruction": "x", "unsafe_response": "bad"}, ["bad"]),
        ({"instruction": "x", "unsafe_response": None}, []),
        ({"instruction": "x", "output": "good"}, []),
        (
            {"chosen": "\n\nHuman: x\n\nAssistant: good", "rejected": "\n\nHuman: x\n\nAssistant: bad"},
            ["bad"],
        ),
    ],
)
def test_every_response_labelled_unsafe_is_kept(tmp_path, row, unsafe):
    row = only(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert row["unsafe_responses"] == unsafe
    assert INSTRUCTIONS.table([row]).to_pylist()[0]["unsafe_responses"] == unsafe


def test_an_unsafe_response_that_is_too_long_spoils_its_row_though_it_is_not_the_preferred_one(tmp_path):
    row = only(
        write_jsonl(tmp_path / "a.jsonl", [pku(False, False, 1) | {"response_1": "x" * (MAX_CHARACTERS + 1)}])
    )
    assert (row["status"], row["error"]) == (
        FAILED,
        f"unsafe_response is too long: {MAX_CHARACTERS + 1} characters, of at most {MAX_CHARACTERS}",
    )
    assert not row["unsafe_responses"]


def test_pku_category_is_the_unsafe_responses_first_harm(tmp_path):
    harms = {
        "response_0_harm_category": {"Privacy": False, "Theft": False},
        "response_1_harm_category": {"Privacy": False, "Theft": True},
    }
    table = pa.Table.from_pylist([pku(True, False, 0, **harms)])
    pq.write_table(table, tmp_path / "a.parquet")
    assert fields(only(tmp_path / "a.parquet")) == ("p", "zero", "one", "Theft")


def test_alpaca_input_joins_the_instruction(tmp_path):
    rows = [
        {"instruction": "Translate.", "input": "tea", "output": "thé"},
        {"instruction": "Sing.", "input": "", "output": ""},
        {"instruction": "Hum.", "input": None, "output": None},
    ]
    assert [fields(r) for r in rows_of(write_jsonl(tmp_path / "a.jsonl", rows))] == [
        ("Translate.\n\ntea", "thé", None, None),
        ("Sing.", None, None, None),
        ("Hum.", None, None, None),
    ]


def test_seed_tasks_take_their_first_instance(tmp_path):
    rows = [
        {
            "instruction": "Translate.",
            "instances": [{"input": "tea", "output": "thé"}, {"input": "x", "output": "y"}],
        }
    ]
    assert fields(only(write_jsonl(tmp_path / "a.jsonl", rows))) == ("Translate.\n\ntea", "thé", None, None)


def test_hh_single_turn(tmp_path):
    rows = [
        {
            "chosen": "\n\nHuman: Hi there\n\nAssistant: Hello.\n\nNew paragraph.",
            "rejected": "\n\nHuman: Hi there\n\nAssistant: Go away.",
        }
    ]
    assert fields(only(write_jsonl(tmp_path / "a.jsonl", rows))) == (
        "Hi there",
        "Hello.\n\nNew paragraph.",
        "Go away.",
        None,
    )


def test_hh_several_turns_keep_the_transcript(tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: And now?\n\nAssistant:"
    other = "\n\nHuman: Hi\n\nAssistant: Yo.\n\nHuman: And now?\n\nAssistant: Go."
    rows = [
        {"chosen": f"{start} Tea.", "rejected": f"{start} Go."},
        {"chosen": f"{start} Tea.", "rejected": other},
    ]
    first, duplicate = (only(write_jsonl(tmp_path / f"{i}.jsonl", [row])) for i, row in enumerate(rows))
    transcript = "Human: Hi\n\nAssistant: Hello.\n\nHuman: And now?"
    assert fields(first) == (transcript, "Tea.", "Go.", None)
    assert fields(duplicate) == (
        transcript,
        "Tea.",
        None,
        None,
    ), "a rejected response to another dialogue answers something else"


def test_preference_pairs_of_messages(tmp_path):
    def turns(answer):
        return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]

    row = only(write_jsonl(tmp_path / "a.jsonl", [{"chosen": turns("Hello."), "rejected": turns("Go.")}]))
    assert fields(row) == ("Hi", "Hello.", "Go.", None)


def test_messages_take_the_first_exchange(tmp_path):
    turns = [
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", "Hello."),
        ("user", "More"),
        ("assistant", "No."),
    ]
    rows = [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    assert fields(only(write_jsonl(tmp_path / "a.jsonl", rows))) == ("Hi", "Hello.", None, None)
    unanswered = [{"messages": [{"role": "user", "content": "Hi"}]}]
    assert fields(only(write_jsonl(tmp_path / "b.jsonl", unanswered))) == ("Hi", None, None, None)


def test_column_mapping(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [{"goal": "Do it", "extra": "now", "bad": "ok!", "topic": ["theft", "lies"], "prompt": "not me"}],
    )
    columns = Columns(instruction="goal", input="extra", unsafe_response="bad", category="topic")
    assert fields(only(path, columns=columns)) == ("Do it\n\nnow", None, "ok!", "theft")


def test_parquet_reads_only_the_columns_of_its_shape(tmp_path):
    table = TABLE.append_column("embedding", pa.array([[0.0] * 4] * 3))
    pq.write_table(table, tmp_path / "a.parquet")
    from pipeline.sources import files

    [file] = files.find(str(tmp_path / "a.parquet"))
    assert set(next(iter(file.rows({"instruction", "not there"})))) == {"instruction"}


# -- ids, duplicates, limit


def test_ids_ignore_place_space_and_unicode_form(tmp_path):
    composed, decomposed = "Où est le café ?", unicodedata.normalize("NFD", "Où est le café ?")
    counts = Counts()
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"instruction": t} for t in (composed, f" {decomposed}\n", "Other", composed)]
    )
    rows = list(read(Source(path=path), counts))
    assert [r["instruction"] for r in rows] == [composed, "Other"]
    assert (counts.read, counts.ok, counts.duplicates, counts.malformed) == (4, 2, 2, 0)
    elsewhere = only(write_jsonl(tmp_path / "b.jsonl", [{"prompt": composed}]))
    assert elsewhere["id"] == rows[0]["id"] == rows[0]["instruction_id"]


def test_limit_counts_distinct_good_instructions(tmp_path):
    texts = ["a", "a", None, "b", "c", "d"]
    counts = Counts()
    rows = list(
        read(
            Source(path=write_jsonl(tmp_path / "a.jsonl", [{"instruction": t} for t in texts]), limit=2),
            counts,
        )
    )
    assert [r["instruction"] for r in rows if r["status"] == OK] == ["a", "b"]
    assert (counts.read, counts.ok, counts.duplicates, counts.malformed) == (4, 2, 1, 1)


def test_reading_streams(tmp_path):
    """The first row comes without the rest having been read: what lies behind it may even be broken."""
    path = tmp_path / "a.jsonl.gz"
    many = "\n".join(json.dumps({"instruction": f"{i} {instruction_id(str(i))}"}) for i in range(30_000))
    path.write_bytes(gzip.compress(many.encode())[:-1000])
    rows = read(Source(path=str(path)))
    assert next(rows)["status"] == OK
    with pytest.raises(UserError, match="cannot be read as JSONL"):
        list(rows)


@given(st.lists(st.text(max_size=8), min_size=1, max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_ids_are_stable_and_unique(tmp_path, texts):
    path = write_jsonl(tmp_path / "a.jsonl", [{"instruction": t} for t in texts])
    rows = rows_of(path)
    assert len({r["id"] for r in rows}) == len(rows)
    assert rows == rows_of(path)
    kept = [text for text in texts if not is_missing(text) and not is_null_text(text)]
    good = {unicodedata.normalize("NFC", text.strip()) for text in kept}
    assert {unicodedata.normalize("NFC", r["instruction"].strip()) for r in rows if r["status"] == OK} == good


@pytest.mark.skipif(not REAL_SAMPLE.exists(), reason="the real sample is not beside this checkout")
def test_the_real_sample():
    counts = Counts()
    rows = list(read(Source(path=str(REAL_SAMPLE)), counts))
    raw = [json.loads(line) for line in REAL_SAMPLE.read_text(encoding="utf-8").splitlines()]
    assert counts.read == len(raw) == 304
    assert counts.malformed == 0
    assert counts.ok == len({unicodedata.normalize("NFC", r["prompt"].strip()) for r in raw}) == len(rows)
    assert all(r["unsafe_response"] for r in rows), "every pair of this sample has an unsafe response"
