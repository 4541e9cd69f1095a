"""The report of a run: `report.html` (self-contained, examples masked), `report.md` (the same tables, no
texts) and `results.json` (its numbers as data).

The report shows everything that the run has written so far; a section without data says so. Methods, suites
and `pipeline.report` write the sections; this module reads the files of the run and orders the sections.
"""

import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

import pipeline
from pipeline import fingerprints
from pipeline.commands import (
    environment,
    measured,
    report_data,
    report_opening,
    report_results,
    report_settings,
)
from pipeline.commands.report_opening import Opening
from pipeline.config import Config, dump
from pipeline.data import records, storage
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.registry import WRITTEN
from pipeline.report import replicas, sections, tables
from pipeline.report.agreement import Agreement
from pipeline.report.arms import Arms
from pipeline.report.behind import behind
from pipeline.report.examples import Example
from pipeline.report.numbers import Numbers, Rows
from pipeline.report.results import Results
from pipeline.report.summary import Rate
from pipeline.schema import Schema
from pipeline.suites.base import OWN_JUDGE, Judgements, Suite

TOY_NOTE = (
    "Toy model",
    (
        "These are numbers of the toy model: about a million parameters, trained on made-up sentences. "
        "They show that the run works end to end. They say nothing about large models."
    ),
)


def write_report(
    config: Config, run_dir: str, *, to: str | None = None, examples: bool = True
) -> tuple[str, str]:
    """Write RUN/report.html and RUN/report.md from what the run holds, and RUN/results.json with the same
    numbers. Returns the paths of the first two.

    to: another directory for the three files. examples: show some rows, whose texts are in the page, folded.

    Each file is replaced atomically. The report depends only on the run and the installed versions, so it has
    no date. Raises UserError if a shard of a finished data set has changed.
    """
    datasets = _datasets(run_dir)
    found, told, kept = _measured(config, run_dir, datasets)
    page = {
        "name": kept.run,
        "model": kept.model,
        "model_note": _note(config),
        "opening": told,
        "sections": [
            behind(section, _judged(config, suite)) for suite, sections in found for section in sections
        ],
        "examples": _examples(config, datasets) if examples else [],
        "version": pipeline.__version__,
        "versions": tables.of_pairs("", ("Library", "Version"), environment.versions()),
        "config": dump(config),
    }
    to = to or run_dir
    paths = storage.join(to, "report.html"), storage.join(to, "report.md")
    for path, template in zip(paths, ("report.html", "report.md.jinja"), strict=True):
        storage.write_text(path, templates().get_template(template).render(page))
    storage.write_text(storage.join(to, report_results.FILE), report_results.dumped(kept))
    return paths


def results(config: Config, run_dir: str) -> Results:
    """What `write_report` would write to results.json now. Raises UserError as it does."""
    return _measured(config, run_dir, _datasets(run_dir))[2]


def _datasets(run_dir: str) -> dict[str, Dataset | None]:
    return {schema.name: Dataset.at(storage.join(run_dir, schema.name)) for schema in WRITTEN}


def _measured(
    config: Config, run_dir: str, datasets: dict[str, Dataset | None]
) -> tuple[list[tuple[str | None, list[sections.Section]]], Opening, Results]:
    """The report's sections, its opening, and all its numbers as data."""
    numbers: dict[str, Rows | None] = {
        schema.name: _numbers(datasets[schema.name], schema) for schema in WRITTEN
    }
    logs = {
        name: _training_log(storage.join(run_dir, "adapter", name, "metrics.jsonl"))
        for name in config.replicas
    }
    found = _sections(config, run_dir, numbers, logs)
    suites = [(suite, _arms(config, suite)) for _, suite in _suites(config)]
    trained = [name for name, lines in logs.items() if lines]
    told = report_opening.opening(config, suites, numbers, trained)
    name, model = storage.absolute(run_dir).rsplit("/", 1)[-1], _plain(config.engine.author(config.model))
    versions = environment.versions()
    kept = report_results.results(
        config, name, model, _note(config), versions, found, _names(config), told.sentences
    )
    return found, told, kept


def _note(config: Config) -> tuple[str, str] | None:
    """A heading and a sentence on a run whose texts or numbers mean little."""
    for engine in config.engines(config.stages).values():
        if not engine.is_model:
            return "No model", f"Texts of this run were written by {_plain(engine.author(config.model))}."
    return TOY_NOTE if "model" in config.read_models() and config.model.path == "toy" else None


def _plain(markdown: str) -> str:
    return markdown.replace("`", "")


def _sections(
    config: Config,
    run_dir: str,
    numbers: dict[str, Rows | None],
    logs: dict[str, list[dict]],
) -> list[tuple[str | None, list[sections.Section]]]:
    """The sections in their order, with the suite that they are of, if of one.

    Those on the run's methods come first. A run that only evaluates has no training or data section.
    """
    titles = {name: suite.title for name, suite in config.suites.items().items()}
    lines = _last_lines(storage.join(run_dir, "metrics.jsonl"), "stage", "arm", "suite")
    stages = [_stage_line(line, titles) for line in lines]
    found: list[tuple[str | None, list[sections.Section]]] = []
    errors = measured.read(run_dir, config.report.judge_errors)
    for name, suite in _suites(config):
        judgements = _judgements(config, suite, run_dir, errors)
        table = numbers[suite.data_schema.name]
        arms = _arms(config, suite)
        parts = suite.report(table, arms, config.seed, judgements)
        parts += _durability(config, suite, table, arms)
        found.append((name, [replicas.by_arm(part, arms) for part in parts]))
    rest: list[sections.Section] = []
    if config.arms:
        trained_on = {
            name: one.section.train.trained_on(one.section.kinds) for name, one in config.replicas.items()
        }
        section = sections.training(_arms(config), trained_on, logs)
        section.notes.extend(_steps([line for line in lines if line.get("arm") in config.replicas]))
        rest.append(section)
    if config.methods:
        rest.append(report_data.data(config.methods.values(), numbers, stages))
    rest += filter(None, (report_data.thoughts(stages), report_data.sources(stages)))
    return [*found, (None, [*rest, sections.time(stages), report_settings.settings(config)])]


def _judged(config: Config, suite: str | None) -> list[str]:
    """Who judged for a suite, or for the run's methods, in words."""
    parts = [config.suites.items()[suite]] if suite else [*config.methods.values()]
    return [
        f"{subject} by {report_opening.called(config, judge)}"
        for part in parts
        for judge, _, subject in part.judged()
    ]


def _arms(config: Config, suite: Suite | None = None) -> Arms:
    """All evaluated adapters; for a suite that evaluates the adapters after stages, those too."""
    several = {name: one.arm for name, one in config.replicas.items() if name != one.arm}
    names, stages = [], {}
    for name, one in config.replicas.items():
        for stage in config.stage_names(name) if suite is not None and suite.asks_every_stage else ():
            names.append(stage)
            stages[stage] = one.arm
            if name in several:
                several[stage] = one.arm + stage.removeprefix(name)
        names.append(name)
    for name, further in config.further.items():
        if further.arm in several:
            several[name] = several[further.arm] + name.removeprefix(further.arm)
    return Arms([*names, *config.further, *config.adapters], several, stages)


def _durability(config: Config, suite: Suite, numbers: Rows | None, arms: Arms) -> list[sections.Section]:
    """A suite's harmless rates over the steps of a second fine-tuning, if there was one."""
    rates = suite.harmless_rates(numbers) if config.durability and numbers is not None else {}
    curves: dict[str, dict[int, Rate]] = {}
    for one in config.further.values():
        if one.name in rates:
            itself = {0: rates[one.arm]} if one.arm in rates else {}
            curves.setdefault(one.arm, itself)[one.steps] = rates[one.name]
    if not curves:
        return []
    return [sections.durability(suite.title, suite.harmless_how, list(curves), curves, arms)]


def _names(config: Config) -> set[str]:
    """All names of arms that tables can have: those of means over seeds and of stages, too."""
    known = [_arms(config), *(_arms(config, suite) for suite in config.suites.items().values())]
    return {*config.arm_names, *(name for arms in known for name in (*arms, *arms.replicas.values()))}


def _steps(lines: list[dict]) -> list[str]:
    """A note on arms whose steps were made equal to those of the longest arm."""
    longer = [
        f"{line['arm']} ({line['own_steps']} steps in its {line['own_epochs']:g} epochs)"
        for line in lines
        if "arm" in line and line.get("own_steps", line.get("steps")) != line.get("steps")
    ]
    if not longer:
        return []
    return [
        "Steps: arms take as many as the longest one, so that none is better for being trained longer."
        f" Trained longer for that: {', '.join(longer)}."
    ]


def _judgements(
    config: Config, suite: Suite, run_dir: str, errors: list[tuple[dict, Agreement]]
) -> Judgements:
    """What more judges of a suite have said, and the measured errors of exactly its judges."""
    verdicts = {}
    for name in suite.judges_later:
        dataset = Dataset.at(storage.join(run_dir, suite.verdicts_name(name)))
        if dataset is not None:
            verdicts[name] = Numbers(dataset, suite.verdicts)
    judges = dict(suite.judges_later) | ({OWN_JUDGE: suite.harm_judge} if suite.harm_judge else {})
    known = {}
    for name, judge in judges.items():
        try:
            error = measured.of_judge(
                errors, fingerprints.of_judge(judge, fingerprints.asked_by(config, judge))
            )
        except UserError:  # a prompt file has moved since the run: nobody knows what was measured
            continue
        if error is not None:
            known[name] = error
    return Judgements(verdicts, known)


def _examples(config: Config, datasets: dict[str, Dataset | None]) -> list[tuple[str, list[Example]]]:
    """Examples under headings: of the suites first (ordered by `_suites`), then of generated data."""
    found = []
    for _, suite in _suites(config):
        if (dataset := datasets[suite.data_schema.name]) is not None:
            found.append(suite.examples_shown(dataset, _arms(config, suite), config.report.examples))
    for method in config.methods.values():
        if (dataset := datasets[method.generated.name]) is not None:
            found.append(method.examples_shown(dataset, config.report.examples))
    return [(heading, examples) for heading, examples in found if examples]


def _suites(config: Config) -> list[tuple[str, Suite]]:
    """All suites with their names; those that belong to the run's methods come first."""
    methods = [method.name for method in config.methods.values()]
    return sorted(config.suites.items().items(), key=lambda named: named[1].method not in methods)


def _numbers(dataset: Dataset | None, schema: Schema) -> Numbers | None:
    """The columns without texts, enough for counting; None if the run has no such data set."""
    return None if dataset is None else Numbers(dataset, schema)


def _stage_line(line: dict, titles: dict[str, str]) -> dict:
    """A line of metrics.jsonl with the names that the tables use; training and generation log others."""
    suite = line.get("suite", "")
    of = line.get("arm") or titles.get(suite, suite)
    dropped = {reason.replace("_", " "): rows for reason, rows in line.get("drop_reasons", {}).items()}
    name = line["stage"] + (f" ({of.replace('_', ' ')})" if of else "")
    return {
        "name": name,
        "rows": line.get("examples"),
        "tokens": line.get("completion_tokens"),
        "drops": dropped,
        **line,
    }


def _training_log(path: str) -> list[dict]:
    """The logged steps of an arm's training, in order; a resumed run logs some steps twice."""
    return sorted(
        (line for line in _last_lines(path, "step") if line.get("loss") is not None),
        key=lambda line: line["step"],
    )


def _last_lines(path: str, *keys: str) -> list[dict]:
    """The last line of a log for each value of `keys`, in order of first appearance. Raises UserError."""
    return list({tuple(line.get(key) for key in keys): line for line in records.lines(path)}.values())


@cache
def templates() -> Environment:
    """The templates of pages, compiled once."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = lambda text: Markup(
        re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    )
    environment.filters["md"] = lambda text: re.sub(
        r"([\\|\[])", r"\\\1", re.sub(r"[\r\n]+", " ", text)
    ).replace("<", "&lt;")
    environment.filters["slug"] = lambda text: re.sub(r"\W+", "-", text.lower())
    return environment
