"""Mistake analysis (Chen et al., ICLR 2024, arXiv 2310.10477): the model errs on purpose, then explains the
error.

Step 1, guided mistake induction: instruction + hint → a bad response. Step 2, guided analysis: instruction +
bad response + the cue that it may be harmful → why it is harmful. Training later uses step 2 without the cue
(`mixture.examples`). With `analyse_safe`, a share of the rows analyzes a harmless answer as well, so that the
learnt verdict is not always the same one.
"""

from typing import TYPE_CHECKING, Any

from pipeline import prompts
from pipeline.chat import Chat, Message, assistant, system, user
from pipeline.data.faults import CONTRADICTION, EMPTY, MISLABELED, NO_ANSWER, NO_VERDICT
from pipeline.errors import RowFailed
from pipeline.gates import verdict_of_analysis
from pipeline.judges import Exchange, negated
from pipeline.methods.conversations import drawn
from pipeline.methods.unfinished import Sampled, lost
from pipeline.schema import DROPPED, NOT_INDUCED, OK

if TYPE_CHECKING:
    from pipeline.methods.mistake_analysis import MistakeAnalysis


class MistakeAnalysisRecipe:
    """The recipe of data set `mistakes` (`schema.MISTAKES`)."""

    def __init__(self, config: "MistakeAnalysis", seed: int = 0):
        self.config, self.seed = config, seed
        self.prompts = config.texts()
        self.hint = config.hint.text if config.hint.text is not None else self.prompts.render("hint")

    async def __call__(self, row: dict, chat: Chat) -> dict:
        sampled = self.config.sampled(row["instruction"])
        result = await self._verified_safe(row, chat) | await self._analysed(row, chat, sampled)
        chosen = drawn(row["id"], "analyse_safe", self.seed) < self.config.analyse_safe
        if chosen and result["status"] != DROPPED:
            result |= await self._safe_analysis(row, result, chat, sampled)
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
        elif fault := self._fault(sampled, response):
            return result | {"status": DROPPED, "error": fault}
        if self.config.verify is not None:
            verdict = await self.config.verify(Exchange(instruction, response), chat, "verify")
            result |= {"harmful": negated(verdict.ok), "harmless_rating": verdict.rating}
            if verdict.ok is None:
                sampled.count("verify", NO_VERDICT)
            if verdict.ok is not False:  # an unreadable verdict does not prove a mistake
                result["status"] = NOT_INDUCED
                if self.config.filter or (verdict.ok and self.config.analyse_safe):
                    return result
        guided = self.config.guided_analysis
        asked = question(self.prompts, instruction, response, guided=guided)
        [completion] = await chat([user(asked)], self.config.analyse.sampling(), step="analyse")
        if not completion.text.strip():
            raise RowFailed("empty analysis")
        result["guided"] = guided
        if fault := sampled.fault("analyse", completion.text, **self._shown(asked)):
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

    async def _verified_safe(self, row: dict, chat: Chat) -> dict:
        """The verdict on the source's safe response, which an instruction's first sample asks for."""
        judge = self.config.verify_safe
        if judge is None or not row["safe_response"] or row["sample"]:
            return {}
        verdict = await judge(Exchange(row["instruction"], row["safe_response"]), chat, "verify_safe")
        return {"safe_harmful": negated(verdict.ok)}

    def _fault(self, sampled: Sampled, response: str) -> str | None:
        """The fault of a sampled response, which must not state the hint, if there was one."""
        hint = self.hint if self.config.mistake == "induced" else ""
        return sampled.fault("induce", response, hint=hint, system=self.config.induce.system or "")

    def _shown(self, asked: str) -> dict[str, Any]:
        """What the gates must know of an analysis."""
        return {"prompt": asked, "system": self.config.analyse.system or "", "about_response": True}

    async def _safe_analysis(self, row: dict, result: dict, chat: Chat, sampled: Sampled) -> dict:
        """The columns of the analysis of a harmless answer; empty if there is no such answer, or if its
        analysis is lost, both of which are counted."""
        own = result.get("harmful") is False
        answer = result["response"] if own else row["safe_response"]
        doubted = self.config.verify_safe is not None and result.get("safe_harmful") is not False
        if not answer or (doubted and not own):
            sampled.count("analyse_safe", NO_ANSWER)
            return {}
        asked = question(
            self.prompts, row["instruction"], answer, guided=self.config.guided_analysis, harmless=True
        )
        [completion] = await chat([user(asked)], self.config.analyse.sampling(), step="analyse_safe")
        text = completion.text
        if not text.strip():
            sampled.count("analyse_safe", EMPTY)
            return {}
        if sampled.fault("analyse_safe", text, **self._shown(asked)):
            sampled.other("analyse_safe", completion)
            return {}
        analysis = sampled.target("analyse_safe", completion)
        if analysis is None:
            return {}
        columns: dict[str, Any] = {"safe_analysis_verdict": verdict_of_analysis(analysis)}
        if columns["safe_analysis_verdict"]:
            sampled.count("analyse_safe", CONTRADICTION if own else MISLABELED)
            if self.config.contradictions == "drop":
                return columns
        about = "response" if own else "safe_response"
        return columns | {"safe_analysis": analysis.strip(), "safe_analysis_of": about}

    async def mistake(self, row: dict, chat: Chat, sampled: Sampled) -> str:
        """The bad response: the source's, induced by the hint, or the model's own.

        Raises RowFailed if there is none."""
        if self.config.mistake == "reference":
            if not row["unsafe_response"]:
                raise RowFailed("no unsafe response in the source")
            return row["unsafe_response"]
        asked, what = [user(row["instruction"])], "instruction"
        if self.config.mistake == "induced":
            asked = induced(self.prompts, row["instruction"], self.hint, self.config.hint.position)
            what = "induction"
        [response] = await chat(asked, self.config.induce.sampling(), step="induce")
        if not response.text.strip():
            raise RowFailed(f"empty response to the {what}")
        return sampled.other("induce", response).strip()


def induced(
    texts: prompts.Prompts, instruction: str, hint: str | None = None, position: str = "suffix"
) -> list[Message]:
    """The conversation that induces a mistake: the instruction with the hint after it, before it, as a system
    message, or as the beginning of the model's turn."""
    hint = hint if hint is not None else texts.render("hint")
    if position == "system":
        return [system(hint), user(instruction)]
    if position == "prefill":
        return [user(instruction), assistant(hint)]
    return [user(texts.render(position, instruction=instruction, text=hint))]


def reminded(texts: prompts.Prompts, instruction: str) -> list[Message]:
    """Guided response generation: the reminder precedes the instruction."""
    return [user(texts.render("prefix", instruction=instruction, text=texts.render("reminder")))]


def thinking(texts: prompts.Prompts, instruction: str) -> list[Message]:
    """Discriminate, then respond: the question whether an answer could be harmful, before any answer.

    The idea is that of SAGE (NJUNLP, ACL Findings 2025, arXiv 2505.12060); the wording is ours.
    """
    return [user(texts.render("think", instruction=instruction))]


def answering(texts: prompts.Prompts, asked: list[Message], deliberation: str) -> list[Message]:
    """The conversation that goes on from a deliberation to the answer."""
    return [*asked, assistant(deliberation), user(texts.render("respond"))]


def question(
    texts: prompts.Prompts, instruction: str, response: str, *, guided: bool, harmless: bool = False
) -> str:
    """The question about a response. guided: with the cue that it may be harmful, or should be harmless."""
    cue = "harmless" if harmless else "guided"
    name = f"analyse_{cue if guided else 'unguided'}"
    return texts.render(name, instruction=instruction, response=response)
