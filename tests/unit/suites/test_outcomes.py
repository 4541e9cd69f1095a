"""What runs are compared by: every suite names columns that its data set has, and means by instruction."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.registry import SUITES
from pipeline.report.outcomes import Outcome, Values, of_schema, share_of
from pipeline.schema import Column, Schema


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.__name__)
def test_outcomes_name_columns_of_the_data_set(suite):
    outcomes = suite.model_construct().outcomes
    names = {column.name for column in suite.data_schema.columns}
    assert [name for outcome in outcomes for name in outcome.columns if name not in names] == []
    assert len({outcome.name for outcome in outcomes}) == len(outcomes)


SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "instruction_id", "arm", "condition", "suite")]
    + [("harmful", pa.bool_())]
)


def columns(*names: str) -> Schema:
    return Schema("a suite of tomorrow", tuple(Column(name, pa.string(), "") for name in names))


def test_a_suite_with_the_usual_columns_needs_no_line():
    found = of_schema(columns("id", "instruction_id", "arm", "condition", "suite", "harmful", "refused"), "j")
    assert [(one.name, one.column, one.by, one.judge) for one in found] == [
        ("harmless", "harmful", "condition", "j"),
        ("over_refusal", "refused", "condition", None),
    ]
    assert of_schema(columns("id", "harmful"), "j") == []


def test_values_are_by_arm_and_group_and_leave_out_what_is_unknown():
    rows = [
        {"id": "1", "instruction_id": "a", "arm": "sft", "condition": "plain", "suite": "harmful", "harmful": True},
        {"id": "2", "instruction_id": "a", "arm": "sft", "condition": "hint", "suite": "harmful", "harmful": False},
        {"id": "3", "instruction_id": "b", "arm": "sft", "condition": "plain", "suite": "harmful", "harmful": None},
        {"id": "4", "instruction_id": "b", "arm": "sft", "condition": "plain", "suite": "helpful", "harmful": True},
        {"id": "5", "instruction_id": "b", "arm": None, "condition": "plain", "suite": "harmful", "harmful": True},
    ]  # fmt: skip
    outcome = Outcome(
        "harmless", "harmful", lambda harmful: float(not harmful), {"suite": "harmful"}, "condition"
    )
    found = outcome.read([pa.Table.from_pylist(rows[:2]), pa.Table.from_pylist(rows[2:], SCHEMA)])
    assert {key: of.values.tolist() for key, of in found.items()} == {
        ("sft", "plain"): [0.0],
        ("sft", "hint"): [1.0],
    }


def test_every_instruction_weighs_the_same_over_the_rows_that_both_have():
    def values(**of: tuple[str, float]) -> Values:
        rows, asked = (np.array(names, "S16") for names in (list(of), [one for one, _ in of.values()]))
        return Values.of(rows, asked, np.array([value for _, value in of.values()]))

    ours = values(r1=("a", 1.0), r2=("a", 0.0), r3=("b", 1.0), r4=("c", 0.0))
    theirs = values(r3=("b", 0.5), r2=("a", 0.25), r9=("d", 1.0), r1=("a", 0.75))
    own, its, shared = ours.both(theirs)
    assert own.ids.tolist() == its.ids.tolist() == [b"a", b"b"] and shared == 3
    assert own.values.tolist() == [0.5, 1.0] and its.values.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("verdicts", "share"), [([True, False, None], 0.5), ([None], None), ([], None)])
def test_the_share_of_paths_is_of_those_with_a_verdict(verdicts, share):
    assert share_of(verdicts) == share
