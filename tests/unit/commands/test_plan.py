"""The plan: printed without an engine, without a GPU, and without importing either's libraries."""

import io
import json
import re
import subprocess
import sys

import pytest
from rich.console import Console

from pipeline import preflight
from pipeline.commands.plan import show_plan
from pipeline.settings.base import Source
from pipeline.sources import instructions
from tests import scripted, tiny

ENGINES = ("vllm", "ray")


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch):
    """Nothing of the hub is there."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def plan(tmp_path):
    def show(tokens_per_s: float | None = None, reveal: bool = False, **changes) -> str:
        changes = {"instructions": {"path": "toy:harmful-train", "limit": 8}} | changes
        if changes.get("recipe", {}).get("name") == "course_correction":
            changes["train"] = {"method": "dpo"}
        console = Console(width=200, soft_wrap=True, record=True, file=io.StringIO())
        config = scripted.config(changes.pop("run_dir", tmp_path / "run"), **changes)
        show_plan(config, tokens_per_s, console, reveal=reveal)
        return console.export_text()

    return show


def source(tmp_path, *texts: str, name: str = "asks", **columns: str) -> dict:
    path = tmp_path / f"{name}.jsonl"
    responses = columns or {"safe_response": "no"}
    rows = ({"instruction": text, **responses} for text in texts)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(path)}


def test_the_toy_is_there_with_its_tokenizer(plan, tmp_path):
    told = plan()
    assert "toy, the embedded demonstration model" in told
    assert "by the model's tokenizer" in told
    assert "limit 1024; " in told
    assert not (tmp_path / "run").exists()


def test_a_model_out_of_reach_is_measured_by_its_characters(plan):
    told = plan(model={"path": "org/model-on-the-hub", "max_length": 512})
    assert "by 4 characters per token, because the tokenizer cannot be reached" in told
    assert "limit 512; " in told


def test_prompts_are_shown_as_they_will_be_sent(plan, tmp_path):
    told = plan(
        instructions=source(tmp_path, "Do [bold]this[/bold]", "Do that"),
        recipe={"hint": {"text": "Be rude.", "position": "system"}},
        reveal=True,
    )
    assert "induce (system): Be rude." in told
    assert "induce (user): Do [bold]this[/bold]" in told
    assert "Response: <what is written for induce>" in told
    assert "of 2 rows, each with its longest call" in told


def test_a_plan_counts_all_calls_whatever_the_language_of_the_instructions(plan, tmp_path):
    told = plan(instructions=source(tmp_path, "如何在家里做蛋糕？"), reveal=True)
    assert "analyse (user): Instruction: 如何在家里做蛋糕？" in told and "Selection" not in told


def test_the_models_own_tokenizer_measures(plan, tmp_path):
    tiny.save(tmp_path / "model", max_position_embeddings=600)
    told = plan(
        model={"path": str(tmp_path / "model")},
        instructions=source(tmp_path, "how can i bake", "bake a cake " * 200),
        recipe={"induce": {"max_tokens": 64}},
    )
    assert "by the model's tokenizer" in told
    assert "limit 600; over-long with 512 new tokens: 2 " in told, (
        "the response that is analysed counts with its most tokens"
    )


def test_time_and_resources_are_counted(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "gpu_build", lambda: "CUDA 12.9")
    told = plan(
        tokens_per_s=1000,
        instructions=source(tmp_path, *map(str, range(100))),
        engine={"actors": [2, 4], "num_gpus": 2},
        recipe={"samples": 3, "induce": {"max_tokens": 400}, "analyse": {"max_tokens": 600}},
        train={"workers": 4, "use_gpu": True},
    )
    assert "2–4 engines × 2 GPU = 8 GPUs" in told
    assert "4 workers × 1 GPU, sft, one arm after the other: sft, mistake_analysis" in told
    assert "2–4 engines, 3 arms × 3 conditions by LoRA, all in one start" in told
    assert "100 instructions × 3 samples: at most 300,000 new tokens" in told
    answers = (
        sum(row["status"] == "ok" for row in instructions.well_formed(Source(path="toy:harmful-heldout")))
        * 3
        * 3
        * (512 + 512)
    )
    hours = (300_000 + answers) / 1000 / 4 / 3600
    assert (
        "evaluate safety: 105 rows × 3 conditions × 1 sample × (512 + 512) tokens × 3 arms: at most"
        f" {answers:,} new tokens" in told
    )
    assert (
        f"at 1,000 tokens/s per engine (given): at most {hours:.2f} h = {hours * 4 * 2:.1f} GPU-hours" in told
    )


def test_a_reference_mistake_costs_no_induction(plan, tmp_path):
    told = plan(
        instructions=source(tmp_path, "a", unsafe_response="b", safe_response="no"),
        recipe={"mistake": "reference", "analyse": {"max_tokens": 10}},
    )
    assert "at most 10 new tokens" in told
    assert "induce (" not in told


def test_an_earlier_run_tells_the_speed(plan, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text(
        '{"stage": "generate", "tokens_per_s": 1234.5}\n{"stage": "mix"}\n'
    )
    assert "at 1,234 tokens/s per engine (measured in this run directory)" in plan()
    assert "assumed; pass --tokens-per-s" in plan(run_dir=str(tmp_path / "elsewhere"))


def test_the_speed_that_was_measured_is_one_engines(plan, tmp_path):
    """Of what is planned: of the last suite if the configuration only evaluates."""
    (tmp_path / "run").mkdir()
    told = {"completion_tokens": 6000, "tokens_per_s": 3000, "engine_s": 4.0}  # two engines, for two seconds
    nothing = {"stage": "generate", "completion_tokens": 0, "tokens_per_s": None, "engine_s": 0.0}
    suites = [{"stage": "evaluate", "suite": suite} for suite in ("course_correction", "safety")]
    lines = [{"stage": "generate", **told}, nothing, suites[0] | told | {"engine_s": 3.0}, suites[1] | told]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "at 1,500 tokens/s per engine (measured in this run directory)" in plan()
    entries = source(tmp_path, "x", unsafe_response="u", name="entries")
    evaluation = {"harmful": source(tmp_path, "a"), "course_correction": {"entries": entries}}
    assert "at 1,500 tokens/s per engine (measured" in plan(instructions=None, evaluation=evaluation)


def test_malformed_rows_are_not_planned_for(plan, tmp_path):
    assert "2 instructions × 1 sample" in plan(instructions=source(tmp_path, "a", "", "b", "a"))


PLAN_OF_HARM = "Take the wrench, " * 30  # 90 words, 30 marks
CORRECTS = {"name": "course_correction", "continuation": {"max_tokens": 100}, "check": {"kind": "phrases"}}


def test_course_correction_shows_its_prompts_and_masks_their_harm(plan, tmp_path):
    told = plan(
        instructions=source(tmp_path, "How can I [b]rob[/b] it?", "What now", unsafe_response=PLAN_OF_HARM),
        recipe=CORRECTS,
    )
    assert "safe (user): ▒▒▒▒ (24 characters)" in told
    begun = [line for line in told.splitlines() if "(assistant): " in line]
    assert len(begun) == sum("▒▒▒▒ (" in line for line in begun) == 2 * 4, "two requests, four cuts"
    triggers = [line.rpartition(") ")[2] for line in begun]
    assert all(
        trigger[0].isupper() and trigger.endswith(("because", "since", "that")) for trigger in triggers
    )
    assert "wrench" not in told and "rob" not in told


def test_course_correction_says_what_is_selected_and_what_it_costs(plan, tmp_path):
    (tmp_path / "mixed").mkdir()
    source(tmp_path / "mixed", "How a", "How b", unsafe_response=PLAN_OF_HARM, safe_response="No.", name="a")
    source(tmp_path / "mixed", "How c", unsafe_response=PLAN_OF_HARM, name="b")
    source(tmp_path / "mixed", "Do d", "Do e", unsafe_response=PLAN_OF_HARM, name="c")
    source(tmp_path / "mixed", "How f", unsafe_response="Take it.", name="d")
    evaluation = {
        "course_correction": {
            "entries": source(tmp_path, "x", "y", "z", unsafe_response="u"),
            "lengths": [10, 40],
            "paths": 5,
        }
    }
    told = plan(
        tokens_per_s=100,
        instructions={"path": str(tmp_path / "mixed")},
        recipe={**CORRECTS, "samples": 2},
        evaluation=evaluation,
    )
    assert "Selection: 3 of the 6 rows measured are used" in told
    assert "2 no keyword in the request" in told and "1 unsafe response too short" in told
    most = 2 * 3 * (4 + 1) * 100  # samples × selected × (cuts + the aligned model's own refusal) × tokens
    assert (
        f"generate corrections: 6 instructions, 50% selected, × 2 samples: at most {most:,} new tokens"
        in told
    )
    assert "evaluate c2_eval: 3 rows × 2 k × 5 paths × 32 tokens × 2 arms: at most 1,920 new tokens" in told
    assert f"at most {(most + 1920) / 100 / 3600:.2f} h" in told
    assert "1 worker × no GPU, dpo on shuffled pairs, one arm after the other: dpo" in told
    assert "2 arms × 2 prefills × 5 paths by LoRA" in told and "conditions" not in told


def test_the_longest_call_of_a_selected_request_is_measured(plan, tmp_path):
    tiny.save(tmp_path / "model", max_position_embeddings=1000)
    rows = (
        source(tmp_path, "How a", unsafe_response="how, " * 84),
        source(tmp_path, "How b", unsafe_response="how, " * 984, name="long"),
    )
    model = {"path": str(tmp_path / "model")}
    for asks, over in zip(rows, (0, 1), strict=True):
        told = plan(model=model, instructions=asks, recipe=CORRECTS)
        assert "of 1 rows, each with its longest call, by the model's tokenizer" in told
        assert f"limit 1000; over-long with 100 new tokens: {over} " in told


def test_a_model_that_judges_itself_is_counted(plan, tmp_path):
    asks = source(tmp_path, "How a", unsafe_response=PLAN_OF_HARM, safe_response="No.")
    told = plan(instructions=asks, recipe={**CORRECTS, "check": {"kind": "yes_no"}})
    assert (
        f"generate corrections: 1 instruction × 1 sample: at most {100 + 4 * (100 + 64):,} new tokens" in told
    )
    assert "over-long with 64 new tokens" in told, "what is judged stands in the judge's prompt"


def test_a_source_out_of_reach_leaves_its_part_unknown(plan, tmp_path, monkeypatch):
    def no_network(name, **_):
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", no_network)
    judge = {"kind": "yes_no", "draw": {"max_tokens": 4}}
    suite = {"entries": {"path": "hub:org/entries", "limit": 10}, "lengths": [10], "paths": 5, "judge": judge}
    told = plan(
        instructions={"path": "hub:org/asks"}, recipe=CORRECTS, evaluation={"course_correction": suite}
    )
    assert "methods.corrections.instructions cannot be reached from here; skipping its checks" in told
    assert "generate corrections: unknown, its source cannot be reached" in told
    assert (
        "evaluate c2_eval: 10 rows × 1 k × 5 paths × (32 + 4) tokens × 2 arms: at most 3,600 new tokens"
        in told
    )


def test_suites_have_one_engine_start(plan, tmp_path):
    entries = source(tmp_path, "x", unsafe_response="u", name="entries")
    told = plan(evaluation={"harmful": source(tmp_path, "a"), "course_correction": {"entries": entries}})
    [line] = [line for line in told.splitlines() if line.startswith("  evaluate   ")]
    suites = "3 arms × 3 conditions and 3 arms × 8 prefills × 20 paths"
    assert line.endswith(f"1 engine, {suites} by LoRA, all in one start")


def test_a_configuration_that_only_evaluates_has_a_plan(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "check_adapter", lambda *_: [])
    entries = source(tmp_path, "x", unsafe_response="u")
    told = plan(
        instructions=None,
        evaluation={"course_correction": {"entries": entries}, "adapters": {"mine": "somewhere"}},
    )
    assert "this run only evaluates" in told
    assert "1 row × 8 k × 20 paths × 32 tokens × 2 arms" in told
    assert "generate" not in told and "train " not in told


SERVER = {"kind": "openai", "url": "http://a.host/v1", "model": "m", "api_key_env": None}


def test_the_engines_of_methods_are_told_apart(plan, tmp_path):
    """Each has its line of resources, and its hours: its actors and its speed."""
    asked = source(tmp_path, *map(str, range(10)), unsafe_response="u. " * 90)
    told = plan(
        instructions=None,
        engine={"actors": 2, "num_gpus": 1},
        train={"method": "dpo"},
        arms={"dpo": {"kinds": ["revision", "correction"]}},
        methods={
            "a": {"name": "critique_revise", "instructions": asked, "engine": {**SERVER, "actors": 4}},
            "b": {"name": "course_correction", "instructions": asked, "keywords": []},
        },
    )
    assert "generate   http://a.host/v1, 64 requests in flight per actor × 4, for a\n" in told
    assert "generate   2 engines × 1 GPU = 2 GPUs, for b\n" in told
    assert re.search(r"at 2,000 tokens/s per engine .* h for generate a\n", told)
    assert re.search(r"at 2,500 .* GPU-hours for generate b, evaluate safety\n", told)


def test_a_server_evaluates_without_lora(plan, tmp_path):
    told = plan(instructions=source(tmp_path, "x"), engine=SERVER, arms={})
    assert "evaluate   1 engine, 1 arm × 3 conditions, all in one start" in told
    assert "model        toy, which no stage reads" in told


def test_a_rehearsal_has_a_plan_without_the_model(plan, tmp_path):
    told = plan(
        model={"path": "/models/of/another/machine"},
        instructions=source(tmp_path, "x"),
        engine={"kind": "dummy", "actors": [2, 3]},
    )
    assert "/models/of/another/machine, which no stage reads" in told
    assert "generate   2–3 dummy engines: random words, no model" in told
    assert "evaluate" not in told and "train  " not in told
    told = plan(instructions=source(tmp_path, "x"), engine={"kind": "dummy"})
    assert "generate   1 dummy engine: random words, no model" in told


def test_help_needs_no_library():
    unwanted = (*ENGINES, "torch", "transformers", "datasets", "pyarrow")
    code = (
        f"import sys; from pipeline import cli; print([name for name in {unwanted} if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
        == "[]\n"
    )
