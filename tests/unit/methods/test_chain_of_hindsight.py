"""Chain of Hindsight: comparisons of the source as conversations, and which of their tokens carry loss."""

import asyncio
import io
from collections import Counter

import pytest
from rich.console import Console

from pipeline.commands.plan import show_plan
from pipeline.config import Config
from pipeline.data.store import Store
from pipeline.errors import UserError
from pipeline.methods.chain_of_hindsight import ChainOfHindsight
from pipeline.methods.chain_of_hindsight.examples import FORMS
from pipeline.methods.chain_of_hindsight.schema import COMPARISONS
from pipeline.methods.comparisons import ComparisonRecipe
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.schema import SFT, UNSAFE_TARGET
from pipeline.sources.counts import Accounts
from pipeline.training import examples
from pipeline.training.adapter import card
from pipeline.training.examples import IGNORE
from tests import scripted, tiny
from tests.scripted import ScriptedChat, instruction
from tests.unit.sources.written import rows_of

GOOD, BAD = "sorry no", "sure take the cake first"


def method(**mix) -> ChainOfHindsight:
    return ChainOfHindsight(instructions={"path": "unused"}, mix=mix)


def compared(*rows: dict) -> list[dict]:
    """Rows of the data set, as `generate` makes them: it asks nothing."""
    chat = ScriptedChat()
    found = [{**row, **asyncio.run(ComparisonRecipe(None)(row, chat))} for row in rows]
    assert not chat.asked
    return found


def row(number: int = 1, safe: str | None = GOOD, unsafe: str | None = BAD) -> dict:
    return instruction(
        "how can i bake",
        id=f"r{number}",
        instruction_id=f"r{number}",
        safe_response=safe,
        unsafe_response=unsafe,
    )


def made(rows: list[dict], drops: Counter | None = None, seed: int = 0, **mix) -> list[dict]:
    found = list(method(**mix).examples(SFT, rows, Counter() if drops is None else drops, seed, Accounts()))
    assert SFT.table(found).num_rows == len({one["id"] for one in found}) == len(found)
    return found


def targets(template, found: list[dict]) -> list[str]:
    """The texts that carry loss, an example after the other."""
    encoded = examples.encode(template, [one["messages"] for one in found])
    return [
        template.tokenizer.decode([t for t, label in zip(e.tokens, e.labels, strict=True) if label != IGNORE])
        for e in encoded
    ]


@pytest.fixture(scope="module")
def template():
    return tiny.template()


def test_the_default_shows_the_unsafe_response_and_trains_on_the_safe_one(template):
    [one] = made(compared(row()))
    assert (one["kind"], [message["role"] for message in one["messages"]]) == (
        "hindsight",
        ["user", "assistant"] * 2,
    )
    first, unsafe, second, safe = (message["content"] for message in one["messages"])
    texts = method().texts()
    assert first.partition("\n\n")[0] == "how can i bake" and first.partition("\n\n")[2] in texts.lines("bad")
    assert second in texts.lines("good"), "the second turn is a phrase, without the instruction"
    assert (unsafe, safe) == (BAD, GOOD)
    assert targets(template, [one]) == [GOOD + tiny.END]


def test_no_form_trains_on_unsafe_responses_by_default(template):
    found = made(compared(row()), forms=["good", "bad_good"])
    assert targets(template, found) == [GOOD + tiny.END] * 2
    for form in FORMS:
        if FORMS[form][-1] == "good":
            assert {one["kind"] for one in made(compared(row()), forms=[form])} == {"hindsight"}
            continue
        with pytest.raises(ValueError, match=f"forms: {form} ends in the unsafe response, .*loss: all"):
            method(forms=[form])


@pytest.mark.parametrize(("form", "labels"), [("good", 4), ("bad", 6), ("good_bad", 10), ("bad_good", 10)])
def test_with_loss_on_all_every_token_of_both_responses_and_their_ends_carries_loss_once(form, labels):
    """Responses of 3 and 5 tokens, and an end each."""
    template = tiny.template()
    three, five = "cake cake", "cake cake cake cake"
    assert [len(template.tokenizer(text)["input_ids"]) for text in (three, five)] == [3, 5]
    found = made(compared(row(safe=three, unsafe=five)), forms=[form], loss="all")
    encoded = examples.encode(template, [one["messages"] for one in found])
    assert sum(len(e.tokens) - e.prompt for e in encoded) == labels
    assert Counter(targets(template, found)) == Counter(
        {"good": three, "bad": five}[side] + tiny.END for side in FORMS[form]
    )
    for one, target in zip(found, targets(template, found), strict=True):
        assert one["kind"].endswith(UNSAFE_TARGET) == (target == five + tiny.END)


def test_examples_of_both_turns_are_the_same_conversation():
    first, second = made(compared(row()), forms=["good_bad"], loss="all")
    assert [one["kind"] for one in (first, second)] == ["hindsight", "hindsight_unsafe"]
    assert second["messages"][:2] == first["messages"] and len(second["messages"]) == 4


def test_packing_keeps_every_label(template):
    found = made(compared(*map(row, range(7))), forms=list(FORMS), loss="all")
    encoded = examples.encode(template, [one["messages"] for one in found])
    bins = examples.pack([len(e.tokens) for e in encoded], 200)
    packed = examples.table([[encoded[i] for i in members] for members in bins])
    assert len(bins) < len(encoded)
    assert sum(label != IGNORE for labels in packed["labels"].to_pylist() for label in labels) == sum(
        len(e.tokens) - e.prompt for e in encoded
    )


def test_ties_and_missing_sides_are_skipped_and_counted():
    rows = compared(
        row(1), row(2, safe="Take  a\ncake.", unsafe="Take a cake."), row(3, safe=None), row(4), row(5)
    )
    drops: Counter[str] = Counter()
    assert [one["instruction_id"] for one in made(rows, drops)] == ["r1", "r4", "r5"]
    assert drops == {"equal responses": 1, "no safe response in the source": 1}


def test_rows_without_a_comparison_do_not_count_as_unusable(tmp_path):
    store = Store(str(tmp_path), COMPARISONS.name, COMPARISONS)
    store.open({})
    fields = set(COMPARISONS.names)
    rows = compared(row(1), row(2, unsafe=None), row(3, safe=None))
    done = store.write_rows([{key: value for key, value in one.items() if key in fields} for one in rows])
    assert sum(done["not_selected"].values()) == 2


def test_phrases_are_drawn_by_seed_row_and_form():
    rows = compared(*map(row, range(30)))
    asked = [one["messages"][0]["content"] for one in made(rows)]
    assert len(set(asked)) > 4, "many phrases"
    assert asked == [one["messages"][0]["content"] for one in reversed(made(rows[::-1]))], "in any order"
    assert asked != [one["messages"][0]["content"] for one in made(rows, seed=1)]
    ratio = made(compared(*map(row, range(1000))), ratio=1.5)
    assert 1400 < len(ratio) < 1600
    assert made(rows, ratio=0) == []


@pytest.mark.parametrize("side", ["good", "bad"])
def test_there_are_six_phrases_or_more_of_each_side(side):
    assert len(set(method().texts().lines(side))) >= 6


@pytest.mark.parametrize(("settings", "why"), [
    ({"samples": 2}, "samples would change nothing"),
    ({"unfinished": "drop"}, "unfinished would change nothing"),
    ({"gates": {}}, "gates would change nothing"),
    ({"engine": {"kind": "dummy"}}, "engine would change nothing"),
    ({"mix": {"forms": ["good", "good"]}}, "names a form twice"),
    ({"mix": {"forms": []}}, "at least 1"),
])  # fmt: skip
def test_a_setting_without_effect_is_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        ChainOfHindsight(instructions={"path": "unused"}, **settings)


def test_a_list_of_phrases_may_not_be_empty(tmp_path):
    (tmp_path / "own.yaml").write_text("good: ''\n")
    own = ChainOfHindsight(instructions={"path": "unused"}, prompts=str(tmp_path / "own.yaml"))
    with pytest.raises(UserError, match="prompt good is empty"):
        own.prompt_hashes()


def configured(**changes) -> Config:
    source = {"path": "toy:harmful-train"}
    methods = {
        "mistakes": {"name": "mistake_analysis", "instructions": source},
        "hindsight": {"name": "chain_of_hindsight", "instructions": source},
    }
    return Config.model_validate(scripted.tree("r", methods=methods, **changes))


def test_its_arm_stands_beside_those_of_mistake_analysis():
    config = configured()
    assert {name: arm.kinds for name, arm in config.arms.items()}["chain_of_hindsight"] == ["hindsight"]
    assert [list(made) for made in config.training_sets().values()] == [["mistakes", "hindsight"]]


def test_an_arm_names_the_kind_whose_targets_are_unsafe():
    with pytest.raises(ValueError, match="mix gives no hindsight_unsafe ones"):
        configured(arms={"authors": {"kinds": ["hindsight_unsafe"]}})


def test_no_engine_starts_for_it_unless_a_judge_asks_the_model():
    config = configured()
    assert [config.generator(name).engine.kind for name in ("mistakes", "hindsight")] == ["vllm", "none"]
    assert not config.generator("hindsight").engine.reads_model and "train" in config.stages
    assert config.engines(["generate"])["engine"].kind == "vllm", "that of the other method"
    for verify, kind in (
        ({"kind": "rating"}, "vllm"),
        ({"kind": "rating", "model": "strong"}, "none"),
        ({"kind": "refusal"}, "none"),
    ):
        judged = config.methods["hindsight"].model_dump() | {"verify": verify}
        judged = config.model_copy(update={"methods": {"hindsight": ChainOfHindsight(**judged)}})
        assert judged.generator("hindsight").engine.kind == kind, verify
    rehearsed = configured(engine={"kind": "dummy"}, suites={})
    assert "train" not in rehearsed.stages, "a rehearsal trains nothing"


def test_a_plan_says_that_no_model_is_asked(tmp_path):
    method = {"name": "chain_of_hindsight", "instructions": {"path": "toy:harmful-train", "limit": 3}}
    config = Config.model_validate(scripted.tree(tmp_path / "r", methods={"hindsight": method}))
    console = Console(file=io.StringIO(), width=200)
    show_plan(config, console=console)
    text = console.file.getvalue()
    assert "methods.hindsight asks no model" in text and "no engine: reads the source" in text
    assert "methods.hindsight.instructions = toy:harmful-train: 3 rows read, 3 used" in text
    assert "generate hindsight" not in text and "Selection" not in text


def test_the_card_says_when_unsafe_responses_were_trained_on(tmp_path):
    config = tiny.config("unused")
    figures = dict.fromkeys(
        ["steps", "tokens", "sequences", "trainable_parameters", "final_loss", "tokens_per_s"], 1
    )
    cards = [
        " ".join(
            card(
                tiny.job(config, "sft", str(tmp_path), 1, None, "name"),
                {**figures, "kinds": kinds, "drop_reasons": {}},
            ).split()
        )
        for kinds in ({"hindsight": 2}, {"hindsight": 2, "hindsight_unsafe": 1})
    ]
    assert "They carry no loss" in cards[0] and "They carry no loss" not in cards[1]
    assert "of kind hindsight_unsafe are unsafe responses" in cards[1]


def test_the_mistakes_of_a_finished_run_can_be_its_source(tmp_path):
    """What docs/methods.md says: a judged mistake is the unsafe response; one that was not induced is none."""
    store = Store(str(tmp_path), "mistakes", MISTAKES)
    store.open({})
    common = {"safe_response": GOOD, "status": "ok"}
    store.write_rows([
        {"id": "a", "instruction_id": "a", "instruction": "a", "response": BAD, "harmful": True, **common},
        {"id": "b", "instruction_id": "b", "instruction": "b", "response": "no", "harmful": False, **common},
        {"id": "c", "instruction_id": "c", "instruction": "c", "response": "?", "harmful": None, **common},
    ])  # fmt: skip
    found = {one["instruction"]: one for one in compared(*rows_of(tmp_path / "mistakes"))}
    assert (found["a"]["unsafe_response"], found["a"]["status"]) == (BAD, "ok")
    assert {found[name]["error"] for name in ("b", "c")} == {"no unsafe response in the source"}
