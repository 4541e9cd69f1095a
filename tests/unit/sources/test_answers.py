"""Instructions with responses under other names, with labels, inputs that are none, and missing values."""

import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.settings.base import Source
from pipeline.sources.instructions import check
from tests.unit.sources.written import counted, of_row, only, rows_of, write_jsonl

NAN = float("nan")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Ask", "completion": "Say"},
        {"instruction": "Ask", "context": "", "response": "Say", "category": "closed_qa"},
        {"instruction": "Ask", "output": "Say"},
        {"question": "Ask", "answer": "Say"},
        {"query": "Ask", "response": "Say"},
        {"Question": "Ask", "Best Answer": "Say"},
        {" Instruction ": "Ask", "Output\t": "Say"},
        {"PROMPT": "Ask", "RESPONSE": "Say"},
        {"\ufeffprompt": "Ask", "response": "Say"},
        {"input": "Ask", "output": "Say"},
        {'"prompt"': "Ask", " 'completion' ": "Say"},
        {"userPrompt": "Ask", "model-output": "Say"},
        {"inputs": "Ask", "targets": "Say"},
        {"problem": "Ask", "solution": "Say"},
        {"user_input": "Ask", "model_output": "Say"},
        {"goal": "Ask", "output": "Say"},
        {"user": "Ask", "assistant": "Say"},
        {"prompt": "Ask", "response": "Say", "label": None},
        {"prompt": "Ask", "response": "Say", "is_safe": 1},
    ],
    ids=lambda row: " ".join(row),
)
def test_a_response_is_found_under_its_name(tmp_path, row):
    expected = ("Ask", None if row.get("label", 1) is None else "Say", None)
    assert of_row(tmp_path, row) == expected


def test_context_is_an_input(tmp_path):
    row = {"instruction": "What is a tide?", "context": "The sea.", "response": "Rising water."}
    assert of_row(tmp_path, row) == ("What is a tide?\n\nThe sea.", "Rising water.", None)


def test_the_answers_column_may_appear_late_in_a_file(tmp_path):
    rows = [{"prompt": f"{i}"} for i in range(300)] + [{"prompt": "last", "response": "Say"}]
    assert rows_of(write_jsonl(tmp_path / "a.jsonl", rows))[-1]["safe_response"] == "Say"


def test_files_of_one_source_may_have_other_columns(tmp_path):
    pq.write_table(pa.table({"instruction": ["a"], "output": ["b"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"prompt": ["c"], "completion": ["d"]}), tmp_path / "2.parquet")
    assert [(r["instruction"], r["safe_response"]) for r in rows_of(tmp_path)] == [("a", "b"), ("c", "d")]


def test_columns_that_are_not_used_are_told(tmp_path):
    row = {"instruction": "Ask", "said": "Say", "id": 1}
    _, counts = counted(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert counts.unused == ["id", "said"]
    assert counts.told() == f"{tmp_path}/a.jsonl: 1 row read, 1 used; columns not used: id, said"
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert counted(tmp_path / "a.parquet")[1].unused == ["id", "said"]
    _, counts = counted(tmp_path / "a.parquet", columns={"instruction": "instruction"})
    assert counts.unused == ["id", "said"]


def test_a_source_without_the_response_that_is_needed_names_what_it_has(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"instruction": "Ask", "said": "Say"}])
    with pytest.raises(
        UserError,
        match=r"none of its first 1 rows has a safe response; name the column that holds it as"
        r" columns\.safe_response, or take another source \(columns not used: said\)",
    ):
        check(Source(path=path), ["safe_response"])
    check(
        Source(path=path, columns={"instruction": " INSTRUCTION", "safe_response": "Said"}), ["safe_response"]
    )


# -- labels

SAFE = [
    {"is_safe": value}
    for value in (True, 1, 1.0, "1", "1.00", "true", "True", "TRUE ", "yes", "safe", "Safe")
]
SAFE += [{"harmful": value} for value in (False, 0, "0.0", "no", "unharmful", "harmless")]
SAFE += [{"kto_tag": value} for value in (True, 1, "true")]
SAFE += [{"label": value} for value in ("safe", "harmless", True, "True", "desirable")]
SAFE += [{"response_harm_label": "unharmful"}, {"Is Safe": "y"}, {"is_safe": decimal.Decimal(1)}]
UNSAFE = [{"is_safe": value} for value in (False, 0, 0.0, "0", "false", "No", "unsafe", "harmful")]
UNSAFE += [{"is_harmful": value} for value in (True, 1.0, "1", "yes", "unsafe")]
UNSAFE += [{"kto_tag": False}, {"desirable": 0}]
UNSAFE += [{"label": value} for value in ("unsafe", "Harmful", False)]


def label(row):
    return f"{next(iter(row))} {next(iter(row.values()))!r}"


@pytest.mark.parametrize("row", SAFE, ids=label)
def test_a_response_labelled_safe_is_safe(tmp_path, row):
    row = {name: float(value) if isinstance(value, decimal.Decimal) else value for name, value in row.items()}
    assert of_row(tmp_path, {"prompt": "Ask", "response": "Say", **row}) == ("Ask", "Say", None)


@pytest.mark.parametrize("row", UNSAFE, ids=label)
def test_a_response_labelled_unsafe_is_unsafe(tmp_path, row):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Ask", "response": "Say", **row}])
    made = only(path)
    assert (made["safe_response"], made["unsafe_response"], made["unsafe_responses"]) == (
        None,
        "Say",
        ["Say"],
    )


@pytest.mark.parametrize("value", [None, NAN, "", " ", "nan", "null", "N/A", "unknown"])
def test_a_response_without_a_label_is_not_used_and_told(tmp_path, value):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Ask", "response": "Say", "is_safe": value}])
    [made], counts = counted(path)
    assert (made["safe_response"], made["unsafe_response"]) == (None, None)
    assert counts.notes == {"a response without a label is not used": 1}


@pytest.mark.parametrize(
    "labels",
    [
        *({"is_safe": 2}, {"is_safe": -1}, {"is_safe": 0.5}, {"is_safe": "maybe"}, {"is_safe": [True]}),
        *({"label": 1}, {"label": "theft"}, {"harmful": {"theft": True}}),
    ],
    ids=label,
)
def test_a_label_that_is_not_understood_spoils_its_row(tmp_path, labels):
    name = next(iter(labels))
    reason = f"{name} says neither safe nor unsafe"
    assert of_row(tmp_path, {"prompt": "Ask", "response": "Say", **labels}) == reason


def test_labels_that_contradict_each_other_spoil_their_row(tmp_path):
    row = {"prompt": "Ask", "response": "Say", "is_safe": True, "harmful": True}
    assert of_row(tmp_path, row) == "its labels contradict each other"


def test_a_labelled_conversation_goes_where_its_label_says(tmp_path):
    talk = [{"role": "user", "content": "Ask"}, {"role": "assistant", "content": "Say"}]
    assert of_row(tmp_path, {"messages": talk, "is_safe": 0.0}) == ("Ask", None, "Say")


def test_a_label_of_a_message_outweighs_that_of_its_conversation(tmp_path):
    talk = [{"role": "user", "content": "Ask"}, {"role": "assistant", "content": "Say", "toxic": False}]
    assert of_row(tmp_path, {"conversation": talk, "toxic": True}) == ("Ask", "Say", None)
    talk[1] |= {"toxic": None, "is_safe": 0}
    assert of_row(tmp_path, {"conversation": talk}) == ("Ask", None, "Say")
    talk[1] |= {"is_safe": None}
    assert of_row(tmp_path, {"conversation": talk, "is_safe": False}) == ("Ask", None, "Say")


def test_a_target_to_elicit_is_no_response(tmp_path):
    rows, counts = counted(write_jsonl(tmp_path / "a.jsonl", [{"goal": "Ask", "target": "Sure, here is"}]))
    assert rows[0]["safe_response"] is None and counts.unused == ["target"]


def test_a_users_number_is_no_instruction(tmp_path):
    with pytest.raises(UserError, match="no known shape has the columns text, user"):
        rows_of(write_jsonl(tmp_path / "a.jsonl", [{"user": "u7", "text": "Ask"}]))


def test_an_adversarial_prompt_is_the_one_that_was_answered(tmp_path):
    row = {"vanilla": "Ask", "adversarial": "You are a poet. Ask", "completion": "Say"}
    assert of_row(tmp_path, row) == ("You are a poet. Ask", "Say", None)
    assert of_row(tmp_path, row | {"adversarial": ""}) == ("Ask", "Say", None)
    assert of_row(tmp_path, row | {"prompt": "Asked", "adversarial": True}) == ("Asked", "Say", None)


def test_a_label_of_a_prompt_alone_changes_nothing(tmp_path):
    rows, counts = counted(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Ask", "label": "theft"}]))
    assert rows[0]["status"] == "ok" and counts.unused == ["label"]


def pku(**changes):
    row = {"prompt": "Ask", "response_0": "zero", "response_1": "one"}
    return row | {"is_response_0_safe": True, "is_response_1_safe": True, "safer_response_id": 1} | changes


@pytest.mark.parametrize("one", [1, 1.0, "1", "1.0", True, " 1 "])
def test_the_safer_response_is_named_by_a_number_of_any_type(tmp_path, one):
    assert of_row(tmp_path, pku(safer_response_id=one)) == ("Ask", "one", None)


@pytest.mark.parametrize("zero", [0, 0.0, "0", "0.0", False])
def test_response_zero_is_named_by_a_number_of_any_type(tmp_path, zero):
    assert of_row(tmp_path, pku(safer_response_id=zero)) == ("Ask", "zero", None)


def test_labels_of_two_responses(tmp_path):
    floats = {"is_response_0_safe": 0.0, "is_response_1_safe": 1.0, "safer_response_id": 1.0}
    assert of_row(tmp_path, pku(**floats)) == ("Ask", "one", "zero")
    assert of_row(tmp_path, pku(is_response_0_safe=NAN)) == ("Ask", "one", None)
    for value in (2, "x", 0.5):
        reason = "safer_response_id is not the number of a response"
        assert of_row(tmp_path, pku(safer_response_id=value)) == reason
    for value in (-1, -1.0, "-1", None, NAN):
        assert of_row(tmp_path, pku(safer_response_id=value)) == ("Ask", "zero", None), "none is preferred"
    wrong = "is_response_0_safe says neither safe nor unsafe"
    assert of_row(tmp_path, pku(is_response_0_safe=7)) == wrong
    unlabelled = {"prompt": "Ask", "response_0": "zero", "response_1": "one", "safer_response_id": 0.0}
    assert of_row(tmp_path, unlabelled) == ("Ask", "zero", "one")
    assert of_row(tmp_path, pku(response_1=None)) == ("Ask", "zero", None)


@pytest.mark.parametrize(
    "name", ["is_response_{}_unsafe", "response_{}_unsafe", "is_response_{}_harmful", "isResponse_{}_unsafe"]
)
def test_labels_of_two_responses_may_say_unsafe(tmp_path, name):
    row = {"prompt": "Ask", "response_0": "zero", "response_1": "one"}
    row |= {name.format(0): True, name.format(1): False}
    assert of_row(tmp_path, row) == ("Ask", "one", "zero")
    assert of_row(tmp_path, row | {"is_response_0_safe": True}) == "its labels contradict each other"
    of_safe = {"response_0_safe": 0, "response_1_safe": 1}
    assert of_row(tmp_path, {**row, name.format(0): None, name.format(1): None} | of_safe) == (
        "Ask",
        "one",
        "zero",
    )


def test_pku_of_csv_with_floats(tmp_path):
    (tmp_path / "a.csv").write_text(
        "prompt,response_0,response_1,is_response_0_safe,is_response_1_safe,safer_response_id\n"
        "a,zero,one,0.0,1.0,1.0\nb,zero,one,1.0,1.0,1.0\nc,zero,one,,1.0,1.0\n"
    )
    made = [(r["safe_response"], r["unsafe_response"]) for r in rows_of(tmp_path / "a.csv")]
    assert made == [("one", "zero"), ("one", None), ("one", None)]


# -- what stands before an instruction


@pytest.mark.parametrize(
    "history",
    [
        [["Hi", "Hello."]],
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
        '[["Hi", "Hello."]]',
    ],
)
def test_a_history_comes_before_the_instruction(tmp_path, history):
    row = {"instruction": "And now?", "input": "", "output": "Tea.", "history": history}
    asked = "Human: Hi\n\nAssistant: Hello.\n\nHuman: And now?"
    assert of_row(tmp_path, row) == (asked, "Tea.", None)


def test_a_history_that_is_none_changes_nothing_and_one_that_is_not_understood_spoils_its_row(tmp_path):
    row = {"instruction": "And now?", "output": "Tea."}
    for history in ([], None, ""):
        assert of_row(tmp_path, row | {"history": history}) == ("And now?", "Tea.", None)
    for history in ("earlier", [1], [["Hi", None]]):
        reason = "history is not a list of turns before an instruction"
        assert of_row(tmp_path, row | {"history": history}) == reason


# -- missing values, inputs that are none, types


def test_nan_is_null(tmp_path):
    rows = [
        {"instruction": "a", "input": NAN, "output": "x", "category": NAN},
        {"instruction": "b", "input": "briefly", "output": NAN, "category": "sea"},
        {"instruction": NAN, "input": "c", "output": "x"},
        {"instruction": "d", "output": "x", "category": [NAN]},
        {"instruction": "e", "output": "x", "category": {"theft": NAN, "fraud": 1.0}},
    ]
    made = rows_of(write_jsonl(tmp_path / "a.jsonl", rows))
    assert [(r["error"] or r["instruction"], r["safe_response"], r["category"]) for r in made] == [
        ("a", "x", None),
        ("b\n\nbriefly", None, "sea"),
        ("instruction is null", None, None),
        ("d", "x", None),
        ("e", "x", "fraud"),
    ]


def test_a_missing_timestamp_and_decimal_are_null(tmp_path):
    table = pa.table(
        {
            "instruction": ["a", "b"],
            "input": pa.array([None, None], pa.timestamp("ns")),
            "category": pa.array([decimal.Decimal("1.5"), None]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert [(r["instruction"], r["category"]) for r in rows_of(tmp_path / "a.parquet")] == [
        ("a", "1.5"),
        ("b", None),
    ]


@pytest.mark.parametrize(
    "input",
    [
        *(
            "<noinput>",
            "<no input>",
            "No input",
            "N/A",
            "None",
            "nan",
            "null",
            "n/a.",
            "NA",
            "-",
            "[]",
            "(none)",
        ),
        *(
            "<NoInput>",
            "no_input",
            "Not applicable",
            "NaN",
            "\n<noinput>\n",
            "No input required.",
            "#N/A",
            "undefined",
            "<nooutput>",
            "Input: None",
            "Not needed.",
        ),
    ],
)
def test_an_input_that_stands_for_none_is_left_out_and_told(tmp_path, input):
    row = {"instruction": "Name a fruit.", "input": input, "output": "Fig."}
    [made], counts = counted(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert made["instruction"] == "Name a fruit."
    assert counts.notes == {"an input that stands for none, such as <noinput>, is left out": 1}
    for name in ("context", "Input"):
        assert of_row(tmp_path, {"instruction": "Name a fruit.", name: input})[0] == "Name a fruit."


@pytest.mark.parametrize("input", [[], {}])
def test_an_empty_list_is_no_input(tmp_path, input):
    row = {"instruction": "Name a fruit.", "input": input, "output": "Fig."}
    assert of_row(tmp_path, row) == ("Name a fruit.", "Fig.", None)


@pytest.mark.parametrize("null", ["nan", "NaN", "NULL", "null", "None", "<NA>", "#N/A", "\\N", " nan "])
def test_a_text_that_says_null_is_no_value_and_told(tmp_path, null):
    rows = [{"instruction": "a", "output": null}, {"instruction": null, "output": "x"}]
    rows += [
        {"prompt": null, "question": "b", "response": "x"},
        {"chosen": "c", "prompt": "d", "rejected": null},
    ]
    made, counts = counted(write_jsonl(tmp_path / "a.jsonl", rows))
    assert [(r["error"] or r["instruction"], r["safe_response"], r["unsafe_response"]) for r in made] == [
        ("a", None, None),
        ("instruction is null", None, None),
        ("b", "x", None),
        ("d", "c", None),
    ]
    assert counts.notes == {"a text that says null, such as NaN, is not used": 2}


@pytest.mark.parametrize("text", ["None.", "Nan", "none", "NULLs", "Not a number"])
def test_a_text_that_only_resembles_null_is_kept(tmp_path, text):
    assert of_row(tmp_path, {"instruction": text, "output": text}) == (text, text, None)


def test_a_text_without_a_visible_character_is_missing(tmp_path):
    assert of_row(tmp_path, {"instruction": "\u200b \ufeff", "output": "x"}) == "instruction is empty"
    assert of_row(tmp_path, {"instruction": "a", "output": "\0\0"}) == ("a", None, None)


@pytest.mark.parametrize(
    "input", ["Na", "None of them came.", "7", "?", "no", "🙂", "no inputs were given to it"]
)
def test_an_input_that_only_looks_like_none_is_kept(tmp_path, input):
    assert of_row(tmp_path, {"instruction": "Explain.", "input": input})[0] == f"Explain.\n\n{input}"


def test_bytes_are_decoded(tmp_path):
    table = pa.table(
        {
            "prompt": pa.array([b"caf\xc3\xa9", b"b", b"\xff\xfe"], pa.binary()),
            "response": pa.array([b"x", b"\xff", b"x"], pa.binary()),
            "is_safe": pa.array([b"1", b"1", b"1"], pa.large_binary()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert [
        (r["error"] or r["instruction"], r["safe_response"]) for r in rows_of(tmp_path / "a.parquet")
    ] == [
        ("café", "x"),
        ("response is not valid UTF-8", None),
        ("prompt is not valid UTF-8", None),
    ]


def test_class_labels_and_dictionaries_are_read_by_name(tmp_path):
    import datasets

    kind = datasets.ClassLabel(names=["unsafe", "safe"])
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "response": datasets.Value("string"), "label": kind}
    )
    rows = {"prompt": ["a", "b", "c"], "response": ["x", "y", "z"], "label": [1, 0, -1]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    dictionary = pa.table({**rows, "label": pa.array(["safe", "unsafe", None]).dictionary_encode()})
    pq.write_table(dictionary, tmp_path / "b.parquet")
    for path in ("a.parquet", "saved", "b.parquet"):
        made = [(r["safe_response"], r["unsafe_response"]) for r in rows_of(tmp_path / path)]
        assert made == [("x", None), (None, "y"), (None, None)], path


def test_counts_survive_json(tmp_path):
    from pipeline.sources.counts import Accounts

    found = Accounts()
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "x": 1}, {"prompt": ""}, {"prompt": "a"}])
    from pipeline.sources.instructions import read

    assert len(list(read(Source(path=path), found.below("suites").of("harmful")))) == 2
    again = Accounts.from_facts(json.loads(json.dumps(found.facts())))
    assert (
        again.told()
        == found.told()
        == [
            f"suites.harmful = {path}: 3 rows read, 1 used, 1 repeats an instruction, 1 malformed (instruction is"
            " empty: 1); columns not used: x"
        ]
    )
