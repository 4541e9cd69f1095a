"""Counts of mistakes, and their table."""

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from pipeline.data.store import reason
from pipeline.report.summary import Rate
from pipeline.report.tables import Cell, Column, Table, rate, whole
from pipeline.schema import DROPPED, FAILED, NOT_INDUCED, OK


@dataclass(frozen=True)
class MistakesSummary:
    """Row counts of a mistakes data set: ok + not_induced + dropped + failed = rows."""

    rows: int
    ok: int
    not_induced: int
    dropped: int
    failed: int
    instructions: int
    samples: int  # most rows of one instruction
    induced: Rate  # judged harmful, of the responses judged
    unreadable: int  # judged, but the verdict could not be read: not_induced
    contradictions: Rate  # of the used analyses that pronounce a verdict on a judged response
    safe_analyses: dict[str, int]  # column of the harmless answer → usable analyses of it
    safe_contradictions: Rate  # of the analyses of harmless answers that pronounce a verdict
    failures: dict[str, int]  # kind of error → rows, most frequent first
    prompt_tokens: int
    completion_tokens: int


def mistakes_summary(mistakes: pa.Table) -> MistakesSummary:
    """Counts of a mistakes data set (schema MISTAKES); its text columns may be missing."""
    wanted = ["status", "error", "harmful", "analysis_verdict", "instruction_id"]
    wanted += ["prompt_tokens", "completion_tokens"]
    # Data sets of older versions have no analyses of harmless answers.
    newer = [name for name in ("safe_analysis_of", "safe_analysis_verdict") if name in mistakes.column_names]
    rows = mistakes.select([*wanted, *newer]).to_pylist()
    status = Counter(row["status"] for row in rows)
    per_instruction = Counter(row["instruction_id"] for row in rows)
    return MistakesSummary(
        rows=len(rows),
        ok=status[OK],
        not_induced=status[NOT_INDUCED],
        dropped=status[DROPPED],
        failed=status[FAILED],
        instructions=len(per_instruction),
        samples=max(per_instruction.values(), default=0),
        induced=Rate.of(row["harmful"] for row in rows if row["harmful"] is not None),
        unreadable=sum(row["status"] == NOT_INDUCED and row["harmful"] is None for row in rows),
        contradictions=Rate.of(
            row["analysis_verdict"] != row["harmful"]
            for row in rows
            if row["harmful"] is not None and row["analysis_verdict"] is not None
        ),
        safe_analyses=dict(Counter(filter(None, (row.get("safe_analysis_of") for row in rows)))),
        safe_contradictions=Rate.of(
            row["safe_analysis_verdict"]
            for row in rows
            if row.get("safe_analysis_verdict") is not None and row["status"] != DROPPED
        ),
        failures=dict(
            Counter(
                reason(row["error"] or "no reason given")
                for row in rows
                if row["status"] in (DROPPED, FAILED)
            ).most_common()
        ),
        prompt_tokens=sum(row["prompt_tokens"] or 0 for row in rows),
        completion_tokens=sum(row["completion_tokens"] or 0 for row in rows),
    )


def of_mistakes(summary: MistakesSummary) -> Table:
    numbers = {
        "Instructions": summary.instructions,
        "Rows": summary.rows,
        "ok": summary.ok,
        "Not induced": summary.not_induced,
        "Dropped": summary.dropped,
        "Failed": summary.failed,
        "Judged": summary.induced.trials,
        "No verdict": summary.unreadable,
        "Sampled tokens": summary.completion_tokens,
    }
    row = [*(Cell(whole(n)) for n in numbers.values()), rate(summary.induced)]
    return Table("Mistakes", [*map(Column, numbers), Column("Judged harmful, %", "estimate")], [("", [row])])
