"""What is missing is told as such, and a judge that cannot be read is told loudly."""

from pipeline.data import faults


def test_what_is_missing_is_not_counted_among_texts():
    told = faults.told(
        {"analyse: echo": 2, "analyse_safe: no harmless answer": 51}, {"analyse_safe: whole": 15}
    )
    assert told == [
        "analyse: faults in 2 texts (2 echo)",
        "analyse_safe: 51 rows have no harmless answer to analyze",
    ]


def test_a_judge_that_judges_less_than_half_of_the_rows_is_told():
    counts = {"verify: no verdict": 51, "induce: echo": 49}
    assert "no verdict that can be read on 51 of 100 rows" in faults.unjudged(counts, 100)
    assert faults.unjudged(counts, 102) is None
    assert faults.told(counts, {})[1] == "verify: the judge gave no verdict that can be read on 51 rows"
