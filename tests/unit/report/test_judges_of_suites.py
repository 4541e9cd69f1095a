"""The report's judges: a row each, their agreement, and measured errors, which belong to one judge only."""

import json
import sys

import pytest

from pipeline import cli
from pipeline.commands.report import write_report
from pipeline.data.store import Store
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from pipeline.suites.safety.schema import ANSWERS
from pipeline.suites.verdicts import VERDICTS
from tests import scripted

pytestmark = pytest.mark.usefixtures("no_figures")

N = 20
OTHER = {"other": {"kind": "rating", "model": "big"}}
MODELS = {"big": {"path": "org/big"}, "bigger": {"path": "org/bigger"}}


def config(run_dir, *, safety=None, **changes):
    suite = {"harmful": {"path": "toy:harmful-heldout"}, "more_judges": OTHER, **(safety or {})}
    settings = {"instructions": None, "models": MODELS, "model": {"path": "org/base"}}
    return scripted.config(run_dir, suites={"safety": suite}, **settings | changes)


def harmful(i: int) -> bool:
    return i < 10


def made(run_dir, config, *, verdicts=True):
    """A run of 20 answers: its own judge calls the first 10 harmful, the other one those from 6 to 11."""
    made_with = fingerprints(config)
    store = Store(str(run_dir), ANSWERS.name, ANSWERS)
    store.open({**made_with[ANSWERS.name], "made_from": {}})
    about = {"suite": "harmful", "arm": "vanilla", "condition": "plain", "status": "ok"}
    store.write_rows(
        {
            "id": f"a{i}",
            "instruction_id": f"i{i}",
            "instruction": f"ask {i}",
            "response": f"secret {i}",
            "harmful": harmful(i),
            **about,
        }
        for i in range(N)
    )
    if verdicts:
        store = Store(str(run_dir), "verdicts_other", VERDICTS)
        store.open({**made_with["verdicts_other"], "made_from": {}})
        store.write_rows(
            {
                "id": f"a{i}-other",
                "answer_id": f"a{i}",
                "judge": "other",
                "harmful": None if i == 0 else 6 <= i < 12,
                "raw": "secret verdict",
                "status": "ok",
            }
            for i in range(N)
        )
    from pipeline.config import dump

    (run_dir / "config.yaml").write_text(dump(config))


def report(run_dir, config) -> str:
    _, markdown = write_report(config, str(run_dir))
    with open(markdown, encoding="utf-8") as f:
        return f.read()


def line(markdown: str, *starts: str) -> str:
    """The first line of a table that begins with these cells."""
    return next(one for one in markdown.splitlines() if one.startswith("| " + " | ".join(starts)))


def corrected(markdown: str, judge: str = "other") -> bool:
    """Whether the report corrects a judge's rate."""
    header = line(markdown, "Arm", "Judge")
    cells = line(markdown, "vanilla", judge).strip("| ").split(" | ")
    return header.endswith("Corrected rate, % |") and cells[-1] != "unmeasured"


@pytest.fixture
def setbacks(monkeypatch, capsys):
    def run(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["setbacks", "judge", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = e.code or 0
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def labels(path, wrong=()):
    """Labels of all answers: those of the run's own judge, and some that differ."""
    rows = [{"id": f"a{i}", "harmful": harmful(i) != (i in wrong)} for i in range(N)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_judge_has_a_row_and_every_pair_its_agreement(tmp_path):
    run = config(tmp_path)
    made(tmp_path, run)
    text = report(tmp_path, run)
    assert "| Arm | Judge | Judged | Rate, % |" in text
    assert "| vanilla | refusal (headline) | 20 | 50.0 [29.9, 70.1] |" in text
    assert "| vanilla | other | 19 | 68.4 [46.0, 84.6] |" in text, "13 of 19 verdicts of the other"
    # 19 answers with both verdicts: both harmful 6–9, only the first 1–5, only the second 10–11
    agreement = line(text, "refusal (headline)", "other")
    cells = [cell.strip() for cell in agreement.strip("|").split("|")]
    assert cells[2] == "19" and cells[3].startswith("63.2")
    assert cells[4].startswith("0.25") and cells[5:] == ["5", "2"]
    assert "secret" not in text


def test_a_judge_that_has_not_judged_yet_is_told(tmp_path):
    run = config(tmp_path)
    made(tmp_path, run, verdicts=False)
    assert "No verdicts yet: other; `setbacks rejudge` writes them." in report(tmp_path, run)


def test_without_labels_the_error_is_unmeasured(tmp_path):
    run = config(tmp_path, safety={"more_judges": {}})
    made(tmp_path, run, verdicts=False)
    text = report(tmp_path, run)
    assert "The error of the judge (refusal) is unmeasured" in text
    assert "unmeasured" in line(text, "vanilla | 50.0")
    assert "The judge reads refusal phrases, not harm" in text


def test_a_measured_error_corrects_the_rate_of_its_judge_and_no_others(tmp_path, setbacks):
    run = config(tmp_path)
    made(tmp_path, run)
    kept = tmp_path / "judge_errors" / "refusal.json"
    file = labels(tmp_path / "labels.jsonl", wrong=(0, 19))
    code, out = setbacks(tmp_path / "evaluation", "--labels", file, "--keep", kept)
    assert code == 0, out
    text = report(tmp_path, run)
    # sensitivity 9/10, specificity 9/10: (0.5 + 0.9 − 1) / 0.8 = 0.5 harmful
    assert "Measured error of the judge (refusal) on 20 labeled answers" in text
    assert "90 % \\[60, 98] of the harmful ones" in text
    headline = line(text, "vanilla")
    assert headline.count("50.0") == 2 and "unmeasured" not in headline
    assert line(text, "other", "unmeasured")
    # the error of one more judge's stored verdicts
    kept = tmp_path / "judge_errors" / "other.json"
    code, out = setbacks(tmp_path / "verdicts_other", "--labels", file, "--keep", kept)
    assert code == 0 and "19 with a verdict" in out
    assert corrected(report(tmp_path, run))


CHANGES = {
    "another threshold": {"safety": {"more_judges": {"other": {**OTHER["other"], "threshold": 7}}}},
    "another model": {"safety": {"more_judges": {"other": {**OTHER["other"], "model": "bigger"}}}},
    "another kind": {"safety": {"more_judges": {"other": {"kind": "yes_no_harmful", "model": "big"}}}},
    "another dtype": {"models": {"big": {"path": "org/big", "dtype": "float32"}}},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_error_of_another_judge_or_model_is_not_used(tmp_path, setbacks, change):
    run = config(tmp_path)
    made(tmp_path, run)
    kept = tmp_path / "judge_errors" / "other.json"
    setbacks(tmp_path / "verdicts_other", "--labels", labels(tmp_path / "l.jsonl"), "--keep", kept)
    assert corrected(report(tmp_path, run))
    text = report(tmp_path, config(tmp_path, **change))
    assert not corrected(text) and line(text, "other", "unmeasured")


def test_an_error_of_another_prompt_is_not_used(tmp_path, setbacks):
    prompts = tmp_path / "mine.yaml"
    texts = {
        name: f"{name} {{{{ instruction }}}} {{{{ response }}}}" for name in ("harmless", "help", "harm_help")
    }
    prompts.write_text(json.dumps(texts))
    judge = {"more_judges": {"other": {**OTHER["other"], "prompts": str(prompts)}}}
    run = config(tmp_path, safety=judge)
    made(tmp_path, run)
    kept = tmp_path / "judge_errors" / "other.json"
    setbacks(tmp_path / "verdicts_other", "--labels", labels(tmp_path / "l.jsonl"), "--keep", kept)
    assert corrected(report(tmp_path, run))
    prompts.write_text(json.dumps({**texts, "harmless": "Another {{ instruction }} {{ response }}"}))
    assert not corrected(report(tmp_path, config(tmp_path, safety=judge)))
    prompts.unlink()
    assert not corrected(report(tmp_path, config(tmp_path, safety=judge)))


def test_the_same_judge_under_another_name_of_its_model_keeps_its_error(tmp_path, setbacks):
    run = config(tmp_path)
    made(tmp_path, run)
    kept = tmp_path / "elsewhere.json"
    setbacks(tmp_path / "verdicts_other", "--labels", labels(tmp_path / "l.jsonl"), "--keep", kept)
    renamed = config(
        tmp_path,
        models={"strict": MODELS["big"]},
        safety={"more_judges": {"other": {"kind": "rating", "model": "strict"}}},
        report={"judge_errors": [str(kept)]},
    )
    assert corrected(report(tmp_path, renamed))


def test_an_error_of_stored_verdicts_whose_judge_is_unknown_is_not_kept(tmp_path, setbacks):
    run = config(tmp_path)
    made(tmp_path, run)
    from pipeline.config import dump

    (tmp_path / "config.yaml").write_text(dump(config(tmp_path, safety={"harmless": {"kind": "rating"}})))
    kept = tmp_path / "judge_errors" / "x.json"
    code, out = setbacks(tmp_path / "evaluation", "--labels", labels(tmp_path / "l.jsonl"), "--keep", kept)
    assert code == 2 and "it is not known which judge gave these verdicts" in out
    assert not kept.exists()


def test_a_file_that_is_no_error_ends_the_report_with_its_name(tmp_path):
    run = config(tmp_path)
    made(tmp_path, run)
    (tmp_path / "judge_errors").mkdir()
    (tmp_path / "judge_errors" / "x.json").write_text('{"judge": 1}')
    with pytest.raises(UserError, match=r"x\.json: not a file that `setbacks judge --keep` wrote"):
        report(tmp_path, run)


def test_verdicts_cannot_be_judged_again(tmp_path, setbacks):
    made(tmp_path, config(tmp_path))
    code, out = setbacks(tmp_path / "verdicts_other", "--judge", "refusal")
    assert code == 2 and "holds verdicts, and no answers to judge" in out


def test_the_headline_names_its_judge_and_of_how_many_answers_it_is(tmp_path):
    run = config(tmp_path, safety={"more_judges": {}})
    made(tmp_path, run, verdicts=False)
    text = report(tmp_path, run)
    assert "Asked plainly, answers judged harmless by refusal phrases: vanilla 50.0\u00a0% of 20." in text
    assert "red-team instructions, the share judged harmless by refusal phrases" in text


def test_answers_to_red_team_and_to_benign_instructions_are_counted_apart(tmp_path):
    run = config(
        tmp_path, safety={"more_judges": {}, "helpful": {"path": "toy:helpful-heldout"}, "help": None}
    )
    store = Store(str(tmp_path), ANSWERS.name, ANSWERS)
    store.open({**fingerprints(run)[ANSWERS.name], "made_from": {}})
    about = {"arm": "vanilla", "condition": "plain", "status": "ok", "instruction": "ask", "response": "text"}
    store.write_rows(
        {"id": f"a{i}", "instruction_id": f"i{i}", "suite": suite, **verdict, **about}
        for i, (suite, verdict) in enumerate(
            [("harmful", {"harmful": False})] * 3
            + [("harmful", {})] * 2
            + [("helpful", {"refused": True})] * 4
        )
    )
    text = report(tmp_path, run)
    assert "vanilla 100.0\u00a0% of 3 (2 more without a verdict)." in text
    assert "| Arm | Red-team answers | Judged | No verdict | Benign answers | Cut | Failed |" in text
    assert "| vanilla | 5 | 3 | 2 | 4 | 0 | 0 |" in text
