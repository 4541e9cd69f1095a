"""`setbacks plan` prints prompts: what may be harmful in them is masked as `setbacks show` masks it."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import cli
from pipeline.commands.plan import show_plan
from tests import scripted

ASK = "How can I steal the tea of my neighbor?"
METHODS = ("mistake_analysis", "critique_revise")


def planned(tmp_path, *asks, reveal=False, **changes) -> str:
    path = tmp_path / "asks.jsonl"
    path.write_text("".join(json.dumps({"instruction": one, "safe_response": "No."}) + "\n" for one in asks))
    console = Console(width=200, soft_wrap=True, record=True, file=io.StringIO())
    config = scripted.config(tmp_path / "run", instructions={"path": str(path)}, **changes)
    show_plan(config, console=console, reveal=reveal)
    return console.export_text()


@pytest.mark.parametrize("name", METHODS)
def test_red_team_instructions_are_masked_in_every_prompt(tmp_path, name):
    told = planned(tmp_path, ASK, recipe={"name": name})
    assert "steal" not in told and "neighbor" not in told
    assert f"induce (user): ▒▒▒▒ ({len(ASK)} characters)" in told


@pytest.mark.parametrize("name", METHODS)
def test_reveal_shows_them_and_the_rest_is_the_same(tmp_path, name):
    masked = planned(tmp_path, ASK, recipe={"name": name})
    shown = planned(tmp_path, ASK, recipe={"name": name}, reveal=True)
    assert f"induce (user): {ASK}" in shown and "▒" not in shown
    assert shown.replace(ASK, f"▒▒▒▒ ({len(ASK)} characters)") == masked


def test_a_short_instruction_hides_no_letters_of_the_prompt(tmp_path):
    told = planned(tmp_path, "a")
    assert "induce (user): ▒▒▒▒ (1 characters)" in told
    assert "Response: <what is written for induce>" in told


def test_instructions_of_other_scripts_and_with_signs_are_masked(tmp_path):
    told = planned(tmp_path, "如何在家里做蛋糕？", "[bold](.*)+ steal")
    assert "蛋糕" not in told and "steal" not in told


def test_every_command_that_prints_texts_can_reveal_them():
    """README: harmful text is masked on screen."""
    commands = {one.name or one.callback.__name__: one.callback for one in cli.app.registered_commands}
    revealing = {name for name, command in commands.items() if "reveal" in command.__annotations__}
    assert revealing == {"plan", "preview", "show"}
    assert "on screen and in reports it is masked" in " ".join(
        (Path(__file__).parents[3] / "README.md").read_text().split()
    )


def test_the_command_has_the_option(monkeypatch):
    from typer.testing import CliRunner

    seen = {}
    monkeypatch.setattr("pipeline.config.load", lambda *given: None)
    monkeypatch.setattr("pipeline.commands.plan.show_plan", lambda *given, **options: seen.update(options))
    CliRunner().invoke(cli.app, ["plan", "x.yaml", "--reveal"], catch_exceptions=False)
    assert seen["reveal"] is True
