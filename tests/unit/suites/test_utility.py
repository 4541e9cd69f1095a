"""The utility suite: numbers of tasks, pairing, refusals, what is refused beforehand. The harness is not asked."""

import json
import subprocess
from importlib import metadata

import pytest

from pipeline import fingerprints
from pipeline.config import Config
from pipeline.errors import OutOfReach, UserError
from pipeline.settings.base import Model
from pipeline.suites.utility import Utility, harness, tasks
from pipeline.suites.utility.report import sections
from pipeline.suites.utility.schema import HARNESS, UTILITY
from pipeline.suites.utility.summary import compared, counts, scores
from tests.unit.test_dependencies import PROJECT


def row(arm: str, number: int, value: float | None, **changes) -> dict:
    found = {
        "id": f"{arm}-{changes.get('task', 't')}-{number}-{changes.get('metric', 'acc')}",
        "arm": arm,
        "task": "t",
        "subtask": "t",
        "doc_id": number,
        "doc_hash": f"h{number}",
        "metric": "acc",
        "filter": "none",
        "primary": True,
        "higher_is_better": True,
        "value": value,
        "refused": None,
        "cut": False,
        "score": 0.5,
        "score_stderr": 0.1,
        "documents": 5,
        "task_version": "1",
        "fewshot": 0,
        "limit": None,
        "harness": f"lm-evaluation-harness {HARNESS}",
        "status": "ok",
    }
    return found | changes


def table(*rows: dict):
    return UTILITY.table(list(rows))


def of(arm: str, values: list, **changes) -> list[dict]:
    return [row(arm, number, value, **changes) for number, value in enumerate(values)]


def differing(*rows: dict, column: str = "value"):
    """sft against vanilla, on the one task; None if there is nothing to compare."""
    found = compared(table(*rows), ["sft"], "vanilla", column=column)
    assert len(found) <= 1
    return found[0] if found else None


FIVE = [*of("vanilla", [1, 1, 0, 0, 1]), *of("sft", [1, 0, 0, 1, 1])]


def test_five_documents_give_equal_means_one_better_and_one_worse():
    found = {score.arm: score for score in scores(table(*FIVE), ["sft"])}
    assert found["vanilla"].value == found["sft"].value == pytest.approx(0.6)
    pair = differing(*FIVE)
    d = pair.difference
    assert d.difference == 0 and (d.better, d.worse, d.same, d.n) == (1, 1, 3, 5)
    assert pair.unmatched == (0, 0)


def test_the_standard_error_is_that_of_a_mean():
    """s of 1, 1, 0, 0, 1 is 0.5477; over √5 it is 0.2449. The interval is Wilson's of 3 in 5."""
    [vanilla] = scores(table(*of("vanilla", [1, 1, 0, 0, 1])), [])
    assert vanilla.stderr == pytest.approx(0.24495, abs=1e-5)
    assert vanilla.interval == pytest.approx((0.231, 0.882), abs=1e-3)
    [none] = scores(table(*of("vanilla", [0, 0, 0])), [])
    assert none.interval == pytest.approx((0.0, 0.561), abs=1e-3), "no certainty from three documents"
    [partial] = scores(table(*of("vanilla", [0.5, 1, 0, 0.5])), [])
    assert partial.hits is None and partial.interval == pytest.approx((0.0999, 0.9001), abs=1e-3)


def test_documents_are_paired_by_their_hash_and_those_without_a_partner_are_counted():
    moved = [row("sft", 10 + n, v, doc_hash=f"h{n}") for n, v in enumerate([1, 0, 0, 1])]
    strange = row("sft", 99, 1, doc_hash="other")
    pair = differing(*of("vanilla", [1, 1, 0, 0, 1]), *moved, strange)
    assert pair.difference.n == 4 and pair.unmatched == (1, 1)
    assert (pair.difference.better, pair.difference.worse, pair.difference.same) == (1, 1, 2)


def test_subtasks_of_a_group_weigh_by_their_size():
    """9 documents of one subtask, all right, and 1 of another, wrong: 0.9, not 0.5."""
    rows = of("vanilla", [1] * 9, subtask="big") + of("vanilla", [0], subtask="small", doc_hash="x")
    [score] = scores(table(*rows), [])
    assert score.value == pytest.approx(0.9) and score.documents == 10


def test_equal_hashes_of_two_subtasks_are_different_documents():
    rows = [
        *of("vanilla", [1], subtask="a"), *of("vanilla", [0], subtask="b"),
        *of("sft", [0], subtask="a"), *of("sft", [1], subtask="b"),
    ]  # fmt: skip
    d = differing(*rows).difference
    assert d.n == 2 and (d.better, d.worse) == (1, 1)


def test_refusals_of_what_an_arm_wrote_are_counted_and_compared():
    rows = [
        *(row("vanilla", n, 1, refused=False) for n in range(8)),
        *(row("sft", n, 0, refused=n < 7) for n in range(8)),
    ]
    by_arm = {one.arm: one.refused for one in counts(table(*rows), ["sft"])}
    assert (by_arm["vanilla"].successes, by_arm["sft"].successes, by_arm["sft"].trials) == (0, 7, 8)
    d = differing(*rows, column="refused").difference
    assert d.difference == pytest.approx(0.875) and d.distinguishable


def test_an_arm_that_writes_nothing_has_no_refusals():
    [one] = counts(table(*of("vanilla", [1, 0])), [])
    assert one.refused is None
    assert differing(*FIVE, column="refused") is None


def test_a_metric_without_a_number_per_document_has_the_harness_s_own():
    rows = of("vanilla", [None, None], metric="bleu", score=21.5, score_stderr=1.5)
    [score] = scores(table(*rows), [])
    assert (score.value, score.stderr, score.shares) == (21.5, 1.5, False)
    assert score.interval == pytest.approx((18.56, 24.44))


def text_of(found) -> str:
    cells = [
        (cell.text, cell.interval)
        for s in found
        for t in s.tables
        for _, rows in t.groups
        for cells in rows
        for cell in cells
    ]
    return "\n".join([*(line for s in found for line in [*s.text, *s.notes]), str(cells)])


def test_the_report_shows_numbers_differences_and_versions():
    other = [{**one, "metric": "acc_norm", "primary": False, "id": one["id"] + "n"} for one in FIVE]
    text = text_of(sections(Utility(tasks=["t"]), table(*FIVE, *other), ["sft"], 0))
    assert f"lm-evaluation-harness {HARNESS}" in text and "60.0 ± 24.5 %" in text and "sft − vanilla" in text
    assert "acc_norm" in text and "not comparable" not in text and "without a partner" not in text


def test_the_report_says_that_a_limit_is_not_comparable():
    text = text_of(sections(Utility(tasks=["t"]), table(*(one | {"limit": 5} for one in FIVE)), ["sft"], 0))
    assert "only the first 5 documents of each task were taken" in text and "not comparable" in text


def test_a_lower_number_of_an_error_rate_is_a_gain():
    rows = [
        *of("vanilla", [1] * 12, higher_is_better=False), *of("sft", [0] * 12, higher_is_better=False)
    ]  # fmt: skip
    assert "'gains'" in text_of(sections(Utility(tasks=["t"]), table(*rows), ["sft"], 0))


def test_a_run_without_numbers_says_so():
    [section] = sections(Utility(tasks=["t"]), None, [], 0)
    assert "no numbers of utility yet" in section.text[0]


# -- results of the harness as rows

JOB = harness.Job({}, "sft", None, Model(path="toy"), "", "hf", 0, {}, 3, None, None, True, ".")


def result(output_type: str = "multiple_choice", **sample) -> dict:
    one = {
        "doc_id": 0, "doc_hash": "h", "filter": "strict", "metrics": ["acc_norm", "acc"],
        "acc": 1.0, "acc_norm": True, "arguments": [("a b", " c")], "resps": [[(-1.0, True)]],
    }  # fmt: skip
    return {
        "samples": {"x": [{**one, **sample}]},
        "results": {"x": {"acc,strict": 1.0, "acc_stderr,strict": "N/A", "acc_norm,strict": 1.0}},
        "configs": {"x": {"output_type": output_type, "metric_list": [{"metric": "acc"}]}},
        "higher_is_better": {"x": {"acc": True}},
        "versions": {"x": 1.0},
        "n-shot": {"x": 5},
        "n-samples": {"x": {"original": 100, "effective": 3}},
    }


def test_the_first_metric_of_the_task_s_list_is_primary():
    found = {one["metric"]: one for one in harness.rows_of(JOB, "x", result())}
    assert found["acc"]["primary"] and not found["acc_norm"]["primary"]
    assert found["acc_norm"]["value"] == 1.0 and found["acc"]["score_stderr"] is None
    assert (found["acc"]["fewshot"], found["acc"]["documents"], found["acc"]["limit"]) == (5, 100, 3)
    assert found["acc"]["written"] is None and found["acc"]["refused"] is None
    UTILITY.table(list(found.values()))


def test_what_an_arm_wrote_is_looked_at_without_its_thought():
    said = "<think>I cannot help with that</think>Paris."
    written = result("generate_until", resps=[[said]], arguments=[("q", {"until": []})])
    [acc] = [one for one in harness.rows_of(JOB, "x", written) if one["primary"]]
    assert acc["written"] == "Paris." and acc["refused"] is False
    refusing = result("generate_until", resps=[["I'm sorry, but I can't help with that."]])
    assert all(one["refused"] for one in harness.rows_of(JOB, "x", refusing))


@pytest.mark.parametrize("value, expected", [([1, 0], None), ("N/A", None), (float("nan"), None), (2, 2.0)])
def test_only_finite_numbers_are_values(value, expected):
    assert [one["value"] for one in harness.rows_of(JOB, "x", result(acc=value)) if one["primary"]] == [
        expected
    ]


@pytest.mark.parametrize(
    "arguments, most, is_cut",
    [
        ([("a b c", " d")], 4, False),
        ([("a b c", " d")], 3, False),  # the last token is predicted and not read
        ([("a b c", " d")], 2, True),
        ([("a b c", {"max_gen_toks": 2})], 5, False),
        ([("a b c", {"max_gen_toks": 2})], 4, True),
    ],
)
def test_a_cut_prompt_is_seen(arguments, most, is_cut):
    lengths = (lambda text: len(text.split()), most)
    rows = list(harness.rows_of(JOB, "x", result(arguments=arguments), lengths))
    assert [one["cut"] for one in rows] == [is_cut] * 2


# -- configuration and checks


def config(**suite) -> Config:
    return Config.model_validate(
        {"run_dir": "unused", "model": {"path": "toy"}, "suites": {"utility": suite}}
    )


def test_the_pinned_version_is_the_extra_s():
    assert PROJECT["optional-dependencies"]["utility"] == [f"lm_eval=={HARNESS}"]


def test_the_harness_s_version_is_part_of_the_fingerprint():
    assert fingerprints.fingerprints(config())["utility"]["suites"]["utility"]["harness"] == HARNESS


def test_changed_tasks_of_ours_change_the_fingerprint(tmp_path):
    def digest():
        return fingerprints.fingerprints(config(include_path=str(tmp_path)))["utility"]["prompts"]

    (tmp_path / "t.yaml").write_text("task: t")
    before = digest()
    (tmp_path / "t.yaml").write_text("task: u")
    assert before["tasks"] != digest()["tasks"]


@pytest.mark.parametrize(
    "suite, told",
    [
        ({"tasks": ["mmlu", "mmlu"]}, "tasks: mmlu is named twice"),
        ({"exclude_seen": True}, "exclude_seen: the documents are the harness's own"),
        ({"limit": 0}, "limit"),
    ],
)
def test_what_makes_no_sense_is_refused(suite, told):
    with pytest.raises(ValueError, match=told):
        config(**suite)


def absent(_name):
    raise metadata.PackageNotFoundError


@pytest.mark.parametrize("found, told", [(absent, "is not installed"), (lambda _name: "0.4.9", "0.4.9 is")])
def test_an_absent_or_other_harness_is_one_sentence_with_the_extra_s_name(monkeypatch, found, told):
    monkeypatch.setattr(metadata, "version", found)
    with pytest.raises(UserError, match=rf"suites\.utility: .*{told}.*pip install 'setbacks\[utility\]'"):
        Utility().check("suites.utility", Model(path="toy"))


def test_the_harness_needs_the_model_s_files_and_for_vllm_a_gpu():
    from pipeline.inference.openai import OpenAI
    from pipeline.inference.vllm import VLLM

    server = OpenAI(url="http://127.0.0.1:1/v1", model="m", api_key_env=None)
    with pytest.raises(UserError, match="loads the model's files itself"):
        Utility().check_engine("suites.utility", server)
    with pytest.raises(UserError, match=r"suites\.utility\.backend = vllm: .*GPUs only"):
        Utility(backend="vllm").check_engine("suites.utility", VLLM())
    Utility(backend="vllm").check_engine("suites.utility", VLLM(num_gpus=1))
    with pytest.raises(UserError, match=r"on one node, and engine\.num_nodes = 2; leave the suite out"):
        Utility().check_engine("suites.utility", VLLM(num_gpus=2, num_nodes=2))


def answering(monkeypatch, **answer):
    found = {"unknown": [], "refused": [], "lacking": []} | answer
    text = "noise\n" + tasks._MARK + json.dumps(found) + "\n"
    monkeypatch.setattr(
        subprocess, "run", lambda *_a, **_k: subprocess.CompletedProcess([], 0, stdout=text, stderr="")
    )
    tasks._asked.cache_clear()


@pytest.fixture(autouse=True)
def _nothing_remembered():
    yield
    tasks._asked.cache_clear()


@pytest.mark.parametrize(
    "answer, told",
    [
        ({"unknown": ["mmlo"]}, "has no task mmlo"),
        ({"refused": [["humaneval", "runs code that the model writes (humaneval)"]]}, "humaneval runs code"),
    ],
)
def test_a_task_that_is_unknown_or_cannot_be_run_is_refused(monkeypatch, answer, told):
    answering(monkeypatch, **answer)
    with pytest.raises(UserError, match=rf"suites\.utility\.tasks: .*{told}"):
        tasks.check("suites.utility", ["x"], None)


def test_a_data_set_out_of_reach_is_one_sentence(monkeypatch):
    answering(monkeypatch, lacking=[["mmlu", "cais/mmlu", "OfflineModeIsEnabled: offline"]])
    with pytest.raises(OutOfReach, match="mmlu reads cais/mmlu from the hub, which cannot be had"):
        tasks.check_reach("suites.utility", ["mmlu"], None)


def test_a_harness_that_fails_to_answer_is_one_sentence(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nImportError: no sacrebleu\n")
    monkeypatch.setattr(subprocess, "run", lambda *_a, **_k: failed)
    tasks._asked.cache_clear()
    with pytest.raises(UserError, match=r"cannot list its tasks \(ImportError: no sacrebleu\)"):
        tasks.check("suites.utility", ["x"], None)


@pytest.mark.parametrize(
    "config, why",
    [
        ({"unsafe_code": True}, "runs code"),
        ({"metric_list": [{"metric": "toxicity_perspective_api"}]}, "Perspective"),
        ({"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}}, "not there"),
        ({"dataset_path": "json", "dataset_kwargs": {"data_files": "https://x.org/a.jsonl"}}, None),
        ({"dataset_path": "cais/mmlu"}, None),
    ],
)
def test_tasks_that_cannot_be_run_here_are_known(config, why):
    found = tasks._cannot_run("t", config)
    assert found is None if why is None else why in found
