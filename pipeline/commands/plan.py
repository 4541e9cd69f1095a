"""`setbacks plan`: what a run would do, said without an engine. Reads the tokenizer and the first rows, nothing more."""

import asyncio
import itertools
import json
import os
from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape

from pipeline import preflight, prompts
from pipeline.chat import Message, Sampling, user
from pipeline.commands import resources
from pipeline.commands.show import masked
from pipeline.config import Config
from pipeline.data.store import reason
from pipeline.errors import RowFailed
from pipeline.judges import Exchange
from pipeline.recipes.course_correction import CourseCorrectionRecipe
from pipeline.recipes.mistake_analysis import induced, question
from pipeline.schema import FAILED
from pipeline.sources import instructions

ROWS_SHOWN = 3
ROWS_MEASURED = 2000
CHARACTERS_PER_TOKEN = 4  # of English text; used only where no tokenizer can be loaded
BINS = (64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Call:
    """A conversation to be sent, and the tokens that may follow or are not known yet."""

    messages: list[Message]
    new_tokens: int

    @property
    def characters(self) -> int:
        return sum(len(message["content"]) for message in self.messages)


@dataclass
class Generation:
    """What `generate` would do with the measured rows."""

    unit: str  # what a row of the source is called
    longest: str  # which call is measured
    calls: list[Call] = field(default_factory=list)  # the longest of each row that is not left out
    left_out: Counter = field(default_factory=Counter)  # reason → rows
    new_tokens: int = 0  # at most, one sample of every row


def show_plan(config: Config, tokens_per_s: float | None = None, console: Console | None = None) -> None:
    """Print the plan. Raises UserError for what `run` would refuse, as far as it can be known here."""
    console = console or Console(highlight=False, soft_wrap=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a plan looks at what is on this disk and waits for no network
    stages = {"generate", "mix", "train", "evaluate"} if config.instructions else {"evaluate"}
    if config.model.is_dummy:
        stages -= {"train", "evaluate"}
    out_of_reach = preflight.unreachable(config, stages)
    preflight.check(config, stages, skip=set(out_of_reach))
    if config.model.path == "toy":
        console.print("model        toy, the embedded demonstration model")
    elif config.model.is_dummy:
        console.print("model        dummy, no model: generate and mix are rehearsed, the rest is what a model would need")
    else:
        console.print(f"model        {config.model.path}" + (f" @ {config.model.revision}" if config.model.revision else ""))
    for name, why in out_of_reach.items():
        console.print(f"[yellow]{name} is out of reach here, so it is not checked[/yellow]: {escape(why)}")
    work = {}
    if config.instructions is None:
        console.print("No instructions are given: this configuration only evaluates.\n")
    else:
        work["generate"] = _show_generation(config, "instructions" not in out_of_reach, console)
    if config.evaluation.course_correction:
        work["evaluate"] = _course_correction_suite(config, out_of_reach)
    resources.show(config, console)
    if os.environ.get("RAY_ADDRESS"):
        resources.show_cluster(config, stages, console)
    resources.show_time(config, work, tokens_per_s, console)


def _show_generation(config: Config, readable: bool, console: Console) -> tuple[str, int] | None:
    """Print prompts and lengths; returns how the work is counted, and its new tokens at most. None where nothing is known of the source."""
    if not readable and not config.instructions.limit:
        return None
    rows = list(itertools.islice(instructions.well_formed(config.instructions), ROWS_MEASURED)) if readable else []
    count = config.instructions.limit if not readable else len(rows) if len(rows) < ROWS_MEASURED else _count(config)
    corrects = config.recipe.name == "course_correction"
    plan = _corrections(config, rows, console) if corrects else _mistakes(config, rows, console)
    if corrects and rows:
        _show_selection(plan, len(rows), console)
    if readable:
        _show_lengths(plan, config, console)
    most = plan.new_tokens * count // len(rows) if rows else count * _most_per_row(config)
    samples = config.recipe.samples
    selected = f", {len(plan.calls) / len(rows):.0%} selected," if corrects and rows else ""
    return f"{count:,} {plan.unit}{selected} × {samples} samples", most * samples


# -- mistake analysis


def _mistakes(config: Config, rows: list[dict], console: Console) -> Generation:
    texts, hint = prompts.load("methods/mistake_analysis/prompts.yaml", config.recipe.prompts), config.recipe.hint
    asked = [induced(texts, row["instruction"], hint.text, hint.position) for row in rows]
    if rows:
        console.print(f"\n[bold]Prompts of the first {len(rows[:ROWS_SHOWN])} rows[/bold]")
    for row, messages in zip(rows[:ROWS_SHOWN], asked, strict=False):
        if config.recipe.mistake == "induced":
            for message in messages:
                console.print(f"  induce ({message['role']}): {escape(message['content'])}")
        analyse = question(texts, row["instruction"], "<the response>", guided=config.recipe.guided_analysis)
        console.print(f"  analyse (user): {escape(_one_line(analyse))}\n")
    calls = [Call(messages, config.recipe.induce.max_tokens) for messages in asked]
    return Generation("instructions", "instructions with the hint", calls, new_tokens=len(rows) * _most_per_row(config))


# -- course correction


class _Asked:
    """A `Chat` that notes what a recipe asks and answers nothing."""

    def __init__(self):
        self.calls: dict[str, Call] = {}

    async def __call__(self, messages: list[Message], sampling: Sampling, *, step: str, adapter: str | None = None):
        self.calls[step] = Call(messages, sampling.max_tokens)
        raise RowFailed("only noted")


def _corrections(config: Config, rows: list[dict], console: Console) -> Generation:
    plan = Generation("requests", "selected requests, each with its longest call")
    recipe = CourseCorrectionRecipe(config.recipe, config.seed)
    for row in rows:
        asked, dropped = asyncio.run(_ask(recipe, row))
        if dropped:
            plan.left_out[reason(dropped)] += 1
            continue
        if len(plan.calls) < ROWS_SHOWN:
            _show_request(row, asked, recipe.triggers, len(plan.calls) + 1, console)
        calls = [*asked.values(), *_checks(config, row, asked)]
        plan.calls.append(max(calls, key=lambda call: call.characters + CHARACTERS_PER_TOKEN * call.new_tokens))
        plan.new_tokens += sum(call.new_tokens for call in asked.values()) + config.recipe.check.tokens() * config.recipe.cuts
    return plan


async def _ask(recipe: CourseCorrectionRecipe, row: dict) -> tuple[dict[str, Call], str | None]:
    """The calls that the recipe makes for a row, by step; or why it drops the row."""
    chat = _Asked()
    try:
        result = await recipe(row, chat)
    except RowFailed:  # since no call was answered
        return chat.calls, None
    return {}, result["error"]


def _show_request(row: dict, asked: dict[str, Call], triggers: list[str], number: int, console: Console) -> None:
    """The calls of a row; the harmful beginning of a prefill is masked, its trigger is not."""
    if number == 1:
        console.print("\n[bold]Prompts of the first selected rows[/bold]")
    console.print(f"  request (user): {escape(_one_line(row['instruction']))}")
    for step, call in asked.items():
        if call.messages[-1]["role"] == "assistant":
            prefill = call.messages[-1]["content"]
            trigger = next((t for t in triggers if prefill.endswith(t)), "")
            console.print(f"  {step} (assistant, continued): {escape(f'{masked(prefill.removesuffix(trigger))} {trigger}')}")
        else:
            console.print(f"  {step}: the request alone")
    console.print()


def _show_selection(plan: Generation, rows: int, console: Console) -> None:
    console.print(f"[bold]Selection[/bold]: {len(plan.calls):,} of the {rows:,} rows measured are used")
    for why, count in plan.left_out.most_common():
        console.print(f"  {count:>7,} {escape(why)}")
    console.print()


def _checks(config: Config, row: dict, asked: dict[str, Call]) -> list[Call]:
    """The judge's calls where the run's own model is the judge; what is to be judged counts with the most tokens it can have."""
    check = config.recipe.check
    if not check.tokens():
        return []
    prefills = (call for call in asked.values() if call.messages[-1]["role"] == "assistant")
    return [
        Call(
            [user(check.question(Exchange(row["instruction"], "", call.messages[-1]["content"])))],
            call.new_tokens + check.draw.max_tokens,
        )
        for call in prefills
    ]


def _course_correction_suite(config: Config, out_of_reach: dict[str, str]) -> tuple[str, int] | None:
    """How C²-Eval's work is counted, and its new tokens at most. None where its number of entries is not known."""
    suite = config.evaluation.course_correction
    unknown = "evaluation.course_correction.entries" in out_of_reach
    entries = suite.entries.limit if unknown else sum(1 for _ in instructions.well_formed(suite.entries))
    if entries is None:
        return None
    arms, lengths = resources.arms(config), len(suite.lengths)
    verdict = suite.judge.tokens()
    tokens = f"({suite.draw.max_tokens} + {verdict})" if verdict else str(suite.draw.max_tokens)
    counted = f"C²-Eval, {entries:,} entries × {lengths} k × {suite.paths} paths × {tokens} tokens × {arms} arms"
    return counted, entries * lengths * suite.paths * (suite.draw.max_tokens + verdict) * arms


# -- what both methods have


def _measure(config: Config, calls: list[Call]) -> tuple[list[int], str, int | None]:
    """Prompt tokens of each call, by what they are counted, and the most that prompt and completion may have together."""
    tokenizer, limit = _tokenizer(config)
    if tokenizer is None:
        lengths = [call.characters // CHARACTERS_PER_TOKEN for call in calls]
        return lengths, f"{CHARACTERS_PER_TOKEN} characters a token, since the tokenizer is out of reach", limit
    return [_tokens(tokenizer, call.messages) for call in calls], "the model's tokenizer", limit


def _tokens(tokenizer, messages: list[Message]) -> int:
    begun = messages[-1]["role"] == "assistant"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=not begun, continue_final_message=begun, return_dict=False)
    return len(ids)


def _tokenizer(config: Config):
    """The tokenizer and length limit of a model on this disk (or in the hub's cache); (None, config's limit) where there is none.

    It is that of the run's own model, also where another one continues turns.
    """
    directory = preflight.cached_model_dir(config)
    if directory is None:
        return None, config.model.max_length
    tokenizer = preflight.load_tokenizer(config, directory)
    with open(os.path.join(directory, "config.json")) as f:
        own = json.load(f).get("max_position_embeddings")
    return tokenizer, min(filter(None, (own, config.model.max_length)), default=None)


def _show_lengths(plan: Generation, config: Config, console: Console) -> None:
    lengths, counted_by, limit = _measure(config, plan.calls)
    console.print(f"[bold]Prompt tokens[/bold] of {len(lengths):,} {plan.longest}, by {counted_by}")
    low = 0
    for high in (*BINS, None):
        inside = sum(low <= n and (high is None or n < high) for n in lengths)
        if inside:
            label = f"{low}–{high - 1}" if high else f"{low}–"
            console.print(f"  {label:>10}  {'█' * max(1, round(40 * inside / len(lengths)))} {inside:,}")
        low = high
    new_tokens = max((call.new_tokens for call in plan.calls), default=0)
    over = sum(limit is not None and n + call.new_tokens > limit for n, call in zip(lengths, plan.calls, strict=True))
    console.print(
        f"  longest {max(lengths, default=0)}, limit {limit or 'unknown'}; "
        f"over-long with {new_tokens} new tokens: {over} (kept as failed rows)\n"
    )


def _most_per_row(config: Config) -> int:
    """New tokens at most, of one sample of a row that nothing is known of."""
    recipe = config.recipe
    if recipe.name == "course_correction":
        calls = recipe.cuts + recipe.generate_safe
        return calls * recipe.continuation.max_tokens + recipe.cuts * recipe.check.tokens()
    return recipe.analyse.max_tokens + (recipe.induce.max_tokens if recipe.mistake == "induced" else 0)


def _count(config: Config) -> int:
    return sum(row["status"] != FAILED for row in instructions.read(config.instructions))


def _one_line(text: str) -> str:
    return text.replace("\n", " ⏎ ")
