"""Labels, packing and order of training examples."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.templates import ChatTemplate
from pipeline.training import examples
from pipeline.training.examples import IGNORE
from tests import tiny

LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)
THINKS = tiny.CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
ENDLESS = (
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}{% if"
    " add_generation_prompt %}assistant:{% endif %}"
)

text = st.text(max_size=40) | st.lists(st.sampled_from([*tiny.WORDS, "\n", "  "]), max_size=20).map(" ".join)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


def turns(*contents: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


def target(tokenizer, example) -> str:
    return tokenizer.decode(
        [t for t, label in zip(example.tokens, example.labels, strict=True) if label != IGNORE]
    )


@pytest.mark.parametrize("template", [tiny.CHATML, LLAMA2])
def test_target_is_the_last_turn_and_its_end(template):
    made = tiny.template(template)
    tokenizer = made.tokenizer
    [example] = examples.encode(made, [turns("how can i bake", "take a cake", "then", "mix the cake")])
    assert target(tokenizer, example).strip() == "mix the cake<|im_end|>"
    assert example.tokens[-1] == tokenizer.eos_token_id


def test_no_token_of_a_bad_response_has_a_label(tokenizer):
    bad = "forge a ticket first then hurts people"
    [example] = examples.encode(
        ChatTemplate(tokenizer),
        [turns(f"how can i forge a ticket\n\nResponse: {bad}\n\nis this harmful", "this is harmful")],
    )
    start = tokenizer.decode(example.tokens).index(bad)
    read, labeled = 0, []
    for token, label in zip(example.tokens, example.labels, strict=True):
        begin, read = read, read + len(tokenizer.decode([token]))
        if begin < start + len(bad) and read > start:
            labeled.append(label)
    assert labeled and set(labeled) == {IGNORE}


@given(st.lists(text, min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0))
@settings(max_examples=75)
def test_labels_of_any_conversation(tokenizer, contents):
    [example] = examples.encode(ChatTemplate(tokenizer), [turns(*contents)])
    if isinstance(example, str):
        assert example == ("changed_by_template" if contents[-1].strip() else "empty_answer")
        assert not contents[-1].strip()
        return
    prompt = ChatTemplate(tokenizer).prompt(turns(*contents)[:-1])  # as engines see it
    assert example.tokens[: example.prompt] == prompt
    assert set(example.labels[: example.prompt]) == {IGNORE}
    assert example.labels[example.prompt :] == example.tokens[example.prompt :]
    assert tokenizer.decode(example.tokens[example.prompt :]) == contents[-1] + tiny.END


def test_no_token_spans_prompt_and_target(tokenizer):
    assert tokenizer.tokenize("\n\n") == ["ĊĊ"]
    asked = turns("sure", "\n\nsure")
    [example] = examples.encode(ChatTemplate(tokenizer), [asked])
    assert example.tokens[: example.prompt] == ChatTemplate(tokenizer).prompt(asked[:1])
    assert target(tokenizer, example) == "\n\nsure<|im_end|>"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (None, "no chat template"),
        (THINKS, "generation prompt that is not how"),
        (ENDLESS, "could not learn to stop"),
    ],
)
def test_a_template_that_cannot_be_labeled(template, sentence):
    with pytest.raises(UserError, match=sentence):
        examples.encode(tiny.template(template), [turns("how", "sure")])


def test_order_is_independent_of_the_rows_order(tokenizer, tmp_path):
    rows = tiny.rows(60)
    shuffled = random.Random(3).sample(rows, len(rows))
    tables = [
        examples.prepare(
            ChatTemplate(tokenizer), tiny.write(tmp_path / name, r), ["safe", "analysis"], seed, 128, True
        )
        for name, r, seed in [("a", rows, 0), ("b", shuffled, 0), ("c", rows, 1)]
    ]
    assert tables[0] == tables[1]
    assert tables[0][0] != tables[2][0]
    assert tables[0][-1].kinds == {"safe": 20, "analysis": 20}


def test_long_examples_are_dropped_and_counted(tokenizer, tmp_path):
    rows = tiny.rows(30)
    rows[4]["messages"][1]["content"] = "cake " * 100
    dataset = tiny.write(tmp_path / "some", rows)
    table, _, counts = examples.prepare(ChatTemplate(tokenizer), dataset, ["safe", "helpful"], 0, 90, False)
    assert (counts.kinds, counts.dropped) == ({"safe": 9, "helpful": 10}, {"too_long": 1})
    assert table.num_rows == 19  # one example a sequence
    with pytest.raises(UserError, match=r"train.max_length = 4"):
        examples.prepare(ChatTemplate(tokenizer), dataset, ["safe"], 0, 4, True)
    with pytest.raises(UserError, match="no example of kind analysis"):
        examples.prepare(
            ChatTemplate(tokenizer), tiny.write(tmp_path / "few", rows[1:2]), ["analysis"], 0, 90, True
        )


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(50, 120))
def test_packing(lengths, capacity):
    bins = examples.pack(lengths, capacity)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    fill = [sum(lengths[i] for i in b) for b in bins]
    assert all(0 < f <= capacity for f in fill)
    assert sum(2 * f <= capacity for f in fill) <= 1  # two half-empty sequences would have been one


@given(st.integers(1, 40), st.floats(0.1, 4), st.integers(1, 16), st.integers(0, 5))
def test_schedule(sequences, epochs, batch_size, seed):
    order = examples.schedule(sequences, epochs, batch_size, seed)
    assert order == examples.schedule(sequences, epochs, batch_size, seed)
    assert len(order) % batch_size == 0
    assert 0 <= len(order) - round(epochs * sequences) < batch_size or len(order) == batch_size
    for start in range(0, len(order), sequences):  # every epoch is a permutation
        epoch = order[start : start + sequences]
        assert len(set(epoch)) == len(epoch)
