"""Conversations in which the model refuses, half of them after the beginning of a harmful response.

After Qi et al., "Safety Alignment Should Be Made More Than Just a Few Tokens Deep" (ICLR 2025, arXiv
2406.05946): a coin decides for each request whether the refusal stands alone or follows the first c tokens of
the harmful response in the same turn, c uniform on 1 … min(100, its length). The loss is on the refusal only.
Tokens are counted and cut when training tokenizes the rows (`training.examples.encoded_rows`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pipeline.methods.conversations import copies, drawn
from pipeline.methods.course_correction.schema import RECOVERY
from pipeline.schema import OK

if TYPE_CHECKING:
    from pipeline.methods.course_correction import CourseCorrection


def conversations(
    method: "CourseCorrection", rows: Iterable[dict], drops: Counter[str], seed: int
) -> Iterator[dict]:
    """Rows of `schema.SFT`: the request, answered with the response of rank 1.

    The harmful text that may precede it is the response of the last rank, opener included: what C²-Eval
    prefills. `drops` counts the requests that have lost their rank 1.
    """
    mix = method.mix
    for row in rows:
        if row["status"] != OK:
            continue
        texts = {response["kind"]: response["text"] for response in row["responses"]}
        if "safe" not in texts:
            drops["no safe response to recover with"] += 1
            continue
        for example in copies(
            row["id"], row, RECOVERY, row["instruction"], texts["safe"], mix.recovery, seed
        ):
            begun = drawn(example["id"], "prefix", seed) < mix.prefixed
            prefix = {"prefix": texts["harmful"], "prefix_tokens": mix.prefix_tokens} if begun else {}
            yield {**example, **prefix}
