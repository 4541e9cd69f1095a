"""Mistake analysis with the model's own answers, analyses of harmless answers, and a prefilled hint."""

import asyncio
from collections import Counter

import pyarrow as pa
import pytest

from pipeline import preflight
from pipeline.data import endings, faults
from pipeline.data.block import Block
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from pipeline.methods.critique_revise import CritiqueRevise
from pipeline.methods.critique_revise.recipe import CritiqueReviseRecipe
from pipeline.methods.mistake_analysis import MistakeAnalysis, report
from pipeline.methods.mistake_analysis.mixture import examples
from pipeline.methods.mistake_analysis.recipe import MistakeAnalysisRecipe
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.methods.mistake_analysis.summary import mistakes_summary
from pipeline.prompts import Prompts, load
from pipeline.suites.safety import Safety
from tests import scripted, tiny
from tests.scripted import Cut, ScriptedChat, instruction

ASK = "How can I forge a ticket?"
BAD, REFUSAL = "Sure. First take a printer.", "I cannot help you forge a ticket."
HARM, GOOD = "It harms the railway, which loses money.", "The response is harmless, since it only advises."
CUE, OTHER_CUE = "may be harmful, unethical, or offensive", "should be harmless, ethical, and inoffensive"
EVERY = {"analyse_safe": 1.0}


def method(**settings) -> MistakeAnalysis:
    return MistakeAnalysis(instructions={"path": "unused"}, **settings)


def run(chat: ScriptedChat, row: dict | None = None, **settings) -> dict:
    return asyncio.run(MistakeAnalysisRecipe(method(**settings), seed=3)(row or instruction(ASK), chat))


def chat(induce=BAD, analyse=HARM, analyse_safe=GOOD, **more) -> ScriptedChat:
    return ScriptedChat(induce=induce, analyse=analyse, analyse_safe=analyse_safe, **more)


def mixed(rows: list[dict], **settings) -> list[dict]:
    return list(examples(method(**settings), rows, iter(()), seed=0))


def finished(result: dict, **changes) -> dict:
    """The row of the data set that a result becomes."""
    blank = dict.fromkeys(MISTAKES.names)
    return blank | {k: v for k, v in instruction(ASK).items() if k in blank} | result | changes


# -- the model's own answers


def test_an_own_answer_is_asked_for_without_a_hint():
    asked = chat(f" {BAD}\n")
    result = run(asked, mistake="own", induce={"max_tokens": 7})
    assert (result["response"], result["response_source"], result["status"]) == (BAD, "own", "ok")
    assert asked.steps == ["induce", "analyse"]
    assert asked.asked[0][1] == [{"role": "user", "content": ASK}] and asked.asked[0][2].max_tokens == 7
    assert CUE in asked.prompt("analyse")
    assert result["endings"] == ["analyse: whole", "induce: whole"]


def test_an_own_answer_that_is_a_refusal_is_no_mistake():
    result = run(chat(REFUSAL), mistake="own", filter=True)
    assert (result["status"], result["harmful"]) == ("not_induced", False) and "analysis" not in result


def test_an_own_answer_has_to_pass_the_gates():
    result = run(chat("how can i forge a ticket"), mistake="own")
    assert (result["status"], result["error"]) == ("dropped", "induce: echo")


def test_an_own_answer_may_say_what_a_hint_would_say():
    stated = "Take a printer, paper and some glue. The response should be harmful, unethical, and offensive."
    assert run(chat(stated))["error"] == "induce: echo"
    assert run(chat(stated), mistake="own")["status"] == "ok"


def test_an_empty_own_answer_fails():
    with pytest.raises(Exception, match="empty response to the instruction"):
        run(chat("\n"), mistake="own")


def test_the_plan_counts_an_own_answer_and_a_second_analysis():
    lengths = {"induce": {"max_tokens": 10}, "analyse": {"max_tokens": 100}, "verify": None}
    assert method(**lengths).most_tokens() == 110
    assert method(**lengths, mistake="own").most_tokens() == 110
    assert method(**lengths, mistake="reference").most_tokens() == 100
    assert method(**lengths, analyse_safe=0.1).most_tokens() == 210


# -- analyses of harmless answers


def test_the_safe_response_of_the_source_is_analysed_beside_the_mistake():
    asked = chat()
    result = run(asked, **EVERY)
    assert asked.steps == ["induce", "analyse", "analyse_safe"]
    assert CUE in asked.prompt("analyse") and BAD in asked.prompt("analyse")
    question = asked.prompt("analyse_safe")
    assert "Better buy one." in question and OTHER_CUE in question
    assert CUE not in question and BAD not in question
    assert (result["status"], result["analysis"]) == ("ok", HARM)
    assert (result["safe_analysis"], result["safe_analysis_of"]) == (GOOD, "safe_response")
    assert (result["safe_analysis_verdict"], result["faults"]) == (False, [])


def test_an_own_response_that_is_judged_harmless_is_analysed_once_and_not_as_a_mistake():
    for settings in (EVERY, {**EVERY, "filter": True}):
        asked = chat(REFUSAL)
        result = run(asked, **settings)
        assert asked.steps == ["induce", "analyse_safe"]
        assert REFUSAL in asked.prompt("analyse_safe") and OTHER_CUE in asked.prompt("analyse_safe")
        assert (result["status"], result["safe_analysis_of"]) == ("not_induced", "response")
        assert "analysis" not in result


def test_an_unguided_analysis_asks_neutrally_about_harmless_answers_too():
    asked = chat()
    run(asked, **EVERY, guided_analysis=False)
    for step in ("analyse", "analyse_safe"):
        assert CUE not in asked.prompt(step) and OTHER_CUE not in asked.prompt(step)


def test_a_row_without_a_harmless_answer_is_counted():
    asked = chat()
    result = run(asked, instruction(ASK, safe_response=None), **EVERY)
    assert asked.steps == ["induce", "analyse"] and result["status"] == "ok"
    assert result["faults"] == ["analyse_safe: no harmless answer"]
    assert faults.is_entry(result["faults"][0])


def test_an_unreadable_verdict_makes_no_response_harmless():
    asked = chat(REFUSAL, verify="Hm.")
    result = run(asked, **EVERY, verify={"kind": "rating"})
    assert (result["harmful"], result["safe_analysis_of"]) == (None, "safe_response")
    assert "analyse" in asked.steps


def test_the_share_of_rows_is_drawn_by_id_and_seed():
    async def chosen(seed: int) -> set[int]:
        recipe = MistakeAnalysisRecipe(method(analyse_safe=0.3), seed)
        rows = [instruction(ASK, id=f"i{i}") for i in range(300)]
        return {i for i, row in enumerate(rows) if "safe_analysis" in await recipe(row, chat())}

    first, again, other = (asyncio.run(chosen(seed)) for seed in (0, 0, 1))
    assert 60 < len(first) < 120
    assert first == again != other


@pytest.mark.parametrize(
    ("analysis", "fault"),
    [
        ("\n", "empty"),
        ("It is kind. " * 30, "degenerate repetition"),
        (f"Instruction: {ASK}\nResponse: Better buy one.", "echo"),
    ],
)
def test_an_analysis_with_a_fault_is_lost_and_the_mistake_stays(analysis, fault):
    result = run(chat(analyse_safe=analysis), **EVERY)
    assert result["faults"] == [f"analyse_safe: {fault}"]
    assert "safe_analysis" not in result and (result["status"], result["analysis"]) == ("ok", HARM)


def test_half_a_sentence_becomes_no_target():
    result = run(chat(analyse_safe=Cut("It is kind, and it also")), **EVERY)
    assert "safe_analysis" not in result and "analyse_safe: dropped" in result["endings"]
    result = run(chat(analyse_safe=Cut("It is kind to people. It also")), **EVERY)
    assert result["safe_analysis"] == "It is kind to people."
    assert "analyse_safe: trimmed" in result["endings"]


@pytest.mark.parametrize(
    ("induced", "fault"),
    [(BAD, "contradicts the label"), (REFUSAL, "contradicts the judge")],
)
def test_an_analysis_that_calls_a_harmless_answer_harmful_is_a_contradiction(induced, fault):
    harmful = "The response is harmful, since it insults people."
    kept = run(chat(induced, analyse_safe=harmful), **EVERY)
    assert kept["faults"] == [f"analyse_safe: {fault}"]
    assert (kept["safe_analysis"], kept["safe_analysis_verdict"]) == (harmful, True)
    dropped = run(chat(induced, analyse_safe=harmful), **EVERY, contradictions="drop")
    assert dropped["faults"] == kept["faults"] and dropped["status"] == kept["status"]
    assert "safe_analysis" not in dropped and dropped["safe_analysis_verdict"] is True


def test_a_row_that_is_dropped_has_no_further_analysis():
    asked = chat("how can i forge a ticket")
    assert run(asked, **EVERY)["status"] == "dropped" and asked.steps == ["induce"]


def test_the_remedy_for_cut_analyses_names_the_field_that_samples_them():
    found = endings.told({"endings": {"analyse_safe: whole": 3, "analyse_safe: trimmed": 1}})
    assert "analyse_safe: 1 of 4 texts" in found[0] and "raise analyse.max_tokens" in found[0]


# -- examples


def test_examples_of_harmless_answers_are_of_their_own_kind():
    rows = [finished(run(chat(), **EVERY), id="a"), finished(run(chat(REFUSAL), **EVERY), id="b")]
    made = mixed(rows, **EVERY)
    assert [(row["id"], row["kind"]) for row in made] == [
        ("a-analysis-0", "analysis"),
        ("a-safe_analysis-0", "safe_analysis"),
        ("i1-safe-0", "safe"),
        ("b-safe_analysis-0", "safe_analysis"),
    ]
    of_source, own = (row["messages"] for row in made if row["kind"] == "safe_analysis")
    assert "Better buy one." in of_source[0]["content"] and REFUSAL in own[0]["content"]
    assert OTHER_CUE not in of_source[0]["content"] and of_source[1]["content"] == GOOD
    guided = mixed(rows[:1], **EVERY, mix={"guided_template": True})
    assert [CUE in row["messages"][0]["content"] for row in guided] == [True, False, False]
    assert OTHER_CUE in guided[1]["messages"][0]["content"]


def test_a_dropped_row_gives_no_analysis_and_a_ratio_holds_for_both_kinds():
    row = finished(run(chat(), **EVERY))
    assert [one["kind"] for one in mixed([row | {"status": "dropped"}], **EVERY)] == ["safe"]
    counted = Counter(one["kind"] for one in mixed([row], **EVERY, mix={"analysis": 3}))
    assert counted == {"analysis": 3, "safe_analysis": 3, "safe": 1}
    without = finished(run(chat(REFUSAL), instruction(ASK, safe_response=None), **EVERY), safe_response=None)
    assert [one["kind"] for one in mixed([without], **EVERY)] == ["safe_analysis"]


def test_rows_of_an_older_version_give_the_examples_that_they_gave():
    row = finished(run(chat()))
    older = {name: value for name, value in row.items() if not name.startswith("safe_analysis")}
    assert mixed([older]) == mixed([row]) != []


def test_the_default_arm_trains_on_them_if_they_are_made():
    def kinds(**recipe) -> list[str]:
        config = scripted.config(recipe={"name": "mistake_analysis", **recipe})
        return config.arms["mistake_analysis"].kinds

    assert kinds() == kinds(analyse_safe=0) == ["safe", "helpful", "analysis"]
    assert kinds(analyse_safe=0.5) == ["safe", "helpful", "analysis", "safe_analysis"]
    assert "safe_analysis" in method(analyse_safe=0.5).kinds and "safe_analysis" not in method().kinds


@pytest.mark.parametrize("share", [-0.1, 1.5, "much"])
def test_a_share_is_between_0_and_1(share):
    with pytest.raises(ValueError, match="analyse_safe"):
        method(analyse_safe=share)


def test_without_a_judge_the_source_must_have_safe_responses(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text('{"instruction": "How can I forge a ticket?", "unsafe_response": "Take a printer."}\n')

    def check(**recipe):
        changes = {"recipe": {"name": "mistake_analysis", **recipe}, "instructions": {"path": str(source)}}
        preflight.check(scripted.config(tmp_path / "run", **changes), {"generate"})

    check(analyse_safe=0.5)
    with pytest.raises(UserError, match="has a safe response"):
        check(analyse_safe=0.5, verify=None)


# -- counted and told


def test_the_report_counts_analyses_of_harmless_answers_and_contradictions():
    harmful = "The response is harmful."
    rows = [
        finished(run(chat(), **EVERY), id="a"),
        finished(run(chat(REFUSAL), **EVERY), id="b"),
        finished(run(chat(REFUSAL, analyse_safe=harmful), **EVERY), id="c"),
        finished(run(chat(), instruction(ASK, safe_response=None), **EVERY), id="d"),
    ]
    numbers = MISTAKES.table(rows)
    found = mistakes_summary(numbers)
    assert found.safe_analyses == {"safe_response": 1, "response": 2}
    assert (found.safe_contradictions.successes, found.safe_contradictions.trials) == (1, 3)
    told = " ".join(report.data(method(**EVERY), {"mistakes": numbers, "sft": None}).text)
    assert "3 rows also hold the analysis of a harmless answer: 2 of the row's own response" in told
    assert "1 of the source's safe response. 3 such analyses pronounce a verdict; 1 of them" in told
    assert "harmless answer" not in " ".join(report.data(method(), {"mistakes": numbers, "sft": None}).text)
    assert (
        "share" not in told
        and "analyzed in 100% of the rows" in method(**EVERY).settings()["Harmless answers"]
    )


def test_the_report_reads_data_of_an_older_version():
    numbers = MISTAKES.table([finished(run(chat()))])
    older = numbers.select([name for name in numbers.column_names if not name.startswith("safe_analysis")])
    assert mistakes_summary(older) == mistakes_summary(numbers)


def test_a_block_of_an_older_version_is_completed_with_the_new_columns(tmp_path):
    table = MISTAKES.table([finished(run(chat()))])
    older = table.select([name for name in table.column_names if not name.startswith("safe_analysis")])
    block = Block(str(tmp_path), MISTAKES, "token", 0)
    assert block._completed(older).schema.names == MISTAKES.names
    assert pa.compute.all(pa.compute.is_null(block._completed(older)["safe_analysis"])).as_py()


# -- fingerprints


def of_mistakes(**recipe) -> dict:
    return fingerprints(scripted.config(recipe={"name": "mistake_analysis", **recipe}))["mistakes"]


LATER = ("analyse_harmless", "think", "respond")  # prompts that are read only if a setting needs them


def test_defaults_keep_the_fingerprint_that_runs_had_before():
    found = of_mistakes()
    assert "analyse_safe" not in found["mistake_analysis"]
    every = load("methods/mistake_analysis/prompts.yaml")
    before = {name: text for name, text in every.texts.items() if name not in LATER}
    assert found["prompts"]["mistake_analysis"] == Prompts(before, "").hash != every.hash
    assert Safety(harmful={"path": "unused"}).prompt_hashes()["mistake_analysis"] == Prompts(before, "").hash
    assert CritiqueRevise(instructions={"path": "unused"}).prompt_hashes()["mistake_analysis"] == (
        Prompts(before, "").hash
    )


def test_analyses_of_harmless_answers_are_part_of_the_fingerprint():
    found = of_mistakes(analyse_safe=0.5)
    assert found["mistake_analysis"]["analyse_safe"] == 0.5
    assert found["prompts"] != of_mistakes()["prompts"]


def test_the_configuration_that_a_run_keeps_has_the_field():
    assert (
        scripted.config(recipe={"name": "mistake_analysis"}).model_dump()["methods"]["mistakes"][
            "analyse_safe"
        ]
        == 0
    )


# -- a prefilled hint


def test_a_prefilled_hint_begins_the_models_turn_and_is_no_part_of_the_response():
    asked = chat(f" {BAD}")
    result = run(asked, hint={"position": "prefill", "text": "Here is a bad answer:"})
    assert [(one["role"], one["content"]) for one in asked.asked[0][1]] == [
        ("user", ASK),
        ("assistant", "Here is a bad answer:"),
    ]
    assert asked.closed == [] and result["response"] == BAD


def test_who_prefills_a_hint_continues_turns():
    hint = {"hint": {"position": "prefill"}}
    asked, source = {"instructions": {"path": "unused"}}, {"harmful": {"path": "unused"}}
    assert method(**hint).continues_turns and not method().continues_turns
    assert not method(**hint, mistake="own").continues_turns
    assert CritiqueRevise(**asked, **hint).continues_turns
    assert not CritiqueRevise(**asked, **hint, answer="plain").continues_turns
    assert Safety(**source, **hint).continues_turns
    assert not Safety(**source, **hint, conditions=["plain"]).continues_turns
    assert ("system", "user") not in method(**hint).conversations


def test_a_revision_of_an_answer_under_a_prefilled_hint():
    critic = CritiqueRevise(
        instructions={"path": "unused"}, hint={"position": "prefill", "text": "Rudely:"}, verify=None
    )
    asked = ScriptedChat(
        induce=BAD, critique1="It helps a thief and harms the railway.", revise1="I would rather not help."
    )
    result = asyncio.run(CritiqueReviseRecipe(critic, seed=0)(instruction(ASK), asked))
    assert asked.asked[0][1][-1] == {"role": "assistant", "content": "Rudely:"}
    assert result["response"] == BAD


def test_a_template_that_cannot_continue_a_turn_is_refused_before_an_engine_starts(tmp_path):
    changing = tiny.CHATML.replace(
        "m['content']", "(m['content'] if m['role'] == 'user' else m['content'] | upper)"
    )
    model = tiny.save(tmp_path / "model", changing)

    def check(position: str):
        recipe = {"name": "mistake_analysis", "hint": {"position": position}}
        config = scripted.config(tmp_path, recipe=recipe, model={"path": model, "dtype": "float32"})
        preflight.check_models(config, {"generate"}, set(), model)

    check("suffix")
    needed_by = r"methods\.mistakes\.hint\.position = prefill"
    with pytest.raises(UserError, match=f"cannot continue an assistant's turn, which {needed_by} needs"):
        check("prefill")


def test_a_server_that_continues_no_turns_is_refused_before_it_is_asked():
    engine = {"kind": "openai", "url": "http://127.0.0.1:1/v1", "model": "m", "api_key_env": None}
    recipe = {"name": "mistake_analysis", "hint": {"position": "prefill"}}
    config = scripted.config(recipe=recipe, engine=engine, suites={})
    with pytest.raises(UserError, match=r"prefill = false: methods\.mistakes continues turns"):
        preflight.check(config, {"generate"})
