"""Pairs of the source on a real sample: figures that another program has counted."""

import json
from collections import Counter
from pathlib import Path

import pytest

from pipeline.methods.source_preferences import SourcePreferences
from pipeline.schema import PREFERENCES
from pipeline.sources.counts import Accounts
from tests.unit.methods.test_source_preferences import compared
from tests.unit.sources.written import rows_of, write_jsonl

SAMPLE = Path(__file__).parents[4] / "shared/data/pku_saferlhf_sample.jsonl"


def pairs_of(rows: list[dict]) -> list[dict]:
    method = SourcePreferences(instructions={"path": "unused"})
    return list(method.examples(PREFERENCES, compared(rows), Counter(), 0, Accounts()))


@pytest.mark.skipif(not SAMPLE.exists(), reason="the real sample is not beside this checkout")
def test_38_pairs_of_which_better_response_id_would_invert_32(tmp_path):
    raw = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    assert len(raw) == 304
    # every prompt a different one, so that none is left out as a repetition
    numbered = [{**row, "prompt": f"{number}: {row['prompt']}"} for number, row in enumerate(raw)]
    pairs = pairs_of(rows_of(write_jsonl(tmp_path / "numbered.jsonl", numbered)))
    assert len(pairs) == 38
    by_better = {row["prompt"]: row[f"response_{row['better_response_id']}"].strip() for row in numbered}
    chosen = {pair["prompt"][0]["content"].strip(): pair["chosen"][0]["content"].strip() for pair in pairs}
    asked = {prompt.strip(): better for prompt, better in by_better.items()}
    assert sum(asked[prompt] != text for prompt, text in chosen.items()) == 32
    assert len(pairs_of(rows_of(SAMPLE))) == 35, "prompts that repeat are read once"
