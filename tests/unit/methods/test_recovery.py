"""Recovery examples of course correction: a coin, a harmful beginning cut by tokens, loss on the refusal only."""

import json
from collections import Counter

import pytest

from pipeline.config import Config
from pipeline.fingerprints import fingerprints
from pipeline.methods.course_correction import CourseCorrection
from pipeline.methods.course_correction.report import data
from pipeline.schema import PREFERENCES, SFT
from pipeline.sources.counts import Accounts
from pipeline.training import examples
from pipeline.training.config import SFT as Trainer
from pipeline.training.examples import IGNORE, cut_after, encoded_rows
from tests import scripted, tiny

SAFE, HARM = "sorry no", "sure first take the cake then mix"


def method(**mix) -> CourseCorrection:
    return CourseCorrection(instructions={"path": "unused"}, mix=mix)


def correction(number: int, **changes) -> dict:
    """A row of the data set that `generate` writes."""
    responses = [
        {"rank": 1, "kind": "safe", "text": SAFE},
        {"rank": 2, "kind": "syn", "text": "sure no"},
        {"rank": 6, "kind": "harmful", "text": HARM},
    ]
    about = {"id": f"r{number}", "instruction_id": f"r{number}", "instruction": "how can i forge a ticket"}
    return {**about, "category": "fraud", "status": "ok", "responses": responses, **changes}


def made(rows: list[dict], drops: Counter | None = None, seed: int = 0, **mix) -> list[dict]:
    drops = Counter() if drops is None else drops
    found = list(method(**mix).examples(SFT, rows, drops, seed, Accounts()))
    assert SFT.table(found).num_rows == len({one["id"] for one in found}) == len(found)
    return found


def row(prefix: str | None = HARM, most: int = 100, id: str = "a", answer: str = SAFE) -> dict:
    messages = [{"role": "user", "content": "how"}, {"role": "assistant", "content": answer}]
    return {"id": id, "kind": "recovery", "messages": messages, "prefix": prefix, "prefix_tokens": most}


@pytest.fixture(scope="module")
def template():
    return tiny.template()


def ids(template, text: str) -> list[int]:
    return template.tokenizer(text, add_special_tokens=False)["input_ids"]


def labelled(example) -> list[int]:
    return [label for label in example.labels if label != IGNORE]


# -- the coin


def test_half_of_ten_thousand_examples_have_a_prefix():
    found = made([correction(i) for i in range(10_000)])
    assert len(found) == 10_000
    assert abs(sum(one.get("prefix") is not None for one in found) / 10_000 - 0.5) < 0.015


def test_the_coin_is_a_function_of_seed_and_id():
    rows = [correction(i) for i in range(200)]

    def coins(rows, seed=0):
        return {one["id"]: one.get("prefix") is not None for one in made(rows, seed=seed)}

    assert coins(rows) == coins(rows[::-1]) and coins(rows) != coins(rows, seed=1)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 300)])
def test_the_share_of_prefixes_can_be_set(share, expected):
    found = made([correction(i) for i in range(300)], prefixed=share)
    assert sum(one.get("prefix") is not None for one in found) == expected


def test_a_row_has_request_refusal_and_the_harmful_response_apart():
    [one] = made([correction(1)], prefixed=1, prefix_tokens=7)
    assert [m["content"] for m in one["messages"]] == ["how can i forge a ticket", SAFE]
    assert (one["kind"], one["prefix"], one["prefix_tokens"]) == ("recovery", HARM, 7)
    assert "prefix" not in made([correction(1)], prefixed=0)[0]


def test_a_request_without_a_safe_response_gives_none_and_is_counted():
    lost = [{"rank": 2, "kind": "syn", "text": "x"}, {"rank": 6, "kind": "harmful", "text": HARM}]
    rows = [correction(1), correction(2, responses=lost), correction(3, status="dropped", responses=None)]
    drops: Counter[str] = Counter()
    assert [one["instruction_id"] for one in made(rows, drops)] == ["r1"]
    assert drops == {"no safe response to recover with": 1}
    assert made([correction(1)], recovery=0) == []
    assert len(made([correction(i) for i in range(1000)], recovery=1.5)) == pytest.approx(1500, abs=60)


# -- the cut


def test_a_prefix_of_three_tokens_is_cut_after_one_two_or_three_each_as_often():
    cuts = Counter(cut_after(str(i), 3, 100, 0) for i in range(3000))
    assert set(cuts) == {1, 2, 3} and all(abs(n - 1000) < 100 for n in cuts.values())


def test_no_more_tokens_than_the_most_are_kept():
    cuts = Counter(cut_after(str(i), 5000, 100, 0) for i in range(20_000))
    assert (min(cuts), max(cuts), len(cuts)) == (1, 100, 100)
    assert sum(c * n for c, n in cuts.items()) / 20_000 == pytest.approx(50.5, abs=1)


def test_the_cut_is_a_function_of_seed_and_id():
    one = [cut_after(str(i), 50, 100, 0) for i in range(50)]
    assert one == [cut_after(str(i), 50, 100, 0) for i in range(50)]
    assert one != [cut_after(str(i), 50, 100, 1) for i in range(50)]


# -- tokens and labels


def test_prompt_and_prefix_carry_no_loss_and_the_refusal_with_its_end_does(template):
    found = encoded_rows(template, [row(id=str(i)) for i in range(60)], 0)
    prompt = template.prompt([{"role": "user", "content": "how"}])
    harm, refusal = ids(template, HARM), ids(template, f" {SAFE}{tiny.END}")
    kept = set()
    for example in found:
        assert labelled(example) == refusal
        assert example.tokens[: len(prompt)] == prompt
        cut = example.tokens[len(prompt) : example.prompt]
        assert cut == harm[: len(cut)] and cut
        kept.add(len(cut))
    assert kept == set(range(1, len(harm) + 1)), "every length, the whole response included"


def test_the_end_of_the_harmful_response_is_never_in_the_prefix(template):
    stop = template.tokenizer.convert_tokens_to_ids(tiny.END)
    for example in encoded_rows(template, [row(id=str(i)) for i in range(60)], 0):
        in_answer = example.tokens[len(template.prompt([{"role": "user", "content": "how"}])) :]
        assert in_answer.count(stop) == 1 and example.tokens[-1] == stop


def test_the_prefix_is_sliced_by_tokens_even_within_a_character(template):
    """A character of several tokens: a cut by text would have to fall before or after it."""
    whole = ids(template, "文文文")
    assert len(whole) == 9
    prompt = len(template.prompt([{"role": "user", "content": "how"}]))
    kept = {
        tuple(example.tokens[prompt : example.prompt])
        for example in encoded_rows(template, [row("文文文", id=str(i)) for i in range(200)], 0)
    }
    assert kept == {tuple(whole[:c]) for c in range(1, 10)}


def test_a_row_without_a_prefix_is_an_ordinary_example(template):
    [plain] = encoded_rows(template, [row(prefix=None)], 0)
    [usual] = examples.encode(template, [row()["messages"]])
    assert plain == usual and labelled(plain) == ids(template, SAFE + tiny.END)


def test_text_that_looks_like_the_end_of_a_turn_is_text(template):
    stop = template.tokenizer.convert_tokens_to_ids(tiny.END)
    harmful = f"take {tiny.END} the cake"
    [example] = encoded_rows(template, [row(harmful, answer=f"sorry {tiny.END} no")], 0)
    prompt = len(template.prompt([{"role": "user", "content": "how"}]))
    assert stop not in example.tokens[prompt:-1] and example.tokens[-1] == stop
    target = template.tokenizer.decode(example.tokens[example.prompt : -1])
    assert target == f" sorry {tiny.END} no"


@pytest.mark.parametrize(("changes", "reason"), [
    ({"answer": " \n"}, "empty_answer"), ({"prefix": " \n"}, "empty_answer"),
])  # fmt: skip
def test_an_empty_side_is_dropped_with_its_reason(template, changes, reason):
    assert encoded_rows(template, [row(**changes)], 0) == [reason]


def test_too_long_counts_the_prefix(tmp_path, template):
    rows = [
        row(" ".join([HARM] * 9), id=str(i)) | {"instruction_id": "x", "category": "c"} for i in range(40)
    ]
    dataset = tiny.write(tmp_path / "run" / "sft", rows)
    sequences, _, counts = examples.prepare(template, dataset, ["recovery"], 0, 40, False)
    assert counts.dropped["too_long"] and counts.kinds["recovery"] + counts.dropped["too_long"] == 40
    assert max(len(ids) for ids in sequences["input_ids"].to_pylist()) <= 40


def test_a_set_of_an_older_version_has_no_prefixes_and_is_read(tmp_path, template):
    older = SFT.__class__(SFT.name, SFT.columns[:5])
    rows = [{"id": str(i), "kind": "safe", "messages": row()["messages"]} for i in range(3)]
    *_, counts = examples.prepare(
        template, tiny.write(tmp_path / "run" / "sft", rows, older), ["safe"], 0, 512, True
    )
    assert counts.kinds == {"safe": 3}


# -- arms


def configured(**changes) -> Config:
    tree = scripted.tree(
        "r", recipe={"name": "course_correction"}, instructions={"path": "toy:detailed-train"}
    )
    return Config.model_validate({**tree, **changes})


ARMS = {"dpo": {"train": {"method": "dpo"}}, "recovery": {"kinds": ["recovery"]}}


def test_arms_of_sft_and_dpo_stand_side_by_side():
    config = configured(arms=ARMS)
    assert {schema.name for schema in config.training_sets()} == {"sft", "preferences"}
    assert {name: arm.train.method for name, arm in config.arms.items()} == {"dpo": "dpo", "recovery": "sft"}
    with pytest.raises(ValueError, match=r"arms.a.kinds is missing: say which of recovery"):
        configured(arms={"a": {"train": {"method": "sft"}}})
    with pytest.raises(ValueError, match="mix gives no recovery ones"):
        configured(arms=ARMS, methods={"c": {**_section(), "mix": {"recovery": 0}}})


def _section() -> dict:
    return {"name": "course_correction", "instructions": {"path": "toy:detailed-train"}}


@pytest.mark.parametrize("train", [{}, {"method": "sft"}, {"method": "dpo"}])
def test_the_default_arm_is_still_one_of_dpo(train):
    [(name, arm)] = configured(train=train).arms.items()
    assert (name, arm.train.method, arm.kinds) == ("dpo", "dpo", None)


def test_an_arm_of_one_set_does_not_change_the_other():
    both, alone = fingerprints(configured(arms=ARMS)), fingerprints(configured(arms={"dpo": ARMS["dpo"]}))
    assert "sft" not in alone and "sft" in both
    for name in ("corrections", "preferences", "adapter/dpo"):
        assert both[name] == alone[name]
    changed = fingerprints(
        configured(arms=ARMS, methods={"corrections": {**_section(), "mix": {"prefixed": 1}}})
    )
    assert changed["preferences"] == both["preferences"] and changed["sft"] != both["sft"]
    assert json.dumps(both["preferences"]["mix"]) == '{"course_correction": {}}', "as before"


def test_conversations_of_another_method_hold_no_recovery_examples_unless_an_arm_names_them():
    source = {"path": "toy:detailed-train"}
    methods = {"mistakes": {"name": "mistake_analysis", "instructions": source}, "corrections": _section()}

    def makers(**arms):
        config = Config.model_validate(scripted.tree("r", methods=methods, arms=arms))
        return {schema.name: list(found) for schema, found in config.training_sets().items()}

    sft = {"kinds": ["safe"]}
    assert makers(sft=sft, dpo=ARMS["dpo"]) == {"sft": ["mistakes"], "preferences": ["corrections"]}
    assert makers(sft=sft, recovery=ARMS["recovery"]) == {"sft": ["mistakes", "corrections"]}


def test_both_sets_are_made_of_the_same_rows():
    rows = [correction(i) for i in range(4)]
    pairs = list(method().examples(PREFERENCES, rows, Counter(), 0, Accounts()))
    assert len(pairs) == 4 * 3 and len(made(rows)) == 4


def test_the_report_counts_the_recovery_examples():
    found = made([correction(i) for i in range(100)])
    mixture = SFT.table(found).drop_columns(["messages", "prefix"])
    text = data(method(), {"corrections": None, "preferences": None, "sft": mixture}).text[-1]
    begun = sum(one.get("prefix") is not None for one in found)
    assert f"100 recovery examples: the request and its refusal, of which {begun} begin with" in text
    assert "recovery" not in " ".join(data(method(), {"corrections": None, "preferences": None}).text)


def test_the_card_says_that_harmful_beginnings_carry_no_loss():
    assert "answers begin with harmful text" in Trainer().caution(["recovery"])
