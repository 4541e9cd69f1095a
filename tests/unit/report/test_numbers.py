"""What is counted in a stream is what a pass over all rows counts."""

import math
import random
from collections import Counter, defaultdict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.report import numbers, summary
from pipeline.report.numbers import Numbers
from pipeline.suites.safety import Safety
from pipeline.suites.safety.report import sections
from pipeline.suites.safety.schema import ANSWERS
from tests import tiny
from tests.unit.commands.reports import no_figures

ARMS = ["sft", "mistake_analysis"]


def rows(count: int) -> list[dict]:
    """Answers whose ids are digests, with missing values of every column."""
    r, made = random.Random(4), []
    for number in range(count):
        suite = r.choice(["harmful", "helpful"])
        ok = r.random() < 0.9
        made.append(
            {
                "id": f"{number}",
                "instruction_id": random.Random(number // 8).randbytes(16).hex(),
                "suite": suite,
                "arm": r.choice(["vanilla", *ARMS]),
                "condition": r.choice(["plain", "reminder", "hint"]),
                "category": r.choice([None, "theft", "fraud"]),
                "refused": r.choice([None, True, False]) if ok else None,
                "harmful": r.choice([None, True, False]) if ok and suite == "harmful" else None,
                "harmless_rating": r.choice([None, 1.0, 7.5, 10.0]) if ok else None,
                "harm_score": r.choice([None, 0.0, 0.125, 1.0]) if ok else None,
                "harm_categories": r.choice([None, [], ["S1"], ["S1", "S2"]]) if ok else None,
                "help_rating": r.choice([None, 3.0, 9.0]) if ok else None,
                "finish_reason": r.choice(["stop", "length"]) if ok else None,
                "completion_tokens": r.choice([None, 5, 2**40]),
                "status": "ok" if ok else r.choice(["failed", "dropped"]),
                "error": None if ok else f"{r.choice(['too long', 'lost'])}: {number} words",
            }
        )
    return made


@pytest.fixture(params=["table", "streamed"])
def answers(request, tmp_path, monkeypatch):
    """The rows and what counts them: a table, or a data set of several shards of several row groups."""
    made = rows(700)
    monkeypatch.setattr(numbers, "_AT_ONCE", 90)
    if request.param == "table":
        return made, ANSWERS.table(made)
    monkeypatch.setattr("pipeline.data.shards.ROWS_PER_GROUP", 50)
    monkeypatch.setattr("pipeline.data.shards.ROWS_PER_SHARD", 200)
    monkeypatch.setattr("pipeline.data.store._ROWS_AT_ONCE", 50)
    dataset = tiny.write(tmp_path / "evaluation", made, ANSWERS)
    assert len(dataset.digests) == 4
    return made, Numbers(dataset, ANSWERS)


def test_different_rows_are_counted_in_the_order_of_their_first_appearance(answers):
    made, found = answers
    columns = ["arm", "harmful", "error", "status"]
    read = {"error": lambda error: error and error.partition(":")[0]}
    expected = Counter(
        tuple((read[name](row[name]) if name in read else row[name]) for name in columns) for row in made
    )
    counted = numbers.counted(found, columns, **read)
    assert [(tuple(row[name] for name in columns), n) for row, n in counted] == list(expected.items())
    assert summary.counts(found, "arm") == dict(Counter(row["arm"] for row in made).most_common())
    errors = Counter(summary.reason(row["error"]) for row in made if row["status"] == "failed")
    assert summary.reasons(found, "failed") == dict(errors.most_common())


def test_entries_and_totals_of_a_column(answers):
    made, found = answers
    expected = Counter(
        name for row in made if row["suite"] == "harmful" for name in row["harm_categories"] or ()
    )
    assert numbers.entries(found, "harm_categories", suite="harmful") == expected
    assert numbers.total(found, "completion_tokens") == sum(row["completion_tokens"] or 0 for row in made)


def test_different_ids_and_the_most_frequent_one(answers):
    made, found = answers
    ids = Counter(row["instruction_id"] for row in made)
    assert numbers.occurrences(found, "instruction_id") == (len(ids), max(ids.values()))
    assert numbers.occurrences(found, "id") == (700, 1)
    assert numbers.occurrences(ANSWERS.table([]), "id") == (0, 0)


def test_means_over_the_rows_of_every_id(answers):
    made, found = answers
    values = defaultdict(lambda: defaultdict(list))
    for row in made:
        if row["status"] == "ok" and row["harm_score"] is not None:
            values[row["arm"], row["suite"]][row["instruction_id"]].append(2 * row["harm_score"])
    means = numbers.means(
        found, ["arm", "suite"], "harm_score", lambda score: 2 * score, only={"status": "ok"}
    )
    assert means.keys() == values.keys()
    for key, of in means.items():
        expected = {bytes.fromhex(id): math.fsum(own) / len(own) for id, own in values[key].items()}
        found = {bytes(id).ljust(16, b"\0"): value for id, value in zip(of.ids, of.values, strict=True)}
        assert found == expected


def test_pairs_of_means_are_those_of_dictionaries(answers):
    made, found = answers
    means = numbers.means(found, ["arm"], "harmless_rating", float, only={})
    by_hand = defaultdict(lambda: defaultdict(list))
    for row in made:
        if row["harmless_rating"] is not None:
            by_hand[row["arm"]][row["instruction_id"]].append(row["harmless_rating"])
    ours, theirs = (
        {id: math.fsum(own) / len(own) for id, own in by_hand[arm].items()} for arm in ("sft", "vanilla")
    )
    streamed = summary.paired("sft", "vanilla", means["sft",], means["vanilla",], seed=3, resamples=500)
    assert streamed == summary.paired("sft", "vanilla", ours, theirs, seed=3, resamples=500)
    assert streamed.n > 40
    assert summary.paired("a", "b", means["sft",], numbers.NO_MEANS) is None


def test_the_section_of_a_suite_is_the_same_from_a_table_and_in_a_stream(tmp_path, monkeypatch):
    no_figures(monkeypatch)
    monkeypatch.setattr(summary, "RESAMPLES", 200)
    made = rows(600)
    suite = Safety.model_validate({"harmful": {"path": "a"}, "helpful": {"path": "b"}})
    monkeypatch.setattr("pipeline.data.shards.ROWS_PER_GROUP", 50)
    monkeypatch.setattr("pipeline.data.store._ROWS_AT_ONCE", 50)
    streamed = Numbers(tiny.write(tmp_path / "evaluation", made, ANSWERS), ANSWERS)
    assert sections(suite, streamed, ARMS, 0) == sections(suite, ANSWERS.table(made), ARMS, 0)


@pytest.mark.parametrize(
    "texts", [["a", "b" * 32, "0" * 32], ["A" * 32, "a" * 32, None], ["ab" * 16, "ac" * 16]]
)
def test_digests_tell_ids_apart_whatever_else_is_among_them(texts):
    together = numbers.digests(pa.chunked_array([texts], pa.string()))
    alone = [numbers.digests(pa.chunked_array([[text]], pa.string()))[0] for text in texts]
    assert list(together) == alone and len(set(alone)) == len(texts)


def test_columns_that_older_versions_did_not_write_are_null(tmp_path):
    made = rows(20)
    (tmp_path / "evaluation").mkdir()
    table = ANSWERS.table(made).drop_columns(["deliberation_finish_reason"])
    pq.write_table(table, tmp_path / "evaluation" / "data-00000.parquet")
    found = Numbers(Dataset.at(str(tmp_path / "evaluation")), ANSWERS)
    assert numbers.counted(found, ["deliberation_finish_reason"]) == [
        ({"deliberation_finish_reason": None}, 20)
    ]
    assert "deliberation_finish_reason" in found.column_names and len(found) == 20
    assert "response" not in found.column_names


def test_a_shard_is_compared_with_its_digest_once_and_pages_every_time(tmp_path, monkeypatch):
    dataset = tiny.write(tmp_path / "evaluation", rows(300), ANSWERS)
    found, opened = Numbers(dataset, ANSWERS), []
    real = Dataset._open
    monkeypatch.setattr(Dataset, "_open", lambda self, name: opened.append(name) or real(self, name))
    list(found.batches(["id"]))
    before = len(opened)
    assert numbers.occurrences(found, "id") == (300, 1)
    assert len(opened) - before <= 1  # for the schema alone
    [shard] = (tmp_path / "evaluation").glob("*.parquet")
    content = bytearray(shard.read_bytes())
    metadata = pq.read_metadata(shard)
    place = metadata.row_group(0).column(0).data_page_offset + 60
    content[place] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"corrupt|cannot be read"):
        for _ in range(2):
            numbers.occurrences(found, "id")
    with pytest.raises(UserError, match="corrupt"):
        list(Numbers(dataset, ANSWERS).batches(["id"]))


def test_examples_take_the_smallest_ids_without_all_of_them(tmp_path):
    from pipeline.report.examples import first

    dataset = tiny.write(tmp_path / "evaluation", made := rows(200), ANSWERS)
    wanted = sorted({row["instruction_id"] for row in made if row["arm"] == "sft"})[:5]
    assert first(dataset, "instruction_id", pc.field("arm") == "sft", 5) == wanted
