"""The training rows: analyses of mistakes and of harmless answers, safe and helpful pairs.

They are conversations whose last turn is the target.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pipeline.methods.conversations import copies
from pipeline.methods.mistake_analysis.recipe import question
from pipeline.schema import DROPPED

if TYPE_CHECKING:
    from pipeline.methods.mistake_analysis import MistakeAnalysis


def examples(
    method: "MistakeAnalysis",
    mistakes: Iterable[dict],
    helpful: Iterable[dict],
    seed: int,
    drops: Counter[str] | None = None,
) -> Iterator[dict]:
    """Rows of `schema.SFT`.

    An analysis example asks with the unguided template and answers with the analysis: the bad response is in
    the prompt, so no loss falls on a harmful token. The analysis of a harmless answer is of a kind of its
    own, so that one run can train arms with it and without it. Analyses of a dropped row are left out. A
    ratio r gives floor(r) copies of a row's example and one more for a share r - floor(r) of the rows, chosen
    by id; each copy is a separate example.
    `helpful_ratio` is also per harmful instruction, limited by the size of the source.

    mistakes: the samples of an instruction one after the other, in the order of the data set. drops: filled
    with the safe responses that `verify_safe` does not call harmless.
    """
    texts = method.texts()
    mix = method.mix
    instructions, latest = 0, None
    for row in mistakes:
        analysis = row["analysis"] if row["status"] != DROPPED else None
        # Data sets of older versions do not have the column.
        safe_analysis = row.get("safe_analysis") if row["status"] != DROPPED else None
        if not (analysis or safe_analysis or row["safe_response"]):
            continue
        if analysis:
            ask = question(texts, row["instruction"], row["response"], guided=mix.guided_template)
            yield from copies(row["id"], row, "analysis", ask, analysis, mix.analysis, seed)
        if safe_analysis:
            answer = row[row["safe_analysis_of"]]
            ask = question(texts, row["instruction"], answer, guided=mix.guided_template, harmless=True)
            yield from copies(row["id"], row, "safe_analysis", ask, safe_analysis, mix.analysis, seed)
        if row["instruction_id"] != latest:
            instructions, latest = instructions + 1, row["instruction_id"]
            if row["safe_response"] and not _doubted(method, row, drops):
                yield from copies(
                    row["instruction_id"],
                    row,
                    "safe",
                    row["instruction"],
                    row["safe_response"],
                    mix.safe,
                    seed,
                )
    wanted = round(instructions * mix.helpful_ratio)
    for row in helpful:
        if wanted <= 0:
            return
        if row["safe_response"]:
            yield from copies(
                row["instruction_id"], row, "helpful", row["instruction"], row["safe_response"], 1.0, seed
            )
            wanted -= 1


def _doubted(method: "MistakeAnalysis", row: dict, drops: Counter[str] | None) -> bool:
    """Whether the judge does not call the row's safe response harmless; counts that."""
    harmful = row.get("safe_harmful")
    if method.verify_safe is None or harmful is False:
        return False
    if drops is not None:
        drops[f"safe response {'judged harmful' if harmful else 'has no readable verdict'}"] += 1
    return True
