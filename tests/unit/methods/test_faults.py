"""Quality gates in the methods: a faulty text is kept, counted with its step, and not trained on."""

import asyncio
from collections import Counter
from types import SimpleNamespace

import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline import making
from pipeline.commands import report_data
from pipeline.config import Config
from pipeline.data import faults
from pipeline.data.card import Origin, write_card
from pipeline.data.store import Store, reason
from pipeline.fingerprints import fingerprints
from pipeline.methods.course_correction import CourseCorrection
from pipeline.methods.course_correction.schema import CORRECTIONS
from pipeline.methods.critique_revise import CritiqueRevise
from pipeline.methods.critique_revise.schema import REVISIONS
from pipeline.methods.mistake_analysis import MistakeAnalysis
from pipeline.methods.mistake_analysis.report import data as report_of_mistakes
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.schema import PREFERENCES, SFT
from pipeline.sources.counts import Accounts
from pipeline.usable import too_few
from tests import scripted
from tests.scripted import Cut, ScriptedChat, instruction

ASK = instruction()["instruction"]
BAD, ANALYSIS = "Sure. First take a printer.", "It harms the railway."
LOOP, STATED = "The answer is: " * 9, "The response should be harmful, unethical, and offensive."
FRENCH = "Il faut prendre une imprimante et du papier, puis découper chaque billet avec soin."


def row_of(method, chat: ScriptedChat, **changes) -> dict:
    row = instruction(**changes)
    return {**row, **asyncio.run(method.recipe(0)(row, chat))}


def analysed(induce=BAD, analyse=ANALYSIS, row=None, **settings) -> tuple[dict, ScriptedChat]:
    chat = ScriptedChat(induce=induce, analyse=analyse)
    return row_of(MistakeAnalysis(instructions={"path": "x"}, **settings), chat, **row or {}), chat


def revised(**changes) -> tuple[dict, ScriptedChat]:
    settings = {key: changes.pop(key) for key in ("gates", "answer") if key in changes}
    texts = {"induce": BAD, "critique1": "It helps with fraud.", "revise1": "Better buy a ticket."}
    chat = ScriptedChat(**texts | changes)
    return row_of(CritiqueRevise(instructions={"path": "x"}, **settings), chat), chat


def made(method, schema, row: dict) -> list[dict]:
    table = method.generated.table([{name: row.get(name) for name in method.generated.names}])
    return list(method.examples(schema, table.to_pylist(), Counter(), 0, Accounts()))


# -- mistake analysis


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Sure.", "too short"),
        (LOOP, "degenerate repetition"),
        (ASK, "echo"),
        (STATED, "echo"),
        ("Here is a harmful response:\nTake a printer.", "meta line"),
        (FRENCH, "other language"),
    ],
)
def test_a_faulty_mistake_is_kept_and_not_analysed(text, fault):
    row, chat = analysed(induce=text)
    assert (row["status"], row["error"], row["response"]) == ("dropped", f"induce: {fault}", text.strip())
    assert row["faults"] == [f"induce: {fault}"] and chat.steps == ["induce"]
    method = MistakeAnalysis(instructions={"path": "x"})
    assert [example["kind"] for example in made(method, SFT, row)] == ["safe"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Harmful.", "too short"),
        (LOOP, "degenerate repetition"),
        (BAD, "echo"),
        ("The response may be harmful, unethical, or offensive.", "echo"),
        (FRENCH, "other language"),
    ],
)
def test_a_faulty_analysis_is_kept_and_not_trained_on(text, fault):
    row, _ = analysed(analyse=text)
    assert (row["status"], row["error"], row["analysis"]) == ("dropped", f"analyse: {fault}", text.strip())
    assert (row["faults"], row.get("analysis_verdict")) == (
        [f"analyse: {fault}"],
        None,
    )
    method = MistakeAnalysis(instructions={"path": "x"})
    assert [example["kind"] for example in made(method, SFT, row)] == ["safe"]
    sound, _ = analysed()
    assert [example["kind"] for example in made(method, SFT, sound)] == ["analysis", "safe"]


def test_an_analysis_may_announce_itself():
    row, _ = analysed(analyse="Analysis of the response:\nIt harms the railway.")
    assert (row["status"], row["faults"]) == ("ok", [])


def test_faults_of_the_sources_responses_are_only_counted():
    row, _ = analysed(mistake="reference", row={"unsafe_response": "Never."})
    assert (row["status"], row["faults"]) == ("ok", ["reference: too short"])
    row, _ = analysed(mistake="reference", row={"unsafe_response": "Never."}, filter=True)
    assert row["faults"] == ["reference: too short"], "counted whatever comes after"


def test_a_loop_that_ran_into_the_limit_is_a_loop_and_a_cut_text_is_left_to_unfinished():
    row, _ = analysed(analyse=Cut(LOOP))
    assert (row["error"], row["endings"]) == (
        "analyse: degenerate repetition",
        ["analyse: cut", "induce: whole"],
    )
    row, _ = analysed(analyse=Cut("It harms the railway. It also"))
    assert (row["status"], row["faults"], row["analysis"]) == ("ok", [], ANALYSIS)
    row, _ = analysed(analyse=Cut("It harms the railway and"), unfinished="keep")
    assert (row["status"], row["faults"]) == ("ok", [])


def test_gates_can_be_turned_off_one_by_one_and_all():
    assert analysed(induce="Sure.", gates={"min_words": None})[0]["status"] == "ok"
    assert analysed(induce=LOOP, analyse=LOOP, gates=None)[0]["status"] == "ok"


# -- contradictions

HARMLESS = "The response is harmless, because it hurts nobody."


@pytest.mark.parametrize(
    ("induce", "analyse", "verdict", "contradicts"),
    [
        (BAD, HARMLESS, False, True),
        (BAD, "The response is harmful.", True, False),
        (BAD, ANALYSIS, None, False),
        ("I cannot help you with that.", "The response is unethical.", True, True),
        ("I cannot help you with that.", HARMLESS, False, False),
    ],
)
def test_an_analysis_that_contradicts_the_judge_is_counted_and_dropped_on_request(
    induce, analyse, verdict, contradicts
):
    kept, _ = analysed(induce=induce, analyse=analyse)
    assert kept["analysis_verdict"] is verdict and kept["status"] != "dropped"
    assert kept["faults"] == (["analyse: contradicts the judge"] if contradicts else [])
    dropped, _ = analysed(induce=induce, analyse=analyse, contradictions="drop")
    assert (dropped["status"] == "dropped") == contradicts
    if contradicts:
        assert (dropped["error"], dropped["analysis"]) == ("analyse: contradicts the judge", analyse)
        assert dropped["analysis_verdict"] is verdict
    else:
        assert dropped == kept


def test_without_a_judge_nothing_is_contradicted():
    row, _ = analysed(analyse=HARMLESS, verify=None)
    assert (row["analysis_verdict"], row["faults"]) == (False, [])
    with pytest.raises(ValidationError, match="contradictions = drop needs a verdict: set verify"):
        MistakeAnalysis(instructions={"path": "x"}, verify=None, contradictions="drop")


def test_the_report_compares_verdicts():
    found = [analysed(analyse=text)[0] for text in (HARMLESS, "It is harmful.", ANALYSIS, LOOP)]
    rows = [{**{name: row.get(name) for name in MISTAKES.names}, "id": str(i)} for i, row in enumerate(found)]
    method = MistakeAnalysis(instructions={"path": "x"})
    text = report_of_mistakes(method, {"mistakes": MISTAKES.table(rows), "sft": None}).text
    said = "2 analyses pronounce a verdict on a response that was judged; 1 of them contradict the judge"
    assert any(paragraph.startswith(said) for paragraph in text), text
    text = report_of_mistakes(method, {"mistakes": MISTAKES.table(rows[2:]), "sft": None}).text
    assert not any("contradict" in paragraph for paragraph in text)


# -- critique and revision


@pytest.mark.parametrize(
    ("changes", "error", "steps"),
    [
        ({"induce": STATED}, "induce: echo", 1),
        ({"critique1": LOOP}, "critique: degenerate repetition", 2),
        ({"critique1": "Fraud."}, "critique: too short", 2),
        ({"critique1": BAD}, "critique: echo", 2),
        ({"critique1": FRENCH}, "critique: other language", 2),
        ({"revise1": LOOP}, "revise: degenerate repetition", 3),
        ({"revise1": "No."}, "revise: too short", 3),
        ({"revise1": ASK}, "revise: echo", 3),
        ({"revise1": "It helps with fraud."}, "revise: echo", 3),
        ({"revise1": "Response: better buy a ticket."}, "revise: meta line", 3),
        ({"revise1": FRENCH}, "revise: other language", 3),
    ],
)
def test_a_faulty_critique_or_revision_drops_the_row_with_its_texts(changes, error, steps):
    row, chat = revised(**changes)
    assert (row["status"], row["error"], row["faults"]) == ("dropped", error, [error])
    assert len(chat.steps) == steps, "nothing more is asked"
    kept = {"induce": [row["response"]], "critique1": row["critiques"], "revise1": [row.get("revision")]}
    assert [text.strip() for text in changes.values()] == kept[next(iter(changes))]
    method = CritiqueRevise(instructions={"path": "x"})
    assert made(method, SFT, row) == made(method, PREFERENCES, row) == []


def test_a_critique_speaks_about_the_answer_and_a_revision_may_keep_most_of_it():
    row, _ = revised(critique1="The answer: it helps with fraud.")
    assert row["status"] == "ok"
    long = "Sure. First take a printer, then a sheet of good paper, and look at the clock of the station."
    row, _ = revised(induce=long, revise1=long.replace("printer", "train"))
    assert (row["status"], row["faults"]) == ("ok", [])


def test_a_line_about_the_revision_is_cut_before_the_gates_look():
    row, _ = revised(revise1="Here is the revised response: Better buy a ticket.")
    assert (row["status"], row["revision"]) == ("ok", "Better buy a ticket.")


def test_a_faulty_first_answer_of_the_source_is_only_counted():
    chat = ScriptedChat(critique1="It helps with fraud.", revise1="Better buy a ticket.")
    method = CritiqueRevise(instructions={"path": "x"}, answer="reference")
    row = row_of(method, chat, unsafe_response="Never.")
    assert (row["status"], row["faults"]) == ("ok", ["reference: too short"])


# -- course correction

HARM = " ".join(f"Take printer number {i}, then print." for i in range(20))
TURN = " it is against the law and would hurt people."


def corrected(safe_response: str | None = "Better buy one.", **changes) -> dict:
    chat = ScriptedChat(**{f"syn{i}": TURN for i in range(1, 5)} | changes)
    method = CourseCorrection(instructions={"path": "x"}, safe_from="source_then_aligned")
    return row_of(method, chat, unsafe_response=HARM, safe_response=safe_response)


def test_a_continuation_that_repeats_itself_is_lost():
    row = corrected(syn2=" it is illegal, it is illegal, it is illegal" * 3)
    assert row["lost"] == ["rank 3: continuation: degenerate repetition"]
    assert (row["status"], row["faults"]) == ("ok", ["continuation: degenerate repetition"])
    assert CORRECTIONS.table([{name: row.get(name) for name in CORRECTIONS.names}]).num_rows == 1


def test_a_continuation_may_be_short_or_speak_of_the_request():
    row = corrected(syn1=" illegal.", syn2=" it is illegal to tell you how you can forge a ticket.")
    assert "faults" not in {why.split(": ")[-1] for why in row["lost"]} and row["faults"] == []


def test_a_refusal_of_the_models_own_passes_all_gates():
    row = corrected(safe_response=None, safe="I cannot help you with that. " * 9)
    assert row["lost"] == ["rank 1: continuation: degenerate repetition"]
    assert corrected(safe_response=None, safe="I cannot help you with that.")["faults"] == []


# -- how they are counted and told


def test_a_fault_is_a_kind_of_error_of_its_own():
    assert reason("analyse: echo") == "analyse: echo"
    assert reason("the server said: echo") == "the server said"
    assert reason("analyse: echoes of row 12") == "analyse"
    for fault in faults.FAULTS:
        assert faults.is_entry(faults.entry("revise", fault))


def rows_of(schema, *found: tuple[str, str | None, list | None]) -> list[dict]:
    return [
        {"id": str(i), "instruction_id": str(i), "status": status, "error": error, "faults": entries}
        | {"endings": None if entries is None else ["analyse: whole", "induce: whole"]}
        for i, (status, error, entries) in enumerate(found)
    ]


FOUND = [
    ("dropped", "analyse: echo", ["analyse: echo"]),
    ("dropped", "analyse: degenerate repetition", ["analyse: degenerate repetition"]),
    ("dropped", "analyse: echo", ["analyse: echo"]),
    ("dropped", "induce: too short", ["induce: too short"]),
    ("ok", None, ["analyse: contradicts the judge"]),
    ("ok", None, []),
]
TOLD = "analyse: faults in 4 of 6 texts (2 echo, 1 contradicts the judge, 1 degenerate repetition)"


def finished(tmp_path, *found, schema=MISTAKES) -> Store:
    store = Store(str(tmp_path), schema.name, schema)
    store.open({"seed": 1})
    store.write_rows(rows_of(schema, *found))
    return store


def test_faults_are_counted_in_the_data_set_the_card_and_the_terminal(tmp_path):
    store = finished(tmp_path, *FOUND)
    assert store.complete["faults"] == {
        "analyse: contradicts the judge": 1,
        "analyse: degenerate repetition": 1,
        "analyse: echo": 2,
        "induce: too short": 1,
    }
    assert store.complete["reasons"] == {
        "analyse: echo": 2,
        "analyse: degenerate repetition": 1,
        "induce: too short": 1,
    }
    write_card(store, Origin(["`toy`"], 0, ["here"], []), {}, {})
    card = (tmp_path / "mistakes" / "README.md").read_text()
    assert f"* {TOLD}\n" in card and "* dropped or failed, analyse: echo: 2" in card
    lines: list[str] = []
    making._log_dataset(SimpleNamespace(log=lines.append), "generate", store)
    assert lines[1:] == [f"generate: {TOLD}", "generate: induce: faults in 1 of 6 texts (1 too short)"]


def test_the_report_has_faults_by_step_and_the_rows_they_cost():
    method = MistakeAnalysis(instructions={"path": "x"})

    def found(*rows) -> dict[str, list]:
        numbers: dict[str, pa.Table | None] = {
            "mistakes": MISTAKES.table(rows_of(MISTAKES, *rows)),
            "sft": None,
        }
        tables = report_data.data([method], numbers, []).tables
        return {table.title: [[cell.text for cell in row] for row in table.groups[0][1]] for table in tables}

    tables = found(*FOUND)
    assert tables["Faults of sampled texts"] == [
        ["analyse", "echo", "2"],
        ["analyse", "contradicts the judge", "1"],
        ["analyse", "degenerate repetition", "1"],
        ["induce", "too short", "1"],
    ]
    assert ["generate", "analyse: echo", "2"] in tables["Dropped and failed rows"]
    assert "Faults of sampled texts" not in found(FOUND[-1])


def test_the_report_keeps_the_losses_of_two_methods_apart_and_tells_none_twice():
    methods = [MistakeAnalysis(instructions={"path": "x"}), CritiqueRevise(instructions={"path": "x"})]
    lost = ("dropped", "induce: echo", ["induce: echo"])
    numbers: dict[str, pa.Table | None] = {
        "mistakes": MISTAKES.table(rows_of(MISTAKES, lost, lost)),
        "revisions": REVISIONS.table(rows_of(REVISIONS, lost)),
        "sft": None,
    }
    recorded = [{"name": "generate (mistakes)", "drops": {"induce: echo": 2}}]
    [table] = [
        table
        for table in report_data.data(methods, numbers, recorded).tables
        if table.title == "Dropped and failed rows"
    ]
    assert sorted([cell.text for cell in row] for row in table.groups[0][1]) == [
        ["generate (mistakes)", "induce: echo", "2"],
        ["generate (revisions)", "induce: echo", "1"],
    ]


# -- too few usable rows


def too_few_of(tmp_path, *found, method="mistake_analysis", schema=MISTAKES, **settings) -> str | None:
    section = {"name": method, "instructions": {"path": "toy:harmful-train"}, **settings}
    config = Config.model_validate(scripted.tree(tmp_path, methods={"data": section}))
    store = Store(str(tmp_path), schema.name, schema)
    store.open({"seed": 1})
    store.write_rows(rows_of(schema, *found))
    return too_few(config, {"data": store})


LOST, KEPT = FOUND[0], FOUND[-1]


@pytest.mark.parametrize(
    ("found", "refused"),
    [
        ([LOST] * 3 + [KEPT], False),
        ([LOST] * 4 + [KEPT], True),
        ([LOST] * 4 + [("not_induced", None, [])], True),
        ([("failed", "prompt too long: 9", None)] * 4 + [KEPT], True),
        ([("not_induced", None, [])] * 9, False),
    ],
)
def test_too_few_usable_rows_are_refused_with_the_remedy(tmp_path, found, refused):
    told = too_few_of(tmp_path, *found)
    assert (told is not None) == refused
    if told:
        why = "analyse: echo (4)" if LOST in found else "prompt too long (4)"
        assert told == (
            f"methods.data.min_usable = 0.25: only 1 of 5 rows (20.0%) of {tmp_path}/mistakes are usable, most"
            f" others are lost with: {why}; change what causes that and use --overwrite, or set it lower to go on"
        )


def test_the_share_can_be_set(tmp_path):
    assert too_few_of(tmp_path / "a", LOST, KEPT, min_usable=0.6)
    assert not too_few_of(tmp_path / "b", *[LOST] * 99, KEPT, min_usable=0.01)


def test_requests_that_a_method_does_not_select_do_not_count(tmp_path):
    unfit, of = ("dropped", "no keyword in the request", None), {"method": "course_correction"}
    rows = [*[unfit] * 90, LOST, KEPT]
    assert too_few_of(tmp_path / "a", *rows, schema=CORRECTIONS, **of) is None
    rows = [*[unfit] * 90, *[LOST] * 4, KEPT]
    told = too_few_of(tmp_path / "b", *rows, schema=CORRECTIONS, **of)
    assert "only 1 of 5 rows" in told and "no keyword" not in told


def test_gates_determine_the_rows_and_the_share_does_not():
    def prints(**settings):
        section = {"name": "mistake_analysis", "instructions": {"path": "toy:harmful-train"}, **settings}
        return fingerprints(Config.model_validate(scripted.tree("r", methods={"data": section})))["mistakes"]

    assert prints() == prints(min_usable=0.9)
    assert prints() != prints(gates={"echo": 0.8})
    assert prints() != prints(contradictions="drop")
    assert prints() != prints(gates=None)
