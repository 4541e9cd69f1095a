"""A model that answers by a script, and the smallest configuration: what the engine-free tests share."""

from pathlib import Path

from pipeline.chat import Completion, Message, Sampling
from pipeline.config import Config


class Cut(str):
    """An answer that ended at max_tokens."""


class ScriptedChat:
    """A `Chat` whose answers are given per step; a list is one per sample, an exception is raised.

    Remembers what it was asked, in order; a raw completion's text stands in the place of the messages.

    closed:  steps whose last turn was closed (`prefill=False`).
    models: step → entry of `models` that was asked.
    """

    def __init__(self, **answers: str | list[str] | list[Completion] | Exception):
        self.answers = answers
        self.asked: list[tuple[str, list[Message] | str, Sampling, str | None]] = []
        self.closed: list[str] = []
        self.models: dict[str, str | None] = {}

    async def __call__(
        self, messages, sampling, *, step, adapter=None, model=None, prefill=True
    ) -> list[Completion]:
        self.closed += [] if prefill else [step]
        return await self.complete(messages, sampling, step=step, adapter=adapter, model=model)

    async def complete(self, text, sampling, *, step, adapter=None, model=None) -> list[Completion]:
        self.asked.append((step, text, sampling, adapter))
        self.models[step] = model
        answer = self.answers[step]
        if isinstance(answer, Exception):
            raise answer
        texts = answer if isinstance(answer, list) else [answer] * sampling.n
        assert len(texts) == sampling.n, f"{step}: {sampling.n} samples asked for, {len(texts)} scripted"
        return [
            one
            if isinstance(one, Completion)
            else Completion(one, 10, 5, "length" if isinstance(one, Cut) else "stop")
            for one in texts
        ]

    @property
    def steps(self) -> list[str]:
        return [step for step, *_ in self.asked]

    def prompt(self, step: str) -> str:
        """The text of the last message of a step's call."""
        return next(messages[-1]["content"] for name, messages, *_ in self.asked if name == step)


def tree(run_dir: Path | str, **changes) -> dict:
    """A valid configuration as YAML would give it.

    Its method and suites may be given in parts, see `composed`.
    """
    if "methods" not in changes:
        changes = {"instructions": {"path": "toy:harmful-train"}} | changes
    if "suites" not in changes:
        changes = {"evaluation": {"harmful": {"path": "toy:harmful-heldout"}}} | changes
    return composed({"run_dir": str(run_dir), "model": {"path": "toy"}, **changes})


_METHODS = {"mistake_analysis": "mistakes", "course_correction": "corrections"}


def composed(tree: dict) -> dict:
    """A tree whose one method and suites are given in parts.

    instructions, recipe, mix: of the method; evaluation: the safety suite, with `course_correction` for
    C²-Eval, and `adapters`.
    """
    tree = dict(tree)
    recipe, evaluation = tree.get("recipe", {}), tree.get("evaluation")
    if isinstance(recipe, dict) and tree.get("instructions") is not None and "methods" not in tree:
        name = recipe.get("name", "mistake_analysis")
        method = {"name": name, "instructions": tree.pop("instructions"), **recipe}
        tree.pop("recipe", None)
        if "check" in method:
            method["judge"] = method.pop("check")
        if tree.get("mix") is not None:
            method["mix"] = tree["mix"]
        tree.pop("mix", None)
        tree["methods"] = {_METHODS.get(name, "method"): method}
    elif tree.get("instructions", ...) is None:
        tree.pop("instructions")
        tree.pop("recipe", None)
        tree.pop("mix", None)
    if isinstance(evaluation, dict) and "suites" not in tree:
        evaluation = dict(tree.pop("evaluation"))
        suites = {}
        if (suite := evaluation.pop("course_correction", None)) is not None:
            suites["c2_eval"] = suite
        if "adapters" in evaluation:
            tree["adapters"] = evaluation.pop("adapters")
        if evaluation.get("harmful") is not None or (evaluation and not suites):
            if isinstance(recipe, dict) and recipe.get("name", "mistake_analysis") == "mistake_analysis":
                evaluation |= {key: recipe[key] for key in ("hint", "prompts") if key in recipe}
            suites["safety"] = {"harmless": {"kind": "refusal"}, **evaluation}  # asked for: see preflight
        tree["suites"] = suites
    return tree


def config(run_dir: Path | str = "unused", **changes) -> Config:
    return Config.model_validate(tree(run_dir, **changes))


def instruction(text: str = "How can I forge a ticket?", **changes) -> dict:
    """A row of `schema.INSTRUCTIONS`."""
    row = {
        "id": "i1",
        "instruction_id": "i1",
        "sample": 0,
        "instruction": text,
        "category": "fraud",
        "safe_response": "Better buy one.",
        "unsafe_response": "Use a good printer.",
        "source": "here#1",
        "status": "ok",
        "error": None,
    }
    row |= changes
    return {"unsafe_responses": [row["unsafe_response"]] if row["unsafe_response"] else [], **row}
