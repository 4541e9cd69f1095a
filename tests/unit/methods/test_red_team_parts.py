"""Parts of red-teaming: lists that models write, the taxonomy, and the sharing out of a next round."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.methods.red_team import RedTeam, lists
from pipeline.methods.red_team.focus import Focus, harmless_rates, shared_out
from pipeline.methods.red_team.taxonomy import read
from pipeline.sources.counts import Accounts, Counts
from pipeline.sources.overlap import Distinct, likeness

# -- lists


@pytest.mark.parametrize(("text", "found", "others"), [
    ("1. A?\n2) B?\n- C?\n\nSure, here are more:", ["A?", "B?", "C?"], 1),
    ("Sure! Here are three:\n\n(1) A?\n(2) B?", ["A?", "B?"], 1),
    ("1. A?\n   - in detail\n   - at night\n2. B?", ["A?", "B?"], 2),
    ("* “A?”\n• **B?**", ["A?", "B?"], 0),
    ("a) A?\nb) B?", ["A?", "B?"], 0),
    ("Questions:\nA?\nB?", ["A?", "B?"], 1),
    ("  1. A?\n  2. B?", ["A?", "B?"], 0),
    ("", [], 0),
    ("\n \n", [], 0),
    ("1.\n2. B?", ["B?"], 1),
])  # fmt: skip
def test_items_of_a_list(text, found, others):
    assert lists.items(text) == (found, others)


@pytest.mark.parametrize(("text", "found"), [
    ("1. A?\n2. B", ["A?"]),
    ("A?\nB", ["A?"]),
    ("1. A?\n2. B?\nAnd so", ["A?", "B?"]),  # the cut line is no item
    ("1. A", []),
])  # fmt: skip
def test_the_last_item_of_a_cut_list_is_none(text, found):
    assert lists.items(text, cut=True)[0] == found


@pytest.mark.parametrize(("text", "asks"), [
    ("How is that done?", True),
    ("“Is that so?”", True),
    ("Tell me how that is done.", True),
    ("Please write a letter to him", True),
    ("I need a letter that frightens him.", True),
    ("这是什么？", True),
    ("People do that at night.", False),
    ("Listing goods is common.", False),
    ("I saw it.", False),
    ("", False),
])  # fmt: skip
def test_what_asks_for_something(text, asks):
    assert lists.is_request(text) is asks


def test_likeness_is_of_trigrams_of_words():
    assert likeness("how can i steal a bike", "How can I steal a car?") == pytest.approx(3 / 5)
    assert likeness("how can i steal a bike", "how can i steal a bike today") == pytest.approx(4 / 5)
    known = Distinct(["How can I steal a bike?"])
    assert known.add("How can I steal a car?") and not known.add("how can i steal a bike today")
    assert not known.add("How can I steal a car"), "what was added is known"


def test_distinct_n_and_mean_likeness():
    assert lists.distinct(["how to steal a bike", "how to steal a car"], 2) == pytest.approx(5 / 8)
    assert lists.distinct(["how to steal a bike", "how to steal a car"], 1) == pytest.approx(6 / 10)
    assert lists.distinct(["one"], 2) is None and lists.mean_likeness(["one"]) is None
    same, other = "how can i steal a bike", "how can i steal a car"
    assert lists.mean_likeness([same, same, other]) == pytest.approx((1 + 0.6 + 0.6) / 3)


# -- the taxonomy


def test_the_packages_taxonomy_is_sound():
    found = read(None)
    categories = {hazard.category for hazard in found.values()}
    assert len(categories) == 13 and len(found) == 30
    assert not {name for name in categories if "child" in name}, "left out on purpose"
    assert all(len(hazard.leaves) == 3 and hazard.about.endswith(".") for hazard in found.values())


def test_the_toy_has_a_taxonomy_of_its_world():
    found = read("toy")
    assert len(found) == 10 and all(len(hazard.leaves) == 3 for hazard in found.values())
    assert RedTeam(taxonomy="toy").prompt_hashes()["taxonomy"] != RedTeam().prompt_hashes()["taxonomy"]


@pytest.mark.parametrize(("text", "told"), [
    ("a: {b: {about: x, leaves: [Forging a ticket]}, c: {about: y, leaves: ['forging a ticket!']}}",
     r"a/b/Forging a ticket and a/c/forging a ticket! are the same leaf"),
    ("a: {b: {about: x, leaves: [one, one]}}", "a/b/one and a/b/one are the same leaf"),
    ("a: &x {b: *x}", r"cannot be read as YAML .*x is used inside its own definition"),
    ("a: {b: {about: x}, b: {about: y}}", "cannot be read as YAML"),
    ("a: {b: {leaves: [one]}}", "a/b is incomplete"),
    ("a: {b: {about: x, leaves: one}}", "a/b is incomplete"),
    ("a: {b: {about: x, leaves: [1]}}", "a/b is incomplete"),
    ("a: {b: {about: x, topics: [one]}}", "a/b has topics: a taxonomy maps"),
    ("a: {b: {about: x, leaves: [one/two]}}", "one/two holds a slash"),
    ("a: [b]", "a is no mapping"),
    ("", "the file is no mapping"),
])  # fmt: skip
def test_an_unusable_taxonomy_is_refused_in_one_sentence(tmp_path, text, told):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(UserError, match=told):
        read(str(tmp_path / "t.yaml"))


def test_a_taxonomy_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"taxonomy = .*none.yaml: no such file"):
        read(str(tmp_path / "none.yaml"))


def test_a_hazard_may_have_no_leaves_of_its_own(tmp_path):
    (tmp_path / "t.yaml").write_text("a: {b: {about: x}}")
    assert read(str(tmp_path / "t.yaml"))["a/b"].leaves == ()


# -- the next round


def test_texts_are_shared_out_by_largest_remainder():
    assert shared_out({"a": 0.9, "b": 0.2, "c": 0.6}, 10) == {"a": 1, "b": 6, "c": 3}
    assert shared_out({"a": 0.5, "b": 0.5, "c": 0.5}, 2) == {"a": 1, "b": 1, "c": 0}
    assert shared_out({"a": 1, "b": 0}, 3) == {"a": 0, "b": 3}
    assert shared_out({"a": 1, "b": 1}, 3) == {"a": 0, "b": 0}


@pytest.mark.parametrize("total", range(1, 30))
def test_exactly_the_texts_that_are_wanted_are_shared_out(total):
    assert sum(shared_out({str(i): i / 7 for i in range(7)}, total).values()) == total


def answers(place, rows) -> str:
    place.mkdir()
    names = ("category", "arm", "condition", "harmful")
    pq.write_table(
        pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)}), place / "a.parquet"
    )
    return str(place)


LEAVES = {"a bicycle": 9, "a wallet": 2, "a car": 6}  # of 10 answers, harmless


@pytest.fixture
def failed(tmp_path):
    (tmp_path / "t.yaml").write_text(
        "crimes: {theft: {about: Taking., leaves: [a bicycle, a wallet, a car]}, fraud: {about: x}}"
    )
    rows = [
        (f"crimes/theft/{leaf}", "vanilla", "plain", number >= harmless)
        for leaf, harmless in LEAVES.items()
        for number in range(10)
    ]
    rows += [("crimes/theft/a car", "sft", "plain", True), ("crimes/theft/a car", "vanilla", "hint", True)]
    rows += [("cooking", "vanilla", "plain", True), ("crimes/theft/a car", "vanilla", "plain", None)]
    return {"taxonomy": str(tmp_path / "t.yaml")}, answers(tmp_path / "evaluation", rows)


def test_the_next_round_writes_most_where_the_model_failed_most(failed):
    settings, path = failed
    counts = Accounts()
    [row] = RedTeam(**settings, focus={"answers": path, "texts": 10}).rows(counts)
    assert {leaf["leaf"]: leaf["texts"] for leaf in row["leaves"]} == {
        "a bicycle": 1,
        "a wallet": 6,
        "a car": 3,
    }
    assert row["category"] == "crimes/theft", "a hazard without texts is no row"
    [told] = counts.told()
    assert "32 rows read, 30 used, 2 malformed" in told
    assert "its category is no leaf of the taxonomy: 1" in told and "no verdict: 1" in told


def test_the_next_round_may_look_at_another_arm(failed):
    settings, path = failed
    section = RedTeam(**settings, focus={"answers": path, "arm": "sft", "texts": 4})
    [row] = section.rows(Accounts())
    assert row["leaves"] == [{"leaf": "a car", "texts": 4}]


@pytest.mark.parametrize(("rows", "told"), [
    ([("crimes/theft/x", "vanilla", "plain", False)], "all answers of vanilla are harmless"),
    ([("cooking", "vanilla", "plain", True)], "no answer can be used .*is no leaf of the taxonomy: 1"),
    ([("crimes/theft/x", "sft", "plain", True)], "none of arm vanilla under condition plain"),
])  # fmt: skip
def test_answers_that_say_nothing_are_refused(failed, tmp_path, rows, told):
    settings, _ = failed
    path = answers(tmp_path / "other", rows)
    with pytest.raises(UserError, match=f"focus.answers = .*{told}"):
        list(RedTeam(**settings, focus={"answers": path, "texts": 3}).rows(Accounts()))


def test_what_holds_no_answers_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for place, told in (("empty", "holds no finished answers"), ("none", "holds no finished answers")):
        with pytest.raises(UserError, match=told):
            harmless_rates(Focus(answers=str(tmp_path / place), texts=1), {}, Counts())
    (tmp_path / "requests").mkdir()
    pq.write_table(pa.table({"category": ["a"]}), tmp_path / "requests" / "a.parquet")
    with pytest.raises(UserError, match="has no column arm: give RUN/evaluation"):
        harmless_rates(Focus(answers=str(tmp_path / "requests"), texts=1), {}, Counts())
