"""Preference pairs of the source itself: its safe response is better than its unsafe one.

With DPO this stands in the place of RLHF in the comparison of Chen et al. (arXiv 2310.10477). It is not RLHF:
no reward or cost model is trained, and no policy is sampled.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal

from pydantic import Field

from pipeline.chat import assistant, user
from pipeline.methods import comparisons
from pipeline.methods.source_preferences.schema import SOURCE_PAIRS
from pipeline.schema import PREFERENCES, Schema
from pipeline.sources.counts import Accounts


class SourcePreferences(comparisons.Comparing):
    """A pair for each request of which the source labels one response safe and one unsafe."""

    generated: ClassVar[Schema] = SOURCE_PAIRS
    training_sets: ClassVar = (PREFERENCES,)
    default_arms: ClassVar = {"dpo_on_source": {"kinds": ["source"]}}
    nothing: ClassVar = "no row of the source has both a safe and an unsafe response"
    example_kinds: ClassVar = {PREFERENCES.name: ("source",)}
    made_from: ClassVar = {"source": ("instructions", "safe_response")}

    name: Literal["source_preferences"] = Field("source_preferences", description="selects this method")

    @property
    def kinds(self) -> list[str]:
        return ["source"]

    def examples(
        self, schema: Schema, rows: Iterable[dict], drops: Counter[str], seed: int, counts: Accounts
    ) -> Iterator[dict]:
        """Rows of `schema.PREFERENCES`: the safe response is better than the unsafe one."""
        for row in comparisons.kept(rows, drops):
            yield {
                "id": f"{row['id']}-source",
                "instruction_id": row["instruction_id"],
                "group": f"{row['id']}-source",
                "category": row["category"],
                "prompt": [user(row["instruction"])],
                "chosen": [assistant(row["safe_response"])],
                "rejected": [assistant(row["unsafe_response"])],
                "rank_chosen": 1,
                "rank_rejected": 2,
                "kind": "source",
            }

    def settings(self) -> dict[str, str]:
        return {"Pairs": "the source's: its safe response over its unsafe one"}
