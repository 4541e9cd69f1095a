"""`setbacks plan`: previews a run without starting an engine. Reads only the tokenizer and the first rows."""

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape

from pipeline import models, preflight, pretrained, sampling
from pipeline.chat import Message
from pipeline.commands import recording, resources, trainings
from pipeline.commands.recording import Call, RecordingChat
from pipeline.commands.show import masked, safe_text
from pipeline.config import Config
from pipeline.data.store import reason
from pipeline.errors import RowFailed
from pipeline.judges import Judge
from pipeline.registry import Method
from pipeline.schema import HARMLESS
from pipeline.settings.base import Source
from pipeline.settings.shown import plural
from pipeline.settings.walk import replaced, sections
from pipeline.sources import instructions
from pipeline.sources.counts import Accounts
from pipeline.sources.overlap import Seen
from pipeline.suites.base import Suite
from pipeline.templates import ChatTemplate

ROWS_SHOWN = 3
ROWS_MEASURED = 2000
ROWS_COUNTED = 10_000  # of a source whose rows are not all needed for the plan
MASKED_WORDS = 5  # this many words in a row that also occur in an unsafe text are masked
CHARACTERS_PER_TOKEN = 4  # of English text; used only if no tokenizer can be loaded
BINS = (64, 128, 256, 512, 1024, 2048, 4096)


def show_plan(
    config: Config,
    tokens_per_s: float | None = None,
    console: Console | None = None,
    *,
    as_json: bool = False,
    reveal: bool = False,
) -> None:
    """Print the plan; with as_json, its facts and no prompts. Texts that may be harmful are masked in the
    prompts unless `reveal`.

    Raises UserError for configurations that `run` would refuse, if that can be checked here.
    """
    console = console or Console(highlight=False, soft_wrap=True, quiet=as_json)
    facts = _plan(config, tokens_per_s, console, reveal)
    if as_json:
        print(json.dumps(facts, indent=1))


@pretrained.read_once()
def _plan(config: Config, tokens_per_s: float | None, console: Console, reveal: bool) -> dict:
    """Print the plan, and return its facts. Raises UserError."""
    # a plan reads this disk only and does not wait for a network
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    stages = set(config.stages)
    out_of_reach = preflight.unreachable(config, stages)
    preflight.check(config, stages, skip=set(out_of_reach))
    config = preflight.dated(config)
    if config.model.path == "toy" and "model" in config.read_models():
        console.print("model        toy, the embedded demonstration model")
    else:
        console.print(
            f"model        {config.model.path}"
            + (f" @ {config.model.revision}" if config.model.revision else "")
            + ("" if "model" in config.read_models() else ", which no stage reads")
        )
    for name, why in out_of_reach.items():
        notice = f"{name} cannot be reached from here; skipping its checks"
        console.print(f"[yellow]{notice}[/yellow]: {escape(why)}")
    config, sampled = _sampled(config, stages)
    notices = [*sampled, *_check_models(config, stages)]
    facts: dict = {
        "model": config.model.path,
        "revision": config.model.revision,
        "stages": config.stages,
        "arms": config.arm_names,
        "out_of_reach": {name: str(why) for name, why in out_of_reach.items()},
        "notices": notices,
        "methods": {},
    }
    for notice in notices:
        console.print(f"[yellow]{escape(safe_text(notice))}[/yellow]")
    work: list[resources.Work] = []
    counts = Accounts()
    if not config.methods:
        console.print("No method is configured: this run only evaluates.\n")
    for name, method in config.methods.items():
        if not method.asks_model:
            console.print(f"methods.{name} asks no model: it takes its texts from the source.\n")
            continue
        done, facts["methods"][name] = _generation(
            config, name, method, out_of_reach, counts, console, reveal
        )
        work += done
    seen = _seen(config, out_of_reach) if "evaluate" in stages else None
    for name, suite in config.suites.items().items() if "evaluate" in stages else ():
        work += _evaluation(config, name, suite, out_of_reach, counts, seen)
    _show_sources(config, stages, out_of_reach, counts, console, seen)
    nodes, scaler = resources.cluster(config)
    resources.show(config, nodes, console)
    if os.environ.get("RAY_ADDRESS"):
        resources.show_cluster(config, stages, nodes, scaler, console)
    away = {field.split(".")[1] for field in out_of_reach if field.startswith("methods.")}
    rows = {name: facts["methods"].get(name, {}).get("rows") for name in config.methods if name not in away}
    trained = trainings.show(config, _template(config)[0], console, rows)
    memory = resources.show_memory(config, stages, nodes, console)
    hours = resources.show_time(config, work, tokens_per_s, console)
    counted = [(part.stage, part.name, *(part.counted or (None, None))) for part in work]
    names = ("stage", "name", "counted", "most_new_tokens")
    return {
        **facts,
        "sources": counts.told(),
        "engines": {field: engine.described() for field, engine in config.engines(stages).items()},
        "memory": memory,
        "work": [dict(zip(names, part, strict=True)) for part in counted],
        "trainings": trained,
        "time": hours,
    }


def _show_sources(
    config: Config,
    stages: set[str],
    out_of_reach: dict[str, str],
    counts: Accounts,
    console: Console,
    seen: Seen | None,
) -> None:
    """Print how every source is read: to its end if its rows are counted, else only its first rows."""
    for field, source in preflight.sources(config, stages, set(config.suites.items())).items():
        if field not in out_of_reach and counts.known(field) is None:
            suite = config.suites.items().get(field.split(".")[1]) if field.startswith("suites.") else None
            if suite is not None:
                rows = suite.read(source, counts.of(field), seen)
            else:
                rows = instructions.read(source, counts.of(field))
            for _ in itertools.islice(rows, ROWS_COUNTED):
                pass
    if told := counts.told():
        console.print("[bold]Sources[/bold]")
        for line in told:
            console.print(f"  {escape(safe_text(line))}")
        console.print()


def _check_models(config: Config, stages: set[str]) -> list[str]:
    """Check models as `run` does before it starts. Returns notices. Raises UserError."""
    for field, model in config.read_models().items():
        if models.cached_model_dir(model) is None:
            return [f"{field}.path = {model.path} is not on this disk; skipping the checks of models"]
    directory = models.cached_model_dir(config.model) or ""
    return preflight.check_models(config, stages, set(config.suites.items()), directory)


def _seen(config: Config, out_of_reach: dict[str, str]) -> Seen | None:
    """The instructions of the methods; None if some are out of reach, or there are no methods."""
    sources = config.trained_on()
    return Seen.of(sources.values()) if sources and not out_of_reach.keys() & sources.keys() else None


def _sampled(config: Config, stages: set[str]) -> tuple[Config, list[str]]:
    """The configuration with its models' own sampling settings, if they are on this disk, and notices."""
    if any(models.cached_model_dir(model) is None for model in config.read_models().values()):
        return config, []
    return sampling.resolved(config, stages, set(config.suites.items()))


def _generation(
    config: Config,
    name: str,
    method: Method,
    out_of_reach: dict[str, str],
    counts: Accounts,
    console: Console,
    reveal: bool,
) -> tuple[list[resources.Work], dict]:
    """Run the recipe on the first rows with a chat that only records calls; print prompts and lengths.

    Returns the work of the method's own model and of each other model that it asks, and the same as facts.
    """
    source: Source | None = method.instructions  # null if the method makes its own rows
    samples, field = method.samples, f"methods.{name}.instructions"
    readable, limit = field not in out_of_reach, source.limit if source else None
    if not readable and not limit:
        return [resources.Work("generate", name, None)], {}
    if source is None:
        usable = method.rows(counts.below(f"methods.{name}"))
    else:
        usable = instructions.well_formed(source, counts.of(field)) if readable else iter(())
    rows = list(itertools.islice(usable, ROWS_MEASURED))
    count = len(rows) + sum(1 for _ in usable) if readable else limit or 0
    ungated = method.model_copy(update={"gates": None})  # placeholders would not pass
    recipe, new_tokens, shown = ungated.recipe(config.seed), 0, 0
    named: Counter[str] = Counter()
    longest: list[Call] = []
    left_out: Counter[str] = Counter()
    chats = [RecordingChat() for _ in rows]
    made = recording.run(recipe, zip(rows, chats, strict=True))
    for row, chat, result in zip(rows, chats, made, strict=True):
        if not chat.calls:
            left_out[reason(result.get("error") or "nothing is asked of the model")] += 1
            continue
        if shown < ROWS_SHOWN:
            shown += 1
            hidden = [] if reveal else _may_be_harmful(row, method)
            _show_calls(name, hidden, chat.calls, shown, console)
        longest.append(
            max(
                chat.calls,
                key=lambda call: call.characters + CHARACTERS_PER_TOKEN * (call.new_tokens + call.unknown),
            )
        )
        new_tokens += sum(call.new_tokens for call in chat.calls)
        named += chat.named
    if left_out:
        console.print(f"[bold]Selection[/bold]: {len(longest):,} of the {len(rows):,} rows measured are used")
        for why, number in left_out.most_common():
            console.print(f"  {number:>7,} {escape(why)}")
        console.print()
    facts = {"rows": count, "measured": len(rows), "left_out": dict(left_out)}
    if readable:
        facts |= _show_lengths(longest, config, console)
    if source is None:  # what it asks depends on texts that are not yet written
        told, own = plural(count, "row"), method.most_tokens()
        work = [resources.Work("generate", name, (told, count * own))]
        for by, tokens in _judging(config, "generate", f"methods.{name}", method).items():
            work.append(resources.Work("generate", name, (told, count * tokens), by))
        return work, facts
    if rows:
        most = new_tokens * count // len(rows)
        others = {by: tokens * count // len(rows) for by, tokens in named.items()}
    else:  # the most that a row can need
        most = count * method.most_tokens()
        others = {
            by: tokens * count
            for by, tokens in _judging(config, "generate", f"methods.{name}", method).items()
        }
    selected = f", {len(longest) / len(rows):.0%} selected," if left_out else ""
    told = f"{plural(count, 'instruction')}{selected} × {plural(samples, 'sample')}"
    work = [
        resources.Work("generate", name, (told, most * samples)),
        *(
            resources.Work("generate", name, (told, tokens * samples), by)
            for by, tokens in sorted(others.items())
        ),
    ]
    return work, facts


def _may_be_harmful(row: dict, method: Method) -> list[str]:
    """The texts of a row that `setbacks show` masks too."""
    columns = [column.name for column in method.listed.columns if column.text not in (None, HARMLESS)]
    return [text for name in columns for text in _texts(row.get(name)) if text.strip()]


def _texts(value: Any) -> list[str]:
    if isinstance(value, list | tuple):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) else []


def _show_calls(name: str, hidden: list[str], calls: list[Call], number: int, console: Console) -> None:
    """Print a row's calls. hidden: texts that are masked wherever they or parts of them occur."""
    if number == 1:
        console.print(f"\n[bold]Prompts of the first rows[/bold] of {name}")
    told = set()
    for call in calls:
        for message in call.messages:
            text, role = message["content"], message["role"]
            if (role, text) in told:
                continue
            told.add((role, text))
            shown = _without(text, hidden, 3 if role == "assistant" else MASKED_WORDS)
            console.print(f"  {call.step} ({role}): {escape(_one_line(shown))}")
    console.print()


def _without(text: str, unsafe: Iterable[str], words: int) -> str:
    """The text, with each unsafe text in it masked, and each run of `words` or more words of one."""
    for one in sorted(unsafe, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(one.strip())}(?!\w)", lambda found: masked(found[0]), text)
    theirs: set[tuple[str, ...]] = set()
    for one in unsafe:
        found = one.split()
        theirs |= {tuple(found[i : i + words]) for i in range(len(found) - words + 1)}
    own, hidden = text.split(), set()
    for i in range(len(own) - words + 1):
        if tuple(own[i : i + words]) in theirs:
            hidden |= set(range(i, i + words))
    parts: list[str] = []
    for is_hidden, places in itertools.groupby(range(len(own)), key=lambda place: place in hidden):
        run = [own[place] for place in places]
        parts.append(masked(" ".join(run)) if is_hidden else " ".join(run))
    return " ".join(parts) if hidden else text


def _evaluation(
    config: Config,
    name: str,
    suite: Suite,
    out_of_reach: dict[str, str],
    counts: Accounts,
    seen: Seen | None,
) -> list[resources.Work]:
    """How the suite's work is counted, and its maximum of new tokens: of the run's model, and of judges."""
    if suite.runs_apart:
        return [resources.Work("evaluate", name, None, why="another program runs it")]
    fields = sections(suite, Source, f"suites.{name}")
    unknown, found = any(field in out_of_reach for field in fields), []
    for number, (source, part) in enumerate(suite.parts):
        field = next(field for field, one in fields.items() if one is source)
        entries = source.limit
        if not unknown:
            entries = sum(1 for _ in suite.read(source, counts.of(field), seen))
        of = f" of {field.rpartition('.')[2]}" if number else ""
        if entries is None:
            found.append(resources.Work("evaluate", name + of, None))
        else:
            found += _asked(config, name, part, entries, f"{plural(entries, 'row')}{of}")
    return found


def _asked(config: Config, name: str, suite: Suite, entries: int, rows: str) -> list[resources.Work]:
    """The work of one source of a suite, of so many rows. rows: the same in words."""
    told, most = suite.most_tokens()
    arms = resources.arms(config, suite)
    found = [
        resources.Work(
            "evaluate",
            name,
            (f"{rows} × {told} × {plural(arms, 'arm')}", entries * most * arms),
        )
    ]
    every = f"{rows} × {suite.size()} × {plural(arms, 'arm')}"
    for by, tokens in _judging(config, "evaluate", f"suites.{name}", suite).items():
        found.append(resources.Work("evaluate", name, (every, entries * tokens * arms), by))
    for judge, tokens in _judging_later(suite).items():
        work = (f"{judge}: {every}", entries * tokens * arms)
        found.append(resources.Work("rejudge", name, work, suite.judges_later[judge].asked))
    return found


def _judging(config: Config, stage: str, place: str, section: Method | Suite) -> Counter[str]:
    """New tokens of other models for one row of the source (and one arm), at most, by name in `models`.

    They are counted as the run's own model's would be, if it judged in their place. place: of the section.
    """

    def most(asking: Method | Suite) -> int:
        return asking.most_tokens()[1] if isinstance(asking, Suite) else asking.most_tokens()

    judges, found = sections(section, Judge, place), Counter[str]()
    for field, by in config.named([stage]).items():
        if judge := judges.get(at := field.rpartition(".")[0]):
            own = replaced(section, {at: judge.model_copy(update={"model": None})}, place)
            found[by] += most(own) - most(section)
    return +found


def _judging_later(suite: Suite) -> dict[str, int]:
    """New tokens of `rejudge` for one row of the source and one arm, at most, by judge that asks a model.

    They are counted as if the judge had the place of the suite's own one.
    """
    headline = suite.judged()[0][0] if suite.judges_later else None
    field = next((field for field in type(suite).model_fields if getattr(suite, field) is headline), "")
    found = {}
    for name, judge in suite.judges_later.items():
        if judge.most_tokens():
            asking, not_asking = (
                suite.model_copy(update={field: judge.model_copy(update={"model": model})}).most_tokens()[1]
                for model in (None, "-")
            )
            found[name] = asking - not_asking
    return found


def _measure(config: Config, calls: list[Call]) -> tuple[list[int], str, int | None]:
    """Prompt tokens of each call, how they are counted, and the limit of prompt and completion together."""
    template, limit = _template(config)
    if template is None:
        lengths = [call.characters // CHARACTERS_PER_TOKEN + call.unknown for call in calls]
        counted_by = f"{CHARACTERS_PER_TOKEN} characters per token, because the tokenizer cannot be reached"
        return lengths, counted_by, limit
    return (
        [_tokens(template, call.messages) + call.unknown for call in calls],
        "the model's tokenizer",
        limit,
    )


def _tokens(template: ChatTemplate, messages: list[Message]) -> int:
    """Tokens of a prompt; 0 if it cannot be rendered, which makes the row a failed one."""
    try:
        return len(template.prompt(messages))
    except RowFailed:
        return 0


def _template(config: Config) -> tuple[ChatTemplate | None, int | None]:
    """The template and length limit of a model on this disk or in the hub's cache, else (None, config's).

    This is always the run's own model, even if another model continues turns.
    """
    directory = models.cached_model_dir(config.model) if "model" in config.read_models() else None
    if directory is None:
        return None, config.model.max_length
    template = models.load_template(config.model, directory)
    with open(os.path.join(directory, "config.json")) as f:
        own = json.load(f).get("max_position_embeddings")
    return template, min(filter(None, (own, config.model.max_length)), default=None)


def _show_lengths(calls: list[Call], config: Config, console: Console) -> dict:
    lengths, counted_by, limit = _measure(config, calls)
    console.print(
        f"[bold]Prompt tokens[/bold] of {len(lengths):,} rows, each with its longest call, by {counted_by}"
    )
    for low, high in zip((0, *BINS), (*BINS, None), strict=True):
        inside = sum(low <= n and (high is None or n < high) for n in lengths)
        if inside:
            label = f"{low}–{high - 1}" if high else f"{low}–"
            console.print(f"  {label:>10}  {'█' * max(1, round(40 * inside / len(lengths)))} {inside:,}")
    new_tokens = max((call.new_tokens for call in calls), default=0)
    over = sum(
        limit is not None and n + call.new_tokens > limit for n, call in zip(lengths, calls, strict=True)
    )
    console.print(
        f"  longest {max(lengths, default=0)}, limit {limit or 'unknown'}; "
        f"over-long with {new_tokens} new tokens: {over} (kept as failed rows, if earlier answers within a"
        " prompt are as long as they may be)\n"
    )
    longest = {"longest_prompt_tokens": max(lengths, default=0), "limit": limit, "counted_by": counted_by}
    return {**longest, "new_tokens": new_tokens, "over_long": over}


def _one_line(text: str) -> str:
    return text.replace("\n", " ⏎ ")
