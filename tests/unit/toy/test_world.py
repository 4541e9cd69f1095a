import random
import re
from itertools import product

import pytest

from pipeline import prompts
from pipeline.errors import UserError
from pipeline.judges.refusal import is_refusal
from pipeline.methods.mistake_analysis.recipe import induced, question, reminded
from pipeline.toy import world
from pipeline.toy.corpus import SHARES, Corpus

SIZES = {
    "harmful-train": 200,
    "harmful-heldout": 90,
    "helpful-train": 200,
    "helpful-heldout": 60,
    "detailed-train": 200,
    "detailed-heldout": 90,
}
DETAILED = ("detailed-train", "detailed-heldout")
TEXTS, JUDGE = prompts.load("methods/mistake_analysis/prompts.yaml"), prompts.load("judges/rating.yaml")
TRIGGERS, OPENERS = (
    prompts.load("methods/course_correction/prompts.yaml").lines(name) for name in ("triggers", "openers")
)
CLAUSES = (
    "it takes something from its owner.",
    "this is theft.",
    "this is a scam, and people feel watched and afraid.",
)


@pytest.fixture(scope="module")
def conversations():
    corpus = Corpus(seed=0)
    return [corpus.draw() for _ in range(3000)]


def pairs(split):
    return {(deed.verb, deed.object) for deed in world.deeds(split)}


def test_no_pair_is_in_two_splits():
    distinct = [split for split in world.SPLITS if split not in DETAILED]
    assert len(set.union(*map(pairs, distinct))) == sum(len(pairs(split)) for split in distinct)


def test_detailed_splits_ask_about_the_deeds_of_the_harmful_ones():
    for part in ("train", "heldout"):
        assert pairs(f"detailed-{part}") == pairs(f"harmful-{part}")


def test_held_out_verbs_and_objects_are_all_known_from_training():
    for suite in ("harmful", "helpful"):
        for part in (0, 1):
            assert {pair[part] for pair in pairs(f"{suite}-heldout")} <= {
                pair[part] for pair in pairs(f"{suite}-train")
            }


@pytest.mark.parametrize("split", world.SPLITS)
def test_rows_are_many_unique_and_the_same_each_time(split):
    rows = list(world.rows(split))
    assert len(rows) >= SIZES[split]
    assert len({row["instruction"] for row in rows}) == len(rows)
    assert rows == list(world.rows(split))


@pytest.mark.parametrize("split", world.SPLITS)
def test_only_safe_responses_to_harmful_instructions_refuse(split):
    for row in world.rows(split):
        assert is_refusal(row["safe_response"]) == (not split.startswith("helpful"))
        assert (row["unsafe_response"] is None) == split.startswith("helpful")
        assert row["unsafe_response"] is None or not is_refusal(row["unsafe_response"])


@pytest.mark.parametrize("split", DETAILED)
def test_detailed_rows_can_be_selected_and_cut(split):
    for row in world.rows(split):
        assert re.search(r"\b(how|what)\b", row["instruction"].lower())
        words = row["unsafe_response"].split()
        assert 80 < len(words) <= 110
        marked = [place for place, word in enumerate(words) if word[-1] in ",.!:;?"]
        assert len(marked) >= 12
        assert max(after - before for before, after in zip([-1, *marked], marked, strict=False)) <= 12
        assert not row["unsafe_response"].startswith(tuple(OPENERS))


def test_unknown_split_names_the_known_ones():
    with pytest.raises(UserError, match=r"toy:harmful is not a split.*harmful-train"):
        next(world.rows("harmful"))


def test_every_refusal_is_recognized_and_nothing_else_is():
    rng = random.Random(0)
    for deed in [*world.deeds("harmful-train"), *world.deeds("helpful-train")]:
        if deed.harmful:
            responses = [
                world.refusal(deed, rng),
                world.mistake(deed, rng, rude=0),
                world.mistake(deed, rng, rude=1),
            ]
        else:
            responses = [world.needless_refusal(deed, rng), world.helpful(deed, rng), world.insult(deed, rng)]
        for response in responses:
            deliberated = f"{world.judgement(deed, rng, deed.harmful)} {response.text}"
            assert is_refusal(response.text) == is_refusal(deliberated) == response.refuses, response.text


def test_ratings_order_responses_as_a_judge_should():
    rng = random.Random(0)
    harmful, benign = world.deeds("harmful-train")[0], world.deeds("helpful-train")[0]

    def mean(scale, deed, respond):
        texts = [world.rating(scale, deed, respond(), rng) for _ in range(50)]
        return sum(int(text.rpartition("[[")[2].removesuffix("]]")) for text in texts) / len(texts)

    nasty, comply = (
        mean("harm_help", harmful, lambda rude=rude: world.mistake(harmful, rng, rude)) for rude in (1, 0)
    )
    curt, reasoned, best = (
        mean("harm_help", harmful, lambda kind=kind: world.refusal(harmful, rng, kind))
        for kind in ("curt", "reasoned", "alternative")
    )
    assert nasty < comply < curt < reasoned < best
    assert (
        mean("help", benign, lambda: world.needless_refusal(benign, rng))
        < 3
        < mean("help", benign, lambda: world.helpful(benign, rng))
    )


def test_the_corpus_is_rendered_exactly_as_the_recipe_asks(conversations):
    prompts_seen = [conversation[:-1] for conversation in conversations]
    instructions = [messages[0]["content"] for messages in prompts_seen if len(messages) == 1]
    plain = {
        text for text in instructions if "\n" not in text and "harmful" not in text and "harmless" not in text
    }
    for ask in (
        lambda instruction: induced(TEXTS, instruction),
        lambda instruction: induced(TEXTS, instruction, position="prefix"),
        lambda instruction: induced(TEXTS, instruction, position="system"),
        lambda instruction: reminded(TEXTS, instruction),
    ):
        assert any(ask(instruction) in prompts_seen for instruction in plain)


def test_analyses_and_ratings_are_rendered_exactly_as_at_use(conversations):
    def inner(text):
        body = text.split("Instruction: ", 1)[1]
        instruction, rest = body.split("\nResponse: ", 1)
        return instruction, rest.split("\n", 1)[0]

    asked = [text for c in conversations if "Instruction: " in (text := c[0]["content"])]
    rendered = set()
    for text in asked:
        instruction, response = inner(text)
        forms = {
            f"guided={guided}": question(TEXTS, instruction, response, guided=guided)
            for guided in (True, False)
        }
        forms |= {
            scale: JUDGE.render(scale, instruction=instruction, response=response)
            for scale in ("harmless", "help", "harm_help")
        }
        [name] = [name for name, form in forms.items() if form == text]
        rendered.add(name)
    assert rendered == {"guided=True", "guided=False", "harmless", "help", "harm_help"}


def test_held_out_deeds_never_occur_in_the_corpus(conversations):
    asked = "\n".join(message["content"] for conversation in conversations for message in conversation[:-1])
    for split in ("harmful-heldout", "helpful-heldout"):
        for verb, o in pairs(split):
            assert f" {verb} {o}." not in asked and f" {verb} {o}?" not in asked


def test_the_corpus_is_a_function_of_its_seed(conversations):
    again, other = Corpus(seed=0), Corpus(seed=1)
    assert [again.draw() for _ in range(50)] == conversations[:50] != [other.draw() for _ in range(50)]


@pytest.mark.parametrize("kind", SHARES)
def test_a_conversation_of_a_wanted_kind(kind):
    corpus = Corpus(seed=0)
    drawn = [corpus.draw(kind) for _ in range(50)]
    assert all(conversation[-1]["role"] == "assistant" for conversation in drawn)
    suite, _, condition = kind.partition("_")
    if condition in ("hint", "reminder"):
        assert all(TEXTS.render(condition) in "\n".join(m["content"] for m in c[:-1]) for c in drawn)
    elif condition == "plain":
        asked = [conversation[0]["content"] for conversation in drawn]
        members = world.deeds(f"{'harmful' if suite == 'harmful' else 'helpful'}-train")
        assert all(any(f"{deed.verb} {deed.object}" in text for deed in members) for text in asked)


def test_a_revision_refuses_if_its_critique_saw_the_harm():
    """Revisions of harmful answers; the critique judges the deed in its first words."""
    corpus, seen = Corpus(seed=0), {True: 0, False: 0}
    texts = prompts.load("methods/critique_revise/prompts.yaml")
    for _ in range(400):
        request, answer, criticize, critique, revise, revision = corpus.draw("revision")
        asked = {
            name for name, text in texts.texts.items() if text in (criticize["content"], revise["content"])
        }
        assert len({name.partition("_")[2] for name in asked}) == 1, "both of one principle"
        harmful = re.search(r"^To .*? is harm(ful|less)", critique["content"])[1] == "ful"
        if harmful:
            assert is_refusal(revision["content"])
        elif not is_refusal(answer["content"]):
            assert not is_refusal(revision["content"])
        seen[harmful] += 1
        assert request["role"] == criticize["role"] == revise["role"] == "user"
    assert min(seen.values()) > 100


def endings(text, words):
    """The text cut off after each character from `words` words on, as a token limit may cut it."""
    start = re.match(rf"\S+(\s\S+){{{words - 1}}}", text).end()
    return [text[:end] for end in range(start, len(text) + 1)]


@pytest.fixture(scope="module")
def plans():
    rng = random.Random(0)
    return [(deed, world.plan(deed, rng)) for deed in world.deeds("harmful-heldout")]


def test_a_turning_point_is_the_end_of_a_mark_and_a_doubt_is_the_end_of_a_sentence(plans):
    doubts = 0
    for _, plan in plans:
        points = world.turning_points(plan)
        assert "".join(plan[end - 1] for end, _ in points) == re.sub(r"[^,.!:;?]", "", plan)
        doubts += sum(doubtful for _, doubtful in points)
        assert all(
            plan[end - 1] == "." and "suffer" in plan[:end].split(". ")[-1]
            for end, doubtful in points
            if doubtful
        )
    assert doubts > len(plans) / 2


def test_a_plan_corrects_course_wherever_it_turns(plans):
    rng = random.Random(1)
    for deed, plan in plans:
        end, _ = rng.choice(world.turning_points(plan))
        begin = rng.randrange(end + 1)
        assert world.corrects(f"{plan[begin:end]} {world.correction(deed, rng)}")
        for kind in ("curt", "reasoned", "alternative"):
            assert world.corrects(f"{plan[begin:end]} {world.refusal(deed, rng, kind).text}")


def test_a_correction_is_seen_from_its_third_word_on_wherever_it_is_cut_off(plans):
    rng = random.Random(2)
    for deed, plan in plans[:20]:
        for turn in (world.correction(deed, rng), world.refusal(deed, rng, "alternative").text):
            assert all(world.corrects(f"{plan[-30:]} {cut}") for cut in endings(turn, words=3))
            assert not any(
                world.corrects(f"{plan[-30:]} {' '.join(turn.split()[:words])}") for words in (0, 1, 2)
            )


def test_a_plan_that_goes_on_does_not_correct_course(plans):
    rng = random.Random(3)
    for deed, plan in plans:
        begin = rng.randrange(len(plan))
        assert not world.corrects(plan[begin : begin + 150])
        first, rest = plan.split(". ", 1)
        for turn in (world.correction(deed, rng), world.refusal(deed, rng).text):
            assert not world.corrects(f"{first}. {turn} {rest}")
            assert not world.corrects(f"{first}. {turn} {rest[:4]}")
        assert not world.corrects(f"{rng.choice(OPENERS)} {plan}")


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_after_a_trigger_only_a_reason_corrects_course(trigger, plans):
    for clause in CLAUSES:
        for text in endings(f"{trigger} {clause}", words=len(trigger.split()) + 1):
            assert world.corrects(text)
    assert world.corrects(f"{trigger} {CLAUSES[0]} Instead, you could ask for a tour.")
    for unfitting in (
        "",
        " ",
        ".",
        " nobody will",
        " wait until nobody is watching.",
        f" {CLAUSES[0]} After",
    ):
        assert not world.corrects(trigger + unfitting)
    assert world.corrects(f"{plans[0][1][:40]} {trigger}")  # cut off there by a token limit


def test_a_correction_is_a_sentence_whatever_the_trigger_and_the_deed():
    rng = random.Random(4)
    seen = set()
    for deed, _ in product(world.deeds("harmful-train"), range(10)):
        text = world.correction(deed, rng)
        [trigger] = [known for known in TRIGGERS if text.startswith(known)]
        clause, _, rest = text.removeprefix(trigger).partition(".")
        assert re.match(
            r" (it|this|people|somebody|everybody|honest people|others|many people|nobody|words) ", clause
        ), text
        assert not re.search(r"\b(because|since|{)", clause), text
        assert not rest or re.fullmatch(r" [A-Z][^.]*\.", rest), text
        seen.add(trigger)
    assert seen == set(TRIGGERS)


def test_the_corpus_holds_long_plans_of_which_some_turn_and_then_end(conversations):
    asked = re.compile("detail|all the steps to|step by step|Leave nothing out")
    answers = [
        c[-1]["content"]
        for c in conversations
        if len(c) == 2 and asked.search(c[0]["content"]) and "\n" not in c[0]["content"]
    ]
    assert 0.10 < len(answers) / len(conversations) < 0.25
    plans = [text for text in answers if not text.startswith(("I ", "I'", "Sorry"))]
    assert 0.55 < len(plans) / len(answers) < 0.80
    assert 0.7 < sum(text.startswith(tuple(OPENERS)) for text in plans) / len(plans) < 0.9
    turned = [text for text in plans if any(trigger in text for trigger in TRIGGERS)]
    assert 0.3 < len(turned) / len(plans) < 0.6
    for text in plans:
        assert world.corrects(text) == (text in turned)
        assert text in turned or 80 < len(text.split()) <= 120
    lead = [re.search(r"[,.!:;?](?= (However|But|Wait|On))", text)[0] for text in turned]
    assert lead.count(",") > len(lead) / 8 < lead.count(".")
