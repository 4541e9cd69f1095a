"""`setbacks judge ANSWERS`: verdicts on stored answers, compared with labels. No answer is generated.

Verdicts are those that a run stored (RUN/evaluation, or RUN/verdicts_NAME of one more judge), or those of a
judge that is asked now: one that needs no model, or a model on a server. Labels are a
person's, those of a data set (PKU-SafeRLHF's own columns) or another judge's verdicts. All answers are held
in memory.
"""

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from pipeline import fingerprints
from pipeline.commands import judge_answers, judge_tables, measured
from pipeline.commands.judge_answers import Answer
from pipeline.config import NamedModel
from pipeline.data import storage
from pipeline.errors import RowFailed, UserError
from pipeline.inference.pool import NO_MODEL, ModelSpec
from pipeline.inference.row_chat import OWN, Clients, OpenModels, RowChat
from pipeline.judges import Exchange, HarmlessnessJudge, Judge, Verdict
from pipeline.settings import file, yaml_text
from pipeline.settings.base import Model, ModelName, Section
from pipeline.settings.shown import shown

_AT_ONCE = 64  # answers judged at once by a judge without a server


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
    answers = list(judge_answers.read(answers_path, left_out))
    if not answers:
        why = ", ".join(f"{reason}: {n:,}" for reason, n in left_out.items())
        raise UserError(f"{answers_path}: holds no answer to judge{f' ({why})' if why else ''}")
    labels: dict[str, bool | None] = (
        {answer.id: answer.label for answer in answers if answer.label is not None}
        if labels_path is None
        else judge_answers.read_labels(labels_path, left_out)
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
    error = judge_tables.print_tables(answers_path, which, answers, labels, left_out, console)
    if as_json:
        print(
            json.dumps(judge_tables.as_data(answers_path, which, answers, labels, left_out, error), indent=1)
        )
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
