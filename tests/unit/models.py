"""Models as tests need them: the tiny one with any chat template, or with changes in its configuration."""

import json

from tests import tiny, trl_templates

OPENS = tiny.CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")


def save(directory, name: str | None = None, template: str | None = None, **changes) -> str:
    """The tiny model with a template of TRL's, or this one."""
    if name is None:
        return tiny.save(directory, template or tiny.CHATML, **changes)

    def make(into) -> None:
        tokenizer = trl_templates.tokenizer(name)
        model = tiny.model(**changes)
        model.resize_token_embeddings(len(tokenizer))
        model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(into)
        tokenizer.save_pretrained(into)

    return tiny.copied(directory, (name, repr(changes)), make)


def edit(model: str, **changes) -> None:
    path = f"{model}/config.json"
    with open(path) as f:
        found = json.load(f)
    with open(path, "w") as f:
        json.dump(found | changes, f)
