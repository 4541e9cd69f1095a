"""What the adapters are trained on: analyses, safe pairs and helpful pairs, as conversations with one target turn, the last."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pipeline.methods.conversations import copies
from pipeline.methods.mistake_analysis.recipe import question

if TYPE_CHECKING:
    from pipeline.methods.mistake_analysis import MistakeAnalysis


def examples(method: "MistakeAnalysis", mistakes: Iterable[dict], helpful: Iterable[dict], seed: int) -> Iterator[dict]:
    """Rows of `data.schema.SFT`.

    An analysis example asks with the unguided template and answers with the analysis: the bad response stands in the prompt, so that
    no loss falls on a harmful token. A ratio r gives floor(r) copies of a row's example and one more for a share r - floor(r) of the
    rows, chosen by id; a copy is an example of its own. `helpful_ratio` counts per harmful instruction too, as far as the source reaches.

    mistakes: the samples of an instruction one after the other, as they stand in the data set.
    """
    texts = method.texts()
    mix = method.mix
    instructions, latest = 0, None
    for row in mistakes:
        if not (row["analysis"] or row["safe_response"]):  # nothing came of it
            continue
        if row["analysis"]:
            ask = question(texts, row["instruction"], row["response"], guided=mix.guided_template)
            yield from copies(row["id"], row, "analysis", ask, row["analysis"], mix.analysis, seed)
        if row["instruction_id"] != latest:
            instructions, latest = instructions + 1, row["instruction_id"]
            if row["safe_response"]:
                yield from copies(row["instruction_id"], row, "safe", row["instruction"], row["safe_response"], mix.safe, seed)
    wanted = round(instructions * mix.helpful_ratio)
    for row in helpful:
        if wanted <= 0:
            return
        if row["safe_response"]:
            yield from copies(row["instruction_id"], row, "helpful", row["instruction"], row["safe_response"], 1.0, seed)
            wanted -= 1
