"""The notes below a suite's judges speak of the columns and tables that are shown, and of no others."""

import pyarrow as pa
import pytest

from pipeline.report.agreement import Agreement
from pipeline.suites import judges
from pipeline.suites.judged import Answers
from pipeline.suites.judges import Panel

JUDGED = Answers.of(
    [pa.table({"id": ["a", "b", "c"], "verdict": [True, False, None], "arm": ["vanilla"] * 3})], by=["arm"]
)
OWN = JUDGED.own


def section(more, errors=None, *, harm=True):
    return judges.section(
        Panel(
            title="Judges",
            answers="answers to prompts",
            yes="Harmful",
            rate="Harmless rate by every judge",
            counted=False,
            share="the share of them that it calls harmless",
            own_kind="refusal",
            judged=JUDGED,
            more=more,
            groups={"Plain": {"vanilla": ("vanilla",)}},
            errors=errors or {},
            harm=harm,
        )
    )


def columns(made) -> set[str]:
    return {column.name.removesuffix(", %") for table in made.tables for column in table.columns}


@pytest.mark.parametrize(
    ("more", "errors", "told"),
    [
        ({"other": OWN}, {}, ["Judged", "Rate", "Agreement"]),
        ({"other": None}, {}, ["Judged", "Rate"]),
        ({"other": OWN}, {"other": Agreement(4, 1, 1, 4)}, ["Judged", "Rate", "Corrected rate", "Agreement"]),
    ],
    ids=["two judges", "the other has not judged", "a measured error"],
)
def test_what_is_told_is_shown_and_what_is_shown_is_told(more, errors, told):
    made = section(more, errors)
    text = " ".join(made.notes)
    for name in ("Judged", "Rate", "Corrected rate", "Agreement"):
        assert (name in columns(made)) == (name in told), name
        assert (f"{name}: " in text or f"{name} counts" in text) == (name in told), name


def test_the_rate_is_explained_once_and_in_words():
    first, *_ = section({"other": OWN}).notes
    assert first == (
        "Judged: answers to prompts on which this judge has a verdict. Rate: the share of them that it calls"
        " harmless, with 95 % Wilson interval; rates over different answers do not compare."
    )
