"""The engine of methods that ask no model: it opens nothing, so that `generate` only reads their sources."""

from collections.abc import Sequence
from typing import ClassVar

from pipeline.chat import Completion, Message, Sampling
from pipeline.inference.base import Engine
from pipeline.settings.base import Model

_REQUESTS = 64  # rows in flight; each is done at once


class Unasked(Engine):
    """No model is loaded. Not a member of the union of engines: a method selects it by asking nothing."""

    reads_model: ClassVar = False

    kind: str = "none"

    @property
    def requests(self) -> int:
        return _REQUESTS

    def open(self, model: Model, model_dir: str, adapters: Sequence[str]) -> "_Silent":
        return _Silent()

    def determines(self) -> dict:
        return {}

    def author(self, model: Model) -> str:
        return "none (its texts are the source's)"

    def described(self) -> str:
        return "no engine: reads the source"


class _Silent:
    async def complete(
        self,
        prompt: list[Message] | str,
        sampling: Sampling,
        *,
        seed: int,
        adapter: str | None,
        prefill: bool = True,
    ) -> list[Completion]:
        raise NotImplementedError("a method that says that it asks no model has asked one")


UNASKED = Unasked()
