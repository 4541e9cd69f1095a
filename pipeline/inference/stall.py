"""An engine that answers nothing any more is noticed, by one timer for all its requests."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from pipeline.inference.base import EngineDead

LOOK_EVERY_S = 30


class Watch:
    """Watches the requests of one engine. stall_s: how long the engine may answer none of them."""

    def __init__(self, stall_s: float):
        self._stall_s, self._stalled, self._answered_at = stall_s, False, 0.0
        self._asking: dict[object, asyncio.Task[Any]] = {}  # by request: a task may wait for several
        self._timer: asyncio.TimerHandle | None = None

    @property
    def asking(self) -> int:
        """How many requests wait for answers."""
        return len(self._asking)

    async def outputs(self, outputs: AsyncIterator) -> AsyncGenerator:
        """A request's outputs. Raises EngineDead if the engine answers no request for too long."""
        request, asking = object(), asyncio.current_task()
        assert asking is not None
        if not self._asking:
            self._answered_at = time.monotonic()
        self._asking[request] = asking
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)
        try:
            async for output in outputs:
                self._answered_at = time.monotonic()
                yield output
        except asyncio.CancelledError:
            if not self._stalled:
                raise
            raise EngineDead from TimeoutError(f"no request answered for {self._stall_s:.0f} s")
        finally:
            del self._asking[request]  # later than the next one begins, if nobody closes the generator

    def _look(self) -> None:
        self._timer = None
        if self._asking and time.monotonic() - self._answered_at > self._stall_s:
            self._stalled = True
            for asking in set(self._asking.values()):
                asking.cancel()
        elif self._asking:
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)
