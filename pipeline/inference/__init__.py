"""Engines: vLLM in the actors, a server, or words without a model.

A new engine is a file, and a name in the union below.
"""

from typing import Annotated, get_args

from pydantic import Discriminator, Tag

from pipeline.inference.base import Engine as AnyEngine
from pipeline.inference.dummy import Dummy
from pipeline.inference.openai import OpenAI
from pipeline.inference.vllm import VLLM
from pipeline.settings.base import tag

__all__ = ["DEFAULT", "ENGINES", "Engine"]

Engine = Annotated[
    Annotated[VLLM, Tag("vllm")] | Annotated[OpenAI, Tag("openai")] | Annotated[Dummy, Tag("dummy")],
    Discriminator(lambda value: tag(value, "kind", "vllm")),
]
DEFAULT = VLLM()
ENGINES: dict[str, type[AnyEngine]] = {
    cls.model_fields["kind"].default: cls for cls, _ in map(get_args, get_args(get_args(Engine)[0]))
}
