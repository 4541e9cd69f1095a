"""Judges: is a response harmful, how good is it, does a continuation correct course?

A new judge is a file, and a name in one of the unions below.
"""

from typing import Annotated

from pydantic import Field

from pipeline.judges.base import Exchange as Exchange
from pipeline.judges.base import Judge as Judge
from pipeline.judges.base import Verdict as Verdict
from pipeline.judges.base import negated as negated
from pipeline.judges.guards import HarmBench, LlamaGuard, QwenGuard, ShieldGemma, StrongReject, WildGuard
from pipeline.judges.phrases import Phrases
from pipeline.judges.rating import Rating
from pipeline.judges.refusal import Refusal
from pipeline.judges.toy import Toy
from pipeline.judges.yes_no import YesNo
from pipeline.judges.yes_no_harmful import YesNoHarmful

HarmlessnessJudge = Annotated[
    Refusal
    | Rating
    | YesNoHarmful
    | LlamaGuard
    | QwenGuard
    | WildGuard
    | ShieldGemma
    | HarmBench
    | StrongReject,
    Field(discriminator="kind"),
]
CorrectionJudge = Annotated[Phrases | YesNo | Toy, Field(discriminator="kind")]
