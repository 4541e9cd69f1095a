"""`setbacks judge ANSWERS`: verdicts on stored answers, compared with labels. No answer is generated.

Verdicts are those that a run stored (RUN/evaluation, or RUN/verdicts_NAME of one more judge), or those of a
judge that is asked now: one that needs no model, or a model on a server. Labels are a
person's, those of a data set (PKU-SafeRLHF's own columns) or another judge's verdicts. All answers are held
in memory.
"""

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import pyarrow.fs as pafs
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline import fingerprints
from pipeline.commands import measured
from pipeline.config import NamedModel
from pipeline.data import storage
from pipeline.data.dataset import Dataset
from pipeline.errors import RowFailed, UserError
from pipeline.inference.pool import NO_MODEL, ModelSpec
from pipeline.inference.row_chat import OWN, Clients, OpenModels, RowChat
from pipeline.judges import Exchange, HarmlessnessJudge, Judge, Verdict, negated
from pipeline.report import tables
from pipeline.report.agreement import Agreement, by_category, compared, corrected_rate
from pipeline.report.summary import Rate
from pipeline.schema import FAILED
from pipeline.settings import file, yaml_text
from pipeline.settings.base import Model, ModelName, Section
from pipeline.settings.shown import shown
from pipeline.sources import files
from pipeline.sources.files import BadRow

MOST_CATEGORIES = 20
_AT_ONCE = 64  # answers judged at once by a judge without a server
_HARMFUL = {"harmful", "unsafe", "true", "yes", "1", "1.0"}
_HARMLESS = {"harmless", "safe", "false", "no", "0", "0.0"}
_NO_LABEL = {"", "null", "none", "nan"}
# Columns of PKU-SafeRLHF: response_0, is_response_0_safe, …
_PKU_RESPONSE = re.compile(r"response_(\d)")


@dataclass(frozen=True)
class Answer:
    """One answer.

    group:   arm and condition, if it has them.
    verdict: stored, or of a judge that was asked now; None if there is none.
    label:   whether it is harmful, by its own file.
    """

    id: str
    instruction: str
    response: str
    category: str | None = None
    group: str = ""
    verdict: Verdict | None = None
    label: bool | None = None

    @property
    def harmful(self) -> bool | None:
        return None if self.verdict is None else negated(self.verdict.ok)


class _Given(Section):
    judge: HarmlessnessJudge


class _Models(Section):
    models: dict[ModelName, NamedModel]


Models = dict[str, NamedModel]


def judge(
    answers_path: str,
    judge_text: str | None,
    models_text: str | None,
    labels_path: str | None,
    out: str | None,
    review: str | None,
    review_rows: int,
    keep: str | None,
    console: Console,
    *,
    as_json: bool = False,
) -> None:
    """Print how the verdicts on stored answers compare with labels.

    judge_text:  YAML of a judge, or its kind; None takes the stored verdicts.
    models_text: YAML of `models` that the judge can name, or a configuration; None takes the run's own.
    labels_path: file of labels; None takes the answers' own, if they have any.
    keep:        file to write: the judge's error, for a report (see `measured`).
    as_json:     print the numbers as JSON, and nothing else.
    out, review: files to write: the verdicts without texts; a sample of answers for a person to label.

    Raises UserError for what cannot be read, judged or written.
    """
    console.quiet = as_json
    models = _models(models_text, answers_path)
    which = None if judge_text is None else _judge(judge_text, models)
    for option, path in (("--out", out), ("--review", review), ("--keep", keep)):
        if path is not None and storage.exists(path):
            raise UserError(f"{option} = {path}: exists already; name another file")
    left_out: Counter[str] = Counter()
    answers = list(_answers(answers_path, left_out))
    if not answers:
        why = ", ".join(f"{reason}: {n:,}" for reason, n in left_out.items())
        raise UserError(f"{answers_path}: holds no answer to judge{f' ({why})' if why else ''}")
    labels: dict[str, bool | None] = (
        {answer.id: answer.label for answer in answers if answer.label is not None}
        if labels_path is None
        else _labels(labels_path, left_out)
    )
    if review is not None:
        storage.write_text(review, _for_review(answers, review_rows))
        console.print(
            f"{escape(review)}: {min(review_rows, len(answers))} answers; write harmful or"
            " harmless into their column `harmful` and give the file to --labels"
        )
    if which is not None:
        if not any(answer.response for answer in answers) and any(answer.verdict for answer in answers):
            raise UserError(f"{answers_path}: holds verdicts, and no answers to judge; name those of the run")
        answers = asyncio.run(_judged(which, models, answers, left_out))
    elif all(answer.harmful is None for answer in answers):
        if review is not None:
            return
        raise UserError(
            f"{answers_path}: holds no verdict; name a judge with --judge, such as --judge refusal"
        )
    if out is not None:
        storage.write_text(out, _lines(_verdict_row(answer) for answer in answers))
    error = _print(answers_path, which, answers, labels, left_out, console)
    if as_json:
        print(json.dumps(_as_data(answers_path, which, answers, labels, left_out, error), indent=1))
    if keep is not None:
        if error is None:
            raise UserError(f"--keep = {keep}: there is no error to keep; give --labels FILE")
        if which is None:
            known = measured.of_stored(answers_path)
        else:
            asked = models[which.asked].determines() if which.asked else {}
            known = fingerprints.of_judge(which, asked)
        storage.write_text(keep, measured.dumped(known, error, labels_path or answers_path))
        console.print(f"{escape(keep)}: the judge's error, for the report")


# -- reading


def _judge(text: str, models: Models) -> Judge:
    found: Judge = file.validated(
        _Given,
        {"judge": {"kind": tree} if isinstance(tree := _yaml(text, "--judge"), str) else tree},
        "--judge",
    ).judge
    found.check("--judge", Model(path="none"))
    if found.asked is not None and found.asked not in models:
        known = f"known are {', '.join(models)}" if models else "there are none: give them as --models"
        raise UserError(f"--judge.model = {found.asked}: models has no such entry; {known}")
    engine = models[found.asked].engine if found.asked else None
    if found.most_tokens() and not (engine and engine.is_client):
        raise UserError(
            f"--judge: {found.kind} asks a model, and this command starts none; name a server of --models, as"
            f" '{{kind: {found.kind}, model: NAME}}', or give the judge to more_judges of the suite and use"
            " `setbacks rejudge`"
        )
    if engine:
        engine.check(f"models.{found.asked}.engine")
    return found


def _models(text: str | None, answers_path: str) -> Models:
    """The `models` of --models, or else of the run that the answers lie in, if it can be read."""
    if text is not None:
        tree = (
            yaml_text.read(text)
            if storage.is_local(text) and os.path.isfile(text)
            else _yaml(text, "--models")
        )
        if isinstance(tree, dict) and "run_dir" in tree:
            tree = tree.get("models") or {}
        elif isinstance(tree, dict) and set(tree) == {"models"}:
            tree = tree["models"]
        return file.validated(_Models, {"models": tree}, "--models").models
    config = measured.config_of(answers_path)
    return dict(config.models) if config else {}


def _yaml(text: str, option: str) -> Any:
    try:
        return yaml_text.parse(text)
    except yaml.YAMLError as e:
        raise UserError(f"{option}: not valid YAML ({shown(e)})") from None


def _answers(path: str, left_out: Counter[str]) -> Iterator[Answer]:
    """The answers of a run's data set or of a file; counts those that are left out."""
    for number, row in enumerate(_rows(path, left_out)):
        if row.get("status") == FAILED:
            left_out["failed"] += 1
        elif row.get("suite") == "helpful":
            left_out["answer to a benign instruction"] += 1
        elif found := list(_of_pku(row, number)):
            yield from found
        elif isinstance(row.get("response"), str):
            yield _answer(row, number)
        elif isinstance(row.get("answer_id"), str):  # a verdict of one more judge
            yield _answer({**row, "row_id": row["answer_id"], "response": ""}, number)
        else:
            left_out["without a response"] += 1


def _rows(path: str, left_out: Counter[str]) -> Iterator[dict]:
    filesystem, inner = storage.filesystem(path)
    is_directory = filesystem.get_file_info(inner).type == pafs.FileType.Directory
    dataset = Dataset.at(storage.absolute(path)) if is_directory else None
    if dataset is not None:
        yield from dataset.rows()
        return
    for found in files.find(path):
        for row in found.rows():
            if isinstance(row, BadRow):
                left_out[f"malformed ({row.reason})"] += 1
            else:
                yield row


def _answer(row: dict, number: int) -> Answer:
    harmful = _label(row.get("harmful"))
    instruction = next(
        (row[name] for name in ("instruction", "prompt") if isinstance(row.get(name), str)), ""
    )
    group = ", ".join(str(row[name]) for name in ("arm", "condition") if row.get(name))
    verdict = None if harmful is None else Verdict(not harmful)
    return Answer(
        _id(row) or str(number), instruction, row["response"], _text(row.get("category")), group, verdict
    )


def _of_pku(row: dict, number: int) -> Iterator[Answer]:
    """The labeled responses of a row of PKU-SafeRLHF."""
    for name, response in row.items():
        if (
            (found := _PKU_RESPONSE.fullmatch(name))
            and isinstance(response, str)
            and isinstance(row.get("prompt"), str)
        ):
            safe = _label(row.get(f"is_response_{found[1]}_safe"))
            if safe is not None:  # the column says safe, a label says harmful
                category = _text(row.get("category"))
                yield Answer(f"{number}-{found[1]}", row["prompt"], response, category, label=not safe)


def _labels(path: str, left_out: Counter[str]) -> dict[str, bool | None]:
    """Id → harmful. None if two labels of one answer differ. Raises UserError if nothing is a label."""
    found: dict[str, bool | None] = {}
    rows = 0
    for row in _rows(path, left_out):
        rows += 1
        key, value = _id(row), row.get("harmful", row.get("harmful.responses"))
        if key is None:
            left_out["label without id"] += 1
            continue
        votes = value if isinstance(value, list) else [value]
        for vote in votes:
            label = _label(vote)
            if label is None:
                if not _is_empty(vote):
                    left_out["label that is neither harmful nor harmless"] += 1
                continue
            found[key] = label if found.get(key, label) == label else None
    if differing := sum(label is None for label in found.values()):
        left_out["answer with labels that differ"] += differing
    if not any(label is not None for label in found.values()):
        raise UserError(
            f"{path}: none of its {rows} rows has an id and a label; it needs the columns row_id (or id) and"
            " harmful, with values such as harmful and harmless, or true and false"
        )
    return found


def _id(row: dict) -> str | None:
    # row_id first: a labeling tool puts an id of its own beside it.
    value = next((row[name] for name in ("row_id", "id") if row.get(name) is not None), None)
    return None if value is None or value == "" else str(value)


def _label(value: Any) -> bool | None:
    """True for harmful, yes, 1 …; False for harmless, no, 0 …; None for anything else."""
    word = str(value).strip().lower()
    return True if word in _HARMFUL else False if word in _HARMLESS else None


def _is_empty(value: Any) -> bool:
    return str(value).strip().lower() in _NO_LABEL


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


# -- judging


async def _judged(
    judge: Judge, models: Models, answers: list[Answer], left_out: Counter[str]
) -> list[Answer]:
    """The answers with the judge's verdicts. An answer that cannot be judged has none, and is counted."""
    named = {name: ModelSpec(one.model, "", one.engine) for name, one in models.items()}
    opened = OpenModels({OWN: NO_MODEL, **named}, NO_MODEL, NO_MODEL.open(), Clients())
    slots = asyncio.Semaphore(max(_AT_ONCE, models[judge.asked].engine.requests if judge.asked else 0))

    async def one(answer: Answer) -> Answer:
        async with slots:
            try:
                chat = RowChat(opened.get(OWN), 0, answer.id, opened)
                verdict = await judge(Exchange(answer.instruction, answer.response), chat, "harmless")
            except RowFailed as e:
                left_out[f"not judged ({e})"] += 1
                verdict = Verdict(None)
        return replace(answer, verdict=verdict)

    return list(await asyncio.gather(*map(one, answers)))


# -- writing


def _verdict_row(answer: Answer) -> dict:
    verdict = answer.verdict or Verdict(None)
    return {
        "id": answer.id,
        "harmful": answer.harmful,
        "harmless_rating": verdict.rating,
        "harm_score": verdict.harm_score,
        "harm_categories": list(verdict.categories) or None,
    }


def _for_review(answers: list[Answer], count: int) -> str:
    """A sample as JSONL, without verdicts, so that nobody labels by them.

    The sample is drawn by a hash of the id: it does not depend on the verdicts, so that sensitivity and
    specificity measured on it are unbiased.
    """
    drawn = sorted(answers, key=lambda answer: blake2b(answer.id.encode(), digest_size=8).digest())[:count]
    return _lines(
        {
            "row_id": answer.id,
            "instruction": answer.instruction,
            "response": answer.response,
            "category": answer.category,
            "harmful": None,
        }
        for answer in drawn
    )


def _lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# -- printing


def _print(
    path: str,
    judge: Judge | None,
    answers: list[Answer],
    labels: dict[str, bool | None],
    left_out: Counter[str],
    console: Console,
) -> Agreement | None:
    """Print everything. Returns the judge's error on the labels; None if there is none."""
    verdicts = {answer.id: answer.harmful for answer in answers}
    judged = Rate.of(harmful for harmful in verdicts.values() if harmful is not None)
    who = "the stored verdicts" if judge is None else judge.kind
    console.print(
        f"[bold]{escape(path)}[/bold]: {len(answers):,} answers, {judged.trials:,} with a verdict ({who});"
        f" called harmful: {_percent(judged)}"
    )
    if repeated := len(answers) - len(verdicts):
        left_out["id that another answer has too"] += repeated
    if unread := sum(harmful is None for harmful in verdicts.values()):
        left_out["without a verdict"] += unread
    found, pairs = compared(verdicts, labels)
    if labels:
        left_out["judged, without a label"] += judged.trials - found.n
        left_out["label of no answer here"] += len(labels.keys() - verdicts.keys())
    for reason, number in left_out.items():
        if number:
            console.print(f"  left out, {escape(shown(reason))}: {number:,}")
    if not labels:
        console.print("  no labels: the judge's error is unmeasured; give --labels FILE")
        return None
    if not judged.trials:
        console.print("  no verdict could be read, so there is nothing to compare with the labels")
        return None
    if not found.n:
        raise UserError(
            f"{path}: none of the labels is of an answer with a verdict; ids must be those of the answers"
        )
    _print_error(found, console)
    categories = {answer.id: answer.category for answer in answers if answer.category}
    _print_categories(by_category(pairs, categories), console)
    _print_corrected(answers, found, console)
    return found


def _as_data(
    path: str,
    judge: Judge | None,
    answers: list[Answer],
    labels: dict[str, bool | None],
    left_out: Counter[str],
    error: Agreement | None,
) -> dict:
    """The same numbers as are printed. Shares are from 0 to 1, intervals are of 95 %."""
    groups = {}
    for group, judged in _groups(answers).items():
        corrected = None if error is None else corrected_rate(judged, error)
        groups[group or "all"] = {
            "harmful": _rate_data(judged),
            "corrected": corrected and vars(corrected),
        }
    categories = {answer.id: answer.category for answer in answers if answer.category}
    _, pairs = compared({answer.id: answer.harmful for answer in answers}, labels)
    return {
        "answers": path,
        "judge": None if judge is None else judge.kind,
        "rows": len(answers),
        "left_out": {reason: number for reason, number in left_out.items() if number},
        "groups": groups,
        "error": None if error is None else _error_data(error),
        "categories": {
            name: _error_data(one)
            for name, one in by_category(pairs, categories).items()
            if error is not None
        },
    }


def _error_data(found: Agreement) -> dict:
    shares = {name: _rate_data(getattr(found, name)) for name in ("agreed", "sensitivity", "specificity")}
    kappa = {"value": found.kappa, "interval": found.kappa_interval()}
    counts = {
        "called_harmful_labeled_harmful": found.both,
        "called_harmful_labeled_harmless": found.only_first,
        "called_harmless_labeled_harmful": found.only_second,
        "called_harmless_labeled_harmless": found.neither,
    }
    return {"n": found.n, "accuracy": shares.pop("agreed"), **shares, "kappa": kappa, "counts": counts}


def _rate_data(rate: Rate) -> dict:
    return {"value": rate.value, "interval": rate.interval if rate.trials else None, "n": rate.trials}


def _groups(answers: list[Answer]) -> dict[str, Rate]:
    """Arm and condition → the share of judged answers that are called harmful."""
    return {
        group: Rate.of(a.harmful for a in answers if a.group == group and a.harmful is not None)
        for group in dict.fromkeys(answer.group for answer in answers)
    }


def _print_error(found: Agreement, console: Console) -> None:
    counts = Table("", "labeled harmful", "labeled harmless", box=None, header_style="dim", padding=(0, 2))
    counts.add_row("called harmful", str(found.both), str(found.only_first))
    counts.add_row("called harmless", str(found.only_second), str(found.neither))
    console.print(counts)
    interval = found.kappa_interval()
    kappa = tables.NOTHING if found.kappa is None else f"{found.kappa:.2f}"
    kappa += f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
    console.print(f"  accuracy     {_percent(found.agreed)} of {found.n:,} labeled answers")
    console.print(f"  kappa        {escape(kappa)}, agreement beyond chance")
    console.print(f"  sensitivity  {_percent(found.sensitivity)} of the harmful answers are called harmful")
    console.print(f"  specificity  {_percent(found.specificity)} of the harmless answers are called harmless")


def _print_categories(found: dict[str, Agreement], console: Console) -> None:
    if not found:
        return
    table = Table(
        "category",
        "labeled",
        "accuracy",
        "kappa",
        "missed harm",
        "false alarms",
        box=None,
        header_style="dim",
    )
    for name, one in list(found.items())[:MOST_CATEGORIES]:
        kappa = tables.NOTHING if one.kappa is None else f"{one.kappa:.2f}"
        counts = (str(one.n), _percent(one.agreed), kappa, str(one.only_second), str(one.only_first))
        table.add_row(escape(shown(name, 60)), *counts)
    console.print(table)
    if len(found) > MOST_CATEGORIES:
        console.print(f"  {len(found) - MOST_CATEGORIES} smaller categories are not shown")


def _print_corrected(answers: list[Answer], error: Agreement, console: Console) -> None:
    """Print every group's harmful rate, as judged and corrected for the judge's error on the labels."""
    table = Table(
        "answers", "called harmful", "corrected for the judge's error", box=None, header_style="dim"
    )
    for group, judged in _groups(answers).items():
        corrected = corrected_rate(judged, error)
        value = (
            corrected.why_not
            if corrected.value is None or corrected.interval is None
            else _share(corrected.value, corrected.interval)
        )
        table.add_row(escape(shown(group or "all", 60)), _percent(judged), escape(value))
    console.print(table)
    console.print(
        "  The correction (Rogan and Gladen) holds if the judge errs on these answers as on the labeled ones."
    )


def _percent(rate: Rate) -> str:
    return tables.NOTHING if rate.value is None else escape(_share(rate.value, rate.interval))


def _share(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
