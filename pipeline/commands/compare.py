"""`setbacks compare RUN RUN …`: the arms of several runs, paired over the rows and instructions they share.

Rows are shared if their ids are equal: the same instruction, asked in the same way, of an arm of the same
name. Every run is compared with the first one. Rates of different judges are left out, and told, unless the
user asks for them.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from pipeline import fingerprints
from pipeline.commands import report, report_results
from pipeline.commands.printed import printed
from pipeline.commands.status import run_dir_of
from pipeline.config import Config
from pipeline.data import records, storage
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.report import summary, tables
from pipeline.report.outcomes import Outcome, Values
from pipeline.report.sections import Section
from pipeline.report.summary import Difference, arm_order, paired
from pipeline.report.tables import Cell, Column, Number, Table
from pipeline.settings import file, yaml_text
from pipeline.settings.base import Draw
from pipeline.settings.shown import plural, shown
from pipeline.suites.base import Suite

_OF_THE_RUN = ("run_dir", "report", "track")  # say nothing about the numbers
_Found = dict[tuple[str, str], Values]  # of `Outcome.read`
_LACKING = object()  # in the place of a setting that a run does not have
_FIRST = ("model", "seed", "engine", "models")  # what is listed first of what differs


@dataclass(frozen=True)
class Compared:
    """A run: its directory, a short name, its configuration."""

    path: str
    name: str
    config: Config

    @property
    def arms(self) -> list[str]:
        """All adapters that a suite evaluates: the base model first, an arm after its stages."""
        suites = self.config.suites.items().values()
        staged = any(suite.asks_every_stage for suite in suites)
        stages = {name: self.config.stage_names(name) if staged else [] for name in self.config.replicas}
        return [one for name in self.config.arm_names for one in (*stages.get(name, ()), name)]


@dataclass(frozen=True)
class Pairing:
    """One measure of one arm in the first run (`baseline`) and in another (`run`), over what they share.

    before, after: means over the shared instructions. alone: rows with a value in one of the two runs only.
    judges: of the first run's verdicts and of the other's, in words; none if no judge was asked.
    """

    suite: str
    measure: str
    group: str
    arm: str
    run: str
    baseline: str
    unit: str
    before: float
    after: float
    difference: Difference
    alone: int
    judges: list[str]
    same_judge: bool


@dataclass
class Comparison:
    """differing: setting → its value in each run. told: what is not comparable, or missing."""

    runs: list[Compared]
    pairings: list[Pairing] = field(default_factory=list)
    differing: dict[str, list[str]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)


def show_comparison(
    targets: Sequence[str],
    arms: Sequence[str],
    different_judges: bool,
    html: str | None,
    as_json: bool,
    console: Console,
) -> None:
    """Print how the runs differ; with `html`, write that file as well. Raises UserError."""
    if html is not None and storage.exists(html):
        raise UserError(f"--html = {html}: exists already; name another file")
    found = compare(targets, arms, different_judges)
    if as_json:
        print(json.dumps(_as_data(found), indent=1))
    else:
        _print(found, console)
    if html is not None:
        storage.write_text(html, _page(found))
        if not as_json:
            console.print(f"{escape(html)}: the same as a page", highlight=False)


def compare(targets: Sequence[str], arms: Sequence[str] = (), different_judges: bool = False) -> Comparison:
    """targets: run directories, or their configurations. arms: only these. Raises UserError."""
    if len(targets) < 2:
        raise UserError("compare needs two runs or more: setbacks compare RUN RUN")
    found = Comparison(_runs(targets))
    first, *others = found.runs
    known = list(dict.fromkeys(arm for run in found.runs for arm in run.arms))
    if unknown := [arm for arm in arms if arm not in known]:
        raise UserError(
            f"--arm {shown(unknown[0], 60)}: no run has such an arm; known are {', '.join(known)}"
        )
    found.differing = _differing(found.runs)
    values = _Reader(first if others[1:] else None)
    for other in others:
        _pair(found, first, other, arms or known, different_judges, values)
    if not found.pairings:
        why = f": {'; '.join(found.told)}" if found.told else ""
        raise UserError(f"{first.path}: no arm of it can be compared with another run's{why}")
    return found


# -- reading


def _runs(targets: Sequence[str]) -> list[Compared]:
    paths = [run_dir_of(target).rstrip("/") or "/" for target in targets]
    if len(set(paths)) < len(paths):
        raise UserError(f"compare: {max(paths, key=paths.count)} is named twice; name different runs")
    names = [path.rpartition("/")[2] for path in paths]
    if len(set(names)) < len(names):
        names = paths
    return [Compared(path, name, config_of(path)) for path, name in zip(paths, names, strict=True)]


def config_of(run_dir: str) -> Config:
    """The configuration that a run was last opened with. Raises UserError."""
    path = storage.join(run_dir, "config.yaml")
    try:
        tree = yaml_text.parse(storage.read_text(path))
    except FileNotFoundError:
        raise UserError(f"{run_dir}: contains no run; name a run directory or its configuration") from None
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise UserError(f"{path}: cannot be read ({shown(e)})") from None
    return file.validated(Config, tree, path)


def _differing(runs: Sequence[Compared]) -> dict[str, list[str]]:
    """The settings that differ, with their values; model and seed first."""
    trees, given = ([_settings_of(run, not_set) for run in runs] for not_set in (True, False))
    found = dict(_unequal(trees, given))
    order = sorted(found, key=lambda key: key.partition(".")[0] not in _FIRST)
    return {key: [shown(value, 120) for value in found[key]] for key in order}


def _settings_of(run: Compared, defaults: bool) -> dict:
    """The settings that may say something about the numbers, with or without those that are defaults."""
    dumped = run.config.model_dump(mode="json", exclude_defaults=not defaults)
    return {key: value for key, value in dumped.items() if key not in _OF_THE_RUN}


def _unequal(trees: Sequence[Any], given: Sequence[Any], place: str = "") -> Iterable[tuple[str, list[str]]]:
    """Setting → its values. A block that some run lacks is one setting, with what was `given` in it."""
    if all(isinstance(tree, dict) for tree in trees):
        for key in dict.fromkeys(key for tree in trees for key in tree):
            values = [tree.get(key, _LACKING) for tree in trees]
            own = [one.get(key, _LACKING) if isinstance(one, dict) else _LACKING for one in given]
            yield from _unequal(values, own, f"{place}.{key}" if place else str(key))
    elif any(tree != trees[0] for tree in trees):
        yield place, [_in_words(*both) for both in zip(trees, given, strict=True)]


def _in_words(tree: Any, given: Any) -> str:
    if tree is _LACKING:
        return "(none)"
    if isinstance(tree, dict) and tree:
        tags = {key: tree[key] for key in ("name", "kind", "method") if key in tree}
        told = tags | (given if isinstance(given, dict) else {})
        return json.dumps(told, ensure_ascii=False) if told else "(defaults)"
    return json.dumps(tree, ensure_ascii=False)


# -- pairing


def _pair(
    found: Comparison,
    first: Compared,
    other: Compared,
    arms: Sequence[str],
    different_judges: bool,
    values: "_Reader",
) -> None:
    """Add the pairings of two runs."""
    ours, theirs = (run.config.suites.items() for run in (other, first))
    alone = {arm: run.name for run, not_in in ((first, other), (other, first)) for arm in _only(run, not_in)}
    found.told += [f"{arm} is an arm of {name} only" for arm, name in alone.items() if arm in arms]
    for suite in dict.fromkeys([*theirs, *ours]):
        if suite not in ours or suite not in theirs:
            found.told.append(f"{suite} is not configured in {(first if suite in ours else other).name}")
            continue
        found.told += [*_made_otherwise(first, other, suite), *_drawn_otherwise(found, first, other, suite)]
        outcomes = {outcome.name: outcome for outcome in ours[suite].outcomes}
        shared = [(one, outcomes[one.name]) for one in theirs[suite].outcomes if one.name in outcomes]
        if not shared:
            found.told.append(f"{suite} has no values of single answers that could be paired")
        for before, after in shared:
            same = _same_judge(first, other, suite, before, after)
            if same is not True:
                found.told.append(f"{suite}: {before.name} of {first.name} and {other.name}: {same}")
            if same is not True and not different_judges:
                found.told[-1] += "; it is left out (--different-judges shows it all the same)"
                continue
            known = [values.of(run, suite, one) for run, one in ((first, before), (other, after))]
            if known[0] is None or known[1] is None:
                missing = first if known[0] is None else other
                found.told.append(f"{suite}: {missing.name} holds no finished answers")
                break
            asked = [(first, before), (other, after)] if before.judge or after.judge else []
            judges = [_judge_in_words(_determined(run, one)) for run, one in asked]
            of = _Measure(suite, before, first, other, judges, same is True)
            found.pairings += of.pairings(known[0], known[1], arms)


def _only(run: Compared, not_in: Compared) -> list[str]:
    return [arm for arm in run.arms if arm not in not_in.arms]


@dataclass(frozen=True)
class _Measure:
    """A measure of two runs, which is paired arm by arm."""

    suite: str
    outcome: Outcome
    first: Compared
    other: Compared
    judges: list[str]
    same_judge: bool

    def pairings(self, before: _Found, after: _Found, arms: Sequence[str]) -> Iterable[Pairing]:
        """Those of every arm and group that both runs have; none if no instruction is shared."""
        order = arm_order(arms)
        places = [place for place in before if place in after and place[0] in arms]
        for arm, group in sorted(places, key=lambda place: order(place[0])):
            rows = before[arm, group], after[arm, group]
            was, now, shared = rows[0].both(rows[1])
            difference = paired(self.other.name, self.first.name, now, was, seed=self.first.config.seed)
            if difference is None:
                continue
            yield Pairing(
                suite=self.suite,
                measure=self.outcome.name,
                group=group,
                arm=arm,
                run=self.other.name,
                baseline=self.first.name,
                unit=self.outcome.unit_of(was, now),
                before=math.fsum(was.values) / len(was),
                after=math.fsum(now.values) / len(now),
                difference=difference,
                alone=len(rows[0]) + len(rows[1]) - 2 * shared,
                judges=self.judges,
                same_judge=self.same_judge,
            )


def _drawn_otherwise(found: Comparison, first: Compared, other: Compared, suite: str) -> list[str]:
    """A sentence if answers were drawn with other settings: then also the base model differs from itself."""
    places = [found.runs.index(run) for run in (first, other)]
    differing = []
    for setting, values in found.differing.items():
        ours, theirs = (values[place] for place in places)
        if setting.startswith(f"suites.{suite}.") and setting.rpartition(".")[2] in Draw.model_fields:
            differing += [f"{setting} = {ours} and {theirs}"] if ours != theirs else []
    if not differing:
        return []
    return [
        f"WARNING: {suite}: {first.name} and {other.name} draw texts differently ({'; '.join(differing)}), so"
        " their differences are not those of the arms alone"
    ]


def _made_otherwise(first: Compared, other: Compared, suite: str) -> list[str]:
    """What made the answers, and is not seen in the configurations: files of prompts, builds of a model."""
    known = [_fingerprint(run, suite) or {} for run in (first, other)]
    words = {"prompts": "prompts", "model": "model's files or engine"}
    return [
        f"{suite}: the {word} that {first.name} and {other.name} were made with differ"
        for key, word in words.items()
        if key in known[0] and key in known[1] and known[0][key] != known[1][key]
    ]


def _fingerprint(run: Compared, suite: str) -> dict | None:
    """What the suite's data set was made with; None if the run has no state."""
    name = run.config.suites.items()[suite].data_schema.name
    return records.read(storage.join(run.path, ".state", name, "fingerprint.json"))


class _Reader:
    """Reads the values of outcomes. Those of `kept`, which several runs are compared with, stay in memory."""

    def __init__(self, kept: Compared | None):
        self._kept = kept
        self._found: dict[tuple[str, str], _Found | None] = {}
        self._checked: dict[str, set[str]] = {}  # data set → shards whose bytes have been compared

    def of(self, run: Compared, suite: str, outcome: Outcome) -> _Found | None:
        """The outcome's values in a run; None if the data set is not finished."""
        if run is not self._kept:
            return self._read(run, suite, outcome)
        key = suite, outcome.name
        if key not in self._found:
            self._found[key] = self._read(run, suite, outcome)
        return self._found[key]

    def _read(self, run: Compared, suite: str, outcome: Outcome) -> _Found | None:
        section: Suite = run.config.suites.items()[suite]
        dataset = Dataset.at(storage.join(run.path, section.data_schema.name))
        if dataset is None:
            return None
        checked = self._checked.setdefault(dataset.path, set())
        return outcome.read(dataset.tables(outcome.columns, checked=checked))


def _same_judge(first: Compared, other: Compared, suite: str, before: Outcome, after: Outcome) -> bool | str:
    """Whether the same judge gave both runs' verdicts, or else a sentence why that is not so."""
    if before.judge is None and after.judge is None:
        return True
    known = []
    for run, outcome in ((first, before), (other, after)):
        if not _is_of_config(run, suite):
            return f"it is not known which judge gave the verdicts of {run.name}: its config.yaml has changed"
        known.append(_determined(run, outcome))
    if known[0] == known[1]:
        return True
    told = [_judge_in_words(one) for one in known]
    if told[0] == told[1]:
        return f"their judges ({told[0]}) differ in settings, prompts or model"
    return f"their judges differ ({told[0]} in {first.name}, {told[1]} in {other.name})"


def _determined(run: Compared, outcome: Outcome) -> dict | None:
    return None if outcome.judge is None else report_results.determined(run.config, outcome.judge)


def _judge_in_words(known: dict | None) -> str:
    if known is None:
        return "none"
    asked = known["model"].get("path") or known["model"].get("model")
    return known["judge"]["kind"] + (f" asking {shown(asked, 60)}" if asked else "")


def _is_of_config(run: Compared, suite: str) -> bool:
    """Whether the run's config.yaml is what its data set was made with. True if the run has no state."""
    name, known = run.config.suites.items()[suite].data_schema.name, _fingerprint(run, suite)
    if known is None:
        return True
    try:
        now = fingerprints.fingerprints(run.config).get(name)
    except UserError:  # a prompt file has moved since the run
        return False
    return now is not None and {**now, "made_from": known.get("made_from")} == known


# -- showing


def _tables(found: Comparison) -> list[Table]:
    """One table per suite and measure."""
    made = []
    names = [found.runs[0].name, "other run" if len(found.runs) > 2 else found.runs[1].name]
    for suite, measure, is_of in dict.fromkeys((one.suite, one.measure, one.unit) for one in found.pairings):
        own = [one for one in found.pairings if (one.suite, one.measure, one.unit) == (suite, measure, is_of)]
        groups = [
            (group, [_row(found, one) for one in own if one.group == group])
            for group in dict.fromkeys(one.group for one in own)
        ]
        unit = "Points" if own[0].unit == "share" else "Difference"
        columns = [
            Column("Arm", "text"),
            *([Column("Run", "text")] if len(found.runs) > 2 else []),
            *(Column(f"{name}{', %' if own[0].unit == 'share' else ''}") for name in names),
            Column(unit, "estimate"),
            *map(Column, ("Instructions", "Higher", "Lower", "Same")),
            Column("At 95 %", "text"),
        ]
        judges = list(dict.fromkeys(judge for one in own for judge in one.judges))
        title = f"{suite}: {measure.replace('_', ' ')}"
        title += f", judged by {' and '.join(judges)}" if judges else ""
        title += "" if all(one.same_judge for one in own) else " (DIFFERENT JUDGES)"
        made.append(Table(title, columns, groups))
    return made


def _row(found: Comparison, one: Pairing) -> list[Cell]:
    is_share = one.unit == "share"
    shown_as = tables.points if is_share else tables.grade
    means_of = [
        Cell(
            f"{100 * value:.1f}" if is_share else f"{value:.2f}",
            number=Number(value, n=one.difference.n, unit="share" if is_share else "score"),
        )
        for value in (one.before, one.after)
    ]
    run = [Cell(one.run)] if len(found.runs) > 2 else []
    return [Cell(one.arm), *run, *means_of, *tables.difference(one.difference, "higher", "lower", shown_as)]


def _settings(found: Comparison) -> Table:
    columns = [Column("Setting", "text"), *(Column(run.name, "text") for run in found.runs)]
    rows = [[Cell(key), *map(Cell, values)] for key, values in found.differing.items()]
    return Table("What differs in the configuration", columns, [("", rows)])


def _sections(found: Comparison) -> list[Section]:
    alone = sum(one.alone for one in found.pairings)
    notes = [
        "Means are over the instructions that both runs answered in the same way, each of the same weight; a"
        " difference is the other run's mean minus the first run's. Higher, lower, same: on how many"
        " instructions.",
        f"Interval: 95 % bootstrap over instructions, {tables.whole(summary.RESAMPLES)} resamples, seed"
        f" {found.runs[0].config.seed}. It does not contain what another training seed would change.",
        tables.TOLD_APART.format(fewest=summary.FEWEST_DIFFERING, what="instructions"),
    ]
    text = []
    if alone:
        text.append(f"Left out of the pairs: {plural(alone, 'row')} with a verdict in one of two runs only.")
    settings = _settings(found)
    same = [] if found.differing else ["Nothing differs but the run directory."]
    return [
        Section("Paired differences", [*found.told, *text], tables=_tables(found), notes=notes),
        Section("Configuration", same, tables=[] if settings.empty else [settings]),
    ]


def _print(found: Comparison, console: Console) -> None:
    runs = found.runs
    console.print(f"[bold]{escape(runs[0].name)}[/bold] is the first run: {escape(runs[0].path)}")
    for run in runs[1:]:
        console.print(f"[bold]{escape(run.name)}[/bold]: {escape(run.path)}")
    for section in _sections(found):
        console.print()
        for line in section.text:
            console.print(f"[yellow]{escape(line)}[/yellow]")
        for table in section.tables:
            printed(table, console)
        for note in section.notes:
            console.print(f"[dim]{escape(note)}[/dim]")


def _page(found: Comparison) -> str:
    names = [run.name for run in found.runs]
    page = {
        "name": f"{names[0]} and {', '.join(names[1:])}",
        "paths": [run.path for run in found.runs],
        "model_note": None,
        "sections": _sections(found),
    }
    return report.templates().get_template("compare.html").render(page)


def _as_data(found: Comparison) -> dict:
    return {
        "runs": [{"name": run.name, "path": run.path} for run in found.runs],
        "told": found.told,
        "differences": [
            {
                **{name: value for name, value in vars(one).items() if name != "difference"},
                "difference": one.difference.difference,
                "low": one.difference.interval[0],
                "high": one.difference.interval[1],
                "n": one.difference.n,
                "higher": one.difference.better,
                "lower": one.difference.worse,
                "same": one.difference.same,
                "distinguishable": one.difference.distinguishable,
            }
            for one in found.pairings
        ],
        "configuration": found.differing,
    }
