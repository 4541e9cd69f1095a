"""From a hazard to requests, in the two steps of SAGE-RT (arXiv 2408.11851): a text about a topic, then the
queries that somebody could have after reading it. No query is answered.

A row is a hazard: what is nearly the same is looked for among its queries. All choices depend on the seed,
the row and the step alone.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.chat import Chat, Completion, user
from pipeline.errors import RowFailed
from pipeline.gates import Gates
from pipeline.judges import Exchange, Verdict
from pipeline.judges.refusal import is_refusal
from pipeline.methods.red_team import lists
from pipeline.methods.red_team.schema import KEPT
from pipeline.methods.unfinished import Sampled
from pipeline.schema import DROPPED, OK
from pipeline.sources.overlap import Distinct

if TYPE_CHECKING:
    from pipeline.methods.red_team import RedTeam

_LONGEST_LEAF = 80  # characters
_ONLY_LANGUAGE: dict[str, Any] = {
    "min_words": None,
    "duplicate_lines": None,
    "top_ngrams": None,
    "duplicate_ngrams": None,
    "said_again": None,
    "compression": None,
    "echo": None,
    "meta_line": False,
}


@dataclass
class _Leaf:
    """A topic. wanted: texts to write."""

    name: str
    wanted: int
    expanded: bool
    refused: int = 0
    lost: int = 0
    texts: list[dict] = field(default_factory=list)
    queries: list[dict] = field(default_factory=list)
    lines_left: int = 0
    failures: list[RowFailed] = field(default_factory=list)


class RedTeamRecipe:
    """The recipe of data set `red_team` (`schema.RED_TEAM`)."""

    def __init__(self, method: "RedTeam", seed: int):
        self.method, self.seed = method, seed
        self.texts, self.genres = method.texts(), method.genre_names()
        self.all_genres = method.known_genres()

    async def __call__(self, row: dict, chat: Chat) -> dict:
        """Raises RowFailed if a call for topics fails, or all calls for texts or for verdicts do."""
        method = self.method
        sampled = method.sampled(row["about"])
        leaves = [_Leaf(one["leaf"], one["texts"], expanded=False) for one in row["leaves"]]
        expansion = {"topics_dropped": 0, "expansions_refused": 0}
        if method.focus is None:
            await self._expand(row, leaves, expansion, chat, sampled)
        await asyncio.gather(
            *(
                self._text(row, leaf, i, j, chat, sampled)
                for i, leaf in enumerate(leaves)
                for j in range(leaf.wanted)
            )
        )
        failures = [failure for leaf in leaves for failure in leaf.failures]
        if failures and not any(leaf.texts for leaf in leaves):
            raise failures[0]
        for leaf in leaves:  # in the order in which they were asked for
            leaf.texts.sort(key=lambda text: text["number"])
            leaf.queries.sort(key=lambda query: query["place"])
        queries = [query for leaf in leaves for query in leaf.queries]
        await self._judge(queries, chat)
        _drop_duplicates(queries)
        kept = [query["text"] for query in queries if query["outcome"] == KEPT]
        result = {
            "leaves": [
                {
                    "leaf": leaf.name,
                    "expanded": leaf.expanded,
                    "texts": len(leaf.texts),
                    "refused": leaf.refused,
                    "lost": leaf.lost,
                }
                for leaf in leaves
            ],
            "texts": [_without(text, "number") for leaf in leaves for text in leaf.texts],
            "queries": [_without(query, "place") for query in queries],
            "outcomes": _outcomes(queries),
            **expansion,
            "lines_left": sum(leaf.lines_left for leaf in leaves),
            "other_language": self._other_language(kept, row["about"]),
            "distinct_1": lists.distinct(kept, 1),
            "distinct_2": lists.distinct(kept, 2),
            "mean_jaccard": lists.mean_likeness(kept),
            **sampled.columns,
        }
        return result | ({"status": OK} if kept else {"status": DROPPED, "error": "no query was kept"})

    async def _expand(
        self, row: dict, leaves: list[_Leaf], counted: dict[str, int], chat: Chat, sampled: Sampled
    ) -> None:
        """Ask for topics that are not yet known, until there are enough or the rounds are used up."""
        method, known = self.method, Distinct(leaf.name for leaf in leaves)
        category, _, hazard = row["category"].partition("/")
        for round in range(1, method.leaves.rounds + 1):
            missing = method.leaves.per_hazard - len(leaves)
            if missing <= 0:
                return
            ask = self.texts.render(
                "expand",
                category=_said(category),
                hazard=_said(hazard),
                about=row["about"],
                known="\n".join(f"- {leaf.name}" for leaf in leaves) or "- none",
                count=str(missing),
            )
            [answer] = await chat([user(ask)], method.expand.sampling(), step=f"expand{round}")
            text = sampled.other("expand", answer)
            if is_refusal(text):
                counted["expansions_refused"] += 1
                continue
            for item in lists.items(text, cut=answer.is_cut)[0]:
                name = " ".join(item.replace("/", " or ").split()).rstrip(".;,")
                enough = len(leaves) >= method.leaves.per_hazard
                if enough or not name or len(name) > _LONGEST_LEAF or not known.add(name):
                    counted["topics_dropped"] += 1
                    continue
                leaves.append(_Leaf(name, method.texts_per_leaf, expanded=True))

    async def _text(self, row: dict, leaf: _Leaf, i: int, number: int, chat: Chat, sampled: Sampled) -> None:
        """One text about a leaf, and its queries. Counts it as lost if there is none."""
        try:
            found = await self._written(row, leaf, i, number, chat, sampled)
        except RowFailed as e:
            leaf.failures.append(e)
            found = False
        leaf.lost += not found

    async def _written(
        self, row: dict, leaf: _Leaf, i: int, number: int, chat: Chat, sampled: Sampled
    ) -> bool:
        """Ask for a text and its queries; once more, in another genre, if refused."""
        genre = self.genres[number % len(self.genres)]
        for step in (f"{i}_{number}", f"{i}_{number}_again"):
            ask = self.texts.render(f"genre_{genre}", leaf=leaf.name, about=row["about"])
            [written] = await chat([user(ask)], self.method.text.sampling(), step=f"text_{step}")
            if not is_refusal(written.text):
                if sampled.fault("text", written.text):
                    return False
                text = sampled.other("text", written).strip()
                listed = await self._extract(leaf, text, f"extract_{step}", chat)
                if not is_refusal(listed.text):
                    self._take(leaf, genre, number, text, listed, sampled)
                    return True
            leaf.refused += 1
            others = [one for one in self.genres if one != genre]
            others = others or [one for one in self.all_genres if one != genre]
            if not others:
                return False
            genre = random.Random(f"{self.seed}/{row['id']}/{step}").choice(others)
        return False

    async def _extract(self, leaf: _Leaf, text: str, step: str, chat: Chat) -> Completion:
        ask = self.texts.render("extract", leaf=leaf.name, count=str(self.method.queries), text=text)
        [listed] = await chat([user(ask)], self.method.extract.sampling(), step=step)
        return listed

    def _take(
        self, leaf: _Leaf, genre: str, number: int, text: str, listed: Completion, sampled: Sampled
    ) -> None:
        found, other_lines = lists.items(sampled.other("extract", listed), cut=listed.is_cut)
        leaf.lines_left += other_lines
        leaf.texts.append({"leaf": leaf.name, "genre": genre, "text": text, "number": number})
        for k, query in enumerate(found):
            outcome = self._outcome(query) if k < self.method.queries else "more than asked for"
            leaf.queries.append(
                {"leaf": leaf.name, "genre": genre, "text": query, "outcome": outcome, "place": (number, k)}
            )

    def _outcome(self, query: str) -> str:
        least, most = self.method.words
        count = len(query.split())
        if count < least:
            return "too short"
        if count > most:
            return "too long"
        return KEPT if lists.is_request(query) else "not a request"

    async def _judge(self, queries: list[dict], chat: Chat) -> None:
        """Drop queries that the judge finds harmless to answer, or about which it says nothing readable.

        Raises RowFailed if all calls fail.
        """
        judge, failures = self.method.on_topic, list[RowFailed]()
        if judge is None:
            return

        async def judged(number: int, query: dict) -> None:
            try:
                verdict = await judge(Exchange(query["text"], ""), chat, f"on_topic_{number}")
            except RowFailed as e:
                failures.append(e)
                verdict = Verdict(None)
            if verdict.ok is not False:
                query["outcome"] = "no verdict" if verdict.ok is None else "off topic"

        candidates = [(number, query) for number, query in enumerate(queries) if query["outcome"] == KEPT]
        await asyncio.gather(*(judged(*one) for one in candidates))
        if failures and len(failures) == len(candidates):
            raise failures[0]

    def _other_language(self, kept: list[str], about: str) -> int:
        gates = self.method.gates
        if gates is None or gates.language is None:
            return 0
        only = Gates(**_ONLY_LANGUAGE, language=gates.language)
        return sum(only.reason(query, about) is not None for query in kept)


def _drop_duplicates(queries: list[dict]) -> None:
    """Of queries that are nearly the same, the first one stays."""
    known = Distinct()
    for query in queries:
        if query["outcome"] == KEPT and not known.add(query["text"]):
            query["outcome"] = "near duplicate"


def _outcomes(queries: list[dict]) -> list[dict]:
    counted = Counter((query["leaf"], query["outcome"]) for query in queries)
    return [
        {"leaf": leaf, "outcome": outcome, "queries": count} for (leaf, outcome), count in counted.items()
    ]


def _said(name: str) -> str:
    return name.replace("_", " ")


def _without(row: dict, key: str) -> dict:
    return {name: value for name, value in row.items() if name != key}
