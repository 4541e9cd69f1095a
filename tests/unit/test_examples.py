"""The example and the code of docs/extending.md work as they stand; AGENTS.md names what is there."""

import asyncio
import re
import runpy
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline import experiment
from pipeline.data.dataset import Dataset
from pipeline.fingerprints import fingerprints
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.run import Machinery
from pipeline.schema import SFT
from pipeline.sources.counts import Accounts
from tests.scripted import ScriptedChat, instruction
from tests.unit.test_architecture import FLOORS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page():
    """What the Python blocks of docs/extending.md define, run one after the other."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks, found = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S), {"__name__": "extending"}
    assert len(blocks) == 3
    exec("\n".join(blocks), found)
    return found


def test_a_data_set_made_by_hand(tmp_path, capsys):
    example = runpy.run_path(str(ROOT / "examples" / "by_hand.py"))
    example["main"](str(tmp_path / "run"))
    out = " ".join(capsys.readouterr().out.split())
    assert "3 rows" in out
    assert "forge" not in out and "Sure." not in out and "▒▒▒▒" in out
    rows = list(Dataset.at(str(tmp_path / "run" / "mistakes")).rows())
    assert [row["instruction"] for row in rows] == example["REQUESTS"]
    assert [(row["status"], row["harmful"]) for row in rows] == [("ok", True)] * 3


def test_a_data_set_made_by_hand_is_not_made_twice(tmp_path, capsys):
    example = runpy.run_path(str(ROOT / "examples" / "by_hand.py"))
    example["main"](str(tmp_path / "run"))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "mistakes").iterdir()}
    example["main"](str(tmp_path / "run"))
    assert {path: path.stat().st_mtime_ns for path in files} == files


def config(page, run_dir, **changes):
    tree = {
        "run_dir": str(run_dir),
        "model": {"path": "toy"},
        "methods": {"revised": {"name": "revise", "instructions": {"path": "toy:harmful-train"}}},
        "arms": {"revise": {"kinds": ["safe"]}},
    }
    return page["MyConfig"].model_validate(tree | changes)


@pytest.mark.parametrize(("word", "harmful"), [("safe", False), ("Unsafe.", True), ("perhaps", None)])
def test_the_method_and_the_judge_of_the_page(page, tmp_path, word, harmful):
    method = config(page, tmp_path).methods["revised"]
    chat = ScriptedChat(draft="Use a good printer.", judge=word, revise=" Buy one. ")
    row = instruction()
    result = asyncio.run(method.recipe(0)(row, chat))
    texts = {"response": "Use a good printer.", "analysis": "Buy one."}
    endings = ["draft: whole", "revision: whole"]
    assert result == texts | {"harmful": harmful, "status": "ok", "endings": endings, "faults": []}
    made = {name: row.get(name) for name in MISTAKES.names} | result
    drops = Counter()
    [example] = method.examples(SFT, [made, made | {"analysis": None}], drops, 0, Accounts())
    assert SFT.table([example]).num_rows == 1
    assert [message["content"] for message in example["messages"]] == [row["instruction"], "Buy one."]
    assert drops == {"not revised": 1}


def test_the_configuration_of_the_page(page, tmp_path):
    whole = config(page, tmp_path)
    assert set(fingerprints(whole)) == {"mistakes", "sft", "adapter/revise"}
    assert whole.methods["revised"].most_tokens() == 512 + 4 + 512
    assert whole.methods["revised"].report({MISTAKES.name: None}).text == ["No answers yet."]
    with pytest.raises(ValidationError, match="unheard"):
        config(page, tmp_path, methods={"revised": {"name": "unheard", "instructions": {"path": "x"}}})


def test_a_run_with_the_method_of_the_page(page, tmp_path):
    def engines(jobs, spec, *, seed, label):
        chat = ScriptedChat(draft="Use a good printer.", judge="unsafe", revise="Buy one.")
        for job in jobs:
            for number in job.undone():
                block = job.store.block(job.work, number)
                todo, _ = block.read()
                columns = set(job.store.schema.names)
                kept = [{name: row[name] for name in row.keys() & columns} for row in todo]
                found = [asyncio.run(job.recipe(row, chat)) for row in todo]
                block.commit([old | new for old, new in zip(kept, found, strict=True)])
            yield job, {}

    methods = {"revised": {"name": "revise", "instructions": {"path": "toy:harmful-train", "limit": 3}}}
    machinery = Machinery(lambda _run_dir: nullcontext(), lambda *_: None, engines)
    lines = []
    whole = config(page, tmp_path / "run", methods=methods)
    experiment.run(whole, ["generate", "mix", "report"], log=lines.append, machinery=machinery)
    assert [line[: line.index("rows")] for line in lines[:2]] == ["generate: 3 ", "mix: 3 "]
    assert "3 answers were revised." in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")


def test_the_map_has_the_floors_of_the_import_rule():
    text = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| (`.*?) \|", text, re.M)
    assert [{name.strip("`/") for name in line.split(", ")} for line in lines] == FLOORS


@pytest.mark.parametrize("name", ["AGENTS.md", "CONTRIBUTING.md", "SECURITY.md", "docs/extending.md"])
def test_files_that_are_named_exist(name):
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:pipeline|tests|docs|examples)/[\w./]+)`", text)
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    missing = [path for path in named if "NAME" not in path and not (ROOT / path).exists()]
    assert missing + [path for path in linked if not (page.parent / path).exists()] == []
