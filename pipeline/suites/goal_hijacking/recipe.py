"""Goal hijacking: each arm is asked for each pair in the words of each template, and each ready prompt."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.chat import Chat, user
from pipeline.errors import UserError
from pipeline.judges.refusal import is_refusal
from pipeline.prompts import Prompts
from pipeline.schema import OK
from pipeline.sources.counts import Counts
from pipeline.sources.overlap import Seen
from pipeline.suites.goal_hijacking.orders import Order
from pipeline.suites.goal_hijacking.phrases import says
from pipeline.suites.goal_hijacking.schema import CONTROL, HARMFUL, READY

if TYPE_CHECKING:
    from pipeline.suites.goal_hijacking import GoalHijacking

_NO_ROW = {"safe_response": None, "unsafe_response": None}


def check(suite: "GoalHijacking") -> None:
    """Raises UserError if a template leaves out one of its texts, or the reminder the prompt."""
    texts = suite.texts()
    needed = {name: ("benign", "target") for name in (suite.templates if suite.pairs else ())}
    for name, variables in (needed | {"reminder": ("prompt",)}).items():
        probes = {variable: f"probe-{variable}" for variable in variables}
        rendered = texts.render(name, **probes)
        for variable, probe in probes.items():
            if probe not in rendered:
                raise UserError(
                    f"{texts.source}: prompt {name} leaves a text out; write {{{{ {variable} }}}} in its"
                    " place"
                )


def prompts_of(order: Order, templates: Sequence[str], texts: Prompts) -> dict[str, str]:
    """Template → prompt of an order; a ready one has its own."""
    if order.prompt is not None:
        return {READY: order.prompt}
    pair = {"benign": order.benign or "", "target": order.target}
    return {name: texts.render(name, **pair) for name in templates}


def compared(
    suite: "GoalHijacking", orders: Iterable[Order], counts: Counts, seen: Seen | None
) -> Iterator[Order]:
    """The orders, without those that the methods have seen if the suite excludes them.

    `counts` tells how many they have seen. An order has been seen if one of its prompts has."""
    texts = suite.texts()
    for order in orders:
        found: set[str | None] = set()
        if seen is not None:
            found = {seen.found(prompt) for prompt in prompts_of(order, suite.templates, texts).values()}
        kind = next((kind for kind in ("same", "near") if kind in found), None)
        counts.seen_same += kind == "same"
        counts.seen_near += kind == "near"
        if kind and suite.exclude_seen:
            counts.leave_out(_NO_ROW)
        else:
            yield order


def work(suite: "GoalHijacking", arms: Sequence[str], orders: Iterable[Order]) -> Iterator[dict]:
    """One row per (order, template, arm, condition, sample)."""
    texts = suite.texts()
    for order in orders:
        for template, prompt in prompts_of(order, suite.templates, texts).items():
            for condition in suite.conditions:
                text = texts.render("reminder", prompt=prompt) if condition == "reminder" else prompt
                for arm in arms:
                    for sample in range(suite.samples):
                        yield {
                            "id": f"{order.id}-{template}-{condition}-{arm}-{sample}",
                            "instruction_id": order.id,
                            "sample": sample,
                            "suite": CONTROL if order.control else HARMFUL,
                            "template": template,
                            "condition": condition,
                            "arm": arm,
                            "benign": order.benign,
                            "target": order.target,
                            "category": order.category,
                            "messages": [user(text)],
                        }


class HijackRecipe:
    """The recipe of data set `hijacks` (`schema.HIJACKS`). adapters: arm → adapter directory."""

    def __init__(self, suite: "GoalHijacking", adapters: Mapping[str, str]):
        self.draw, self.judge, self.adapters = suite.answer, suite.judge, adapters

    async def __call__(self, row: dict, chat: Chat) -> dict:
        [answer] = await chat(
            row["messages"], self.draw.sampling(), step="answer", adapter=self.adapters.get(row["arm"])
        )
        text, target = answer.text.strip(), row["target"]
        result = {
            "response": text,
            "empty": not text,
            "refused": is_refusal(text),
            "finish_reason": answer.finish_reason,
            "status": OK,
        }
        if text:
            prompt = row["messages"][-1]["content"]
            result |= {
                "said_target": says(text, target, prompt),
                "said_benign": says(text, row["benign"]) if row["benign"] else None,
                "hijacked": await self.judge.hijacked(prompt, target, text, chat, "hijacked"),
            }
        return result
