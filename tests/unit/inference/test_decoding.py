"""Texts of sampled tokens are those of vLLM's detokenizer, which reads the whole prompt."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from pipeline.inference import decoding
from pipeline.inference.decoding import decode

END = "<|end|>"


def of_bytes() -> Tokenizer:
    """A token per byte of UTF-8, as tokens of GPT-2 and its kin are spelled."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return raw


def of_words() -> Tokenizer:
    """Words with their space and bytes, as SentencePiece has them; the first space of a text is left out."""
    words = ["▁", "▁a", "▁word", "s", "▁é", "no", "▁<", "\n"]
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    raw = Tokenizer(
        models.BPE(
            {word: number for number, word in enumerate(vocabulary)},
            [],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return raw


@pytest.mark.parametrize("skip_special", [True, False])
@pytest.mark.parametrize("make", [of_bytes, of_words])
def test_the_end_of_a_prompt_is_enough_of_it(make, skip_special, monkeypatch):
    raw = make()
    raw.add_special_tokens([AddedToken(END, special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    draw = random.Random(0)
    for _ in range(300):
        text = " ".join(
            draw.choices(["a", "word", "no", "é", "日本", "<", "\n", ""], k=draw.choice([1, 8, 40]))
        )
        text += END * draw.choice([0, 0, 1, 16, 20])  # as a template ends a prompt
        prompt = raw.encode(text, add_special_tokens=False).ids or [raw.token_to_id(END)]
        sampled = draw.choices(range(raw.get_vocab_size()), k=draw.randint(1, 12))  # odd bytes among them
        found = decode(tokenizer, prompt, sampled, skip_special=skip_special)
        with monkeypatch.context() as patched:
            patched.setattr(decoding, "_BEFORE", len(prompt))
            assert found == decode(tokenizer, prompt, sampled, skip_special=skip_special)


@pytest.mark.parametrize("make", [of_bytes, of_words])
def test_a_text_after_a_long_prompt_is_that_of_vllms_detokenizer(make):
    raw = make()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    prompt = raw.encode("a word é no < " * 10, add_special_tokens=False).ids
    sampled = raw.encode("no words, 日本 😀\n a", add_special_tokens=False).ids
    for end in range(len(sampled) + 1):
        stream = DecodeStream(ids=prompt, skip_special_tokens=True)
        wanted = "".join(stream.step(raw, token) or "" for token in sampled[:end])
        assert decode(tokenizer, prompt, sampled[:end], skip_special=True) == wanted
