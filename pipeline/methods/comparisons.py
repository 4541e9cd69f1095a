"""What methods share that compare two responses of the source: a safe one and an unsafe one to one request.

They sample nothing. The labels of the source say which response is which (see `sources.shapes`): for
PKU-SafeRLHF those of safety, never `better_response_id`, which says which response is more helpful and mostly
names the unsafe one. A judge may check both sides.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from pipeline.chat import Chat, Recipe
from pipeline.data.dataset import Dataset
from pipeline.data.store import reason
from pipeline.gates import Gates
from pipeline.judges import Exchange, HarmlessnessJudge, Judge, negated
from pipeline.methods.base import DataReport, Method
from pipeline.report import tables
from pipeline.report.examples import Example, Text, among, category, first, shown
from pipeline.report.numbers import Rows, counted
from pipeline.report.summary import counts, tally
from pipeline.schema import DROPPED, ENDINGS, INSTRUCTIONS, OK, STATUS, TOKENS, Column, Schema

_NO_SAFE, _NO_UNSAFE = "no safe response in the source", "no unsafe response in the source"


def schema(name: str, title: str, *tags: str) -> Schema:
    """A data set of comparisons. Two methods of one run need data sets of different names."""
    return Schema(
        name,
        (
            *INSTRUCTIONS.columns[:7],
            Column(
                "safe_harmful",
                pa.bool_(),
                "the judge's verdict on the safe response; null if not judged or unreadable",
            ),
            Column(
                "unsafe_harmful",
                pa.bool_(),
                "the judge's verdict on the unsafe response; null if not judged or unreadable",
            ),
            Column("finish_reasons", pa.list_(pa.string()), "how each call of the judge ended"),
            ENDINGS,
            *TOKENS,
            *STATUS,
        ),
        title=title,
        tags=tags,
        stage="generate",
    )


class Comparing(Method):
    """The base of these methods: their section, the data set, its report."""

    gates: Gates | None = Field(None, description="null: gates are for sampled texts, and nothing is sampled")
    verify: HarmlessnessJudge | None = Field(
        None,
        description=(
            "judge of both responses; a comparison is kept only if it calls the safe one harmless and the"
            " unsafe one harmful; null = the source's labels are believed"
        ),
    )

    @model_validator(mode="after")
    def _samples_nothing(self) -> "Comparing":
        for name in ("samples", "unfinished", "gates", *(() if self.asks_model else ("engine",))):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} would change nothing, because {self.name} samples no text: leave it out"
                )
        return self

    @property
    def asks_model(self) -> bool:
        return self.most_tokens() > 0  # of the judge: none if it reads phrases, or is asked at a server

    @property
    def needs_safe(self) -> bool:
        return True

    @property
    def needs_unsafe(self) -> bool:
        return True

    def recipe(self, seed: int) -> Recipe:
        return ComparisonRecipe(self.verify)

    def prompt_hashes(self) -> dict[str, str]:
        return self.verify.prompt_hashes() if self.verify else {}

    def most_tokens(self) -> int:
        return 2 * self.verify.tokens() if self.verify else 0

    def report(self, numbers: Mapping[str, Rows | None]) -> DataReport:
        return data(self, numbers[self.generated.name])

    def examples_shown(self, dataset: Dataset, count: int) -> tuple[str, list[Example]]:
        return "Safe and unsafe responses of the source", examples(dataset, count)

    def judged(self) -> list[tuple[Judge, str, str]]:
        return [(self.verify, "harmlessness", "both responses of the source")] if self.verify else []


class ComparisonRecipe:
    """The recipe of a data set of comparisons.

    A row without two responses that differ is dropped without endings, so it counts as not selected.
    """

    def __init__(self, verify: Any):
        self.verify = verify

    async def __call__(self, row: dict, chat: Chat) -> dict:
        safe, unsafe = row["safe_response"], row["unsafe_response"]
        if not safe or not unsafe:
            return {"status": DROPPED, "error": _NO_UNSAFE if safe else _NO_SAFE}
        if safe.split() == unsafe.split():
            return {"status": DROPPED, "error": "equal responses"}
        result: dict[str, Any] = {"endings": [], "status": OK}
        if self.verify is None:
            return result
        for side, response in (("safe", safe), ("unsafe", unsafe)):
            verdict = await self.verify(Exchange(row["instruction"], response), chat, f"verify_{side}")
            harmful = negated(verdict.ok)
            result[f"{side}_harmful"] = harmful
            if harmful is not (side == "unsafe") and result["status"] == OK:
                said = {None: "has no readable verdict", True: "judged harmful", False: "judged harmless"}
                result |= {"status": DROPPED, "error": f"{side} response {said[harmful]}"}
        return result


def kept(rows: Iterable[dict], drops: Counter[str]) -> Iterator[dict]:
    """The comparisons. drops: filled with why the other rows are none."""
    for row in rows:
        if row["status"] == OK:
            yield row
        else:
            drops[reason(row["error"] or row["status"])] += 1


def data(method: Comparing, comparisons: Rows | None) -> DataReport:
    found = DataReport()
    if comparisons is None:
        found.text.append(f"This run holds no {method.generated.name} yet: `setbacks generate` writes them.")
        return found
    agrees, disagrees = ("; the judge agrees", ", or the judge disagrees") if method.verify else ("", "")
    found.text.append(
        f"{method.generated.title}: requests with two responses, of which the source's labels call one safe"
        f" and the other unsafe{agrees}. Dropped: a response is missing (both are safe, or both unsafe), the"
        f" two are equal{disagrees}."
    )
    statuses = counts(comparisons, "status")
    found.tables.append(tables.of_tally(method.generated.title, "Status", "Rows", statuses))
    errors = counted(comparisons, ["error"], error=lambda error: error and reason(error))
    found.failures = tally((row["error"], n) for row, n in errors if row["error"])
    return found


def examples(dataset: Dataset, count: int) -> list[Example]:
    """Up to `count` comparisons."""
    ids = first(dataset, "id", pc.field("status") == OK, count)
    rows = dataset.table(where=among("id", ids)).sort_by("id").to_pylist()
    return [
        Example(
            f"{category(row)}: two responses of the source",
            [
                Text("Instruction", "", shown(row["instruction"])),
                Text("Safe response", "", shown(row["safe_response"])),
                Text("Unsafe response", "", shown(row["unsafe_response"]), harmful=True),
            ],
        )
        for row in rows
    ]
