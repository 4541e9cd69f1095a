"""The content of a run's `results.json`, and the file read back."""

import json
from collections.abc import Collection, Mapping, Sequence

from pydantic import ValidationError

import pipeline
from pipeline import fingerprints
from pipeline.config import Config
from pipeline.data import storage
from pipeline.errors import UserError
from pipeline.judges import Judge
from pipeline.report import results as kit
from pipeline.report.results import JudgeUsed, Results
from pipeline.report.sections import Section

FILE = "results.json"  # in the run directory


def results(
    config: Config,
    name: str,
    model: str,
    note: tuple[str, str] | None,
    versions: Mapping[str, str],
    found: Sequence[tuple[str | None, list[Section]]],
    arms: Collection[str],
    opening: Sequence[str] = (),
) -> Results:
    """name: of the run. note: heading and sentence on its texts. found: sections, with their suites. arms: as
    of `report.results.figures`. opening: the sentences that open the report."""
    judges = judges_of(config)
    numbers, told = [], []
    for suite, sections in found:
        own = [key for key, judge in judges.items() if judge.suite == suite and suite is not None]
        numbers += kit.figures(suite, sections, arms, own)
        told += kit.told(suite, sections)
    return Results(
        format=kit.FORMAT,
        run=name,
        model=model,
        note=f"{note[0]}: {note[1]}" if note else None,
        opening=[*opening],
        seed=config.seed,
        arms=config.arm_names,
        versions={"setbacks": pipeline.__version__, **versions},
        judges=judges,
        numbers=numbers,
        sections=told,
        configuration=config.model_dump(mode="json"),
    )


def by_name(found: Results) -> dict[str, float]:
    """The numbers of suites, each by a name of its own: suite, condition, measure, texts of its row, arm."""
    numbers: dict[str, float] = {}
    for one in found.numbers:
        if one.suite is None or one.value is None or one.unit == "count":
            continue
        labels = [text for text in one.row.values() if text != one.arm]
        words = [one.suite, one.group.partition(":")[0], one.table, one.name, *labels, one.arm or ""]
        numbers.setdefault("/".join(filter(None, map(kit.slug, words))), one.value)
    return numbers


def judges_of(config: Config) -> dict[str, JudgeUsed]:
    """All judges of suites and methods, by `NAME: WHAT`, such as `safety: harmlessness of answers`."""
    parts: list[tuple[str | None, str, list[tuple[Judge, str, str]]]] = [
        (name, name, suite.judged()) for name, suite in config.suites.items().items()
    ]
    parts += [(None, name, method.judged()) for name, method in config.methods.items()]
    return {
        f"{name}: {subject}": JudgeUsed(
            suite=suite,
            kind=judge.kind,
            judges=what,
            model=asked_by(config, judge),
            determines=determined(config, judge),
        )
        for suite, name, judged in parts
        for judge, what, subject in judged
    }


def determined(config: Config, judge: Judge) -> dict:
    """What determines a judge's verdicts; without its prompts if a prompt file has moved since the run."""
    asked = fingerprints.asked_by(config, judge)
    try:
        return fingerprints.of_judge(judge, asked)
    except UserError as e:
        return {"judge": judge.model_dump(mode="json"), "prompts": {"unknown": str(e)}, "model": asked}


def asked_by(config: Config, judge: Judge) -> str | None:
    """What a judge asks, in words; None if it asks no model."""
    if not judge.most_tokens():
        return None
    one = config.answering(judge.asked)
    return one.engine.author(one.model).replace("`", "")


def dumped(found: Results) -> str:
    return found.model_dump_json(indent=1) + "\n"


def read(run_dir: str) -> Results:
    """The results of a run. Raises UserError if there are none, or if another version wrote them."""
    path = storage.join(storage.absolute(run_dir), FILE)
    try:
        return Results.model_validate(json.loads(storage.read_text(path)))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `setbacks report CONFIG` writes it") from None
    except (OSError, ValueError, ValidationError) as e:
        raise UserError(
            f"{path}: cannot be read as results of this version ({type(e).__name__}); `setbacks report"
            " CONFIG` writes it anew"
        ) from None
