"""What all tests of the endpoint's client have in common: a key, short waits, and what is told."""

import asyncio

import pytest

from pipeline.inference import notices
from pipeline.inference import openai as module
from tests.unit.inference.endpoint.servers import (
    KEY,
)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "FIRST_DELAY_S", 0.01)


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """What the client would have waited for, in seconds; nobody waits."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds, *_):
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(module.asyncio, "sleep", note)
    return waits


@pytest.fixture
def told():
    said: list[str] = []
    notices.send_to(said.append)
    return said
