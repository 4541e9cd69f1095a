"""The numbers of the report against tables worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.methods.mistake_analysis.summary import mistakes_summary
from pipeline.report.summary import Rate, wilson
from pipeline.suites.safety import Safety
from pipeline.suites.safety.report import sections
from pipeline.suites.safety.schema import ANSWERS
from pipeline.suites.safety.summary import arms_table, by_category, paired_difference, paired_scores
from pipeline.suites.safety.tables import of_arms, of_counts, of_scores


def answer(i, arm="vanilla", condition="plain", sample=0, suite="harmful", **values):
    row_id = f"{suite}-{i}-{arm}-{condition}-{sample}"
    names = {
        "id": row_id,
        "instruction_id": f"{suite}-{i}",
        "sample": sample,
        "suite": suite,
        "arm": arm,
        "condition": condition,
    }
    return {
        **names,
        "instruction": "How?",
        "response": "Text.",
        "finish_reason": "stop",
        "status": "ok",
        **values,
    }


def failed(i, **values):
    return answer(
        i, response=None, finish_reason=None, status="failed", error="prompt too long: 9 tokens", **values
    )


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_matches_published_values(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_rate_within_zero_and_one(case):
    successes, trials = case
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12 and successes / trials - 1e-12 <= high <= 1


def test_arms_table_by_hand():
    rows = [
        answer(1, harmful=False, help_rating=4.0, refused=True),
        answer(2, harmful=True, help_rating=2.0, refused=False),
        answer(3, harmful=True, refused=False),  # its rating could not be read
        answer(4, help_rating=3.0, refused=False, finish_reason="length"),  # its verdict could not be read
        failed(5),
        answer(1, suite="helpful", help_rating=8.0, refused=False),
        answer(2, suite="helpful", help_rating=6.0, refused=True),
    ]
    [row] = arms_table(ANSWERS.table(rows))
    assert row.harmless == Rate(1, 3)
    assert row.harmless.value == 1 / 3
    assert row.harm_help.value == 3.0 and row.harm_help.n == 3
    assert row.harm_help.interval == pytest.approx((3 - 1.96 / 3**0.5, 3 + 1.96 / 3**0.5))  # s = 1
    assert row.help.value == 7.0 and row.help.n == 2
    assert row.over_refusal == Rate(1, 2)
    assert (row.answers, row.judged, row.unreadable, row.unreadable_ratings, row.cut, row.failed) == (
        7,
        3,
        1,
        1,
        1,
        1,
    )


def test_samples_count_each_in_rates_and_together_in_ratings():
    verdicts = [(1, 0, False, 10.0), (1, 1, True, 6.0), (2, 0, True, 4.0)]
    [row] = arms_table(
        ANSWERS.table([answer(i, sample=s, harmful=h, help_rating=r) for i, s, h, r in verdicts])
    )
    assert row.harmless == Rate(1, 3)
    assert (row.harm_help.value, row.harm_help.n) == (6.0, 2)  # (8 + 4) / 2


def test_arms_stand_in_the_order_of_the_configuration():
    rows = [
        answer(1, arm, c, harmful=True)
        for arm in ("late", "a", "vanilla", "sft")
        for c in ("hint", "reminder", "plain")
    ]
    table = arms_table(ANSWERS.table(rows), ["sft", "a"])
    assert [r.arm for r in table[::3]] == ["vanilla", "sft", "a", "late"]
    assert [r.condition for r in table[:3]] == ["plain", "reminder", "hint"]


def test_nothing_measured_is_none_and_not_zero():
    [row] = arms_table(ANSWERS.table([failed(1)]))
    assert row.harmless.value is None and row.harm_help.value is None and row.harm_help.interval is None
    assert arms_table(ANSWERS.table([])) == []


def test_categories_by_hand():
    rows = [
        answer(1, category="theft", harmful=True),
        answer(2, category="theft", harmful=False),
        answer(3, category=None, harmful=False),
        answer(4, category="fraud"),  # not judged
        answer(5, category="cooking", suite="helpful"),
    ]
    found = [(r.category, r.harmless) for r in by_category(ANSWERS.table(rows))]
    assert found == [("theft", Rate(1, 2)), ("(none)", Rate(1, 1))]


def pairs(*verdicts):
    """Answers of vanilla and sft to the same instructions; a verdict is (vanilla harmful, sft harmful)."""
    rows = [
        answer(i, arm, harmful=h)
        for i, pair in enumerate(verdicts)
        for arm, h in zip(("vanilla", "sft"), pair, strict=True)
    ]
    return ANSWERS.table(rows)


def test_paired_difference_by_hand():
    table = pairs(*[(True, False)] * 12, *[(False, True)] * 2, *[(True, True)] * 6, (None, False))
    d = paired_difference(table, "sft", "vanilla", "plain")
    assert (d.n, d.better, d.worse, d.same) == (20, 12, 2, 6)
    assert d.difference == 0.5
    deviation = (14 / 20 - 0.25) ** 0.5 / 20**0.5  # of the mean of twelve 1, two -1, six 0
    assert d.interval == pytest.approx((0.5 - 1.96 * deviation, 0.5 + 1.96 * deviation), abs=0.05)
    assert d.distinguishable


def test_paired_difference_turns_its_sign_and_repeats():
    table = pairs(*[(True, False)] * 5, *[(False, True)] * 3, *[(True, True)] * 9)
    there, back = (
        paired_difference(table, "sft", "vanilla", "plain"),
        paired_difference(table, "vanilla", "sft", "plain"),
    )
    assert there.difference == -back.difference
    assert paired_difference(table, "sft", "vanilla", "plain", seed=7) == paired_difference(
        table, "sft", "vanilla", "plain", seed=7
    )
    assert not there.distinguishable


def test_instructions_weigh_the_same_whatever_their_samples():
    rows = [
        answer(1, arm, sample=s, harmful=arm == "vanilla") for arm in ("vanilla", "sft") for s in range(4)
    ]
    rows += [answer(2, arm, harmful=True) for arm in ("vanilla", "sft")]
    assert paired_difference(ANSWERS.table(rows), "sft", "vanilla", "plain").difference == 0.5


def test_few_instructions_never_tell_arms_apart():
    d = paired_difference(pairs(*[(True, False)] * 5), "sft", "vanilla", "plain")
    assert d.interval == (1.0, 1.0) and not d.distinguishable
    assert paired_difference(pairs(*[(True, False)] * 6), "sft", "vanilla", "plain").distinguishable


def test_arms_without_common_instructions_have_no_difference():
    table = ANSWERS.table([answer(1, "sft", harmful=True), answer(2, "vanilla", harmful=True)])
    assert paired_difference(table, "sft", "vanilla", "plain") is None


def test_mistakes_by_hand():
    base = {"instruction": "How?", "prompt_tokens": 10, "completion_tokens": 5}
    rows = [
        {
            **base,
            "id": "a0",
            "instruction_id": "a",
            "status": "ok",
            "harmful": True,
            "analysis": "It is harmful.",
        },
        {**base, "id": "a1", "instruction_id": "a", "status": "not_induced", "harmful": False},
        {**base, "id": "b0", "instruction_id": "b", "status": "ok", "analysis": "It is harmful."},
        {"id": "c0", "instruction_id": "c", "status": "failed", "error": "prompt too long: 40 tokens"},
        {"id": "d0", "instruction_id": "d", "status": "failed", "error": "prompt too long: 51 tokens"},
        {"id": "e0", "instruction_id": "e", "status": "failed", "error": "empty instruction"},
    ]
    s = mistakes_summary(MISTAKES.table(rows))
    assert (s.rows, s.ok, s.not_induced, s.failed) == (6, 2, 1, 3)
    assert s.ok + s.not_induced + s.failed == s.rows
    assert (s.instructions, s.samples) == (5, 2)
    assert s.induced == Rate(1, 2)
    assert s.failures == {"prompt too long": 2, "empty instruction": 1}
    assert (s.prompt_tokens, s.completion_tokens) == (30, 15)


# -- the harmless score


def scored(*ratings, arm="vanilla"):
    """Rows of instructions 1, 2, …; each is a list of its samples' ratings."""
    return [
        answer(i, arm, sample=s, harmful=None if r is None else r < 5, harmless_rating=r)
        for i, samples in enumerate(ratings, 1)
        for s, r in enumerate(samples)
    ]


def test_the_harmless_score_by_hand():
    """Samples are averaged first: 7 and 3 give 5 ± 1.96 · √8 / √2."""
    rows = scored([8.0, 6.0], [3.0], [None])
    rows.append(answer(9, suite="helpful", harmless_rating=1.0))  # a rating there would be no red-team one
    [row] = arms_table(ANSWERS.table(rows))
    assert (row.harmless_score.value, row.harmless_score.n) == (5.0, 2)
    assert row.harmless_score.interval == pytest.approx((1.08, 8.92), abs=0.001)


def test_without_ratings_there_is_no_score_and_no_column():
    rows = arms_table(ANSWERS.table([answer(1, harmful=False), answer(1, "sft", harmful=True)]))
    assert {row.harmless_score.n for row in rows} == {0}
    names = [column.name for column in of_arms(rows, rated=False, helpful=False).columns]
    assert names == ["Arm", "Harmless, %", "Corrected, %"]
    assert not paired_scores(ANSWERS.table([answer(1, harmful=False)]), [("sft", "vanilla")], ["plain"])


def test_with_any_rating_the_score_stands_beside_the_rate():
    rows = arms_table(ANSWERS.table([*scored([8.0, 6.0], [3.0]), answer(1, "sft", harmful=True)]))
    table = of_arms(rows, rated=False, helpful=False)
    assert [column.name for column in table.columns] == [
        "Arm",
        "Harmless, %",
        "Corrected, %",
        "Harmless 1–10",
    ]
    [(_, [vanilla, sft])] = table.groups
    assert (vanilla[3].text, vanilla[3].interval, sft[3].text) == ("5.00", "[1.08, 8.92]", "–")


def test_the_paired_difference_of_scores_by_hand():
    """Means 7, 3, 5 against 6, 5: on the two shared instructions 1 more and 2 less, so half a point less."""
    rows = scored([8.0, 6.0], [3.0], [5.0], arm="sft") + scored([6.0], [5.0], [None])
    [d] = paired_scores(ANSWERS.table(rows), [("sft", "vanilla")], ["plain"])
    assert (d.difference, d.n, d.better, d.worse, d.same) == (-0.5, 2, 1, 1, 0)
    assert d.interval == (-2.0, 1.0) and not d.distinguishable
    [(_, [cells])] = of_scores([d]).groups
    assert (cells[1].text, cells[1].interval) == ("−0.50", "[−2.00, +1.00]")


def test_the_rubrics_score_has_its_own_column_and_scale():
    rows = [answer(i, harmful=score >= 0.5, harm_score=score) for i, score in enumerate((0.625, 0.0, 1.0))]
    [row] = arms_table(ANSWERS.table(rows))
    assert row.harm_score.value == pytest.approx(1.625 / 3)
    assert row.harm_score.interval[1] == 1.0, "within the scale"
    assert row.harmless_score.n == 0
    names = [column.name for column in of_arms([row], rated=False, helpful=False).columns]
    assert names[-1] == "StrongREJECT 0–1"


def test_what_is_unsafe_in_a_category_that_does_not_count_is_counted_apart():
    rows = [
        answer(1, harmful=False, harm_categories=["S2"]),
        answer(2, harmful=True, harm_categories=["S1"]),
        answer(3, harmful=False, harm_categories=None),
    ]
    table = arms_table(ANSWERS.table(rows))
    assert (table[0].harmless, table[0].other_category) == (Rate(2, 3), 1)
    assert "Other category" in [column.name for column in of_counts(table, rated=False).columns]
    plain = arms_table(ANSWERS.table(rows[1:]))
    assert "Other category" not in [column.name for column in of_counts(plain, rated=False).columns]


def test_the_report_has_paired_scores_only_if_there_are_ratings():
    suite = Safety(harmful={"path": "toy:harmful"})
    for rows, expected in (
        (scored([8.0], [3.0]) + scored([9.0], [9.0], arm="sft"), ["", "Harmless score"]),
        ([answer(1, arm, harmful=False) for arm in ("vanilla", "sft")], [""]),
    ):
        found = sections(suite, ANSWERS.table(rows), ["sft"], seed=0)
        [differences] = [section for section in found if section.title == "Paired differences"]
        assert [table.title for table in differences.tables] == expected
        arms = next(section for section in found if section.title == "Arms")
        assert any("Harmless 1–10" in note for note in arms.notes) == (len(expected) == 2)
