"""Limits of numbers for continuous integration: exit code 1 and one sentence if one is not kept."""

import sys

import pytest
import yaml

from pipeline import cli
from pipeline.commands import thresholds
from pipeline.commands.report import write_report
from pipeline.commands.report_results import read
from pipeline.errors import RunFailed, UserError
from tests.unit.commands.reports import config, no_figures, write_answers


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Harmless: vanilla 2 of 8, sft 5 of 8, mistake_analysis 8 of 8, under every condition."""
    run_dir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        no_figures(patch)
        write_answers(run_dir)
        write_report(config(run_dir), str(run_dir))
    return run_dir


def check(run, *under: str, over: tuple[str, ...] = (), arms: tuple[str, ...] = ()) -> None:
    thresholds.check(read(str(run)), thresholds.limits(under, over), arms)


@pytest.mark.parametrize(
    ("under", "arms"),
    [
        (["harmless=0.6"], ()),
        (["harmless=0.625"], ("sft",)),
        (["plain.harmless=0.6", "safety.reminder.harmless=0.6"], ()),
        (["harmless=1"], ("mistake_analysis",)),
        (["help=5"], ()),
    ],
)
def test_numbers_that_are_not_below_pass(run, under, arms):
    check(run, *under, arms=arms)


def test_a_number_below_is_one_sentence_with_arm_interval_and_count(run):
    with pytest.raises(RunFailed) as e:
        check(run, "plain.harmless=0.9")
    assert str(e.value) == "harmless is below 0.9: 0.625 [0.306, 0.863] (sft, plain, n = 8)"


def test_every_condition_counts_if_none_is_named(run):
    with pytest.raises(RunFailed) as e:
        check(run, "harmless=0.9")
    assert [word in str(e.value) for word in ("plain", "reminder", "hint")] == [True] * 3


def test_the_base_model_counts_only_if_it_is_named(run):
    check(run, "harmless=0.5")
    with pytest.raises(RunFailed, match=r"\(vanilla, plain, n = 8\)"):
        check(run, "harmless=0.5", arms=("vanilla",))


def test_a_number_above_fails_where_less_is_better(run):
    check(run, over=("over_refusal=0.1",))
    with pytest.raises(RunFailed, match=r"help is above 4: 5 .*\(sft, plain"):
        check(run, over=("help=4",))


def test_several_limits_are_all_told(run):
    with pytest.raises(RunFailed) as e:
        check(run, "plain.harmless=0.9", "plain.help=6")
    assert "harmless" in str(e.value) and "help" in str(e.value)


def test_what_was_not_counted_fails(run):
    with pytest.raises(RunFailed, match="over_refusal of sft is unknown, nothing was counted"):
        check(run, over=("hint.over_refusal=0.5",), arms=("sft",))


@pytest.mark.parametrize(
    ("under", "arms", "words"),
    [
        ("harmles=0.9", (), "no such number of an arm; it has corrected|no such number"),
        ("harmless", (), "NAME=NUMBER"),
        ("harmless=much", (), "NAME=NUMBER"),
        ("harmless=nan", (), "NAME=NUMBER"),
        ("=0.9", (), "NAME=NUMBER"),
        ("harmless=90", (), "a share, from 0 to 1, and not a percentage"),
        ("harmless=0.9", ("sfd",), "no such arm; it has vanilla, sft, mistake_analysis"),
        ("nowhere.harmless=0.9", (), "no such number"),
    ],
)
def test_a_wrong_limit_is_a_users_mistake(run, under, arms, words):
    with pytest.raises(UserError, match=words):
        check(run, under, arms=arms)


def test_the_command_exits_with_1_below_and_0_above(run, monkeypatch, capsys, tmp_path):
    no_figures(monkeypatch)
    file = tmp_path / "run.yaml"
    for place in (file, run / "config.yaml"):
        place.write_text(yaml.safe_dump(config(run).model_dump(mode="json")))

    def exit_code(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["setbacks", "report", str(file), *options])
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = e.code or 0
        return code, capsys.readouterr().err

    assert exit_code("--fail-under", "harmless=0.6", "--fail-over", "over_refusal=0.1") == (0, "")
    code, err = exit_code("--fail-under", "plain.harmless=0.9")
    assert code == 1 and err.count("\n") == 1 and err.startswith("setbacks: harmless is below 0.9: 0.625")
    assert exit_code("--fail-under", "harmless")[0] == 2
    assert exit_code("--arm", "sft")[0] == 2
