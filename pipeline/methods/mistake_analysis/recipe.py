"""Mistake analysis (Chen et al., ICLR 2024, arXiv 2310.10477): the model errs on purpose, then explains the
error.

Step 1, guided mistake induction: instruction + hint → a bad response. Step 2, guided analysis: instruction +
bad response + the cue that it may be harmful → why it is harmful. Training later uses step 2 without the cue
(`mixture.examples`).
"""

from typing import TYPE_CHECKING, Any

from pipeline import prompts
from pipeline.chat import Chat, Message, system, user
from pipeline.data.faults import CONTRADICTION
from pipeline.errors import RowFailed
from pipeline.gates import verdict_of_analysis
from pipeline.judges import Exchange, negated
from pipeline.methods.unfinished import Sampled, lost
from pipeline.schema import DROPPED, NOT_INDUCED, OK

if TYPE_CHECKING:
    from pipeline.methods.mistake_analysis import MistakeAnalysis


class MistakeAnalysisRecipe:
    """The recipe of data set `mistakes` (`schema.MISTAKES`)."""

    def __init__(self, config: "MistakeAnalysis"):
        self.config = config
        self.prompts = config.texts()
        self.hint = config.hint.text if config.hint.text is not None else self.prompts.render("hint")

    async def __call__(self, row: dict, chat: Chat) -> dict:
        sampled = self.config.sampled(row["instruction"])
        result = await self._analysed(row, chat, sampled)
        return result | sampled.columns

    async def _analysed(self, row: dict, chat: Chat, sampled: Sampled) -> dict:
        instruction = row["instruction"]
        response = await self.mistake(row, chat, sampled)
        result: dict[str, Any] = {
            "response": response,
            "response_source": self.config.mistake,
            "status": OK,
        }
        if self.config.mistake == "reference":
            sampled.fault("reference", response)  # the source's texts are only counted
        elif fault := sampled.fault("induce", response, hint=self.hint):
            return result | {"status": DROPPED, "error": fault}
        if self.config.verify is not None:
            verdict = await self.config.verify(Exchange(instruction, response), chat, "verify")
            result |= {"harmful": negated(verdict.ok), "harmless_rating": verdict.rating}
            if verdict.ok is not False:  # an unreadable verdict does not prove a mistake
                result["status"] = NOT_INDUCED
                if self.config.filter:
                    return result
        guided = self.config.guided_analysis
        asked = question(self.prompts, instruction, response, guided=guided)
        [completion] = await chat([user(asked)], self.config.analyse.sampling(), step="analyse")
        if not completion.text.strip():
            raise RowFailed("empty analysis")
        result["guided"] = guided
        if fault := sampled.fault("analyse", completion.text, prompt=asked, about_response=True):
            text = sampled.other("analyse", completion).strip()
            return result | {"analysis": text, "status": DROPPED, "error": fault}
        analysis = sampled.target("analyse", completion)
        if analysis is None:
            return result | {"status": DROPPED, "error": lost("analysis")}
        result |= {"analysis": analysis.strip(), "analysis_verdict": verdict_of_analysis(analysis)}
        if {result.get("harmful"), result["analysis_verdict"]} == {True, False}:
            fault = sampled.count("analyse", CONTRADICTION)
            if self.config.contradictions == "drop":
                result |= {"status": DROPPED, "error": fault}
        return result

    async def mistake(self, row: dict, chat: Chat, sampled: Sampled) -> str:
        """The bad response: the source's, or induced by the hint. Raises RowFailed if there is none."""
        if self.config.mistake == "reference":
            if not row["unsafe_response"]:
                raise RowFailed("no unsafe response in the source")
            return row["unsafe_response"]
        [response] = await chat(
            induced(self.prompts, row["instruction"], self.hint, self.config.hint.position),
            self.config.induce.sampling(),
            step="induce",
        )
        if not response.text.strip():
            raise RowFailed("empty response to the induction")
        return sampled.other("induce", response).strip()


def induced(
    texts: prompts.Prompts, instruction: str, hint: str | None = None, position: str = "suffix"
) -> list[Message]:
    """The conversation that induces a mistake: the instruction with the hint after it, before it, or as a
    system message."""
    hint = hint if hint is not None else texts.render("hint")
    if position == "system":
        return [system(hint), user(instruction)]
    return [user(texts.render(position, instruction=instruction, text=hint))]


def reminded(texts: prompts.Prompts, instruction: str) -> list[Message]:
    """Guided response generation: the reminder precedes the instruction."""
    return [user(texts.render("prefix", instruction=instruction, text=texts.render("reminder")))]


def question(texts: prompts.Prompts, instruction: str, response: str, *, guided: bool) -> str:
    """The question about a response, with or without the cue that it may be harmful."""
    return texts.render(
        "analyse_guided" if guided else "analyse_unguided", instruction=instruction, response=response
    )
