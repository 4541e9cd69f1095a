"""The corrected rate of one half of a labeled set, with the error that was measured on the other half."""

import random

import pytest

from pipeline.commands.judge_answers import Answer
from pipeline.report.summary import Rate
from tests import corrections_measured
from tests.corrections_measured import Split, halves, simulated, told


def pairs(both: int, only_judge: int, only_label: int, neither: int) -> list[tuple[bool, bool]]:
    return (
        [(True, True)] * both
        + [(True, False)] * only_judge
        + [(False, True)] * only_label
        + [(False, False)] * neither
    )


def drawn(
    rng: random.Random, count: int, truth: float, sensitivity: float, specificity: float
) -> list[tuple[bool, bool]]:
    labels = [rng.random() < truth for _ in range(count)]
    return [(rng.random() < (sensitivity if label else 1 - specificity), label) for label in labels]


def test_a_half_is_corrected_with_the_other_halfs_error_by_hand():
    """Sensitivity 9/10 and specificity 8/10 on the labeled half. The other half has 40 harmful of 100; the judge
    calls 36 of them and 12 of the harmless ones harmful: (0.48 + 0.8 − 1) / 0.7 = 0.4."""
    found = Split.of(pairs(9, 2, 1, 8), pairs(36, 12, 4, 48))
    assert (found.truth, found.judged) == (0.4, Rate(48, 100))
    assert found.corrected.value == pytest.approx(0.4)
    assert found.raw_error == pytest.approx(0.08)
    low, high = found.corrected.interval
    assert low < 0.4 < high and found.raw_holds


def test_the_labels_of_the_corrected_half_are_not_used():
    """The same verdicts with other labels: the correction stays, and the truth is another one."""
    one, other = (
        Split.of(pairs(9, 2, 1, 8), pairs(36, 12, 4, 48)),
        Split.of(pairs(9, 2, 1, 8), pairs(0, 48, 0, 52)),
    )
    assert one.corrected == other.corrected
    assert (one.truth, other.truth) == (0.4, 0.0)


def test_answers_to_one_instruction_stay_in_one_half():
    groups = [[(True, True)] * 3, [(False, False)] * 3, [(True, True)] * 3, [(False, False)] * 3]
    assert {one.judged.successes for one in halves(groups, 50)} == {0, 3, 6}
    assert halves(groups, 5, seed=1) == halves(groups, 5, seed=1) != halves(groups, 5, seed=2)


@pytest.mark.parametrize(
    ("truth", "sensitivity", "specificity"), [(0.3, 0.9, 0.8), (0.94, 0.9, 0.8), (0.5, 0.7, 0.65)]
)
def test_intervals_of_the_correction_hold_the_true_rate_and_those_of_the_raw_rate_do_not(
    truth, sensitivity, specificity
):
    """400 judges of 600 answers each, with known errors; both halves are drawn anew every time."""
    rng = random.Random(7)
    found = [
        halves([[pair] for pair in drawn(rng, 600, truth, sensitivity, specificity)], 1)[0]
        for _ in range(400)
    ]
    known = [one for one in found if one.corrected.interval is not None]
    held = sum(one.corrected.interval[0] <= one.truth <= one.corrected.interval[1] for one in known)
    assert len(known) >= 395 and held / len(known) >= 0.93
    mean = sum(one.corrected.value - one.truth for one in known) / len(known)
    assert abs(mean) < 0.03, "the correction is hardly biased"
    apparent = truth * sensitivity + (1 - truth) * (1 - specificity)
    if abs(apparent - truth) > 0.05:
        assert sum(one.raw_holds for one in found) < 0.9 * held


def test_the_correction_fails_if_the_judge_errs_otherwise_on_the_corrected_half():
    """Its assumption: here the judge misses harm in the second half that it finds in the first."""
    rng = random.Random(1)
    found = [Split.of(drawn(rng, 300, 0.5, 0.9, 0.9), drawn(rng, 300, 0.5, 0.5, 0.9)) for _ in range(50)]
    assert sum(one.corrected.interval[0] <= one.truth <= one.corrected.interval[1] for one in found) < 5


def test_a_simulated_judge_errs_as_often_as_it_is_told_to():
    answers = [Answer(str(i), "Ask", "Text", label=i % 2 == 0) for i in range(4000)]
    answers.append(Answer("x", "Ask", "Text"))
    verdicts = simulated(answers, 0.9, 0.8)
    assert "x" not in verdicts
    found = [(verdicts[answer.id], answer.label) for answer in answers if answer.label is not None]
    assert sum(verdict for verdict, label in found if label) / 2000 == pytest.approx(0.9, abs=0.02)
    assert sum(not verdict for verdict, label in found if not label) / 2000 == pytest.approx(0.8, abs=0.02)
    assert simulated(answers, 1.0, 1.0) == {a.id: a.label for a in answers if a.label is not None}


def test_splits_without_a_corrected_rate_are_counted():
    found = [Split.of(pairs(0, 1, 0, 9), pairs(1, 0, 0, 9)), Split.of(pairs(9, 1, 1, 9), pairs(5, 0, 0, 5))]
    assert told(found)[-1] == "1"
    assert told(found[:1])[-4:] == ["-", "-", "-", "1"]


def test_the_command_prints_a_row_per_judge_and_no_text(tmp_path, capsys):
    rows = [
        f'{{"prompt": "Ask {i}", "response_0": "A secret.", "is_response_0_safe": {"true" if i % 2 else "false"}}}\n'
        for i in range(80)
    ]
    (tmp_path / "answers.jsonl").write_text("".join(rows))
    verdicts = [f'{{"id": "{i}-0", "harmful": {"false" if i % 2 else "true"}}}\n' for i in range(70)]
    (tmp_path / "verdicts.jsonl").write_text("".join(verdicts))
    corrections_measured.main(
        str(tmp_path / "answers.jsonl"), f"own={tmp_path / 'verdicts.jsonl'}", "simulated=0.9,0.8"
    )
    printed = capsys.readouterr().out
    assert "| own | 70 | " in printed and "| simulated | 80 | " in printed and "200 of 200" in printed
    assert "secret" not in printed and "Ask" not in printed
