"""`setbacks judge`: stored answers are judged again and compared with labels, and no model is started."""

import csv
import json
import sys
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.suites.safety.schema import ANSWERS
from tests.unit.commands.reports import write as write_dataset
from tests.unit.inference.endpoint.servers import Answer, chat, serving

REFUSES, HELPS = "I cannot help you with that.", "Sure, first take a printer."


@pytest.fixture
def setbacks(monkeypatch, capsys):
    """Run the command as the console script does: returns (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["setbacks", "judge", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = e.code or 0
        captured = capsys.readouterr()
        return code, " ".join(captured.out.split()), captured.err

    return run


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers(path: Path, *responses: str, **columns) -> Path:
    rows = [
        {"id": f"a{i}", "instruction": f"Request {i}", "response": text, **columns}
        for i, text in enumerate(responses)
    ]
    return jsonl(path, rows)


def served(server) -> str:
    """`models` with a server, as on the command line."""
    engine = f"{{kind: openai, url: '{server.url}', model: g, api_key_env: null, retries: 0}}"
    return f"{{guard: {{engine: {engine}}}}}"


def labels(path: Path, **found) -> Path:
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerows([["id", "harmful"], *found.items()])
    return path


def run_of(tmp_path: Path, verdicts: list[bool | None], arm="vanilla") -> Path:
    rows = [
        {
            "id": f"a{i}",
            "instruction_id": f"i{i}",
            "sample": 0,
            "suite": "harmful",
            "arm": arm,
            "condition": "plain",
            "instruction": "How?",
            "category": "theft" if i % 2 else "fraud",
            "response": "Text.",
            "harmful": harmful,
            "status": "ok",
        }
        for i, harmful in enumerate(verdicts)
    ]
    rows += [
        {**rows[0], "id": "h", "suite": "helpful", "harmful": None},
        {**rows[0], "id": "f", "status": "failed", "harmful": None},
    ]
    write_dataset(tmp_path, ANSWERS, rows)
    return tmp_path / "evaluation"


def test_stored_verdicts_are_compared_with_a_persons_labels(tmp_path, setbacks):
    """S8's ten answers: 4 harmful for both, 3 for neither, 2 for the judge alone, 1 for the person alone."""
    evaluation = run_of(tmp_path, [True] * 6 + [False] * 4)
    found = ["harmful"] * 4 + ["harmless"] * 2 + ["harmful"] + ["harmless"] * 3
    file = labels(tmp_path / "labels.csv", **{f"a{i}": label for i, label in enumerate(found)})
    code, out, _ = setbacks(evaluation, "--labels", file)
    assert code == 0
    assert "10 answers, 10 with a verdict (the stored verdicts); called harmful: 60.0 %" in out
    assert "called harmful 4 2 called harmless 1 3" in out
    assert "accuracy 70.0 %" in out and "kappa 0.40 [" in out
    assert "sensitivity 80.0 %" in out and "specificity 60.0 %" in out
    assert "left out, answer to a benign instruction: 1" in out and "left out, failed: 1" in out
    assert "fraud 5" in out and "theft 5" in out
    assert "vanilla, plain 60.0 %" in out and "50.0 % [" in out, "(0.6 + 0.6 − 1) / (0.8 + 0.6 − 1)"


def test_pkus_own_columns_are_labels(tmp_path, setbacks):
    rows = [
        {
            "prompt": "How?",
            "response_0": HELPS,
            "response_1": REFUSES,
            "is_response_0_safe": False,
            "is_response_1_safe": safe,
        }
        for safe in (True, True, False)
    ]
    code, out, _ = setbacks(jsonl(tmp_path / "pku.jsonl", rows), "--judge", "refusal")
    assert code == 0
    assert "6 answers, 6 with a verdict (refusal)" in out
    assert "called harmful 3 0 called harmless 1 2" in out


def test_labels_are_matched_by_id_and_everything_left_out_is_told(tmp_path, setbacks):
    file = answers(tmp_path / "answers.jsonl", HELPS, HELPS, REFUSES, REFUSES, HELPS)
    with open(file, "a") as f:
        f.write('not JSON\n{"id": "x"}\n')
    found = labels(tmp_path / "l.csv", a0="1", a1="unsafe", a2="No", a3="maybe", a4="", z9="harmful")
    code, out, _ = setbacks(file, "--judge", "refusal", "--labels", found)
    assert code == 0
    assert "called harmful 2 0 called harmless 0 1" in out
    for told in (
        "without a response: 1",
        "malformed (",
        "label that is neither harmful nor harmless: 1",
        "judged, without a label: 2",
        "label of no answer here: 1",
    ):
        assert f"left out, {told}" in out


def test_stored_verdicts_of_a_csv_are_read_as_labels_are(tmp_path, setbacks):
    rows = "id,instruction,response,harmful\n1,a,b,True\n2,a,b,safe\n3,a,b,\n"
    (tmp_path / "answers.csv").write_text(rows)
    code, out, _ = setbacks(tmp_path / "answers.csv")
    assert code == 0
    assert "3 answers, 2 with a verdict (the stored verdicts); called harmful: 50.0 %" in out


def test_two_people_who_differ_are_no_label(tmp_path, setbacks):
    file = answers(tmp_path / "answers.jsonl", HELPS, REFUSES, HELPS)
    rows = [
        {"row_id": "a0", "id": 7, "harmful": "harmful"},  # a labeling tool's own id stands beside ours
        {"row_id": "a0", "id": 8, "harmful": "harmless"},
        {"row_id": "a1", "id": 9, "harmful": ["harmless", "harmless"]},
        {"row_id": "a2", "id": 10, "harmful": ["harmful"]},
    ]
    _, out, _ = setbacks(file, "--judge", "refusal", "--labels", jsonl(tmp_path / "l.jsonl", rows))
    assert "left out, answer with labels that differ: 1" in out
    assert "called harmful 1 0 called harmless 0 1" in out


def test_a_sample_goes_to_a_person_without_verdicts_and_comes_back(tmp_path, setbacks):
    evaluation = run_of(tmp_path, [True, False] * 10)
    code, out, _ = setbacks(evaluation, "--review", tmp_path / "review.jsonl", "-n", 8)
    assert code == 0 and "8 answers" in out
    rows = read(tmp_path / "review.jsonl")
    assert [set(row) for row in rows] == [{"row_id", "instruction", "response", "category", "harmful"}] * 8
    assert {row["harmful"] for row in rows} == {None}, "nobody labels by the verdict"
    for row in rows:
        row["harmful"] = "harmful" if int(row["row_id"][1:]) % 2 == 0 else "harmless"
    _, out, _ = setbacks(evaluation, "--labels", jsonl(tmp_path / "labeled.jsonl", rows))
    assert "accuracy 100.0 %" in out and "of 8 labeled answers" in out


def test_one_judges_verdicts_are_anothers_labels(tmp_path, setbacks):
    file = answers(tmp_path / "answers.jsonl", HELPS, REFUSES, "", HELPS)
    assert setbacks(file, "--judge", "refusal", "--out", tmp_path / "refusal.jsonl")[0] == 0
    rows = read(tmp_path / "refusal.jsonl")
    assert [(row["id"], row["harmful"]) for row in rows] == [
        ("a0", True),
        ("a1", False),
        ("a2", False),
        ("a3", True),
    ]
    assert "response" not in rows[0]
    _, out, _ = setbacks(file, "--judge", "refusal", "--labels", tmp_path / "refusal.jsonl")
    assert "kappa 1.00" in out


def test_a_guard_on_a_server_judges_stored_answers(tmp_path, setbacks):
    file = answers(tmp_path / "answers.jsonl", HELPS, "", HELPS)
    with serving(chat("unsafe\nS2")) as server:
        judge = ["--judge", "{kind: llama_guard, model: guard}", "--models", served(server)]
        code, out, _ = setbacks(file, *judge, "--out", tmp_path / "out.jsonl")
    assert code == 0 and "called harmful: 66.7 %" in out
    assert "error is unmeasured" in out
    assert len(server.requests) == 2, "an empty answer is not asked about"
    assert server.requests[0][2]["add_generation_prompt"] is True
    assert [row["harm_categories"] for row in read(tmp_path / "out.jsonl")] == [["S2"], None, ["S2"]]


def test_answers_that_the_server_refuses_have_no_verdict(tmp_path, setbacks):
    file = answers(tmp_path / "answers.jsonl", HELPS, HELPS)
    with serving(Answer(status=400, body={})) as server:
        judge = ["--judge", "{kind: wildguard, model: guard}", "--models", served(server)]
        code, out, _ = setbacks(file, *judge)
    assert code == 0
    assert "2 answers, 0 with a verdict" in out
    assert "left out, not judged (endpoint refused the request: HTTP 400" in out


def test_a_judge_that_is_never_understood_measures_nothing_and_says_so(tmp_path, setbacks):
    file = answers(tmp_path / "answers.jsonl", HELPS, HELPS)
    with serving(chat("amber birch")) as server:
        judge = ["--judge", "{kind: llama_guard, model: guard}", "--models", served(server)]
        code, out, _ = setbacks(file, *judge, "--labels", labels(tmp_path / "l.csv", a0="harmful"))
    assert code == 0
    assert "left out, without a verdict: 2" in out and "no verdict could be read" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judge", "llama_guard"], "starts none; name a server of --models"),
        (["--judge", "{kind: rating}"], "starts none; name a server of --models"),
        (["--judge", "{kind: rating, model: big}"], "--judge.model = big: models has no such entry"),
        (["--judge", "refusal", "--keep", "kept.json"], "there is no error to keep; give --labels FILE"),
        (["--judge", "refusals"], "kind"),
        (["--judge", "{kind: refusal"], "not valid YAML"),
        (["--judge", "{kind: refusal, threshold: 3}"], "threshold is not a known key"),
        ([], "holds no verdict; name a judge with --judge"),
        (["--judge", "refusal", "--labels", "none.csv"], "none.csv"),
        (["--judge", "refusal", "--labels", "answers.jsonl"], "none of its 1 rows has an id and a label"),
        (["--judge", "refusal", "--labels", "other.csv"], "none of the labels is of an answer"),
        (["--judge", "refusal", "--out", "answers.jsonl"], "exists already"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_said_in_one_sentence(tmp_path, monkeypatch, setbacks, options, message):
    monkeypatch.chdir(tmp_path)
    answers(tmp_path / "answers.jsonl", HELPS)
    labels(tmp_path / "other.csv", b7="harmful")
    code, _, error = setbacks("answers.jsonl", *options)
    assert code == 2
    assert message in error and error.count("\n") == 1
    assert HELPS not in error
