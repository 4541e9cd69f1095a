"""The chat templates that TRL ships, which are those of real models, each on a small tokenizer that knows its
special tokens."""

import re
from functools import cache
from importlib.resources import files

from tests import tiny

# The token that ends a turn, by the beginning of the template's name; the longest beginning counts.
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma": "<end_of_turn>",
    "gemma4": "<turn|>",
    "glm4moe": "<|user|>",
    "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>",
    "llama3": "<|eot_id|>",
    "llava_next": "</s>",
    "muse_glimmer": "<|eot|>",
    "phi3": "<|end|>",
    "smolvlm": "<end_of_utterance>",
}
_SPECIAL = re.compile(
    r"<\|[A-Za-z_0-9]+\|>|<｜[^｜\s]+｜>|<(?:start|end)_of_\w+>|<\|?turn\|?>|<\|?channel\|?>"
)


@cache
def _texts() -> dict[str, str]:
    folder = files("trl") / "chat_templates"
    return {
        file.name.removesuffix(".jinja"): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".jinja")
    }


def names() -> list[str]:
    return sorted(_texts())


def text(name: str) -> str:
    return _texts()[name]


def end(name: str) -> str:
    """The token at which engines stop."""
    found = max((start for start in ENDS if name.startswith(start)), key=len, default=None)
    return tiny.END if found is None else ENDS[found]


@cache
def tokenizer(name: str):
    special = set(_SPECIAL.findall(text(name))) | {end(name), "<s>"}
    made = tiny.tokenizer(text(name))
    made.add_special_tokens({"additional_special_tokens": sorted(special - {tiny.END, tiny.START})})
    made.add_tokens([mark for mark in ("<think>", "</think>") if mark in text(name)])
    made.bos_token, made.eos_token = "<s>", end(name)
    return made
