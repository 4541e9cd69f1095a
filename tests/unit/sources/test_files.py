"""Files as they lie about: tables in JSON, quotes that are not closed, splits, saved data sets, encodings."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.settings.base import Source
from pipeline.sources.instructions import check
from tests.unit.sources.written import THREE, counted, rows_of, write_jsonl

MADE = [(row["instruction"], row["output"]) for row in THREE]


def made(path, **options):
    return [(r["instruction"], r["safe_response"]) for r in rows_of(path, **options)]


def refused(path, **options) -> str:
    with pytest.raises(UserError) as e:
        check(Source(path=str(path), **options))
    assert "\n" not in str(e.value)
    return str(e.value)


# -- tables in a .json file

ASKED, SAID = ([row[name] for row in THREE] for name in ("instruction", "output"))
TABLES = {
    "columns": {name: {str(i): row[name] for i, row in enumerate(THREE)} for name in THREE[0]},
    "lists": {"instruction": ASKED, "output": SAID},
    "index": {str(i): row for i, row in enumerate(THREE)},
    "split": {"columns": ["instruction", "output"], "index": [0, 1, 2], "data": [[*pair] for pair in MADE]},
    "table": {"schema": {"fields": []}, "data": THREE},
    "wrapped": {"version": "1.0", "data": THREE},
    "records": THREE,
}


@pytest.mark.parametrize("name", TABLES)
def test_every_layout_of_a_json_file_gives_the_same_rows(tmp_path, name):
    (tmp_path / "a.json").write_text(json.dumps(TABLES[name]))
    assert made(tmp_path / "a.json") == MADE


def test_a_single_row_of_lists_is_one_row(tmp_path):
    talk = [{"role": "user", "content": "Ask"}, {"role": "assistant", "content": "Say"}]
    for row in ({"messages": talk}, {"prompt": talk[:1], "completion": talk[1:]}):
        (tmp_path / "a.json").write_text(json.dumps(row))
        assert made(tmp_path / "a.json") == [("Ask", "Say")]


def test_a_column_of_conversations_is_read(tmp_path):
    talk = [{"role": "user", "content": "Ask"}, {"role": "assistant", "content": "Say"}]
    (tmp_path / "a.json").write_text(json.dumps({"id": [1], "messages": [talk]}))
    assert made(tmp_path / "a.json") == [("Ask", "Say")]


@pytest.mark.parametrize(
    "value",
    [
        {"instruction": ["a", "b"], "output": ["x"]},
        {"instruction": {"0": "a"}, "output": {"1": "x"}},
        {"train": THREE, "test": THREE},
        {"a": {"b": 1}},
    ],
    ids=json.dumps,
)
def test_an_object_that_is_no_table_is_refused_for_what_it_is(tmp_path, value):
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert "is one JSON object with the keys" in refused(tmp_path / "a.json")


ARRAYS = {
    "in one line": json.dumps(THREE),
    "in many lines": json.dumps(THREE, indent=1),
    "a row on each line": "\ufeff[\n" + ",\n".join(map(json.dumps, THREE)) + "\n]\n",
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_in_a_file_named_jsonl_is_read(tmp_path, name):
    (tmp_path / "a.jsonl").write_text(ARRAYS[name])
    assert made(tmp_path / "a.jsonl") == MADE


def test_a_list_of_messages_may_be_a_row_or_a_line(tmp_path):
    talks = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in MADE
    ]
    (tmp_path / "a.json").write_text(json.dumps(talks))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    (tmp_path / "a.jsonlines").write_text("".join(json.dumps(row) + "\n" for row in THREE))
    assert made(tmp_path / "a.json") == made(tmp_path / "a.jsonl") == made(tmp_path / "a.jsonlines") == MADE


# -- the first rows are read as the run will


def test_a_source_of_which_no_row_can_be_used_is_refused_with_its_reasons(tmp_path):
    rows = [{"messages": 1}, {"messages": []}, {"messages": []}]
    said = refused(write_jsonl(tmp_path / "a.jsonl", rows))
    reasons = "(messages has no user turn: 2, messages is not a list of messages: 1)"
    assert f"none of its first 3 rows can be used {reasons}" in said


def test_the_first_rows_are_counted_and_no_more_are_read_than_needed(tmp_path):
    rows = [{"prompt": f"{i}" if i % 2 else ""} for i in range(1000)]
    counts = check(Source(path=write_jsonl(tmp_path / "a.jsonl", rows)))
    assert (counts.read, counts.ok, counts.reasons) == (200, 100, {"instruction is empty": 100})


def test_usable_rows_behind_many_malformed_ones_are_found(tmp_path):
    rows = [{"prompt": ""}] * 1000 + [{"prompt": "a"}]
    assert check(Source(path=write_jsonl(tmp_path / "a.jsonl", rows))).ok == 1


def test_looking_ends_when_its_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.sources.instructions._PROBE_S", 0)
    rows = [{"prompt": f"{i}"} for i in range(1000)]
    assert check(Source(path=write_jsonl(tmp_path / "a.jsonl", rows))).read == 1


# -- CSV and TSV


HEADS = {
    "sep=": "sep=;\ninstruction;output\na, b;x\n",
    "a comma in a quoted name": '"instruction";"output";"note, short"\n"a, b";"x";"n"\n',
    "spaces behind delimiters": 'instruction, output\n"a, b", "x"\n',
    "spaces behind delimiters and quotes": '"instruction", "output"\n"a, b", "x"\n',
    "more semicolons than commas": "instruction;output;a, note\na, b;x;\n",
}


@pytest.mark.parametrize("name", HEADS)
def test_the_header_tells_how_fields_are_separated(tmp_path, name):
    (tmp_path / "a.csv").write_text(HEADS[name])
    assert made(tmp_path / "a.csv") == [("a, b", "x")]


def test_an_unclosed_quote_is_a_malformed_row_that_says_which_lines_it_took(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('instruction,output\nfirst,one\n"What is a tide?,The sea.\nNext,One.\nThird,Two.\n')
    rows, counts = counted(path)
    assert [r["instruction"] for r in rows if r["status"] == "ok"] == ["first"]
    assert counts.malformed == 1 and rows[1]["error"] == (
        "a quote is not closed, so the rows after it cannot be told apart: from line 3 to line 5"
    )
    path.write_text('instruction,output\n"What is a tide?,The sea.\nNext,One.\n')
    assert "a quote is not closed, so the rows after it cannot be told apart: from line 2" in refused(path)


SWALLOWING = {
    "a later quoted row": '"What is a tide?,The sea.\nNext,One.\n"Third, too",Two.\nLast,Three.\n',
    "a stray quote at a later line's end": '"What is a tide?,The sea.\nNext,One."\nLast,Three.\n',
    "a quote in the second column": 'What?,"The sea.\nNext,One.\nThird,"Two"\nLast,Three.\n',
    "backslashes": '"Say \\"hi\\" to\nhim, too",Hi.\nLast,Three.\n',
    "quotes that are not doubled": '"He said "hi" to me",Why?\nLast,Three.\n',
    "a quote in the last column": 'What?,"The sea.\n' + "Next,One.\n" * 6 + 'Third,Two."\nLast,Three.\n',
    "many rows in one field": '"a,b\n' + "c,d\n" * 8 + 'e,f",x\nLast,Three.\n',
}


@pytest.mark.parametrize("name", SWALLOWING)
def test_rows_in_a_quoted_field_are_never_one_ok_row(tmp_path, name):
    (tmp_path / "a.csv").write_text("instruction,output\nFirst,Zero.\n" + SWALLOWING[name])
    rows, counts = counted(tmp_path / "a.csv")
    used = [r["instruction"] for r in rows if r["status"] == "ok"]
    assert used in (["First", "Last"], ["First"]), "neither swallowed rows nor halves of one"
    assert counts.malformed == 1


@pytest.mark.parametrize("swallowed", ['"q1,,a\nq2,,b\nq3,,c",x,y\n', 'q1,,"a\nq2,,b\nq3,,c"\n'])
def test_two_swallowed_rows_of_three_columns_are_enough_to_be_found(tmp_path, swallowed):
    (tmp_path / "a.csv").write_text(f"instruction,input,output\n{swallowed}q4,,d\n")
    rows = rows_of(tmp_path / "a.csv")
    assert [r["error"] or r["instruction"] for r in rows] == [
        "a quoted field holds what seems to be rows: from line 2 to line 4",
        "q4",
    ]


def test_the_lines_that_are_lost_with_a_row_are_told(tmp_path):
    (tmp_path / "a.csv").write_text('instruction,output\nq1,a\n"open,x\nq2,a\n"q3",a\nq4,a\n')
    rows, _ = counted(tmp_path / "a.csv")
    assert [r["error"] for r in rows] == [
        None,
        "text follows a closing quote (a quote inside a quoted field is written twice): from line 3 to line 6",
    ]


def test_what_csv_allows_is_read(tmp_path):
    asked = [
        'a "word"',
        "roses, red\nviolets, blue\na, b\nc, d\ne, f\ng, h\ni, j",
        "two\nlines, with\ncommas, each",
        "x;y",
        " padded ",
        "tab\there",
    ]
    with open(tmp_path / "a.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "instruction", "output"])  # as pandas writes its index
        writer.writerows([i, text, "ok"] for i, text in enumerate(asked))
        file.write("\r\n7,short\r\n")
    rows, counts = counted(tmp_path / "a.csv")
    assert [r["instruction"] for r in rows] == [*asked, "short"]
    assert counts.malformed == 0 and counts.unused == []


@pytest.mark.parametrize(
    ("name", "delimiter"), [("a.tsv", "\t"), ("a.csv", ";"), ("a.csv", "\t"), ("b.tsv.gz", "\t")]
)
def test_other_delimiters(tmp_path, name, delimiter):
    lines = [("instruction", "output"), *MADE, ("with, comma", "x")]
    text = "".join(delimiter.join(line) + "\n" for line in lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert made(tmp_path / name) == [*MADE, ("with, comma", "x")]


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,response,response\na,b,c\n")
    assert "has two columns response; rename one of them" in refused(tmp_path / "a.csv")


# -- splits, configurations, partitions


def parquet(path, *asked):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"instruction": list(asked), "output": ["x"] * len(asked)}), path)


LAYOUTS = {
    "a clone": ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    "files": ("train.parquet", "test.parquet"),
    "directories": ("train/0.parquet", "test/0.parquet"),
    "words in names": ("asks_training_v2.parquet", "asks.eval.parquet"),
    "partitions": ("split=train/0.parquet", "split=test/0.parquet"),
    "a configuration's directory": ("en/train-0.parquet", "en/test-0.parquet"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_split_of_a_directory_is_read_and_the_others_are_told(tmp_path, name):
    train, test = LAYOUTS[name]
    parquet(tmp_path / train, "a", "b")
    parquet(tmp_path / test, "held out")
    (tmp_path / "README.md").write_text("# A data set\n")
    rows, counts = counted(tmp_path)
    assert [r["instruction"] for r in rows] == ["a", "b"]
    assert counts.notes == {"a file of split test is not read": 1}
    assert made(tmp_path, split="test") == [("held out", "x")]
    assert "has no split validation; found are test, train: set split" in refused(
        tmp_path, split="validation"
    )
    assert made(tmp_path / test) == [("held out", "x")], "a file is read as it is"


def test_a_directory_of_one_other_split_is_refused_and_one_without_splits_is_read(tmp_path):
    parquet(tmp_path / "only" / "dev.parquet", "a")
    assert "has no split train; found are validation" in refused(tmp_path / "only")
    assert made(tmp_path / "only", split="val") == [("a", "x")]
    parquet(tmp_path / "none" / "contest.parquet", "a")
    parquet(tmp_path / "none" / "restraint.parquet", "b")
    assert len(made(tmp_path / "none")) == 2


def test_splits_of_other_names_are_those_of_push_to_hub(tmp_path):
    for split in ("harmless", "red_team"):
        parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", split)
    assert "found are harmless, red_team" in refused(tmp_path)
    assert made(tmp_path, split="red_team") == [("red_team", "x")]


@pytest.mark.parametrize(
    "names",
    [
        ("data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet"),
        ("default/train_sft/0000.parquet", "default/train_gen/0000.parquet"),
    ],
)
def test_splits_of_which_several_are_called_train_are_not_mixed(tmp_path, names):
    for name in names:
        parquet(tmp_path / name, name)
    assert "has no split train; found are train_gen, train_sft" in refused(tmp_path)
    assert made(tmp_path, split="train_sft") == [(names[0], "x")]


def test_a_directory_that_lacks_a_shard_is_refused(tmp_path):
    for i in (0, 2):
        parquet(tmp_path / "data" / f"train-0000{i}-of-00003.parquet", f"{i}")
    parquet(tmp_path / "data" / "test-00000-of-00002.parquet", "held out")
    assert "holds 2 of the 3 files data/train-…-of-00003.parquet; fetch the others" in refused(tmp_path)
    parquet(tmp_path / "data" / "train-00001-of-00003.parquet", "1")
    assert [asked for asked, _ in made(tmp_path)] == ["0", "1", "2"]
    assert "holds 1 of the 2 files data/test-" in refused(tmp_path, split="test")
    assert made(tmp_path / "data" / "test-*.parquet") == [("held out", "x")]
    parquet(tmp_path / "none" / "part-00000-of-00002.parquet", "a")
    assert "holds 1 of the 2 files" in refused(tmp_path / "none")


def test_a_split_that_cannot_be_chosen_is_told_or_refused(tmp_path):
    for name in ("train", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", THREE)
    for path in (tmp_path / "train.jsonl", f"{tmp_path}/*.jsonl", "toy:harmful-heldout"):
        _, counts = counted(path, split="test")
        note = "split = test is not looked at, because files and globs are read as they are"
        assert counts.notes[note] == 1
        assert "config = en: only hub sets and directories have one" in refused(path, config="en")
    (tmp_path / "none").mkdir()
    write_jsonl(tmp_path / "none" / "a.jsonl", THREE)
    assert "has no splits, so split = test is not there" in refused(tmp_path / "none", split="test")


README = """---
license: mit
configs:
- config_name: {}
  data_files:
  - split: train
    path: [first.parquet, "more/*.parquet"]
  - split: test
    path: last.parquet
- config_name: b
  data_files: b/*.parquet
---
# A data set
"""


def test_a_readme_says_which_files_are_a_configuration_and_its_splits(tmp_path):
    for i, name in enumerate(["first", "more/1", "more/2", "last", "b/1", "left"]):
        parquet(tmp_path / f"{name}.parquet", f"{name}{i}")
    (tmp_path / "README.md").write_text(README.format("a"))
    assert "has several configurations; name one as config: a, b" in refused(tmp_path)
    assert len(made(tmp_path, config="a")) == 3
    assert made(tmp_path, config="a", split="test") == [("last3", "x")]
    assert made(tmp_path, config="b") == [("b/14", "x")]
    assert "config = c is none of its configurations a, b" in refused(tmp_path, config="c")
    (tmp_path / "README.md").write_text(README.format("default"))
    assert len(made(tmp_path)) == 3
    (tmp_path / "first.parquet").rename(tmp_path / "elsewhere.parquet")
    assert "first.parquet of its README is not there; fetch it" in refused(tmp_path)
    assert made(tmp_path, split="test") == [("last3", "x")]
    for broken in ("---\nconfigs: [\n---\n", "---\nconfigs: 7\n---\n", "---\n&a [*a]\n---", "---\nconfigs:"):
        (tmp_path / "README.md").write_text(broken)
        assert len(made(tmp_path)) == 6
    assert "lists no configurations; leave it out" in refused(tmp_path, config="a")
    assert "only hub sets and directories have one" in refused(tmp_path / "left.parquet", config="a")


def test_columns_that_the_path_names_are_columns(tmp_path):
    parquet(tmp_path / "category=theft" / "lang=en" / "0.parquet", "a")
    parquet(tmp_path / "category=hate%20speech" / "0.parquet", "b")
    parquet(tmp_path / "category=__HIVE_DEFAULT_PARTITION__" / "0.parquet", "c")
    rows, counts = counted(f"{tmp_path}/**/*.parquet")
    categories = {r["instruction"]: r["category"] for r in rows}
    assert categories == {"a": "theft", "b": "hate speech", "c": None}
    assert counts.unused == ["lang"]
    for path in ("category=theft/lang=en/0.parquet", "category=theft/*/*.parquet", "category=theft"):
        assert [r["category"] for r in rows_of(tmp_path / path)] == ["theft"], "also of the source's own path"


def test_a_files_own_value_outweighs_that_of_its_path(tmp_path):
    (tmp_path / "category=theft").mkdir()
    rows = [{"prompt": "a", "category": "fraud"}, {"prompt": "b", "category": None}]
    write_jsonl(tmp_path / "category=theft" / "a.jsonl", rows)
    assert [r["category"] for r in rows_of(tmp_path)] == ["fraud", "theft"]


# -- what save_to_disk writes, metadata beside data


def test_saved_data_sets_are_read(tmp_path):
    import datasets

    held_out = datasets.Dataset.from_list([{"instruction": "held out", "output": "x"}])
    both = datasets.DatasetDict({"train": datasets.Dataset.from_list(THREE), "test": held_out})
    both.save_to_disk(tmp_path / "dict")
    both["train"].save_to_disk(tmp_path / "one", num_shards=2)
    assert made(tmp_path / "dict") == made(tmp_path / "one") == made(tmp_path / "one" / "*.arrow") == MADE
    assert made(tmp_path / "dict", split="test") == [("held out", "x")]
    assert "has no split dev; found are test, train" in refused(tmp_path / "dict", split="dev")
    assert "config = en: a saved data set has none" in refused(tmp_path / "dict", config="en")
    (tmp_path / "one" / "cache-1234.arrow").write_bytes(b"a map's cache")
    assert made(tmp_path / "one") == MADE
    named = datasets.DatasetDict({"harmless": both["train"], "red": held_out})
    named.save_to_disk(tmp_path / "named")
    assert "found are harmless, red" in refused(tmp_path / "named")
    assert made(tmp_path / "named", split="red") == [("held out", "x")]


def test_arrow_files_of_both_formats_are_read_and_broken_ones_refused(tmp_path):
    table = pa.Table.from_pylist(THREE)
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_stream(str(tmp_path / "stream.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert made(tmp_path / "file.arrow") == made(tmp_path / "stream.arrow") == MADE
    (tmp_path / "cut.arrow").write_bytes((tmp_path / "stream.arrow").read_bytes()[:-300])
    (tmp_path / "none.arrow").write_bytes(b"hello, this is no Arrow")
    for name in ("cut", "none"):
        assert "cannot be read as Arrow" in refused(tmp_path / f"{name}.arrow")


METADATA = ["dataset_infos.json", "dataset_info.json", "package.json", "metadata.json", "state.json"]


def test_metadata_beside_data_is_no_data(tmp_path):
    parquet(tmp_path / "data" / "0.parquet", "a")
    for name in [*METADATA, ".gitattributes", "LICENSE", "README.md", "script.py"]:
        (tmp_path / name).write_text('{"instruction": "not me"}')
    assert made(tmp_path) == [("a", "x")]


def test_files_of_other_formats_beside_data_are_told(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", THREE)
    for name in ("b.xlsx", "c.xlsx", "d.zip", "README.md", "e.jsonl.xz", "f.parquet.gz"):
        (tmp_path / name).write_text("x")
    (tmp_path / "g.jsonl.gz").write_bytes(gzip.compress(b'{"instruction": "g"}'))
    _, counts = counted(tmp_path)
    assert counts.notes == {f"a .{ending} file is not read": 1 for ending in ("gz", "xz", "zip")} | {
        "a .xlsx file is not read": 2
    }


DISGUISED = {
    "a.jsonl": (b"\x1f\x8b\x08\x00abc", "is compressed by gzip; add .gz to its name"),
    "a.json": (b"BZh91AY&SY", "is compressed by bzip2; add .bz2 to its name"),
    "a.ndjson": (b"\x28\xb5\x2f\xfdabc", "is compressed by Zstandard; add .zst to its name"),
    "a.csv": (b"PK\x03\x04\x14\x00", "is a zip archive; unpack it"),
    "b.csv": (b"PAR1\x15\x04", "is a Parquet file; end its name in .parquet"),
    "a.parquet": (b"ARROW1\0\0", "is an Arrow file; end its name in .arrow"),
    "b.parquet": (
        b"version https://git-lfs.github.com/spec/v1\noid",
        "is a pointer of Git LFS, not the file; fetch it by `git lfs pull`",
    ),
    "a.arrow": (b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS"),
    "a.tsv": (b"<!DOCTYPE html>\n<html>", "is a web page and not the file; download the file itself"),
}


@pytest.mark.parametrize("name", DISGUISED)
def test_a_file_that_is_not_what_its_name_says_is_named_for_what_it_is(tmp_path, name):
    content, said = DISGUISED[name]
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name).startswith(f"{tmp_path / name}: {said}")


def test_a_json_file_alone_is_data_whatever_its_name(tmp_path):
    (tmp_path / "metadata.json").write_text(json.dumps(THREE))
    assert made(tmp_path) == MADE


def test_the_remedy_against_mixed_formats_works(tmp_path):
    parquet(tmp_path / "data" / "0.parquet", "a")
    (tmp_path / "other.json").write_text("{}")
    said = refused(tmp_path)
    assert "holds JSON and Parquet files; name one kind with a glob such as" in said
    assert made(said.rpartition(" ")[2]) == [("a", "x")]


# -- encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv"])
def test_a_text_with_a_byte_order_mark_is_read(tmp_path, encoding, ending):
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in ("café", "naïve " * 20_000)]
    text = {
        "jsonl": "\n".join(lines),
        "json": f"[{', '.join(lines)}]",
        "csv": f"prompt\ncafé\n{'naïve ' * 20_000}\n",
        "tsv": f"prompt\tx\ncafé\t1\n{'naïve ' * 20_000}\t2\n",
    }[ending]
    (tmp_path / f"a.{ending}").write_bytes(text.encode(encoding))
    rows = rows_of(tmp_path / f"a.{ending}")
    assert rows[0]["instruction"] == "café"
    assert len(rows) == 2 and rows[1]["error"].startswith("instruction is too long")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_named(tmp_path, encoding):
    (tmp_path / "a.jsonl").write_bytes('{"prompt": "a"}'.encode(encoding))
    assert "seems to be in UTF-16 without a byte order mark" in refused(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_an_encoding_of_western_europe_is_guessed_in_the_refusal(tmp_path, name):
    text = {"a.jsonl": '{"prompt": "café"}\n', "a.csv": "prompt\ncafé\n", "a.json": '[{"prompt": "café"}]'}[
        name
    ]
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    said = refused(tmp_path / name)
    assert "not valid UTF-8: 1; the file may be in Latin-1 or Windows-1252: convert it to UTF-8" in said


def test_a_cut_text_of_utf_16_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"prompt": "a"}\n'.encode("utf-16")[:-1])
    assert "cannot be read as JSONL" in refused(tmp_path / "a.jsonl")
