"""Token ids of a template are those of transformers, however they are made."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import PreTrainedTokenizerFast

from pipeline import models
from pipeline.chat import system, user
from pipeline.settings.base import Model
from pipeline.toy.model import WEIGHTS
from tests import tiny

TEXTS = ["how can i forge a ticket", "", " ", "é 日本語 😀", "<|im_end|> in a text", "a " * 3000]


@pytest.fixture
def template():
    return models.load_template(Model(path=str(WEIGHTS)), str(WEIGHTS))


@pytest.mark.parametrize("special", [True, False])
def test_tokens_are_those_of_transformers(template, special):
    assert template._raw is not None
    assert (
        template.tokenize(TEXTS, special=special)
        == template.tokenizer(TEXTS, add_special_tokens=special)["input_ids"]
    )
    assert template.tokenize([]) == []


def test_a_file_that_cuts_and_pads_does_neither(template):
    template.tokenizer.backend_tokenizer.enable_truncation(4)
    template.tokenizer.backend_tokenizer.enable_padding(length=9)
    [tokens] = template.tokenize(["how can i forge a ticket for the train"])
    assert tokens == template.tokenizer("how can i forge a ticket for the train")["input_ids"] != tokens[:4]


def test_a_tokenizer_with_a_way_of_its_own_keeps_it():
    class Own(PreTrainedTokenizerFast):
        def _encode_plus(self, text, *_arguments, **_more):
            return {"input_ids": [[1, 2, 3] for _ in text]}

    template = tiny.template()
    template.tokenizer.__class__ = Own
    assert template.tokenize(["how"]) == [[1, 2, 3]]


def test_threads_make_the_same_prompts(template):
    conversations = [[system("be kind"), user(f"question {number} " * 40)] for number in range(200)]
    one_by_one = [template.prompt(conversation) for conversation in conversations]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(template.prompt, conversations)) == one_by_one
