"""The text of sampled tokens, decoded once at the end.

vLLM decodes every token as it comes, for streaming and for stop strings. A request that needs neither is
decoded here in one call: about a fifth of the time per token (`python -m benchmarks.frontend`).
"""

from collections.abc import Sequence
from typing import Any

_LONGEST_CHARACTER = 4  # tokens, if each is a byte of UTF-8
_BEFORE = 16  # tokens of the prompt; a longer one takes longer to read


def can_decode(tokenizer: Any) -> bool:
    """Whether `decode` can read this tokenizer's tokens: it is one of the `tokenizers` library."""
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    return isinstance(tokenizer, TokenizersBackend)


def decode(tokenizer: Any, prompt: Sequence[int], sampled: Sequence[int], *, skip_special: bool) -> str:
    """The text that the sampled tokens add to the prompt, as vLLM's own detokenizer gives it.

    A character that the last tokens begin and do not end is left out.
    """
    from tokenizers.decoders import DecodeStream

    raw, ids = tokenizer.backend_tokenizer, list(sampled)
    before = list(prompt[-_BEFORE:])
    # What is decoded depends on the tokens next to it, and on whether it begins the text.
    if not raw.decode(before, skip_special_tokens=skip_special).strip():
        before = list(prompt)
    for end in range(len(ids), max(0, len(ids) - _LONGEST_CHARACTER), -1):
        stream = DecodeStream(ids=before, skip_special_tokens=skip_special)
        try:
            text = stream.step(raw, ids[:end])
        except Exception:  # odd bytes before these tokens; the library names no narrower class
            return raw.decode(ids, skip_special_tokens=skip_special)
        if text is not None:
            return text
    return ""
