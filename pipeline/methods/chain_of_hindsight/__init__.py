"""Chain of Hindsight (Liu et al., arXiv 2302.02676): responses in sequence, each announced by feedback on it.

Nothing is generated: the two responses of a request are the source's. The paper, too, trains on comparisons
that people made; and `mix` reads no data set but the method's own. To compare with the mistakes of a finished
run, name its data set as the source (see docs/methods.md).

Not built: the loss on pre-training text (weight 0.01), and the masking of random past tokens, which the
authors' code has and leaves off by default.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.errors import UserError
from pipeline.methods import comparisons
from pipeline.methods.chain_of_hindsight.examples import FORMS, SAFE, UNSAFE
from pipeline.methods.chain_of_hindsight.schema import COMPARISONS
from pipeline.prompts import Prompts, load
from pipeline.schema import SFT, Schema
from pipeline.settings.base import PromptFile, Ratio, Section, tag
from pipeline.sources.counts import Accounts

PROMPTS = "methods/chain_of_hindsight/prompts.yaml"


class HindsightMix(Section):
    """The training rows."""

    ratio: Ratio = Field(1.0, description="examples per comparison and form")
    forms: list[Literal["good", "bad", "good_bad", "bad_good"]] = Field(
        ["bad_good"],
        min_length=1,
        description=(
            "the responses of a conversation, in their order: good = the safe one, bad = the unsafe one; the"
            " authors use all four forms"
        ),
    )
    loss: Literal["safe", "all"] = Field(
        "safe",
        description=(
            "which responses are training targets: safe = safe ones only, so no harmful token carries loss;"
            " all = unsafe ones too, as in the authors' code; their examples are of kind `hindsight_unsafe`,"
            " and an arm that trains on them has to name it"
        ),
    )

    @model_validator(mode="after")
    def _ends_well(self) -> "HindsightMix":
        if len(set(self.forms)) < len(self.forms):
            raise ValueError("forms names a form twice: name each once, and raise ratio for more examples")
        bad = [form for form in self.forms if FORMS[form][-1] == "bad"]
        if bad and self.loss == "safe":
            raise ValueError(
                f"forms: {bad[0]} ends in the unsafe response, which would be its training target: leave it"
                " out, or train on unsafe responses with loss: all"
            )
        return self


class ChainOfHindsight(comparisons.Comparing):
    """Conversations of the source's unsafe and safe responses, each after a phrase that says which it is."""

    generated: ClassVar[Schema] = COMPARISONS
    training_sets: ClassVar = (SFT,)
    default_arms: ClassVar = {"chain_of_hindsight": {"kinds": [SAFE]}}
    nothing: ClassVar = "no row of the source has both a safe and an unsafe response"
    mixing: ClassVar = frozenset({"mix"})
    example_kinds: ClassVar = {SFT.name: (SAFE, UNSAFE)}
    made_from: ClassVar = {SAFE: ("instructions", "safe_response")}

    name: Literal["chain_of_hindsight"] = Field("chain_of_hindsight", description="selects this method")
    prompts: PromptFile | None = Field(
        None, description="YAML file that replaces methods/chain_of_hindsight/prompts.yaml"
    )
    mix: HindsightMix = Field(HindsightMix(), description="the training rows that `mix` makes")

    @classmethod
    def asks(cls, section: Any) -> dict[str, str]:
        """With the first phrase of the safe response: the paper, too, asks with the better one's feedback."""
        try:
            own = tag(section, "prompts", None)
            texts = load(PROMPTS, own if isinstance(own, str) else None)
            text = texts.render("asked", instruction="{{ instruction }}", phrase=texts.lines("good")[0])
        except UserError:  # preflight reports a wrong prompt file; a report can do without it
            return {}
        return {SAFE: text}

    @property
    def kinds(self) -> list[str]:
        if not self.mix.ratio:
            return []
        sides = {side for form in self.mix.forms for side in FORMS[form]}
        return [SAFE] * ("good" in sides) + [UNSAFE] * ("bad" in sides and self.mix.loss == "all")

    @property
    def training_conversations(self) -> dict[tuple[str, ...], str]:
        found: dict[tuple[str, ...], str] = {("user", "assistant"): ""}
        for form in self.mix.forms:
            found.setdefault(("user", "assistant") * len(FORMS[form]), f"mix.forms holds {form}")
        return found

    def examples(
        self, schema: Schema, rows: Iterable[dict], drops: Counter[str], seed: int, counts: Accounts
    ) -> Iterator[dict]:
        from pipeline.methods.chain_of_hindsight.examples import conversations

        return conversations(self, comparisons.kept(rows, drops), seed)

    def texts(self) -> Prompts:
        """The prompts; the user's file replaces the package's. Raises UserError."""
        return load(PROMPTS, self.prompts)

    def prompt_hashes(self) -> dict[str, str]:
        texts = self.texts()
        for name in ("good", "bad"):
            texts.lines(name)
        return {"chain_of_hindsight": texts.hash, **super().prompt_hashes()}

    def settings(self) -> dict[str, str]:
        targets = "safe responses" if self.mix.loss == "safe" else "safe and unsafe responses"
        return {"Chain of Hindsight": f"forms {', '.join(self.mix.forms)}; loss on {targets}"}
