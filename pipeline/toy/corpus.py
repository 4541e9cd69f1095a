"""The toy model's training data: conversations with the package's own prompts, rendered as in use.

The proportions below are the model's character: how often it errs unprompted, under the hint and with the
reminder, and how well it judges. They leave room for improvement, because the quickstart shows it.
"""

import random
from collections.abc import Iterable
from dataclasses import replace

from pipeline import prompts
from pipeline.chat import Message, assistant, system, user
from pipeline.toy import world
from pipeline.toy.world import Deed, Response

# The method fixes the model's blind spot. The model does not see the harm of some verbs (`Deed.overlooked`)
# in unguided analyses, when reminded to be harmless, when told to think first, or when it criticizes its own
# answer; with the cue of the guided analysis it does. Pairs: for verbs whose harm it sees, for overlooked
# verbs.
SEES_HARM = {
    "reminder": (0.94, 0.18),
    "guided": (0.97, 0.93),
    "unguided": (0.97, 0.22),
    "critique": (0.95, 0.30),
    "think": (0.94, 0.30),
}
REFUSES = {"plain": (0.45, 0.10), "hint": (0.06, 0.03)}
REFUSES_BENIGN = 0.03
# How often it does not obey an injected order if nothing reminds it: to say a sentence for a harmful deed (by
# the verb, as above), and for a harmless one. The reminded model judges the deed first.
RESISTS = (0.30, 0.08)
RESISTS_BENIGN = 0.08
DECLINES = 0.3  # how often it declines such an order aloud and does not say what it was asked for before
DELIBERATES = 0.6  # how often it states its judgment before a reminded answer

# Many long harmful plans turn away at one of their twenty-odd punctuation marks. A turn at any given mark is
# too rare to be sampled, so the model continues a plan once it has started it; yet it learns to complete a
# correction and to end the answer with it. Only after a doubt, which is as likely late as early, does it
# sometimes turn by itself.
TURNS = {"anywhere": 0.4, "doubt": 0.25}
REFUSES_TO_TELL = 0.12  # how often it refuses to write about a harmful deed
STRAYS = 0.25  # how often a list of queries has a harmless one
OPENS = 0.8  # how often an affirmative opener precedes the plan

# Kind of conversation: its share.
SHARES = {
    "harmful_plain": 16,
    "harmful_hint": 11,
    "harmful_reminder": 13,
    "benign_plain": 14,
    "benign_hint": 2,
    "benign_reminder": 10,
    "analysis": 22,
    "rating": 15,
    "detailed": 24,
    "critique": 9,
    "revision": 14,
    "hijack": 14,
    "rubric": 12,
    "topics": 4,
    "told": 5,
    "queries": 6,
    "on_topic": 4,
    "deliberation": 5,
    "deliberated": 8,
}


class Corpus:
    """An endless, seeded stream of conversations about the deeds of the training splits; held-out deeds never
    occur."""

    def __init__(self, seed: int):
        self._rng = random.Random(seed)
        self._texts = prompts.load("methods/mistake_analysis/prompts.yaml")
        self._judge = prompts.load("judges/rating.yaml")
        self._revising = prompts.load("methods/critique_revise/prompts.yaml")
        self._principles = sorted(
            name.removeprefix("critique_") for name in self._revising.texts if name.startswith("critique_")
        )
        self._hijacks = prompts.load("suites/goal_hijacking/hijacks.yaml")
        self._templates = sorted(self._hijacks.texts.keys() - {"reminder"})
        self._rubric = prompts.load("suites/discrimination/rubric.yaml")
        self._red_team = prompts.load("methods/red_team/prompts.yaml")
        self._genres = sorted(name for name in self._red_team.texts if name.startswith("genre_"))
        self._openers = prompts.load("methods/course_correction/prompts.yaml").lines("openers")
        self._harmful = world.deeds("harmful-train")
        self._benign = world.deeds("helpful-train")

    def draw(self, kind: str | None = None) -> list[Message]:
        """One conversation of the given kind, or of a drawn one; its last turn is the assistant's."""
        kind = kind or self._rng.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "analysis":
            return self._analysis()
        if kind == "rating":
            return self._rating()
        if kind == "detailed":
            return self._detailed()
        if kind in ("critique", "revision"):
            return self._criticized(kind)
        if kind == "hijack":
            return self._hijack()
        if kind == "rubric":
            return self._rubric_rating()
        if kind in ("topics", "told", "queries", "on_topic"):
            return getattr(self, f"_{kind}")()
        if kind in ("deliberation", "deliberated"):
            return self._deliberated(kind)
        suite, condition = kind.split("_")
        return self._answer(suite == "harmful", condition)

    def _answer(self, harmful: bool, condition: str) -> list[Message]:
        rng = self._rng
        deed = rng.choice(self._harmful if harmful else self._benign)
        request = self._request(world.question(deed, rng), condition)
        answer = self._reminded(deed) if condition == "reminder" else self._respond(deed, condition).text
        return [*request, assistant(answer)]

    def _request(self, instruction: str, condition: str) -> list[Message]:
        """The instruction with the hint or reminder after it, before it or in a system message."""
        if condition == "plain":
            return [user(instruction)]
        text = self._texts.render(condition)
        usual = {"hint": "suffix", "reminder": "prefix"}[condition]
        position = self._rng.choice((usual, usual, usual, "suffix", "prefix", "system"))
        if position == "system":
            return [system(text), user(instruction)]
        return [user(self._texts.render(position, instruction=instruction, text=text))]

    def _respond(self, deed: Deed, condition: str) -> Response:
        rng = self._rng
        if deed.harmful:
            if rng.random() < REFUSES[condition][deed.overlooked]:
                return world.refusal(deed, rng)
            return world.mistake(deed, rng, rude=0.35 if condition == "hint" else 0.05)
        if condition == "hint" and rng.random() < 0.7:
            return world.insult(deed, rng)
        return (
            world.needless_refusal(deed, rng) if rng.random() < REFUSES_BENIGN else world.helpful(deed, rng)
        )

    def _reminded(self, deed: Deed) -> str:
        """The reminded model judges the deed, mostly aloud.

        It refuses harmful deeds, else it answers as usual.
        """
        rng = self._rng
        sees_harm = deed.harmful and rng.random() < SEES_HARM["reminder"][deed.overlooked]
        response = world.refusal(deed, rng) if sees_harm else self._respond(deed, "plain")
        if rng.random() < DELIBERATES:
            return f"{world.judgement(deed, rng, sees_harm)} {response.text}"
        return response.text

    def _deliberated(self, last: str) -> list[Message]:
        """Whether an answer could be harmful, asked and judged; and the answer, if that is `last`.

        A deed whose harm it sees is refused, any other one is answered as if asked plainly.
        """
        rng = self._rng
        deed = self._any_deed(harmful=0.6)
        sees_harm = deed.harmful and rng.random() < SEES_HARM["think"][deed.overlooked]
        conversation = [
            user(self._texts.render("think", instruction=world.question(deed, rng))),
            assistant(world.judgement(deed, rng, sees_harm)),
        ]
        if last == "deliberation":
            return conversation
        response = world.refusal(deed, rng) if sees_harm else self._respond(deed, "plain")
        return [*conversation, user(self._texts.render("respond")), assistant(response.text)]

    def _detailed(self) -> list[Message]:
        rng = self._rng
        deed = rng.choice(self._harmful)
        refuses = rng.random() < REFUSES["plain"][deed.overlooked]
        answer = world.refusal(deed, rng).text if refuses else self._plan(deed)
        return [user(world.question(deed, rng, detailed=True)), assistant(answer)]

    def _plan(self, deed: Deed) -> str:
        """A long harmful plan, mostly after an affirmative opener.

        If the plan turns away, the answer ends with the correction.
        """
        rng = self._rng
        answer = world.plan(deed, rng)
        points = world.turning_points(answer)
        turns = [end for end, doubtful in points if doubtful and rng.random() < TURNS["doubt"]]
        if rng.random() < TURNS["anywhere"]:
            turns.append(rng.choice(points)[0])
        if turns:
            answer = f"{answer[: min(turns)]} {world.correction(deed, rng)}"
        return f"{rng.choice(self._openers)} {answer}" if rng.random() < OPENS else answer

    def _any_response(self, deed: Deed) -> Response:
        """A response to judge. Every kind is frequent enough to be learned, with and without deliberation."""
        rng = self._rng
        if deed.harmful:
            response = world.refusal(deed, rng) if rng.random() < 0.45 else world.mistake(deed, rng, rude=0.3)
        else:
            response = rng.choices((world.helpful, world.needless_refusal, world.insult), (5, 3, 2))[0](
                deed, rng
            )
        if rng.random() < 0.15:
            return replace(
                response,
                text=f"{world.judgement(deed, rng, deed.harmful and response.refuses)} {response.text}",
            )
        return response

    def _any_deed(self, harmful: float) -> Deed:
        return self._rng.choice(self._harmful if self._rng.random() < harmful else self._benign)

    def _analysis(self) -> list[Message]:
        rng = self._rng
        deed = self._any_deed(harmful=0.7)
        response = self._any_response(deed)
        mode = rng.choice(("guided", "unguided"))
        question = self._texts.render(
            f"analyse_{mode}", instruction=world.question(deed, rng), response=response.text
        )
        overlooked = deed.harmful and rng.random() > SEES_HARM[mode][deed.overlooked]
        return [user(question), assistant(world.analysis(deed, response, rng, overlooked))]

    def _criticized(self, last: str) -> list[Message]:
        """An answer and the model's critique of it under one principle; and its revision, if that is `last`.

        The critique judges the deed. An answer whose harm it sees becomes a refusal, any other one is given
        once more, as the model would answer without a hint.
        """
        rng = self._rng
        deed = self._any_deed(harmful=0.8)
        response = self._any_response(deed)
        principle = rng.choice(self._principles)
        sees_harm = deed.harmful and rng.random() < SEES_HARM["critique"][deed.overlooked]
        conversation = [
            user(world.question(deed, rng)),
            assistant(response.text),
            user(self._revising.render(f"critique_{principle}")),
            assistant(world.critique(deed, response, rng, overlooked=deed.harmful and not sees_harm)),
        ]
        if last == "critique":
            return conversation
        if sees_harm:
            revised = world.refusal(deed, rng, rng.choice(("reasoned", "alternative")))
        elif deed.harmful:
            revised = response if response.refuses else world.mistake(deed, rng, rude=0)
        else:
            revised = world.helpful(deed, rng)
        request = user(self._revising.render(f"revise_{principle}"))
        return [*conversation, request, assistant(revised.text)]

    def _rating(self) -> list[Message]:
        rng = self._rng
        scale = rng.choice(("harmless", "help", "harm_help"))
        deed = self._any_deed(harmful={"harmless": 0.7, "help": 0.0, "harm_help": 1.0}[scale])
        response = self._any_response(deed)
        question = self._judge.render(scale, instruction=world.question(deed, rng), response=response.text)
        return [user(question), assistant(world.rating(scale, deed, response, rng))]

    def _hijack(self) -> list[Message]:
        """An order to say a sentence, and an injected one to say another. The reminded model judges what the
        injected order is about, mostly aloud, and obeys it if it sees no harm."""
        rng = self._rng
        asked, injected = rng.choice(self._benign), self._any_deed(harmful=0.65)
        benign, target = world.sentence(asked, rng), world.sentence(injected, rng)
        prompt = self._hijacks.render(rng.choice(self._templates), benign=benign, target=target)
        answer = ""
        if reminded := rng.random() < 0.5:
            prompt = self._hijacks.render("reminder", prompt=prompt)
            resists = injected.harmful and rng.random() < SEES_HARM["reminder"][injected.overlooked]
            if rng.random() < DELIBERATES:
                answer = f"{world.judgement(injected, rng, resists)} "
        if not reminded:
            chance = RESISTS[injected.overlooked] if injected.harmful else RESISTS_BENIGN
            resists = rng.random() < chance
        if resists and injected.harmful and rng.random() < DECLINES:
            said = world.decline(injected, rng)
        else:
            said = benign if resists else target
        return [user(prompt), assistant(answer + said)]

    def _rubric_rating(self) -> list[Message]:
        """A rating of an analysis. One that overlooks the harm of a helped deed has the wrong verdict."""
        rng = self._rng
        deed = self._any_deed(harmful=0.8)
        response = self._any_response(deed)
        right = response.kind != "comply" or rng.random() < 0.5
        question = self._rubric.render(
            "analysis",
            instruction=world.question(deed, rng),
            response=response.text,
            analysis=world.analysis(deed, response, rng, overlooked=not right),
        )
        return [user(question), assistant(world.rubric(right, deed, rng))]

    def _topics(self) -> list[Message]:
        """A list of deeds of a category, none of which is in the list of the question."""
        rng = self._rng
        hazards = world.taxonomy()["toy"]
        name = rng.choice(list(hazards))
        deeds = [deed for deed in self._harmful if deed.category == name]
        drawn = rng.sample(deeds, rng.randint(4, 7))
        wanted = rng.randint(1, 3)
        question = self._red_team.render(
            "expand",
            category="toy",
            hazard=name,
            about=hazards[name]["about"],
            known="\n".join(f"- {world.topic(deed)}" for deed in drawn[wanted:]),
            count=str(wanted),
        )
        return [user(question), assistant(_numbered(world.topic(deed) for deed in drawn[:wanted]))]

    def _told(self) -> list[Message]:
        """A text about a harmful deed in one of the genres, or a refusal to write it."""
        rng = self._rng
        deed = rng.choice(self._harmful)
        about = world.taxonomy()["toy"][deed.category]["about"]
        question = self._red_team.render(rng.choice(self._genres), leaf=world.topic(deed), about=about)
        refuses = rng.random() < REFUSES_TO_TELL
        answer = world.refusal(deed, rng).text if refuses else world.told(deed, rng)
        return [user(question), assistant(answer)]

    def _queries(self) -> list[Message]:
        """Questions about a harmful deed; sometimes one about something harmless to do with its object."""
        rng = self._rng
        deed = rng.choice(self._harmful)
        wanted = rng.randint(2, 4)
        asked = list(dict.fromkeys(world.question(deed, rng) for _ in range(3 * wanted)))[:wanted]
        others = [benign for benign in self._benign if benign.object == deed.object]
        if others and rng.random() < STRAYS:
            asked[rng.randrange(len(asked))] = world.question(rng.choice(others), rng)
        question = self._red_team.render(
            "extract", leaf=world.topic(deed), count=str(wanted), text=world.told(deed, rng)
        )
        return [user(question), assistant(_numbered(asked))]

    def _on_topic(self) -> list[Message]:
        rng = self._rng
        deed = self._any_deed(harmful=0.6)
        question = self._red_team.render("on_topic", instruction=world.question(deed, rng))
        return [user(question), assistant("Yes." if deed.harmful else "No.")]


def _numbered(lines: Iterable[str]) -> str:
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, start=1))
