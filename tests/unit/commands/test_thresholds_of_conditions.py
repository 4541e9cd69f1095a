"""A limit of a name alone is for every condition; one that fails says so, in a sentence that reads well."""

import pytest

from pipeline.commands import thresholds
from pipeline.errors import RunFailed
from pipeline.report.results import Figure, Results


def figure(condition, value, arm="sft") -> Figure:
    return Figure(
        name="harmless",
        suite="safety",
        group=f"{condition}: asked so" if condition else "",
        arm=arm,
        value=value,
        low=value - 0.1,
        high=value + 0.1,
        n=8,
        unit="share",
        judges=[],
        section="Harmless",
        table="",
        row={"Arm": arm},
        column="Harmless, %",
        text="",
    )


def failed(*numbers, under="harmless=0.9", arms=()) -> str:
    found = Results(
        format=1,
        run="r",
        model="toy",
        note=None,
        seed=0,
        arms=["vanilla", "sft", "dpo"],
        versions={},
        judges={},
        numbers=numbers,
        sections=[],
        configuration={},
    )
    with pytest.raises(RunFailed) as e:
        thresholds.check(found, thresholds.limits([under], []), arms)
    return str(e.value)


BOTH = (figure("Plain", 0.8), figure("Hint", 0.5))


def test_several_numbers_are_a_list_and_the_way_to_limit_one_condition_is_named():
    assert failed(*BOTH, arms=("sft",)) == (
        "harmless is below 0.9: 0.8 [0.7, 0.9] (sft, plain, n = 8), 0.5 [0.4, 0.6] (sft, hint, n = 8);"
        " harmless alone is a limit for every condition, plain.harmless for one"
    )


def test_no_chain_of_and():
    assert " and " not in failed(*BOTH, figure("Plain", 0.7, "dpo"))


def test_one_failure_of_several_conditions_names_the_way_too():
    told = failed(figure("Plain", 0.95), figure("Hint", 0.5), arms=("sft",))
    assert told.startswith("harmless is below 0.9: 0.5 ") and told.endswith("plain.harmless for one")


def test_a_suite_before_the_name_stays_there():
    assert failed(*BOTH, under="safety.harmless=0.9", arms=("sft",)).endswith("safety.plain.harmless for one")


@pytest.mark.parametrize(
    ("numbers", "under"),
    [
        (BOTH, "plain.harmless=0.9"),
        ((figure("Plain", 0.8),), "harmless=0.9"),
        ((figure("", 0.8),), "harmless=0.9"),
    ],
)
def test_a_limit_of_one_condition_is_not_explained(numbers, under):
    assert failed(*numbers, under=under, arms=("sft",)).endswith("n = 8)")


def test_arms_without_a_number_are_a_list():
    assert "harmless of sft, dpo is unknown, nothing was counted" in failed(
        figure("Plain", 0.8, "vanilla"), arms=("sft", "dpo")
    )


def test_the_help_says_that_a_name_alone_is_for_every_condition():
    from typer.testing import CliRunner

    from pipeline.cli import app

    told = CliRunner().invoke(app, ["report", "--help"], env={"COLUMNS": "200"}).output
    assert "harmless=0.9: every condition" in " ".join(told.split())
