"""The tables of C²-Eval: Corr@k, the paths behind it, and differences from vanilla."""

from collections.abc import Sequence

from pipeline.report.arms import Arms
from pipeline.report.summary import Rate
from pipeline.report.tables import Cell, Column, Table, difference, difference_columns, mark_best, rate, whole
from pipeline.suites.c2_eval.summary import Corr, CorrDifference, CorrSummary


def of_corr(summary: CorrSummary) -> Table:
    """Corr_mean and every Corr@k, one column per arm; the best of each row is marked."""

    def row(name: str, values: list[Corr]) -> list[Cell]:
        return [Cell(name), *mark_best([v.value for v in values], [rate(v) for v in values], max)]

    rows = [row(_corr_name(None), [arm.mean for arm in summary.arms])]
    rows += [row(_corr_name(k), [arm.at[k] for arm in summary.arms]) for k in summary.lengths]
    return Table(
        "", [Column("", "text"), *(Column(f"{arm.arm}, %", "estimate") for arm in summary.arms)], [("", rows)]
    )


def of_course(summary: CorrSummary, arms: Arms) -> Table:
    """Corr@k after every stage of arms that train in stages; empty if none of their stages was evaluated."""
    found = {one.arm: one for one in summary.arms}
    groups = []
    for arm in dict.fromkeys(arms.stages.values()):
        stages = [name for name, of in arms.stages.items() if of == arm and name in found]
        names = [*stages, *(name for name in found if arms.arm(name) == arm)] if stages else []
        columns = [[Cell(name) for name in names]]
        for values in (
            [found[n].mean for n in names],
            *([found[n].at[k] for n in names] for k in summary.lengths),
        ):
            columns.append(mark_best([v.value for v in values], [rate(v) for v in values], max))
        if names:
            groups.append(
                (
                    f"{arm}, whose last stage is the arm itself",
                    [list(row) for row in zip(*columns, strict=True)],
                )
            )
    measures = [_corr_name(None), *map(_corr_name, summary.lengths)]
    return Table(
        "The course over the stages",
        [Column("Adapter", "text"), *(Column(f"{name}, %", "estimate") for name in measures)],
        groups,
    )


def of_corr_counts(summary: CorrSummary) -> Table:
    """The numbers of entries and paths behind the table of Corr@k, and of those left out."""
    columns = ("Entries", "Judged at every k", "Failed rows", "Paths", "No verdict", "Cut")

    def row(arm) -> list[Cell]:
        numbers = (
            arm.mean.entries + arm.mean.left_out,
            arm.mean.entries,
            arm.failed,
            arm.paths,
            arm.unreadable,
            arm.cut,
        )
        return [Cell(arm.arm), *(Cell(whole(n)) for n in numbers)]

    return Table(
        "Paths behind Corr@k",
        [Column("Arm", "text"), *map(Column, columns)],
        [("", [row(arm) for arm in summary.arms])],
    )


def of_entries(summary: CorrSummary) -> Table:
    """The entries behind every Corr@k."""
    rows = [
        [Cell(_corr_name(k)), *(Cell(whole(arm.at[k].entries)) for arm in summary.arms)]
        for k in summary.lengths
    ]
    return Table(
        "Entries behind Corr@k",
        [Column("", "text"), *(Column(arm.arm) for arm in summary.arms)],
        [("", rows)],
    )


def of_ranks(ranks: Sequence[int], found: dict[str, list[Rate]]) -> Table:
    """How often paths correct course, by the rank of their first token."""
    rows = [[Cell(str(rank)), *(rate(of[i]) for of in found.values())] for i, rank in enumerate(ranks)]
    columns = [Column("Rank", "text"), *(Column(f"{arm}, %", "estimate") for arm in found)]
    return Table("Turning away by the rank of the first token", columns, [("", rows)])


def of_left_out(summary: CorrSummary) -> Table:
    """Entries without a readable verdict, for every k at which an arm has such entries."""
    rows = [
        [Cell(_corr_name(k)), *(Cell(whole(arm.at[k].left_out)) for arm in summary.arms)]
        for k in summary.lengths
        if any(arm.at[k].left_out for arm in summary.arms)
    ]
    return Table(
        "Entries left out", [Column("", "text"), *(Column(arm.arm) for arm in summary.arms)], [("", rows)]
    )


def of_corr_differences(differences: list[CorrDifference], *, by_k: bool) -> Table:
    """Differences of Corr_mean, one row per arm; or, if `by_k`, those at every k, folded."""
    chosen = [d for d in differences if (d.k is not None) == by_k]
    rows = [
        [
            Cell(f"{d.arm} − {d.baseline}, {_corr_name(d.k)}"),
            *difference(d, "turns away more", "turns away less"),
        ]
        for d in chosen
    ]
    title = "Paired differences at every k" if by_k else "Paired differences"
    return Table(title, difference_columns("Difference", "Entries"), [("", rows)], folded=by_k)


def _corr_name(k: int | None) -> str:
    return "Corr_mean" if k is None else f"Corr@{k}"
