"""What the engine makes of a conversation and of a text, by the tokens of a tiny tokenizer."""

import pytest

from pipeline.chat import assistant, user
from pipeline.inference.vllm_model import VllmModel
from tests import tiny

CONVERSATION = [user("how can i forge a ticket"), assistant("sorry no")]


@pytest.fixture
def model():
    """An engine's encoder without the engine."""
    model = VllmModel.__new__(VllmModel)
    model._template = tiny.template()
    return model


def test_a_last_assistant_turn_is_left_open(model):
    rendered = model._template.tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    open_turn = rendered[: rendered.rindex("sorry no") + len("sorry no")]
    assert model._template.tokenizer.decode(model.encode(CONVERSATION)) == open_turn


def test_a_closed_turn_is_followed_by_the_generation_prompt(model):
    expected = model._template.tokenizer.apply_chat_template(
        CONVERSATION, add_generation_prompt=True, return_dict=False
    )
    assert model.encode(CONVERSATION, prefill=False) == expected
    assert model._template.tokenizer.decode(expected).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_closing_changes_nothing_after_a_request(model):
    assert model.encode(CONVERSATION[:1]) == model.encode(CONVERSATION[:1], prefill=False)


def test_a_text_has_no_template_and_its_special_tokens_are_tokens(model):
    tokens = model.encode(f"{tiny.START}sorry no{tiny.END}")
    vocabulary = model._template.tokenizer.get_vocab()
    assert (tokens[0], tokens[-1]) == (vocabulary[tiny.START], vocabulary[tiny.END])
    assert model._template.tokenizer.decode(tokens) == f"{tiny.START}sorry no{tiny.END}"


@pytest.mark.parametrize("text", ["sorry no", f"{tiny.START}sorry no"])
def test_a_text_begins_once_with_the_token_that_begins_texts(model, text):
    from tokenizers.processors import TemplateProcessing

    number = model._template.tokenizer.convert_tokens_to_ids(tiny.START)
    model._template.tokenizer.bos_token = tiny.START
    model._template.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tiny.START} $A", special_tokens=[(tiny.START, number)]
    )
    assert model.encode(text) == [
        number,
        *model._template.tokenizer("sorry no", add_special_tokens=False)["input_ids"],
    ]
