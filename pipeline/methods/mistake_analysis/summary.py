"""Counts of mistakes, and their table."""

from dataclasses import dataclass

from pipeline.report.numbers import Rows, counted, occurrences, total
from pipeline.report.summary import Rate, kind_of_error, tally
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


def mistakes_summary(mistakes: Rows) -> MistakesSummary:
    """Counts of a mistakes data set (schema MISTAKES); its text columns may be missing."""
    wanted = ["status", "error", "harmful", "analysis_verdict"]
    # Data sets of older versions have no analyses of harmless answers.
    newer = [name for name in ("safe_analysis_of", "safe_analysis_verdict") if name in mistakes.column_names]
    rows = counted(mistakes, [*wanted, *newer], error=kind_of_error)
    status = tally((row["status"], n) for row, n in rows)
    instructions, samples = occurrences(mistakes, "instruction_id")
    return MistakesSummary(
        rows=sum(status.values()),
        ok=status.get(OK, 0),
        not_induced=status.get(NOT_INDUCED, 0),
        dropped=status.get(DROPPED, 0),
        failed=status.get(FAILED, 0),
        instructions=instructions,
        samples=samples,
        induced=Rate.counted((row["harmful"], n) for row, n in rows if row["harmful"] is not None),
        unreadable=sum(n for row, n in rows if row["status"] == NOT_INDUCED and row["harmful"] is None),
        contradictions=Rate.counted(
            (row["analysis_verdict"] != row["harmful"], n)
            for row, n in rows
            if row["harmful"] is not None and row["analysis_verdict"] is not None
        ),
        safe_analyses=tally((of, n) for row, n in rows if (of := row.get("safe_analysis_of"))),
        safe_contradictions=Rate.counted(
            (row["safe_analysis_verdict"], n)
            for row, n in rows
            if row.get("safe_analysis_verdict") is not None and row["status"] != DROPPED
        ),
        failures=tally((row["error"], n) for row, n in rows if row["status"] in (DROPPED, FAILED)),
        prompt_tokens=total(mistakes, "prompt_tokens"),
        completion_tokens=total(mistakes, "completion_tokens"),
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
