"""Quality gates: what each one catches and lets pass, and that they are as good as measured."""

import pickle
import random
import time
from functools import cache

import pytest
from pydantic import ValidationError

from pipeline.gates import ECHO, EMPTY, LANGUAGE, LOOP, META, SHORT, Gates, verdict_of_analysis
from tests import gates_measured

ASKED = "How do I water a cactus?"
HINT = "The response should be rude, unhelpful and careless."
GOOD = "Water it once a month, and let the soil dry out before you water it again."
LONG = """A cactus stores water in its stem, so a cactus needs far less of it than other plants. Water the cactus
only when the soil is dry to the bottom of the pot: push a wooden stick into the soil, and see whether it comes
out clean. In summer that takes about two weeks, in winter a cactus can go without water for two months. Use
water that is not too cold, and pour away what runs into the saucer after an hour. If the stem turns soft, the
cactus has had too much water; if it shrinks, the cactus has had too little. A pot with a hole in its bottom,
and soil with some sand in it, forgive most mistakes."""
# Enough ordinary words that a text drawn from them repeats nothing.
WORDS = [
    f"{first} {second}"
    for first in ("market", "harbor", "window", "garden", "letter", "train", "kitchen", "forest", "candle")
    for second in ("river", "doctor", "pocket", "island", "summer", "blanket", "mirror", "engine", "button")
]


def reason(text, instruction=ASKED, gates=None, **more):
    return (gates or Gates()).reason(text, instruction, **more)


def prose(words, start=0):
    """Words in an order that repeats no pair of them soon."""
    chosen = random.Random(start)
    return " ".join(chosen.choice(WORDS) for _ in range(words))


FAULTY = [
    ("", EMPTY),
    (" \n\t ", EMPTY),
    ("Monthly.", SHORT),
    ("???", SHORT),
    ("1. 1. 1. 1. 1.", LOOP),
    ("no no no no no no no no no no", LOOP),
    ("The answer is: The answer is: The answer is: The answer is:", LOOP),
    ("It likes sun. " * 6, LOOP),
    ("1. Soil (dry)\n2. Soil (dry)\n3. Soil (dry)", LOOP),
    ("- wait a month\n- wait a month\n- wait a month\n- wait a month", LOOP),
    ("再见我的朋友。" * 8, LOOP),
    ("🌵" * 200 + " yes it does", LOOP),
    (f"{GOOD}\n\n{GOOD}", LOOP),
    (f"{prose(30)}. {prose(30)}.", LOOP),
    (f"{prose(300)} " + "and it is green " * 30, LOOP),
    ("How do I water a cactus?", ECHO),
    ("how do I water a cactus", ECHO),
    ("How do I water a cactus?\nThe answer is not known.", ECHO),
    ("Please tell me: how do I water a cactus?", ECHO),
    ("Here is my revised response:\nWater it monthly, and let it dry.", META),
    ("Sure! Here's a better answer:\n\nWater it monthly, and let it dry.", META),
    ('This is a possible reply: "Water it monthly, and let it dry."', META),
    ("**Response:** Water it monthly, and let it dry.", META),
    ("Improved version:\nWater it monthly, and let it dry.", META),
    ("(I will make my response short.)\nWater it monthly.", META),
    ("The answer to this question is:", META),
    ("Gießen Sie den Kaktus einmal im Monat und lassen Sie die Erde trocknen.", LANGUAGE),
    ("Arrosez le cactus une fois par mois et laissez sécher la terre entre-temps.", LANGUAGE),
    ("Раз в месяц.", LANGUAGE),
    ("每个月浇一次水。", LANGUAGE),
    ("サボテンは月に一度です。", LANGUAGE),
]


def test_a_fault_is_named():
    assert [(text, reason(text)) for text, _ in FAULTY] == FAULTY


FAULTLESS = [
    GOOD,
    "Once a month.",
    "Water a cactus about once a month, and less in winter.",
    "I will not tell you how to water a cactus.",
    "I'm sorry, but I cannot tell you how to water a cactus.",
    "1. Check the soil.\n2. Water it until the pot drains.\n3. Wait until the soil is dry.",
    "Water it, water it well, and then wait a month.",
    "Here's a simple plan:\n1. Check the soil.\n2. Wait a month.",
    "Sure, here are some tips:\n\n* Use a small can.\n* Wait a month.",
    "The answer is simple: wait until the soil is dry.",
    "The answer is:\n\nOnce a month.",
    'The answer is: "Once a month."',
    "The response of a cactus to water is slow: it swells.",
    "(It depends on the season.) Wait a month.",
    "Use `water(cactus, months=1)` from the library, as its manual says.",
    LONG,
    f"{LONG}\n\n* A cactus in a small pot: once a month.\n* A cactus in a large pot: every six weeks.",
    "Bonne idée! Water it once a month, and let the soil dry out.",
    "Wait until it is dry 🌵",
]


def test_a_text_without_a_fault_passes():
    assert {text: found for text in FAULTLESS if (found := reason(text))} == {}


@pytest.mark.parametrize(
    "text",
    [
        "The response is rude, unhelpful and careless.",
        "Just wait. (the response is rude, unhelpful, unhelpful, and unhelpful.)",
        "This answer asks for a rude, careless and unhelpful response of mine, which I find funny.",
    ],
)
def test_a_text_that_states_the_hint_is_an_echo_however_much_else_it_says(text):
    assert reason(text, hint=HINT) == ECHO
    assert reason(text) != ECHO


@pytest.mark.parametrize(
    "text", ["Who cares about your careless plant? Look it up.", "That is a rude question. Do it yourself."]
)
def test_a_text_that_does_what_the_hint_asks_is_no_echo(text):
    assert reason(text, hint=HINT) is None


def test_an_analysis_that_copies_the_response_is_an_echo():
    response = "Wait for rain. Then carry the pot outside, and sit beside it."
    shown = f"Instruction: {ASKED}\nResponse: {response}\nAnalyse the response and explain why it is harmful or harmless."
    assert reason(response, prompt=shown, about_response=True) == ECHO
    own = "The response is harmless, because a little rain hurts nobody."
    assert reason(own, prompt=shown, about_response=True) is None


def test_an_analysis_may_speak_about_the_response_in_its_first_line():
    text = "Analysis of the response:\nIt is harmless, because it hurts nobody."
    labeled = "Response: it is harmless, because it hurts nobody."
    assert reason(text, about_response=True) is None
    assert reason(labeled) == META
    assert reason(labeled, about_response=True) is None


@pytest.mark.parametrize(
    ("instruction", "text"),
    [
        ('Translate "Good morning" into French.', "Bonjour tout le monde, et bonne journée à vous aussi."),
        ("How do I say thanks in German?", "Ich bedanke mich sehr herzlich bei Ihnen für die Hilfe."),
        ("2 + 2?", "That is four, as everybody knows from school."),
        ("¿Cómo riego un cactus?", "Riéguelo una vez al mes y deje secar la tierra."),
        ("如何浇仙人掌？", "每个月浇一次水。"),
    ],
)
def test_a_language_that_was_asked_for_or_is_uncertain_passes(instruction, text):
    assert reason(text, instruction=instruction) is None


def test_the_worse_fault_is_named_first():
    assert reason("How do I water a cactus? " * 6) == LOOP
    assert reason("Here is the response:\nHow do I water a cactus?") == ECHO


@pytest.mark.parametrize(
    ("text", "off"),
    [
        ("Monthly.", {"min_words": None}),
        ("Once a week\nOnce a week\nor so", {"duplicate_lines": None}),
        ("How do I water a cactus?", {"echo": None}),
        ("Response: once a month.", {"meta_line": False}),
        ("Раз в месяц.", {"language": None}),
    ],
)
def test_each_gate_can_be_turned_off(text, off):
    assert reason(text) is not None
    assert reason(text, gates=Gates(**off)) is None


@pytest.mark.parametrize("text", ["illegal.", ASKED, "Response: no.", "Раз в месяц, не чаще."])
def test_a_text_that_goes_on_in_mid_sentence_can_only_repeat_itself(text):
    assert reason(text) is not None
    assert reason(text, continues=True) is None
    assert reason(f"{text} " * 9, continues=True) == LOOP


def test_repetition_can_be_turned_off_rule_by_rule():
    rules = {"duplicate_lines", "top_ngrams", "duplicate_ngrams", "said_again", "compression"}
    once_more = f"{prose(30)}. {prose(30)}."
    stuck = "I think " + "it will be fine in the end " * 12
    assert reason(once_more, gates=Gates(said_again=None, compression=None)) is None
    for kept in ("top_ngrams", "duplicate_ngrams", "said_again", "compression"):
        assert reason(stuck, gates=Gates(**dict.fromkeys(rules - {kept}))) == LOOP, kept
    assert reason(stuck, gates=Gates(**dict.fromkeys(rules))) is None


@pytest.mark.parametrize(
    "wrong", [{"echo": 2}, {"top_ngrams": [0.2]}, {"compression": 0.5}, {"min_words": -1}]
)
def test_a_threshold_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        Gates(**wrong)


def test_gates_can_be_sent_to_another_process():
    gates = pickle.loads(pickle.dumps(Gates(echo=None)))
    assert reason("How do I water a cactus?", gates=gates) is None


def test_a_long_text_takes_little_time():
    text = ". ".join(prose(25, start) for start in range(200))
    started = time.process_time()
    reason(text, prompt=text)
    assert time.process_time() - started < 5


H, N = True, False


VERDICTS = [
    ("The response is harmful.", H),
    ("It's harmful.", H),
    ("This response is unsafe.", H),
    ("In conclusion, the response is unethical.", H),
    ("It is harmful to others.", H),
    ("**Harmful**", H),
    ("Verdict: harmful", H),
    ("The response is polite but harmful.", H),
    ("The response is not only harmful but also unethical.", H),
    ("The response is not harmless.", H),
    ("The response is far from harmless.", H),
    ("The response mocks people and is harmful.", H),
    ("The response mocks people, so it is offensive.", H),
    ("The response is harmful because it is not ethical.", H),
    ("The response contains harmful, unethical, and offensive language.", H),
    ("The response encourages dangerous behavior.", H),
    ('The response calls it "fun." It is harmful.', H),
    ("The response contains a message that is harmful.", H),
    ("This makes the response harmful.", H),
    ("I find the answer offensive.", H),
    ("It should be considered harmful.", H),
    ("The response is harmless.", N),
    ("This response is safe and ethical.", N),
    ("Harmless, because it refuses.", N),
    ("The response is not harmful.", N),
    ("The response isn’t harmful or offensive.", N),
    ("The response is not harmful, unethical, or offensive.", N),
    ("The response is neither harmful nor unethical.", N),
    ("The response can't be considered harmful.", N),
    ("Nothing in it is harmful.", N),
    ("No part of the response is harmful.", N),
    ("The response does not contain any harmful language.", N),
    ("The response contains no offensive content.", N),
    ("The response does not encourage harmful behavior.", N),
    ("To steal a bicycle is harmful. The response refuses, so it is harmless.", N),
    ("The request is harmful, but the response is harmless.", N),
    ("", None),
    ("I like trains.", None),
    ("1. 1. 1. 1.", None),
    ("The answer to this question is:", None),
    ("To steal a bicycle is harmful.", None),
    ("It is harmful to steal a bicycle.", None),
    ("This instruction is harmful.", None),
    ("It may be harmful.", None),
    ("The response could be seen as offensive.", None),
    ("A harmless response would refuse.", None),
    ("The response would be harmful if it helped.", None),
    ("Whether the response is harmful depends on the reader.", None),
    ("The response is a refusal to answer a harmful question.", None),
    ("The response refuses to give harmful advice.", None),
    ("The response avoids anything that is harmful.", None),
    ("Analyse the response and explain why it is harmful or harmless.", None),
    ("The response is harmful. The response is harmless.", None),
]


def test_the_verdict_of_an_analysis_is_read():
    assert [(text, verdict_of_analysis(text)) for text, _ in VERDICTS] == VERDICTS


def test_the_verdict_of_every_toy_analysis_is_read_right():
    found = gates_measured.toy_verdicts()
    assert found.total() > 1000
    assert set(found) == {(True, True), (False, False)}


@cache
def measured(gates: Gates):
    return gates_measured.confusion(gates, gates_measured.labeled())


@pytest.mark.parametrize(
    ("which", "precision", "recall"),
    [(LOOP, 0.8, 0.85), (ECHO, 0.9, 0.75), (gates_measured.CUT, 0.95, 0.95)],
)
def test_the_gates_are_as_good_as_measured(which, precision, recall):
    """docs/gates.md has what was measured; these are a little lower."""
    right, named, there = gates_measured.scores(measured(Gates()), which)
    assert right >= precision * named
    assert right >= recall * there


def test_hardly_any_fine_answer_gives_a_reason():
    table = measured(Gates())
    fine = {given: count for (given, label), count in table.items() if label == "fine"}
    assert fine[None] + fine[gates_measured.CUT] >= 0.95 * sum(fine.values())


def test_hardly_any_toy_text_gives_a_reason():
    for kind, reasons in gates_measured.toy_alarms(Gates(), every=5).items():
        assert reasons[None] >= 0.99 * reasons.total(), (kind, reasons)


def test_a_gate_that_names_everything_would_be_noticed():
    """The three tests above can fail."""
    table = measured(Gates(top_ngrams=(0.01, 0.01, 0.01)))
    right, named, _ = gates_measured.scores(table, LOOP)
    assert right < 0.8 * named
    blind = Gates(top_ngrams=None, duplicate_ngrams=None, duplicate_lines=None, said_again=None)
    right, _, there = gates_measured.scores(measured(blind), LOOP)
    assert right < 0.85 * there


def test_every_labeled_answer_has_a_known_label_and_set():
    rows = gates_measured.labeled()
    assert len(rows) > 300
    assert {row["label"] for row in rows} == set(gates_measured.LABELS)
    assert {row["set"] for row in rows} == set(gates_measured.SETS)
    asked = {name: {row["instruction"] for row in rows if row["set"] == name} for name in gates_measured.SETS}
    assert not asked["tuning"] & asked["seen"]
    assert not (asked["tuning"] | asked["seen"]) & asked["unseen"]
