"""What a newcomer meets: a fast start, exit codes in the help, completion, JSON, and less or more output."""

import json
import os
import subprocess
import sys

import pytest
import typer
import yaml

from pipeline import cli
from pipeline.runtime.console import level
from pipeline.schema import Schema
from tests import scripted
from tests.unit.commands.reports import SECRET, write_answers


@pytest.fixture
def setbacks(monkeypatch, capsys):
    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["setbacks", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = e.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield run
    level.quiet = level.verbose = False


HEAVY = ("torch", "ray", "vllm", "transformers", "trl", "pyarrow", "pydantic", "yaml", "httpx", "matplotlib")


def imported(code: str) -> set[str]:
    program = f"import sys\nsys.argv = ['setbacks', '--version']\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_command_line_imports_nothing_heavy():
    assert not {*HEAVY} & imported("import pipeline.cli")


def test_configuring_imports_no_engine_and_no_trainer():
    """`init`, `schema` and `env` answer at once."""
    code = "from pipeline.commands import environment, init, schemas"
    assert not {"torch", "ray", "vllm", "transformers", "trl", "matplotlib"} & imported(code)


def test_help_says_the_exit_codes(setbacks):
    code, out, _ = setbacks("--help")
    words = " ".join(out.replace("│", " ").split())
    assert code == 0
    for part in ("Exit codes: 0 done;", "1 the run failed", "2 wrong usage", "130 and 143 interrupted"):
        assert part in words


@pytest.mark.parametrize("command", ["compare", "init", "schema", "preview", "env"])
def test_new_commands_have_help(setbacks, command):
    code, out, _ = setbacks(command, "--help")
    assert code == 0 and f"setbacks {command}" in out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("setbacks comp", "compare"),
        ("setbacks report --fail-u", "--fail-under"),
        ("setbacks plan --js", "--json"),
    ],
)
def test_the_shell_completes_commands_and_options(words, wanted):
    program = "import sys; sys.argv[0] = 'setbacks'; from pipeline.cli import main; main()"
    environment = {
        **os.environ,
        "_SETBACKS_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == [wanted]


def test_env_says_versions_and_devices_and_no_path(setbacks):
    code, out, _ = setbacks("env", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"setbacks", "versions", "platform", "processors", "gpus", "cluster"} <= found.keys()
    assert found["versions"]["Python"].startswith("3.") and "pyarrow" in found["versions"]
    text = setbacks("env")[1]
    assert "pyarrow" in text and os.path.expanduser("~") not in text.replace(os.sep * 2, os.sep) + out


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.yaml"
    tree = scripted.tree(tmp_path / "run", model={"path": "org/on-the-hub", "max_length": 512})
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_plan_as_json_has_lengths_work_and_hours_and_no_prompt(setbacks, config):
    code, out, _ = setbacks("plan", config, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["methods"]["mistakes"]["rows"] == 227
    assert found["methods"]["mistakes"]["longest_prompt_tokens"] > 0
    assert {part["stage"] for part in found["work"]} == {"generate", "evaluate"}
    assert found["time"][0]["most_hours"] > 0 and found["engines"]
    assert "induce (user)" not in out


def test_rows_as_json_are_masked_like_those_in_the_terminal(setbacks, tmp_path):
    write_answers(tmp_path)
    code, out, _ = setbacks("show", tmp_path / "evaluation", "--json", "-n", "3")
    found = json.loads(out)
    assert code == 0 and SECRET not in out
    assert found["rows"] == 8 * 3 * 5 and len(found["shown"]) == 3
    assert found["counts"]["arm"] == {"vanilla": 40, "sft": 40, "mistake_analysis": 40}
    assert {"name": "arm", "type": "string", "meaning": found["columns"][4]["meaning"]} in found["columns"]
    assert SECRET in setbacks("show", tmp_path / "evaluation", "--json", "--reveal")[1]


def test_a_judge_as_json_has_rates_and_errors(setbacks, tmp_path):
    write_answers(tmp_path)
    labels = tmp_path / "labels.jsonl"
    rows = [{"row_id": f"{i}-harmful-sft-plain", "harmful": i < 4} for i in range(8)]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = setbacks("judge", tmp_path / "evaluation", "--labels", labels, "--json")
    found = json.loads(out)
    assert code == 0 and SECRET not in out
    assert found["groups"]["sft, plain"]["harmful"]["value"] == 3 / 8
    assert found["error"]["n"] == 8 and found["error"]["accuracy"]["value"] == 7 / 8
    assert found["error"]["counts"]["called_harmless_labeled_harmful"] == 1
    assert found["groups"]["sft, plain"]["corrected"]["value"] is not None


def test_a_question_that_is_interrupted_leaves_nothing(setbacks, tmp_path, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise typer.Abort

    monkeypatch.setattr("typer.prompt", interrupted)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    path = tmp_path / "new.yaml"
    assert setbacks("init", path) == (130, "", "setbacks: interrupted\n")
    assert not path.exists()


def test_quiet_prints_warnings_only(setbacks, config, monkeypatch):
    def ran(config, stages, *, log, **options):
        log("generate: 3 rows")
        log("WARNING: generate: only 1 of 3 rows is usable")

    monkeypatch.setattr("pipeline.experiment.run", ran)
    assert setbacks("run", config, "-q") == (0, "WARNING: generate: only 1 of 3 rows is usable\n", "")
    assert setbacks("run", config)[1].count("\n") == 2


def test_quiet_shows_no_progress(monkeypatch, capsys):
    from pipeline.runtime import console

    monkeypatch.setattr(console, "QUIET_LINE_EVERY_S", 0)
    for quiet, lines in ((False, 1), (True, 0)):
        monkeypatch.setattr(level, "quiet", quiet)
        with console.step_bar("train") as update:
            update(1, 2, "loss 3")
        assert capsys.readouterr().err.count("step 1 of 2") == lines


def test_verbose_shows_what_libraries_say(tmp_path, monkeypatch, capfd):
    import logging

    from pipeline.runtime.session import stage_logs

    for verbose in (False, True):
        monkeypatch.setattr(level, "verbose", verbose)
        with stage_logs(str(tmp_path), "generate"):
            logging.getLogger("setbacks.noise").warning("a library speaks")
        assert ("a library speaks" in capfd.readouterr().err) == verbose
    assert (tmp_path / "logs/generate.log").read_text().count("a library speaks") == 2


def test_quiet_and_verbose_exclude_each_other(setbacks, config):
    code, _, err = setbacks("run", config, "-q", "-v")
    assert code == 2 and "--quiet and --verbose" in err


def test_a_data_set_of_no_answers_has_no_outcomes():
    from pipeline.report.outcomes import of_schema

    assert of_schema(Schema("other", ()), None) == []


def test_init_from_the_command_line(setbacks, tmp_path):
    path = tmp_path / "new.yaml"
    code, out, _ = setbacks("init", path, "--model", "org/m", "--source", "toy:harmful-train", "--gpus", "0")
    assert code == 0 and f"next: setbacks plan {path}" in out
    assert setbacks("plan", path, "--json")[0] == 0
    assert setbacks("init", path, "--model", "toy", "--source", "toy:harmful-train")[0] == 2
