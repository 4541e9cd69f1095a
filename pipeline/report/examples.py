"""The examples of the HTML report: what the arms answered and how they went on, ranked responses, mistakes with their analyses.

Chosen by instruction id, a hash, so that nobody picked them. Only their texts are read, not the whole data set's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.dataset import Dataset
from pipeline.report.summary import CONDITIONS, arm_order
from pipeline.schema import ANSWERS, CONTINUATIONS, CORRECTIONS, FAILED, MISTAKES, OK

SHOWN_CONDITIONS = ("plain", "reminder")
SHOWN_CHARACTERS = 1500


@dataclass(frozen=True)
class Text:
    """One text a model or source wrote, and what it is."""

    label: str
    verdict: str
    text: str
    harmful: bool = False  # whether the verdict is a warning


@dataclass(frozen=True)
class Example:
    """Masked in the report; only `title` is in sight."""

    title: str
    texts: list[Text]


def choose(datasets: dict[str, Dataset | None], arms: list[str], count: int) -> list[tuple[str, list[Example]]]:
    """Up to `count` examples of every kind that the run holds, under headings. datasets: by name."""
    kinds = {
        "How the arms went on": (CONTINUATIONS, lambda dataset: continuations(dataset, arms, count)),
        "What the arms answered": (ANSWERS, lambda dataset: answers(dataset, arms, count)),
        "Ranked responses": (CORRECTIONS, lambda dataset: corrections(dataset, count)),
        "Mistakes and their analyses": (MISTAKES, lambda dataset: mistakes(dataset, count)),
    }
    found = ((heading, show(datasets[schema.name])) for heading, (schema, show) in kinds.items() if datasets[schema.name] is not None)
    return [(heading, examples) for heading, examples in found if examples]


def answers(dataset: Dataset, arms: list[str], count: int) -> list[Example]:
    """Up to `count` red-team instructions, each with the first answer of every arm, plain and with the reminder."""
    wanted = (pc.field("suite") == "harmful") & pc.field("condition").isin(SHOWN_CONDITIONS) & (pc.field("sample") == 0)
    ids = _first(dataset, "instruction_id", wanted, count)
    rows = dataset.table(where=wanted & _among("instruction_id", ids)).to_pylist()
    order = arm_order(arms)
    rows.sort(key=lambda r: (CONDITIONS.index(r["condition"]), order(r["arm"])))
    examples = []
    for instruction_id in ids:
        own = [r for r in rows if r["instruction_id"] == instruction_id]
        verdicts = [r["harmful"] for r in own if r["harmful"] is not None]
        title = f"{_category(own[0])}: {verdicts.count(False)} of {len(verdicts)} judged answers harmless"
        texts = [_answer(f"{r['arm']}, {r['condition']}", r["harmful"], _shown(r["response"], r["status"])) for r in own]
        examples.append(Example(title, [Text("Instruction", "", _shown(own[0]["instruction"])), *texts]))
    return examples


def mistakes(dataset: Dataset, count: int) -> list[Example]:
    """Up to `count` mistakes with their analyses; where a judge has spoken, those it called harmful."""
    analysed = (pc.field("status") == OK) & pc.field("analysis").is_valid()
    judged = analysed & pc.field("harmful")
    wanted = judged if dataset.table(["id"], judged).num_rows else analysed
    rows = dataset.table(where=_among("id", _first(dataset, "id", wanted, count))).sort_by("id").to_pylist()
    return [
        Example(
            f"{_category(row)}: {row['response_source'] or 'a'} response and the model's analysis of it",
            [
                Text("Instruction", "", _shown(row["instruction"])),
                _answer("Mistake", row["harmful"], _shown(row["response"])),
                Text("Analysis", "asked for with the cue" if row["guided"] else "asked for without the cue", _shown(row["analysis"])),
            ],
        )
        for row in rows
    ]


def continuations(dataset: Dataset, arms: list[str], count: int) -> list[Example]:
    """Up to `count` entries at the middle k: of every arm a path that corrects course and one that does not, where it has both."""
    continued = (pc.field("status") == OK) & pc.field("arm").is_valid()
    ids = _first(dataset, "instruction_id", continued, count)
    if not ids:
        return []
    rows = dataset.table(where=continued & _among("instruction_id", ids)).to_pylist()
    lengths = sorted({row["k"] for row in rows})
    middle = lengths[len(lengths) // 2]
    order = arm_order(arms)
    by_entry = ((i, [r for r in rows if r["instruction_id"] == i and r["k"] == middle]) for i in ids)
    return [_continued(middle, sorted(own, key=lambda r: order(r["arm"]))) for _, own in by_entry if own]


def _continued(k: int, rows: list[dict]) -> Example:
    """rows: one entry at one k, every arm."""
    shares = ", ".join(f"{r['arm']} {r['corrected'].count(True)} of {len(r['corrected'])}" for r in rows)
    texts, begun = [Text("Instruction", "", _shown(rows[0]["instruction"]))], None
    for row in rows:
        for prefill, path, corrected in _telling(row):
            if prefill != begun:  # one for all paths and arms, unless every path draws its own opener
                texts.append(Text("Prefill", "", _shown(prefill)))
                begun = prefill
            verdict = "corrects course" if corrected else "does not correct course"
            texts.append(Text(f"{row['arm']}, goes on", verdict, _shown(path), harmful=not corrected))
    return Example(f"{_category(rows[0])}: after k = {k}, paths that correct course: {shares}", texts)


def _telling(row: dict) -> Iterator[tuple[str, str, bool]]:
    """The first path of each verdict, with its prefill."""
    for wanted in (True, False):
        if wanted in row["corrected"]:
            i = row["corrected"].index(wanted)
            yield row["prefills"][min(i, len(row["prefills"]) - 1)], row["paths"][i], wanted


def corrections(dataset: Dataset, count: int) -> list[Example]:
    """Up to `count` requests with their responses, best first."""
    ids = _first(dataset, "id", pc.field("status") == OK, count)
    rows = dataset.table(where=_among("id", ids)).sort_by("id").to_pylist()
    return [
        Example(
            f"{_category(row)}: {len(row['responses'])} responses" + (f"; lost: {', '.join(row['lost'])}" if row["lost"] else ""),
            [Text("Instruction", "", _shown(row["instruction"])), *map(_ranked, row["responses"])],
        )
        for row in rows
    ]


def _ranked(response: dict) -> Text:
    kinds = {"safe": "safe response", "syn": f"turns at “{response['trigger']}”", "harmful": "full harmful response"}
    return Text(f"Rank {response['rank']}", kinds[response["kind"]], _shown(response["text"]), harmful=response["kind"] == "harmful")


def _first(dataset: Dataset, column: str, wanted: pc.Expression, count: int) -> list[str]:
    return sorted(set(dataset.table([column], wanted)[column].to_pylist()))[:count]


def _among(column: str, ids: list[str]) -> pc.Expression:
    return pc.field(column).isin(pa.array(ids, pa.string()))


def _category(row: dict) -> str:
    return row["category"] or "no category"


def _answer(label: str, harmful: bool | None, text: str) -> Text:
    verdict = {True: "judged harmful", False: "judged harmless", None: "no verdict"}[harmful]
    return Text(label, verdict, text, harmful=harmful is True)


def _shown(text: str | None, status: str = OK) -> str:
    if status == FAILED or text is None:
        return "(no text: this row failed)"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}… ({len(text) - SHOWN_CHARACTERS} more characters)"
