"""Rows under attack: whatever stands in columns of known names, a row is read or has its reason."""

import random
from collections import Counter

import pytest

from pipeline.sources import instructions
from pipeline.sources.columns import LABELS, NAMES
from pipeline.sources.shapes import Shape

COLUMNS = [name for names in NAMES.values() for name in names] + list(LABELS)
ASK, SAY = {"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}
VALUES = [
    None, True, False, 0, 1, -1, 2.5, float("nan"), float("inf"), 10**400, "", " ", "x", "safe", "unsafe", "1.0", b"x", b"\xff", "[", "{", "[]", "{}",
    "Human: a", "\n\nHuman: a\n\nAssistant: b", '[{"role": "user", "content": "x"}]', "[{'role': 'user', 'content': None}]", "{'role': 1, 2: 3}",
    [], {}, [[]], [None], ["x"], [ASK], [SAY], [ASK, SAY], [SAY, ASK], [ASK, SAY, ASK], [ASK, 7], [ASK] * 50, {"messages": [ASK]}, {"messages": None},
    [ASK, {"role": None, "content": []}], [{"role": "user", "content": [{"type": "text", "text": "q"}]}, SAY], {"role": ["user"], "content": ["x"]},
    {"role": ["user"], "content": [None]}, [{"human": "a", "assistant": "b"}], [{"human": {}, "gpt": [1]}], {"role": "user", "content": {"type": "text"}},
    {"type": "text", "text": {"type": "text", "text": {"text": 1}}}, [{"role": "tool", "content": "x"}], [ASK, {"role": "tool", "content": "x"}, SAY],
    [{"role": "system", "content": "s"}], [{"input": "a", "output": "b"}], {1: 2}, [{1: 2}], [{"role": "user", "content": "x", 3: 4}],
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_row_is_read_or_has_its_reason(seed):
    r = random.Random(seed)
    outcomes: Counter[str] = Counter()
    for _ in range(5000):
        row = {r.choice(COLUMNS): r.choice(VALUES) for _ in range(r.choice([1, 2, 2, 3, 3, 4, 6]))}
        made = instructions._fields(row, Shape(), Counter(), set())
        outcomes[type(made).__name__] += 1
        if isinstance(made, str):
            assert made.isprintable() and len(made) < 200
            continue
        texts = [made.instruction, made.safe_response, made.unsafe_response, made.category]
        assert all(text is None or (isinstance(text, str) and text.strip()) for text in texts)
        assert made.instruction and None not in made.unsafe_responses
        assert (made.unsafe_response is None) == (not made.unsafe_responses)
    assert min(outcomes.values()) > 300, "both ends are reached"
