"""Counts of course correction's requests and pairs, and their table."""

from dataclasses import dataclass

from pipeline.methods.course_correction.schema import RECOVERY
from pipeline.report.numbers import Rows, counted, entries, total
from pipeline.report.summary import reasons, tally
from pipeline.report.tables import Cell, Column, Table, whole
from pipeline.schema import DROPPED, FAILED, OK


@dataclass(frozen=True)
class RequestsSummary:
    """Row counts of a data set of CORRECTIONS: ok + dropped + failed = rows."""

    rows: int
    ok: int
    dropped: int
    failed: int
    complete: int  # ok rows that lost no response
    reasons: dict[str, int]  # of dropped and failed rows, most frequent first
    lost: dict[str, int]  # `rank 3: why` → responses, by rank
    completion_tokens: int


def requests_summary(corrections: Rows) -> RequestsSummary:
    """Counts of a data set of CORRECTIONS; its text columns may be missing."""
    rows = counted(corrections, ["status", "lost"])
    status = tally((row["status"], n) for row, n in rows)
    return RequestsSummary(
        rows=sum(status.values()),
        ok=status.get(OK, 0),
        dropped=status.get(DROPPED, 0),
        failed=status.get(FAILED, 0),
        complete=sum(n for row, n in rows if row["status"] == OK and not row["lost"]),
        reasons=reasons(corrections, DROPPED, FAILED),
        lost=dict(sorted(entries(corrections, "lost").items())),
        completion_tokens=total(corrections, "completion_tokens"),
    )


def pairs_by_gap(preferences: Rows, kind: str | None = None) -> dict[int, int]:
    """Rank gap → pairs of a data set of PREFERENCES, the widest gap first.

    kind: only those pairs; other methods of the run can make pairs too.
    """
    rows = counted(preferences, ["rank_rejected", "rank_chosen", "kind"])
    gaps = tally(
        (row["rank_rejected"] - row["rank_chosen"], n) for row, n in rows if kind in (None, row["kind"])
    )
    return dict(sorted(gaps.items(), reverse=True))


def recovery_counts(mixture: Rows | None) -> tuple[int, int]:
    """Recovery examples of a data set of SFT, and how many of them have a prefix."""
    if mixture is None or "prefix_tokens" not in mixture.column_names:
        return 0, 0
    own = [(row, n) for row, n in counted(mixture, ["kind", "prefix_tokens"]) if row["kind"] == RECOVERY]
    return sum(n for _, n in own), sum(n for row, n in own if row["prefix_tokens"] is not None)


def of_requests(summary: RequestsSummary) -> Table:
    numbers = {
        "Rows": summary.rows,
        "ok": summary.ok,
        "Complete": summary.complete,
        "Dropped": summary.dropped,
        "Failed": summary.failed,
        "Lost responses": sum(summary.lost.values()),
        "Sampled tokens": summary.completion_tokens,
    }
    return Table("Requests", [*map(Column, numbers)], [("", [[Cell(whole(n)) for n in numbers.values()]])])
