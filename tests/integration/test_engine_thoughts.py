"""Marks of thoughts that are special tokens, through the real engine: a model that writes fixed texts."""

import asyncio

import pytest

from pipeline import thoughts
from pipeline.chat import Sampling
from pipeline.inference.vllm import VLLM
from pipeline.settings.base import Model
from tests import tiny

pytestmark = pytest.mark.timeout(300)
SPACING, FILLER = 24, "<|filler|>"
# The texts that the model writes, token by token, and what is a thought in them.
WRITTEN = [
    (["[THINK]", "take", "[/THINK]", "sure", tiny.END], ("take", "sure")),
    (
        [
            *("<|channel|>", "analysis", "<|message|>", "take", "<|end|>", "<|start|>", "assistant"),
            *("<|channel|>", "final", "<|message|>", "sure", tiny.END),
        ],
        ("take", "sure"),
    ),
    (
        ["<|START_THINKING|>", "take", "<|END_THINKING|>", "<|START_RESPONSE|>", "sure", "<|END_RESPONSE|>"],
        ("take", "sure"),
    ),
    (["<|channel|>", "final", "<|message|>", "sure", "<|other|>", tiny.END], (None, "sure")),
    (["[THINK]", "take", "take", tiny.END], ("taketake", None)),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> str:
    """A model whose next token is a function of the position alone."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    place, tokenizer = tmp_path_factory.mktemp("model"), tiny.tokenizer()
    names = {name for tokens, _ in WRITTEN for name in tokens}
    words = ["take", "sure", "analysis", "final", "assistant"]
    special = [*sorted(names - {tiny.END, *words}), FILLER]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens(words)
    tokenizer.save_pretrained(place)
    size = 128  # a multiple of the head sizes that vLLM has on a CPU
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=size,
        n_embd=size,
        n_layer=1,
        n_head=2,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.weight.fill_(1)
        model.transformer.wpe.weight.copy_(torch.eye(size))
        for number, (tokens, _) in enumerate(WRITTEN):
            for place_in_text, name in enumerate(tokens):
                token = tokenizer.convert_tokens_to_ids(name)
                model.lm_head.weight[token, number * SPACING + place_in_text] = 1
    model.save_pretrained(place)
    return str(place)


def test_thoughts_between_special_tokens_are_split_off(directory):
    async def answers() -> list[str]:
        from pipeline.inference.vllm_model import VllmModel

        model = VllmModel(Model(path=directory, dtype="float32"), directory, VLLM(max_num_seqs=8))
        try:
            greedy, found = Sampling(12, temperature=0), []
            for number in range(len(WRITTEN)):
                prompt = FILLER * (number * SPACING + 1)
                found += await model.complete(prompt, greedy, seed=0, adapter=None)
            return [completion.text for completion in found]
        finally:
            model.close()

    with asyncio.Runner() as runner:
        texts = runner.run(answers())
    assert [tuple(thoughts.split(text)) for text in texts] == [split for _, split in WRITTEN]
