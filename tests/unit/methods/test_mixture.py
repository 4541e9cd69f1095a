"""The training mixture: what is asked, what is answered, how often."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.methods.mistake_analysis import MistakeAnalysis
from pipeline.methods.mistake_analysis.mixture import examples
from pipeline.schema import SFT
from tests import scripted

CUE = "may be harmful, unethical, or offensive"


def mistake(i: int, sample: int | None = None, **changes) -> dict:
    row = {
        "id": f"i{i}" if sample is None else f"i{i}-{sample}",
        "instruction_id": f"i{i}",
        "instruction": f"ask {i}",
        "category": "fraud",
        "safe_response": f"safe {i}",
        "response": f"BAD {i}",
        "analysis": f"because {i}",
        "status": "ok",
    }
    return row | changes


def benign(i: int, **changes) -> dict:
    return (
        scripted.instruction(
            f"help {i}", id=f"b{i}", instruction_id=f"b{i}", safe_response=f"sure {i}", unsafe_response=None
        )
        | changes
    )


def mix(mistakes, helpful=(), **settings) -> list[dict]:
    method = MistakeAnalysis(instructions={"path": "unused"}, mix=settings)
    rows = list(examples(method, mistakes, iter(helpful), seed=0))
    SFT.table(rows)
    return rows


def kinds(rows: list[dict]) -> Counter:
    return Counter(row["kind"] for row in rows)


def test_the_bad_response_stands_in_the_prompt_alone_and_the_cue_nowhere():
    rows = mix([mistake(i) for i in range(5)], [benign(i) for i in range(5)])
    for row in rows:
        asked, answered = row["messages"]
        assert (asked["role"], answered["role"]) == ("user", "assistant")
        assert "BAD" not in answered["content"]
        assert CUE not in asked["content"]
        if row["kind"] != "analysis":
            assert "BAD" not in asked["content"]
    analysis = next(row for row in rows if row["kind"] == "analysis")
    assert "ask 0" in analysis["messages"][0]["content"] and "BAD 0" in analysis["messages"][0]["content"]
    assert analysis["messages"][1]["content"] == "because 0"


def test_the_guided_template_is_an_ablation():
    [row] = mix([mistake(0)], guided_template=True, safe=0)
    assert CUE in row["messages"][0]["content"]


def test_a_row_gives_what_it_has():
    rows = [
        mistake(
            0, status="failed", analysis=None, response=None
        ),  # over-long, say: its safe pair can still be used
        mistake(1, status="not_induced", analysis=None),  # filtered
        mistake(2, safe_response=None),
        mistake(3, status="failed", analysis=None, response=None, safe_response=None),
    ]
    assert [(row["id"], row["kind"]) for row in mix(rows)] == [
        ("i0-safe-0", "safe"),
        ("i1-safe-0", "safe"),
        ("i2-analysis-0", "analysis"),
    ]


def test_samples_of_an_instruction_share_one_safe_pair_whatever_their_order():
    samples = [mistake(i, sample) for i in range(20) for sample in range(3)]
    there, back = mix(samples, safe=0.5), mix(samples[::-1], safe=0.5)
    assert kinds(there)["analysis"] == 60
    assert {row["id"] for row in there} == {row["id"] for row in back}
    assert kinds(mix(samples))["safe"] == 20


def test_ratios_of_none_one_and_two():
    rows = [mistake(i) for i in range(10)]
    assert kinds(mix(rows, analysis=0, safe=2)) == {"safe": 20}
    assert kinds(mix(rows, analysis=2, safe=0)) == {"analysis": 20}
    assert mix(rows, analysis=0, safe=0) == []


def test_half_a_ratio_draws_about_half_always_the_same():
    rows = [mistake(i) for i in range(1000)]
    drawn = mix(rows, analysis=0.5, safe=0)
    assert 430 < len(drawn) < 570
    assert drawn == mix(rows, analysis=0.5, safe=0)
    assert len(mix(rows, analysis=2.5, safe=0)) == 2000 + len(drawn)


@pytest.mark.parametrize(("ratio", "wanted"), [(0, 0), (0.5, 5), (1, 10), (2, 20), (9, 30)])
def test_helpful_pairs_count_per_harmful_instruction_as_far_as_they_reach(ratio, wanted):
    rows = mix([mistake(i) for i in range(10)], [benign(i) for i in range(30)], helpful_ratio=ratio)
    assert kinds(rows)["helpful"] == wanted


def test_instructions_without_a_helpful_response_are_passed_over():
    helpful = [benign(0, safe_response=None), benign(1)]
    assert [row["id"] for row in mix([mistake(0)], helpful, analysis=0, safe=0)] == ["b1-helpful-0"]


def test_no_more_of_the_helpful_source_is_read_than_needed():
    def endless():
        i = 0
        while True:
            yield benign(i)
            i += 1

    assert kinds(mix([mistake(0)], endless()))["helpful"] == 1


ratios = st.sampled_from([0, 0.3, 0.5, 1, 1.5, 2, 3])


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), unique=True),
    st.integers(0, 15),
    ratios,
    ratios,
    ratios,
)
def test_ids_are_unique(samples, others, analysis, safe, helpful_ratio):
    # The same instructions may stand in both sources.
    helpful = [benign(i, id=f"i{i}", instruction_id=f"i{i}") for i in range(others)]
    rows = mix(
        [mistake(i, s) for i, s in sorted(samples)],
        helpful,
        analysis=analysis,
        safe=safe,
        helpful_ratio=helpful_ratio,
    )
    assert len({row["id"] for row in rows}) == len(rows)
