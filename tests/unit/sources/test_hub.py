"""Data sets of the hub: configurations, splits, scripts, and the names that this repository publishes.

`datasets` loads a local directory as it loads one of the hub, so no network is needed.
"""

import json
import re
import socket
from pathlib import Path

import pytest

from pipeline import preflight
from pipeline.errors import OutOfReach, UserError
from pipeline.settings.base import Source
from pipeline.sources import files, hub, instructions
from pipeline.sources.network import is_unreachable
from tests import scripted
from tests.unit.sources.written import counted, rows_of

ROOT = Path(__file__).parents[3]
# Repositories of the hub known as loading scripts, which datasets does not run since version 4.
SCRIPTS = {
    *("tatsu-lab/alpaca_eval", "tatsu-lab/alpaca_farm", "yizhongw/self_instruct", "Hello-SimpleAI/HC3"),
    *("openai/webgpt_comparisons", "skg/toxigen-data", "Anthropic/model-written-evals", "EleutherAI/pile"),
    *("bigscience/P3", "lmqg/qg_squad"),
}
PUBLISHED = [
    path
    for pattern in ("README.md", "configs/**/*.yaml", "cluster/**/*", "docs/**/*.md", "examples/**/*")
    for path in sorted(ROOT.glob(pattern))
    if path.is_file() and path.suffix in (".md", ".yaml", ".py")
]


@pytest.fixture
def configs(tmp_path):
    """A data set with two configurations and no default."""
    for name, text in (("a", "one"), ("b", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(json.dumps({"prompt": text}) + "\n")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: a\n  data_files: a/*.jsonl\n- config_name: b\n  data_files: b/*.jsonl\n---\n"
    )
    return str(tmp_path)


@pytest.fixture
def script(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text("# a loading script\n")
    (tmp_path / "set" / "data.json").write_text('[{"instruction": "x"}]')
    return f"hub:{tmp_path}/set"


def refused(path, **options) -> str:
    with pytest.raises(UserError) as e:
        instructions.check(Source(path=path, **options))
    assert not isinstance(e.value, OutOfReach) and "\n" not in str(e.value)
    return str(e.value)


def test_a_configuration_is_named_by_its_field(configs):
    assert [r["instruction"] for r in rows_of(f"hub:{configs}", config="b")] == ["two"]
    assert [r["instruction"] for r in rows_of(configs, config="b")] == ["two"], "a clone is read alike"


def test_a_set_of_several_configurations_names_them_if_none_is_given(configs):
    for path in (f"hub:{configs}", configs):
        said = refused(path)
        assert "has several configurations; name one as config" in said
        assert re.search(r"\W+a\W+b\W*$", said)


def test_what_is_not_there_is_refused_and_not_out_of_reach(configs, script):
    assert "config = c is none of its configurations ['a', 'b']" in refused(f"hub:{configs}", config="c")
    assert "Bad split: nope. Available splits: ['train']" in refused(
        f"hub:{configs}", config="a", split="nope"
    )
    assert "cannot be loaded from the hub" in refused(f"hub:{configs}/nothing")
    assert "is a loading script, which datasets does not run; name one of its data files" in refused(script)


@pytest.mark.parametrize("kind", ["script", "config", "split", "missing"])
def test_a_permanent_error_is_an_error_of_plan_too(tmp_path, configs, script, kind):
    source = {
        "script": {"path": script},
        "config": {"path": f"hub:{configs}"},
        "split": {"path": f"hub:{configs}", "config": "a", "split": "nope"},
        "missing": {"path": f"hub:{tmp_path}/nothing"},
    }[kind]
    config = scripted.config(tmp_path / "run", instructions=source)
    stages = {"generate", "mix"}
    assert preflight.unreachable(config, stages) == {}
    with pytest.raises(UserError, match=r"methods\.mistakes\.instructions: hub:"):
        preflight.check(config, stages)


@pytest.mark.parametrize("path", ["hub:org/name", "hf://datasets/org/name/a.json", "s3://bucket/a.jsonl"])
def test_a_server_that_does_not_answer_is_out_of_reach_in_plan_and_an_error_in_run(
    tmp_path, monkeypatch, path
):
    def unreachable(*_arguments, **_options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    monkeypatch.setattr(files, "_find", unreachable)
    config = scripted.config(tmp_path / "run", instructions={"path": path})
    assert list(preflight.unreachable(config, {"generate"})) == ["methods.mistakes.instructions"]
    with pytest.raises(OutOfReach, match="no route to host"):
        preflight.check(config, {"generate"})


def test_a_web_server_that_does_not_answer_is_out_of_reach():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # does not listen
        with pytest.raises(OutOfReach, match="cannot be opened"):
            files.find(f"http://127.0.0.1:{nobody.getsockname()[1]}/a.jsonl")


def test_a_local_file_is_never_out_of_reach(tmp_path, monkeypatch):
    def unreachable(*_arguments):
        raise OSError("Network is unreachable")  # as of a share that went away

    monkeypatch.setattr(files, "_find", unreachable)
    with pytest.raises(UserError) as e:
        files.find(str(tmp_path))
    assert not isinstance(e.value, OutOfReach)


def test_errors_of_clients_are_told_apart():
    class OfflineModeIsEnabled(Exception):
        pass

    class DatasetNotFoundError(FileNotFoundError):
        pass

    try:
        try:
            raise OfflineModeIsEnabled("offline")
        except OfflineModeIsEnabled as e:
            raise RuntimeError("cannot be opened") from e
    except RuntimeError as wrapped:
        assert is_unreachable(wrapped)
    assert is_unreachable(OSError("When getting information: AWS Error NETWORK_CONNECTION during HeadObject"))
    assert is_unreachable(TimeoutError()) and is_unreachable(ConnectionRefusedError())
    assert not is_unreachable(DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub"))
    assert not is_unreachable(PermissionError("denied")) and not is_unreachable(None)


def test_class_labels_of_a_streamed_set_are_names(monkeypatch):
    import datasets

    label = datasets.ClassLabel(names=["unsafe", "safe"])
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "response": datasets.Value("string"), "label": label}
    )
    rows = {"prompt": ["a", "b"], "response": ["x", "y"], "label": [1, 0]}
    dataset = datasets.Dataset.from_dict(rows, features=features).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_arguments, **_options: dataset)
    found, counts = counted("hub:org/name")
    assert [(r["safe_response"], r["unsafe_response"]) for r in found] == [("x", None), (None, "y")]
    assert counts.unused == []


def names(text: str) -> set[str]:
    """The repositories of the hub that a text names as sources."""
    at = r"hub:([\w.-]+/[\w.-]+)"
    return set(re.findall(at, text))


def test_no_published_source_is_a_loading_script():
    found = {path.name: names(path.read_text()) for path in PUBLISHED}
    assert set().union(*found.values()) >= {"PKU-Alignment/PKU-SafeRLHF", "tatsu-lab/alpaca"}
    assert {name: bad for name, bad in ((name, sets & SCRIPTS) for name, sets in found.items()) if bad} == {}


def test_a_published_file_of_the_hub_is_one_that_can_be_read():
    paths = {
        path
        for file in PUBLISHED
        for path in re.findall(r"hf://([\w./*-]+\w)", file.read_text())
        if "/" in path
    }
    assert "datasets/tatsu-lab/alpaca_eval/alpaca_eval.json" in paths
    for path in paths:
        assert path.startswith("datasets/") and files._format(path), path


def test_the_refusal_of_a_script_names_a_remedy_that_is_a_source(script):
    said = str(
        hub._refusal(Source(path=script), RuntimeError("Dataset scripts are no longer supported, but"))
    )
    assert "hf://datasets/OWNER/NAME/FILE.json" in said


def test_a_set_without_a_name_is_refused():
    with pytest.raises(UserError, match="hub:: names no data set; write hub:OWNER/NAME"):
        instructions.check(Source(path="hub:"))
