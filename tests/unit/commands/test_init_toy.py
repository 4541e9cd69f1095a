"""`setbacks init --model toy`: nothing else has to be said, and what it writes teaches the toy as the quickstart
does. Sources that cannot exist are refused before a file is written."""

from pathlib import Path

import pytest

from pipeline.commands.init import PROPOSED, init
from pipeline.config import TRAINERS, Suites, load
from pipeline.errors import UserError
from pipeline.settings import yaml_text

ROOT = Path(__file__).parents[3]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The path of a configuration that `init` wrote without asking."""
    monkeypatch.chdir(tmp_path)

    def written(method=None, source=None, held_out=None, model="toy", gpus=0):
        init("mine.yaml", model, source, method, held_out, gpus, None, lambda line: None)
        return tmp_path / "mine.yaml"

    return written


def test_it_is_the_quickstart_with_one_method(written):
    made, quickstart = load(written()), load(ROOT / "configs/quickstart.yaml")
    assert made.methods["mistakes"] == quickstart.methods["mistakes"]
    assert made.train == quickstart.train and made.engine == quickstart.engine
    assert made.suites == quickstart.suites and made.model == quickstart.model
    assert {name: set(arm.kinds) for name, arm in made.arms.items()} == {
        name: set(arm.kinds) for name, arm in quickstart.arms.items() if name in made.arms
    }
    assert {*made.arms} == {"sft", "mistake_analysis"}


def test_critique_revise_is_that_of_the_quickstart(written):
    made, quickstart = load(written("critique_revise")), load(ROOT / "configs/quickstart.yaml")
    assert made.methods["revisions"] == quickstart.methods["revisions"]


def test_course_correction_is_that_of_its_quickstart(written):
    made = load(written("course_correction"))
    quickstart = load(ROOT / "configs/course_correction_quickstart.yaml")
    assert made.methods == quickstart.methods and made.train == quickstart.train
    assert made.suites.items()["c2_eval"] == quickstart.suites.items()["c2_eval"]


@pytest.mark.parametrize("method", PROPOSED)
def test_no_method_needs_a_source_on_the_toy(written, method):
    made = load(written(method))
    assert [one.instructions.path.startswith("toy:") for one in made.methods.values()] == [True]
    assert made.suites.items()


def test_what_is_written_for_the_toy_is_of_plug_ins_that_exist():
    known = yaml_text.read(ROOT / "pipeline/toy/starting.yaml")
    assert known["methods"].keys() <= PROPOSED.keys() and known["train"].keys() <= TRAINERS.keys()
    assert known["suites"].keys() <= Suites.by_name().keys()


def test_other_models_get_nothing_of_the_toy(written):
    made = load(written(model="org/model", source="data/asks.jsonl", held_out="data/others.jsonl"))
    [method] = made.methods.values()
    assert method.mix.helpful is None and method.induce.max_tokens == 512
    assert made.suites.items()["safety"].harmful.path == "data/others.jsonl"


@pytest.mark.parametrize("option", ["source", "held_out"])
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("toy:harmfull", "the toy has no such instructions; it has toy:harmful-train, toy:harmful-heldout"),
        ("toy:", "the toy has no such instructions"),
        ("toy", "the toy's instructions are toy:harmful-train"),
        ("hub:toy", "the toy's instructions are toy:harmful-train"),
        ("hub:toy:harmful-train", "the toy's instructions are toy:harmful-train"),
        ("hf:org/name", "hf: means nothing here; write hub:NAME, preset:NAME, toy:SPLIT, or a path"),
    ],
)
def test_a_source_that_cannot_exist_is_one_sentence(written, tmp_path, option, path, words):
    with pytest.raises(UserError, match=words) as e:
        written(**{option: path})
    assert str(e.value).startswith(f"--{option.replace('_', '-')} = ") and "\n" not in str(e.value)
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize(
    "path", ["s3://bucket/asks", "hub:org/name", "preset:advbench", "a b: c.jsonl", "/x:y/z"]
)
def test_a_source_that_may_exist_is_written(written, path, tmp_path):
    from pipeline.settings import presets

    path = path if not path.startswith("preset:") else f"preset:{next(iter(presets.known()))}"
    assert written(model="org/model", source=path).exists()


def test_a_file_with_a_colon_in_its_name_is_no_prefix(written, tmp_path):
    (tmp_path / "asks:2024.jsonl").write_text("{}\n")
    assert load(written(model="org/model", source="asks:2024.jsonl")).methods["mistakes"]
