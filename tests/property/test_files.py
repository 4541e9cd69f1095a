"""Input files under attack: whatever stands in them, a source is read as rows, ok or failed with a reason, or
refused in one sentence.

The cases are tried in child processes with little memory: Arrow is C++, and a crash of it would take the
tests along. A child tells the case it is at, so that one that dies or hangs is named.
"""

import codecs
import decimal
import faulthandler
import io
import json
import os
import random
import resource
import subprocess
import sys
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.schema import FAILED, INSTRUCTIONS, OK
from pipeline.settings.base import Columns, Source
from pipeline.sources import files, instructions

CASES = 350  # of a child
SECONDS = 60  # that a child may take
MEMORY = 3 * 2**30
LONGEST_SENTENCE = 2500
ROOT = Path(__file__).parents[2]


# -- the promise


def fault(path: str, **options) -> str | None:
    """What is wrong with how a source is read; None if all is as promised."""
    try:
        source, counts = Source(path=path, **options), instructions.Counts()
        instructions.check(source)
        rows = list(instructions.read(source, counts))
    except UserError as e:
        return sentence_fault(str(e))
    if (
        counts.read != counts.ok + counts.duplicates + counts.malformed
        or len(rows) != counts.ok + counts.malformed
    ):
        return f"{counts} of {len(rows)} rows"
    if any(
        (row["status"] == FAILED) != bool(row["error"]) or row["status"] not in (OK, FAILED) for row in rows
    ):
        return "a row without a reason"
    if any(sentence_fault(row["error"]) for row in rows if row["error"]):
        return "a reason that is no sentence"
    INSTRUCTIONS.table(rows)
    return None


def sentence_fault(text: str) -> str | None:
    if any(unicodedata.category(character) == "Cc" for character in text) or "Traceback" in text:
        return f"not one line: {text[:300]!r}"
    return f"{len(text)} characters: {text[:300]!r}" if len(text) > LONGEST_SENTENCE else None


# -- sound files

SHAPES = [
    [{"instruction": f"Tell me about {i}", "input": "", "output": f"It is {i}!"} for i in range(30)],
    [{"prompt": f"How {i}?", "category": "é" * (i % 3)} for i in range(300)],
    [
        {"chosen": f"\n\nHuman: q{i}\n\nAssistant: no", "rejected": f"\n\nHuman: q{i}\n\nAssistant: yes"}
        for i in range(10)
    ],
    [
        {"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": "ho"}]}
        for i in range(10)
    ],
    [
        {
            "prompt": f"p{i % 7}",
            **{f"response_{k}": "r" * 50 for k in (0, 1)},
            **{f"is_response_{k}_safe": bool(k) for k in (0, 1)},
            "safer_response_id": 1,
            "response_0_harm_category": {"fraud": True, "theft": False},
        }
        for i in range(20)
    ],
    [{"instruction": f"seed {i}", "instances": [{"input": "a", "output": "b"}]} for i in range(5)],
    [{"instruction": f"own {i}", "safe_response": None, "unsafe_response": "x"} for i in range(5)],
]
FLAT = [rows for rows in SHAPES if not any(isinstance(value, dict | list) for value in rows[0].values())]

ODD_VALUES = [
    None, True, 0, -1, 2**62, 1.5, float("nan"), float("inf"), "", " ", "x" * 200_000, "a\nb", "\x00", "\ud800", "\x1b[31m", "\ufeff", [], {}, [[[]]],
    {"a": {"b": []}}, ["x"], [None], [{"role": "user"}], [{"role": "user", "content": 3}], [{"role": 1, "content": "a"}], [3], 10**400,
]  # fmt: skip


def odd_rows(r: random.Random, rows: list) -> list:
    """The rows with some values, keys and whole rows replaced."""
    rows = [dict(row) for row in rows]
    for _ in range(r.choice([0, 1, 3])):
        i = r.randrange(len(rows))
        kind = r.choice(["value", "value", "key", "drop", "row", "twice"])
        if not isinstance(rows[i], dict) or not rows[i]:
            continue
        key = r.choice(list(rows[i]))
        if kind == "value":
            rows[i][key] = r.choice(ODD_VALUES)
        elif kind == "key":
            rows[i][r.choice(["", "\x07", "x" * 5000, "prompt", "instruction", "messages", "é"])] = rows[
                i
            ].pop(key)
        elif kind == "drop":
            del rows[i][key]
        elif kind == "row":
            rows[i] = r.choice(ODD_VALUES)
        else:
            rows.append(rows[i])
    return rows


def mutated(r: random.Random, content: bytes) -> bytes:
    """The bytes after some accidents."""
    content = bytearray(content)
    for _ in range(r.choice([0, 1, 1, 2, 5])):
        i, j = sorted((r.randrange(len(content) + 1), r.randrange(len(content) + 1)))
        kind = r.choice(["flip", "flip", "flip", "set", "cut", "drop", "insert", "repeat", "tail"])
        if kind == "cut":
            del content[i:]
        elif kind == "drop":
            del content[i : min(j, i + 50)]
        elif kind == "insert":
            content[i:i] = r.choice(
                [
                    b"\x00",
                    b"\n",
                    b"\r",
                    b'"',
                    b"\xff\xfe",
                    b"\xc3",
                    b",",
                    b"{",
                    b"}",
                    b"[" * 2000,
                    b"\\ud800",
                    codecs.BOM_UTF8,
                    b"\x00" * 500,
                    b"9" * 5000,
                ]
            )
        elif kind == "repeat":
            content[i:i] = content[i : i + 1000]
        elif content:  # of a Parquet file the footer, at the end, holds what can go wrong most
            at = max(0, len(content) - 1 - r.randrange(600)) if kind == "tail" else r.randrange(len(content))
            content[at] = r.randrange(256) if kind == "set" else content[at] ^ (1 << r.randrange(8))
    return bytes(content)


# -- text formats: what a name says, and what stands there


def write_text(r: random.Random, place: Path) -> Path:
    name = r.choice(["a.jsonl", "a.ndjson", "a.json", "a.csv"]) + r.choice(
        [""] * 5 + [".gz", ".zst", ".bz2", ".lz4"]
    )
    rows = r.choice(FLAT if ".csv" in name else SHAPES)
    content = text(r, odd_rows(r, rows), r.choice([".jsonl", ".json", ".csv"]) if r.random() < 0.05 else name)
    if r.random() < 0.5:
        content = mutated(r, content)
    if r.random() < 0.05:
        content = content.decode("utf-8", "replace").encode(
            r.choice(["utf-16", "utf-32", "latin-1", "utf-7"]), "replace"
        )
    for extension, codec in ((".gz", "gzip"), (".zst", "zstd"), (".bz2", "bz2"), (".lz4", "lz4")):
        if name.endswith(extension) and r.random() < 0.95:
            sink = pa.BufferOutputStream()
            with pa.CompressedOutputStream(sink, codec) as out:
                out.write(content)
            content = sink.getvalue().to_pybytes()
            if r.random() < 0.4:
                content = mutated(r, content)
    (place / name).write_bytes(content)
    return place / name


def text(r: random.Random, rows: list, name: str) -> bytes:
    if ".csv" in name:
        import csv

        out, names = io.StringIO(), list(rows[0]) if isinstance(rows[0], dict) and rows[0] else ["prompt"]
        writer = csv.writer(out, delimiter=r.choice([","] * 9 + [";"]))
        writer.writerow(r.choice([names] * 9 + [names + names[:1], [], [""], names * 500]))
        writer.writerows([*row.values()] if isinstance(row, dict) else [str(row)[:999]] for row in rows)
        return out.getvalue().encode("utf-8", "surrogatepass")
    lines = [json.dumps(row, ensure_ascii=r.random() < 0.7) for row in rows]
    content = "[" + ",".join(lines) + "]" if ".json" in name and ".jsonl" not in name else "\n".join(lines)
    return content.encode("utf-8", "surrogatepass")


# -- Parquet


def write_parquet(r: random.Random, place: Path) -> Path:
    path = place / "a.parquet"
    table = odd_table(r) if r.random() < 0.4 else pa.Table.from_pylist(r.choice(SHAPES))
    options = {
        "compression": r.choice(["none", "snappy", "gzip", "zstd", "lz4", "brotli"]),
        "use_dictionary": r.random() < 0.5,
    }
    pq.write_table(
        table,
        path,
        **options,
        row_group_size=r.choice([1, 7, 1000]),
        data_page_version=r.choice(["1.0", "2.0"]),
        write_page_checksum=r.random() < 0.3,
        store_schema=r.random() < 0.8,
    )
    if r.random() < 0.75:
        path.write_bytes(mutated(r, path.read_bytes()))
    return path


def odd_table(r: random.Random) -> pa.Table:
    """Columns of odd types under the names of a shape."""
    columns = [odd_column(r) for _ in range(r.choice([1, 2, 3]))]
    names = [
        r.choice(
            [
                "prompt",
                "instruction",
                "output",
                "messages",
                "chosen",
                "rejected",
                "category",
                "",
                "é",
                "\x07",
                "x" * 3000,
            ]
        )
        for _ in columns
    ]
    if r.random() < 0.05:
        return pa.table({})
    return pa.Table.from_arrays(columns, names=names)


def odd_column(r: random.Random) -> pa.Array:
    texts = ["a", "b", None, "c" * 300]
    return r.choice(
        [
            lambda: pa.array(texts),
            lambda: pa.array(texts, pa.large_string()),
            lambda: pa.array(texts, pa.string_view()),
            lambda: pa.array(texts).dictionary_encode(),
            lambda: pa.array([b"a", b"\xff\xfe", None, b""], pa.binary()),
            lambda: pa.array([b"ab", b"\xff\xff", None, b"cd"], pa.binary(2)),
            lambda: pa.Array.from_buffers(
                pa.string(), 4, pa.array([b"ok", b"\xff\xfe", b"\xed\xa0\x80", b"x"], pa.binary()).buffers()
            ),
            lambda: pa.nulls(4),
            lambda: pa.array([1, 2, None, 4]),
            lambda: pa.array([1.5, float("nan"), None, 4]),
            lambda: pa.array([True, False, None, True]),
            lambda: pa.array([decimal.Decimal("1.50")] * 4),
            lambda: pa.array([2**62, -(2**62), 0, None], pa.timestamp("ms")),
            lambda: pa.array([2**62, -(2**62), 0, None], pa.timestamp("us", "Nowhere/Land")),
            lambda: pa.array([2**30, -(2**30), 0, None], pa.date32()),
            lambda: pa.array([2**61] * 4, pa.duration("ms")),
            lambda: pa.array([["a"], [], None, [None]]),
            lambda: pa.array([[{"role": "user", "content": "x"}]] * 4),
            lambda: pa.array([[{"role": "user", "content": None}], None, [], [None]]),
            lambda: pa.array([{"a": 1}, None, {"a": None}, {"a": 2}]),
            lambda: pa.array([[("k", 1)], [], None, [("", 2)]], pa.map_(pa.string(), pa.int64())),
            lambda: pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', "not", None, "1"])),
            lambda: pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"1" * 16] * 4, pa.binary(16))),
        ]
    )()


# -- Arrow


def write_arrow(r: random.Random, place: Path) -> Path:
    path = place / "a.arrow"
    table = odd_table(r) if r.random() < 0.4 else pa.Table.from_pylist(r.choice(SHAPES))
    with r.choice([pa.ipc.new_stream, pa.ipc.new_file])(str(path), table.schema) as writer:
        writer.write_table(table)
    if r.random() < 0.8:
        path.write_bytes(mutated(r, path.read_bytes()))
    return path


# -- the children

WRITERS = {"text": write_text, "parquet": write_parquet, "arrow": write_arrow}


def attack(kind: str, seed: int, place: str) -> None:
    """What a child does: CASES files are written and read, and the faults printed as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    faulthandler.dump_traceback_later(SECONDS - 10, exit=True)
    at, faults = Path(place, "case"), []
    for case in range(CASES):
        at.write_text(str(case))
        path = WRITERS[kind](random.Random(f"{kind} {seed} {case}"), Path(place))
        try:
            options = {"columns": Columns(instruction="instruction")} if case % 9 == 0 else {}
            wrong = fault(str(path), **options)
        except Exception as e:
            wrong = f"{type(e).__name__}: {str(e)[:300]}"
        if wrong:
            faults.append([case, path.name, wrong])
        path.unlink()
    print(json.dumps({"cases": case + 1, "faults": faults}))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", WRITERS)
def test_rows_or_one_sentence(tmp_path, kind, seed):
    code = f"from tests.property.test_files import attack; attack({kind!r}, {seed}, {str(tmp_path)!r})"
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=2 * SECONDS
    )
    assert child.returncode == 0, (
        f"{kind}, seed {seed}, case {(tmp_path / 'case').read_text()}: {child.stderr[-2000:]}"
    )
    told = json.loads(child.stdout.splitlines()[-1])
    assert told == {"cases": CASES, "faults": []}


# -- what is no file, or more than it seems


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(path: str) -> str:
    with pytest.raises(UserError) as e:
        instructions.check(Source(path=path))
    assert sentence_fault(str(e.value)) is None
    return str(e.value)


@pytest.mark.timeout(20)
def test_pipes_and_devices_do_not_block(place):
    for name in ("pipe", "pipe.jsonl"):
        os.mkfifo(name)
    for path in ("pipe", "pipe.jsonl", "/dev/zero", "/dev/null", "file:///dev/zero"):
        assert "is a pipe or a device" in refused(path)
    os.symlink("/dev/zero", "zero.csv")
    assert "pipe or a device" in refused("zero.csv")
    assert "holds no .parquet" in refused(".")
    assert "matches no .parquet" in refused("*.csv")


@pytest.mark.timeout(20)
def test_links_in_a_loop_are_followed_once(place):
    os.makedirs("data/below")
    Path("data/below/a.jsonl").write_text('{"prompt": "a"}\n')
    for link in ("one", "two", "below/three"):  # two of them make 2^40 ways through
        os.symlink(place / "data", f"data/{link}")
    for path in ("data", "data/**/*.jsonl", f"file://{place}/data"):
        assert [row["instruction"] for row in instructions.read(Source(path=path))] == ["a"]


def test_a_directory_that_was_not_meant_is_refused(place, monkeypatch):
    monkeypatch.setattr(files, "MAX_ENTRIES", 10)
    for i in range(11):
        Path(f"{i}.txt").touch()
    for path in (".", "**/*.jsonl", "*"):
        assert "holds more than 10 files" in refused(path)


def test_a_glob_looks_no_deeper_than_it_says(place, monkeypatch):
    monkeypatch.setattr(files, "MAX_ENTRIES", 10)
    os.makedirs("a/b")
    Path("a/x.jsonl").write_text('{"prompt": "a"}\n')
    for i in range(11):
        Path(f"a/b/{i}.jsonl").touch()
    assert [file.key for file in files.find("*/*.jsonl")] == ["a/x.jsonl"]


def test_bombs_take_little_memory(tmp_path):
    """600 MB each, as one line, one quoted field, one array: read where 1.5 GB may be used."""
    code = f"from tests.property.test_files import bombs; bombs({str(tmp_path)!r})"
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=2 * SECONDS
    )
    assert child.returncode == 0, child.stderr[-2000:]
    said = json.loads(child.stdout.splitlines()[-1])
    assert (
        "the line is longer than 16 MiB" in said["a.jsonl.zst"]
        and "the line is longer than 16 MiB" in said["a.csv.zst"]
    )
    assert "more than 128 MiB" in said["a.json.zst"]
    assert "field larger than field limit" in said["q.csv.zst"]


def bombs(place: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY // 2, MEMORY // 2))
    heads = {
        "a.jsonl.zst": b'{"prompt": "',
        "a.csv.zst": b"prompt\n",
        "q.csv.zst": b'prompt\n"',
        "a.json.zst": b"[",
    }
    said = {}
    for name, head in heads.items():
        filling = (b"x" * 1023 + b"\n") * 1024 if name.startswith("q") else b"{}," * 2**18
        with pa.CompressedOutputStream(os.path.join(place, name), "zstd") as out:
            out.write(head)
            for _ in range(600 * 2**20 // len(filling)):
                out.write(filling)
        try:
            instructions.check(Source(path=os.path.join(place, name)))
            said[name] = next(
                row["error"] for row in instructions.read(Source(path=os.path.join(place, name)))
            )
        except UserError as e:
            said[name] = str(e)
    print(json.dumps(said))
