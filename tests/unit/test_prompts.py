"""Prompt files: their own, a user's replacement, and what is wrong with one, found when it is loaded."""

import pickle

import pytest

from pipeline import prompts
from pipeline.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes) -> str:
        path = tmp_path / "mine.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def test_a_replacement_replaces_prompt_by_prompt(write):
    own = prompts.load("methods/mistake_analysis/prompts.yaml")
    mine = prompts.load(
        "methods/mistake_analysis/prompts.yaml",
        write("hint: Be rude.\nsuffix: '{{ instruction }} [{{ text }}]'"),
    )
    assert mine.render("hint") == "Be rude."
    assert mine.render("suffix", instruction="Go", text="x") == "Go [x]"
    assert mine.render("reminder") == own.render("reminder")


def test_the_hash_follows_the_texts_alone(write):
    own = prompts.load("methods/mistake_analysis/prompts.yaml")
    same = prompts.load("methods/mistake_analysis/prompts.yaml", write(f"hint: {own.texts['hint']}"))
    other = prompts.load("methods/mistake_analysis/prompts.yaml", write("hint: Be rude."))
    assert own.hash == same.hash != other.hash


def test_text_is_never_a_template():
    asked = prompts.load("methods/mistake_analysis/prompts.yaml").render(
        "suffix", instruction="{{ 7 * 7 }} {% raw %}", text="{# hm #}"
    )
    assert asked == "{{ 7 * 7 }} {% raw %} {# hm #}"


def test_prompts_travel_between_processes():
    own = prompts.load("judges/rating.yaml")
    own.render("help", instruction="a", response="b")
    copy = pickle.loads(pickle.dumps(own))
    assert (copy.hash, copy.render("help", instruction="a", response="b")) == (
        own.hash,
        own.render("help", instruction="a", response="b"),
    )


def test_a_missing_prompt_and_a_missing_variable_are_named():
    own = prompts.load("methods/mistake_analysis/prompts.yaml")
    with pytest.raises(UserError, match="prompt no_such is missing; known are hint, reminder"):
        own.render("no_such")
    with pytest.raises(UserError, match=r"prompt suffix cannot be rendered \('text' is undefined\)"):
        own.render("suffix", instruction="a")


BROKEN = {
    "surprise: text": "surprise is not a prompt of methods/mistake_analysis/prompts.yaml; known are hint",
    "hint: 3": "maps names to texts",
    "- hint": "maps names to texts",
    "": "maps names to texts",
    "hint: [": "cannot be read as YAML",
    b"hint: \xff\xfe": "cannot be read as YAML",
    "suffix: '{{ instruction }} {{ hint }}'": "prompt suffix cannot be rendered ('hint' is undefined)",
    "suffix: '{{ instruction'": "prompt suffix is not a valid template",
    "suffix: '{% if text %}'": "prompt suffix is not a valid template",
    "suffix: '{{ instruction.body.text }}'": "prompt suffix cannot be rendered",
    "suffix: '{{ instruction + 1 }}'": "prompt suffix cannot be rendered",
    "suffix: '{{ text.__class__.__mro__ }}'": "prompt suffix cannot be rendered",
    "suffix: '{% include \"other\" %}'": "prompt suffix cannot be rendered",
}


@pytest.mark.parametrize(("content", "why"), BROKEN.items())
def test_a_broken_replacement_is_found_when_it_is_loaded(write, content, why):
    path = write(content)
    with pytest.raises(UserError) as e:
        prompts.load("methods/mistake_analysis/prompts.yaml", path)
    assert str(e.value).startswith(f"{path}: ")
    assert why in str(e.value)


def test_a_replacement_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such prompt file"):
        prompts.load("methods/mistake_analysis/prompts.yaml", str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="cannot be read"):
        prompts.load("methods/mistake_analysis/prompts.yaml", str(tmp_path))
