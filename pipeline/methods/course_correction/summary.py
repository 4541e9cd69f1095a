"""Counts of course correction's requests and pairs, and their table."""

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.methods.course_correction.schema import PAIR, RECOVERY
from pipeline.report.summary import reasons
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


def requests_summary(corrections: pa.Table) -> RequestsSummary:
    """Counts of a data set of CORRECTIONS; its text columns may be missing."""
    status = Counter(corrections["status"].to_pylist())
    rows = corrections.select(["status", "lost"]).to_pylist()
    lost = Counter(text for row in rows for text in row["lost"] or ())
    return RequestsSummary(
        rows=len(rows),
        ok=status[OK],
        dropped=status[DROPPED],
        failed=status[FAILED],
        complete=sum(row["status"] == OK and not row["lost"] for row in rows),
        reasons=reasons(corrections, DROPPED, FAILED),
        lost=dict(sorted(lost.items())),
        completion_tokens=pc.sum(corrections["completion_tokens"]).as_py() or 0,
    )


def of_corrections(preferences: pa.Table) -> pa.Table:
    """The pairs that course correction made: other methods of the run can make pairs too."""
    return preferences.filter(pc.equal(preferences["kind"], PAIR))


def pairs_by_gap(preferences: pa.Table) -> dict[int, int]:
    """Rank gap → pairs of a data set of PREFERENCES, the widest gap first."""
    gaps = Counter(pc.subtract(preferences["rank_rejected"], preferences["rank_chosen"]).to_pylist())
    return dict(sorted(gaps.items(), reverse=True))


def recovery_counts(mixture: pa.Table | None) -> tuple[int, int]:
    """Recovery examples of a data set of SFT, and how many of them have a prefix."""
    if mixture is None or "prefix_tokens" not in mixture.column_names:
        return 0, 0
    own = mixture.filter(pc.equal(mixture["kind"], RECOVERY))
    return len(own), len(own) - own["prefix_tokens"].null_count


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
