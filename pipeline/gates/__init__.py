"""Quality gates: is a generated text what was asked for, or a loop, an echo, a fragment, a remark on itself?

`Gates.reason` names the first fault that it finds. The gates read form, not meaning: word salad and refusals
without need pass. `docs/gates.md` has their precision and recall on a labeled set.
"""

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Annotated, Any

from pydantic import Field

from pipeline.data.faults import ECHO, EMPTY, LANGUAGE, LOOP, META, SHORT
from pipeline.gates.verdict import verdict_of_analysis as verdict_of_analysis
from pipeline.settings.base import Count, Fraction, Section

# In the order of the checks. Texts that were cut at their limit are left to `methods.unfinished`.
REASONS = (EMPTY, SHORT, LOOP, ECHO, META, LANGUAGE)

_REPEATS = 3  # an n-gram counts as repeated from this many occurrences on
_FEW_WORDS = 100  # below that, the name of the topic alone reaches Gopher's thresholds of 2- and 3-grams
_LONGEST = 10  # the longest of Gopher's n-grams
_WINDOW = 1000  # characters that are compressed together

# Thai, Lao, Khmer, Burmese, Chinese and Japanese write no space between words: there a letter is a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+(?:['’](?:(?![{_UNSPACED}])\w)+)*")
_LIST_MARK = re.compile(r"^\s*(?:\d{1,3}[.):]|[-*•#>]+)\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]*_]*\s+|(?<=[。！？])|\n+")
_FUNCTION_WORDS = frozenset(
    _WORD.findall(
        "a an the this that these those and or but nor not no of to in on at by for from with as be is are "
        "was were been should must will shall would can could may might do does did it its you your i my me "
        "we our they their"
    )
)
_NEGATION = re.compile(r"(?:not|no|never|cannot|none|nothing|\w+n['’]t)$")

_SAID = (
    r"(?:response|answer|repl(?:y|ies)|revision|rewrite|rewrit(?:ing|ten)|rephras(?:ing|ed)|version|output"
    r"|completion)s?"
)
# A first line that announces the response, labels it, or remarks on it in brackets. "The answer is:" is one
# only if nothing follows.
_META = re.compile(
    rf"""
    ^\W*(?:(?:sure|certainly|of\scourse|okay|ok|absolutely|alright|yes)\b\W*)?
      (?:here(?:['’]?s|\sis|\sare)|this\sis|below\s(?:is|are)|the\sfollowing\sis|what\sfollows\sis|i\s(?:would|will|['’]ll)\srevise
        |(?:my|the|a)\b(?![^\n:]*\banswer\b[^\n:]*:\s*\S))
      [^\n:.!?]{{0,80}}\b{_SAID}\b[^\n:.!?]{{0,80}}:[\s*_]*(?:\n|$|["“])
  | ^[\s*_#]*(?:(?:my|the|revised|new|improved|final|updated|harmless|harmful|safe|unsafe)\s+){{0,3}}
      \b{_SAID}[\s*_]*:
  | ^\s*[(\[][^\n()\[\]]{{0,200}}\b{_SAID}\b[^\n()\[\]]{{0,200}}[)\]]
    """,
    re.VERBOSE | re.IGNORECASE,
)
# A first sentence whose subject is the response. "Answer" is no such word: "The answer is 42".
_REMARK = re.compile(
    r"""
    ^[\W_]*(?:the|this)\s(?:above\s|following\s)?(?:response|reply|revision|rewrite|output|completion)\s(?:above\s)?
      (?:is|was|contains|includes|should|would|can|could|may|might|must|has|does|violates|promotes|aims|needs)\b
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NAMES_A_RESPONSE = re.compile(r"\b(?:respon|repl[yi]|revis|rewrit|output|completion|respond)", re.IGNORECASE)
# An instruction that names a language, or asks for a translation, may be answered in another.
_NAMES_A_LANGUAGE = re.compile(
    r"""\b(?:translat\w*|languages?|arabic|bengali|bulgarian|catalan|chinese|mandarin|cantonese|croatian|czech|danish|dutch|english
    |estonian|farsi|persian|finnish|french|german|greek|gujarati|hebrew|hindi|hungarian|icelandic|indonesian|irish|italian|japanese
    |korean|latin|latvian|lithuanian|malay|marathi|norwegian|pashto|polish|portuguese|punjabi|romanian|russian|serbian|slovak
    |slovenian|somali|spanish|swahili|swedish|tagalog|tamil|telugu|thai|turkish|ukrainian|urdu|vietnamese|welsh|yoruba|zulu)\b""",
    re.VERBOSE | re.IGNORECASE,
)

_Three = tuple[Fraction, Fraction, Fraction]
_Six = tuple[Fraction, Fraction, Fraction, Fraction, Fraction, Fraction]


class Gates(Section):
    """Rules that a generated text has to pass. null or false turns one off.

    Repetition follows Gopher (Rae et al. 2021, arXiv 2112.11446, table A1), with its thresholds, and the
    compression ratio of Whisper (Radford et al. 2022, arXiv 2212.04356). Gopher's rules were made for web
    documents of 50 words and more. Adapted to short texts:

    * An n-gram has to occur three times, because twice is normal in a short text. The exception is a long
      repeat that makes up much of the text (`said_again`).
    * Below 100 words the thresholds of 2- and 3-grams are doubled, because the name of the topic alone
      reaches them.
    * Lines are compared by characters only, because a share of three lines means little, and without list
      numbers.
    * Whisper's texts are of half a minute of speech, so longer texts are compressed in windows of 1,000
      characters.

    Echo uses ROUGE (Lin 2004) with the threshold of Self-Instruct for "the same instruction" (Wang et al.
    2022, arXiv 2212.10560).
    """

    min_words: Count | None = Field(2, description="fewer words are `too short`; null = any length")
    duplicate_lines: Fraction | None = Field(
        0.2,
        description="repetition: the greatest share of characters in lines that were there before (Gopher)",
    )
    top_ngrams: _Three | None = Field(
        (0.2, 0.18, 0.16),
        description="repetition: the greatest share of characters in the top 2-, 3- and 4-gram (Gopher)",
    )
    duplicate_ngrams: _Six | None = Field(
        (0.15, 0.14, 0.13, 0.12, 0.11, 0.1),
        description="repetition: the greatest share of characters in repeated 5- to 10-grams (Gopher)",
    )
    said_again: Fraction | None = Field(
        0.3, description="repetition: the greatest share of characters in 10-grams that occur twice"
    )
    compression: Annotated[float, Field(gt=1)] | None = Field(
        2.4, description="repetition: the greatest ratio of bytes to zlib-compressed bytes (Whisper)"
    )
    echo: Fraction | None = Field(
        0.7, description="ROUGE with what was asked above which a sentence is an echo"
    )
    meta_line: bool = Field(True, description="refuse a first line that speaks about the response")
    language: Fraction | None = Field(
        0.9, description="certainty at which the text's language is another one than the instruction's"
    )

    def described(self) -> str:
        changed = self.model_dump(mode="json", exclude_defaults=True)
        return ", ".join(f"{name} {value}" for name, value in changed.items()) or "all, with their defaults"

    def reason(
        self,
        text: str,
        instruction: str,
        *,
        prompt: str = "",
        system: str = "",
        hint: str = "",
        about_response: bool = False,
        continues: bool = False,
    ) -> str | None:
        """The first of REASONS that the text gives, or None.

        instruction:    what the text is to answer; its language is the one to keep.
        prompt:         other text that the model was shown, such as the response that it is to analyze. A
                        text that mostly repeats it is an echo.
        system:         the system prompt that the user set for the step, as `prompt`. If it names a language,
                        the text may be in any.
        hint:           what the text must not state at all, such as the hint of a mistake.
        about_response: the text is to speak about a response, as an analysis does: no meta line.
        continues:      the text goes on in the middle of a response: it can only be empty or repeat itself.
        """
        words = _words(text)
        if not text.strip():
            return EMPTY
        if not continues and self.min_words is not None and len(words) < self.min_words:
            return SHORT
        if self._repeats(text, words):
            return LOOP
        if continues:
            return None
        if self.echo is not None and _echoes(text, instruction, (prompt, system), hint, self.echo):
            return ECHO
        if self.meta_line and not about_response and _speaks_of_itself(text, instruction):
            return META
        if self.language is not None and not _NAMES_A_LANGUAGE.search(f"{instruction}\n{system}"):
            return LANGUAGE if _other_language(instruction, text, self.language) else None
        return None

    def _repeats(self, text: str, words: list[str]) -> bool:
        if self.duplicate_lines is not None and duplicate_lines(text) > self.duplicate_lines:
            return True
        for n, most in enumerate(self.top_ngrams or (), start=2):
            lenient = n < 4 and len(words) < _FEW_WORDS
            if (share := top_ngram(words, n)) > (2 * most if lenient else most):
                return True
            if not share:  # a longer n-gram occurs no more often than its beginning
                break
        for n, most in enumerate(self.duplicate_ngrams or (), start=5):
            if (share := duplicate_ngrams(words, n, _REPEATS)) > most:
                return True
            if not share:
                break
        if self.said_again is not None and duplicate_ngrams(words, _LONGEST, 2) > self.said_again:
            return True
        return self.compression is not None and compression(text) > self.compression


def duplicate_lines(text: str) -> float:
    """Share of characters in lines that were there before; case, punctuation and list marks do not count."""
    lines = [_words(_LIST_MARK.sub("", line)) for line in text.splitlines()]
    seen: set[tuple[str, ...]] = set()
    again = total = 0
    for line in lines:
        length = sum(map(len, line))
        total += length
        again += length if tuple(line) in seen else 0
        seen.add(tuple(line))
    return again / total if total else 0.0


def top_ngram(words: Sequence[str], n: int) -> float:
    """Share of characters in the n-gram that covers most of them and occurs at least three times; overlapping
    occurrences count once."""
    best = 0
    for gram, count in Counter(_ngrams(words, n)).items():
        if count >= _REPEATS and count * sum(map(len, gram)) > best:
            covered = {i + k for i, other in enumerate(_ngrams(words, n)) if other == gram for k in range(n)}
            best = max(best, sum(len(words[i]) for i in covered))
    return best / max(1, sum(map(len, words)))


def duplicate_ngrams(words: Sequence[str], n: int, occurrences: int) -> float:
    """Share of characters in n-grams that were there before, of those that occur at least so often; no
    character counts twice."""
    counts = Counter(_ngrams(words, n))
    if max(counts.values(), default=0) < occurrences:
        return 0.0
    seen: set[tuple[str, ...]] = set()
    covered: set[int] = set()
    for i, gram in enumerate(_ngrams(words, n)):
        if gram in seen and counts[gram] >= occurrences:
            covered.update(range(i, i + n))
        seen.add(gram)
    return sum(len(words[i]) for i in covered) / max(1, sum(map(len, words)))


def compression(text: str) -> float:
    """The greatest ratio of bytes to zlib-compressed bytes among the text's windows of 1,000 characters."""
    starts = {*range(0, max(1, len(text) - _WINDOW), _WINDOW), max(0, len(text) - _WINDOW)}
    windows = [text[start : start + _WINDOW].encode() for start in starts]
    return max(len(window) / len(zlib.compress(window, 9)) for window in windows)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(n)), strict=False)


def _sentences(text: str) -> list[list[str]]:
    return [words for part in _SENTENCE_END.split(text) if (words := _words(part))]


def _echoes(text: str, instruction: str, shown: Sequence[str], hint: str, least: float) -> bool:
    """Whether sentences that repeat the instruction, or a sentence shown beside it (ROUGE-L), make up
    at least half of the text, or one sentence states the hint (recall of its content words, ROUGE-1)."""
    said = _sentences(text)
    stated = [set(sentence) - _FUNCTION_WORDS for sentence in _sentences(hint)]
    for content in stated:
        if len(content) > 1 and any(len(content & set(one)) >= least * len(content) for one in said):
            return True
    whole = [word for one in said for word in one]
    given = [_words(instruction), *(words for one in shown for words in (_words(one), *_sentences(one)))]
    echoed = sum(len(one) for one in said if any(_same(one, other, least) for other in given))
    return bool(whole) and (2 * echoed >= len(whole) or any(_same(whole, other, least) for other in given))


def _speaks_of_itself(text: str, instruction: str) -> bool:
    """Whether the text begins with a remark on the response, which the instruction does not speak of."""
    return bool(_META.match(text) or (_REMARK.match(text) and not _NAMES_A_RESPONSE.search(instruction)))


def _same(one: Sequence[str], other: Sequence[str], least: float) -> bool:
    """Whether a sentence says the same as another. "I will not tell you how to sing" does not repeat "Tell me
    how to sing"."""
    denies = any(_NEGATION.match(word) for word in one) and not any(_NEGATION.match(word) for word in other)
    return not denies and _rouge_l(one, other, least) > least


def _rouge_l(one: Sequence[str], other: Sequence[str], least: float = 0.0) -> float:
    """F1 of the longest common subsequence of two lists of words; 0 if it cannot be more than `least`."""
    total = len(one) + len(other)
    if 2 * min(len(one), len(other)) <= least * total:
        return 0.0
    shared = (Counter(one) & Counter(other)).total()
    if 2 * shared <= least * total:  # the subsequence is no longer than what they share
        return 0.0
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for j, candidate in enumerate(other, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == candidate else max(row[j], row[j - 1])
    return 2 * row[-1] / total


def _other_language(instruction: str, text: str, certainty: float) -> bool:
    """Whether the text is certainly of a language of which the instruction certainly is not. Instructions are
    short: "How do I water a cactus?" is English with 0.7, but French with 0.001."""
    scripts = _scripts(instruction)
    if scripts and (script := _script(text)) and script not in scripts:
        return True
    answered, answered_certainty = _identifier().classify(text)
    if answered_certainty < certainty:
        return False
    asked = _ranked(instruction)
    return bool(asked[answered] < (1 - certainty) * max(asked.values()))


def language(text: str) -> tuple[str, float]:
    """The language of a text as its ISO code, and how certain that is, from 0 to 1."""
    found, certainty = _identifier().classify(text)
    return found, float(certainty)


def _scripts(text: str) -> Counter[str]:
    """Letters by script. Chinese characters and Japanese syllables are one script, as texts mix them."""
    names = Counter(unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha())
    for name in ("HIRAGANA", "KATAKANA"):
        if name in names:
            names["CJK"] += names.pop(name)
    return names


def _script(text: str) -> str | None:
    """The script of more than half of the letters."""
    names = _scripts(text)
    return next((name for name, count in names.most_common(1) if 2 * count > names.total()), None)


@lru_cache(maxsize=1024)  # each step of a row asks about the same instruction
def _ranked(instruction: str) -> dict[str, float]:
    return dict(_identifier().rank(instruction))


@cache
def _identifier() -> Any:
    """py3langid's identifier, with probabilities. Opened on first use: it takes a second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
