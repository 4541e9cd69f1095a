"""A model's chat template: the only module that renders conversations.

Engines, training, evaluation and `plan` see the same text for the same conversation: the same template
arguments, the same date, and the same tokens for text that looks like one of the template's own tokens.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from hashlib import blake2b
from typing import Any

from pipeline import thoughts
from pipeline.chat import Message, assistant, system, user
from pipeline.errors import RowFailed, UserError

Scalar = bool | int | float | str | None
# Noncharacters, which no text should hold. One of them splits a marker in a text until it is tokenized.
_BREAKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_NEXT = "qznextqz"  # the text of the turn after the one that is looked at


# What templates change that cut, quote or escape a text.
_ANY_TEXT = ' "It\'s 1 < 2" & more — é, 文.\n\n  * a\\b\n' + "and so on " * 50


@dataclass(frozen=True)
class Frame:
    """What a template writes around the last assistant turn of conversations with the same roles.

    before: what the template writes before the answer and not into the generation prompt, such as an empty
            thought
    after:  everything after the answer in the whole conversation
    end:    what follows the answer up to the token at which the engine stops, that token included
    """

    before: str
    after: str
    end: str


class ChatTemplate:
    """The chat template of a tokenizer, with its arguments.

    arguments: of the template, such as `enable_thinking`
    day:       the date that the template takes for today's; null = today
    stops:     token ids at which the engine stops; null = the tokenizer's end-of-sequence token
    field:     the model's field in the configuration, for messages
    """

    def __init__(
        self,
        tokenizer: Any,
        arguments: Mapping[str, Scalar] | None = None,
        *,
        day: date | None = None,
        stops: Collection[int] | None = None,
        field: str = "model",
    ):
        self.tokenizer, self.arguments, self.day, self.field = tokenizer, dict(arguments or {}), day, field
        own = {tokenizer.eos_token_id} if stops is None else set(stops)
        self.stops = frozenset(own - {None})
        self._frames: dict[tuple[str, ...], Frame] = {}

    @property
    def name(self) -> str:
        return f"the chat template of model {self.tokenizer.name_or_path}"

    @cached_property
    def source(self) -> str:
        """The template's text. Raises UserError if there is none."""
        try:
            return self.tokenizer.get_chat_template()
        except (AttributeError, ValueError):
            raise UserError(
                f"model {self.tokenizer.name_or_path} has no chat template: add chat_template.jinja to its"
                " directory, or use its chat variant"
            ) from None

    def identity(self) -> dict:
        """What decides the tokens of a conversation."""
        return {
            "tokenizer": blake2b(_tokenizer(self.tokenizer).encode(), digest_size=16).hexdigest(),
            "source": self.source,
            "arguments": self.arguments,
            "day": str(self.day or date.today()),
            "stops": sorted(self.stops),
        }

    # -- prompts

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to the model's next token, after a prefill if there is one.

        Raises RowFailed if the template cannot render this conversation.
        """
        return self.opened_prompt(messages)[0]

    def opened_prompt(
        self, messages: Sequence[Message], *, prefill: bool = True
    ) -> tuple[list[int], thoughts.Marks | None]:
        """The token ids of `prompt`, and the marks of the thought in which the prompt ends, if it does.

        prefill: whether a last assistant's turn stays open, rather than be closed and answered.
        """
        broken, mark = self._broken(messages)
        prefilled = prefill and messages[-1]["role"] == "assistant"
        try:
            text = self.render(broken, continues=prefilled, begins=not prefilled)
        except UserError as e:
            raise RowFailed(str(e)) from None
        [tokens] = self._tokens([text], mark)
        if tokens is None:
            raise RowFailed(
                "the text holds a special token of the model that cannot be encoded as plain text"
            )
        return tokens, None if prefilled else thoughts.left_open(text)

    def render(self, messages: Sequence[Message], *, begins: bool = False, continues: bool = False) -> str:
        """A conversation as text.

        begins: with the beginning of the assistant's next turn. continues: without the end of the last turn.
        Raises UserError if the template fails; the message quotes the template's own sentence, no text.
        """
        day = self.day or date.today()
        # The arguments of a rendering hide the functions of transformers' environment.
        arguments = {"strftime_now": day.strftime, **self.arguments}
        source = self.source
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=begins,
                continue_final_message=continues,
                **arguments,
            )
        except Exception as e:  # a template can raise anything, with a conversation's text in the message
            said = str(e).strip()
            why = said if said and said in source else type(e).__name__
            raise UserError(f"{self.name} cannot be rendered ({why}): fix its chat_template.jinja") from None

    # -- training examples

    def examples(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[list[int], int] | str]:
        """Token ids of each conversation up to the token that ends its last turn, and how many are prompt.

        The last turn is the assistant's. The target, which is the rest, is the answer and the first token at
        which the engine stops. The prompt's tokens are those that an engine is given for the conversation
        without that turn, and what the template itself writes before the answer, such as an empty thought: a
        model that is trained on that would learn not to think. For a conversation that cannot be such an
        example: the reason, as a word for counts.

        Raises UserError if the template cannot make examples of conversations with these roles.
        """
        prompts_of: dict[tuple, str] = {}  # many conversations share their prompt
        texts = [self._example(messages, prompts_of) for messages in conversations]
        tokens: dict[tuple, list[list[int] | None]] = {}
        usable = [text for text in texts if not isinstance(text, str)]
        for mark in {mark for *_, mark in usable}:
            of_mark = [text for text in usable if text[-1] == mark]
            distinct = list(dict.fromkeys(prompt for prompt, _, _ in of_mark))
            prompts = dict(zip(distinct, self._tokens(distinct, mark), strict=True))
            wholes = self._tokens([prompt + target for prompt, target, _ in of_mark], mark)
            for text, whole in zip(of_mark, wholes, strict=True):
                tokens[text] = [prompts[text[0]], whole]
        return [text if isinstance(text, str) else self._sliced(*text, *tokens[text]) for text in texts]

    def begun(
        self, conversations: Sequence[Sequence[Message]], prefixes: Sequence[str]
    ) -> list[tuple[list[int], list[int], list[int]] | str]:
        """Token ids of (prompt, prefix, target), for last turns that begin with a text of another origin.

        Prompt and prefix are those of an example whose answer is the prefix, without its end, so a caller can
        cut the prefix after any of its tokens. The target is the conversation's answer, after a space, up to
        the token that ends the turn. For a conversation that cannot be such an example: the reason, as in
        `examples`, which also says what is raised.
        """
        answers = [
            [*messages[:-1], assistant(text)] for messages, text in zip(conversations, prefixes, strict=True)
        ]
        found: list[tuple[list[int], list[int], list[int]] | str] = []
        for messages, one in zip(conversations, self.examples(answers), strict=True):
            if isinstance(one, str):
                found.append(one)
                continue
            tokens, prompt = one
            end = self.frame(tuple(message["role"] for message in messages)).end
            [ending] = self._tokens([end], "")
            target = self._continued(messages[-1], end)
            if isinstance(target, str) or ending is None:
                found.append(target if isinstance(target, str) else "no_end_token")
            else:
                found.append((tokens[:prompt], tokens[prompt : -len(ending)], target))
        return found

    def _continued(self, answer: Message, end: str) -> list[int] | str:
        """Token ids of an answer in the middle of a turn, with the end of the turn; else the reason."""
        [broken], mark = self._broken([answer])
        text = broken["content"].strip()
        if not text:
            return "empty_answer"
        for space in (" ", ""):  # some tokenizers add a space of their own
            [target] = self._tokens([space + text + end], mark)
            if target and self._decoded(target) == (f" {text}{end}" if space else text + end).replace(
                mark, ""
            ):
                return target if target[-1] in self.stops else "no_end_token"
        return "special_token_in_text"

    def _sliced(
        self, prompt_text: str, target: str, mark: str, prompt: list[int] | None, whole: list[int] | None
    ) -> tuple[list[int], int] | str:
        if prompt is None or whole is None:
            return "special_token_in_text"
        if whole[: len(prompt)] != prompt:
            # One token would span prompt and target. An engine is given the prompt's tokens, so the model
            # has to write the target's own.
            [own] = self._tokens([target], mark)
            whole = prompt + (own or [])
            if self._decoded(whole) != (prompt_text + target).replace(mark, ""):
                return "token_across_turns"
        return (whole, len(prompt)) if whole[-1] in self.stops else "no_end_token"

    def _example(self, messages: Sequence[Message], rendered: dict[tuple, str]) -> tuple[str, str, str] | str:
        """The texts of prompt and target, and the character in them that breaks markers (see `_broken`).

        rendered: prompts → their text, which is added to.
        """
        frame = self.frame(tuple(message["role"] for message in messages))
        broken, mark = self._broken(messages)
        key = tuple((message["role"], message["content"]) for message in broken[:-1])
        if key not in rendered:
            rendered[key] = self.render(broken[:-1], begins=True)
        prompt, whole = rendered[key], self.render(broken)
        begin, answer = prompt + frame.before, broken[-1]["content"]
        inside = whole[len(begin) : len(whole) - len(frame.after)]
        framed = whole.startswith(begin) and whole.endswith(frame.after)
        if not framed or inside.strip() != answer.strip() or not inside.strip():
            return "empty_answer" if not answer.strip() else "changed_by_template"
        if not frame.before.strip():  # a space, which may be part of the answer's first token
            return prompt, frame.before + inside + frame.end, mark
        return begin, inside + frame.end, mark

    def frame(self, roles: tuple[str, ...]) -> Frame:
        """What the template writes around the last turn of conversations with these roles.

        Raises UserError if examples of them cannot be made.
        """
        if roles not in self._frames:
            self._frames[roles] = self._framed(probe(roles))
        return self._frames[roles]

    def _framed(self, messages: list[Message]) -> Frame:
        prompt, whole = self.render(messages[:-1], begins=True), self.render(messages)
        self._check_holds(prompt, messages[:-1])
        answer = messages[-1]["content"]
        if not whole.startswith(prompt):
            opened = thoughts.left_open(prompt)
            begins = f" (it opens a thought with {opened.opens})" if opened else ""
            raise UserError(
                f"{self.name} writes a generation prompt that is not how the assistant's turn begins in a"
                f" whole conversation{begins}, so the target cannot be separated from the prompt:"
                f" {self._remedy(opened is not None)}"
            )
        before, found, after = whole[len(prompt) :].partition(answer)
        if not found:
            raise UserError(f"{self.name} leaves out the assistant's text: use another template")
        end = self._up_to_stop(after)
        if end is None:  # some templates leave the end of a turn to the beginning of the next one
            later = self._rendered_with_next_turn(messages)
            begin = prompt + before + answer
            end = self._up_to_stop(later[len(begin) :]) if later.startswith(begin) else None
        if end is None:
            stops = ", ".join(self._stop_names) or "none is known"
            raise UserError(
                f"{self.name} does not end the assistant's turn with a token that the engine stops at"
                f" ({stops}), so the model could not learn to stop: end the turn with eos_token in the"
                " template, or name the token that ends it in eos_token_id of generation_config.json"
            )
        return Frame(before, after, end)

    def _rendered_with_next_turn(self, messages: list[Message]) -> str:
        try:
            return self.render([*messages, user(_NEXT)])
        except UserError:
            return ""

    def _up_to_stop(self, text: str) -> str | None:
        """The beginning of a text, up to its first token at which the engine stops; null without one."""
        text = text.partition(_NEXT)[0]
        ends = [text.index(name) + len(name) for name in self._stop_names if name in text]
        return text[: min(ends)] if ends else None

    def _remedy(self, thinks: bool) -> str:
        if thinks and (setting := self.silencing()):
            return f"set {self.field}.chat_template_kwargs: {setting}"
        return "use another template"

    # -- checks of a template, on conversations of probes

    def check_prompt(self, roles: tuple[str, ...]) -> None:
        """Raises UserError if the template cannot render conversations with these roles, or drops a text."""
        messages = probe(roles)
        self._check_holds(self.render(messages, begins=True), messages)

    def _check_holds(self, text: str, messages: Sequence[Message]) -> None:
        place = 0
        for message in messages:
            place = text.find(message["content"], place)
            if place < 0:
                raise UserError(
                    f"{self.name} leaves out or moves the text of the {message['role']} turn: use another"
                    " template"
                )

    def check_arguments(self) -> None:
        """Raises UserError for an argument that the template does not use: it would change nothing."""
        for name in self.arguments:
            if not re.search(rf"\b{re.escape(name)}\b", self.source):
                known = [knob for knob in _KNOBS if re.search(rf"\b{knob}\b", self.source)]
                remedy = f"known to it are {', '.join(known)}" if known else "leave it out"
                raise UserError(
                    f"{self.field}.chat_template_kwargs.{name}: the chat template does not use it; {remedy}"
                )

    def thinking(self, *, trained: bool = False) -> str | None:
        """What a user has to know about a template that lets the model think before it answers.

        trained: whether training examples are made with the template.
        """
        text = self.render(probe(("user",)), begins=True)
        setting, opened = self.silencing(), thoughts.left_open(text)
        if setting is None and opened is None and "<|channel|>analysis" not in self.source:
            return None
        told = (
            f"{self.field}: its chat template lets the model think before every answer; thoughts are kept"
            " apart in the column `thoughts`, and max_tokens has to hold thought and answer"
        )
        if trained and self.frame(("user", "assistant")).before.strip():
            told += (
                "; what the template writes before the answer of a training example, such as an empty"
                " thought, carries no loss, so the model does not learn to leave its thoughts out"
            )
        off = f"; to turn thinking off, set {self.field}.chat_template_kwargs: {setting}" if setting else ""
        return told + off

    def silencing(self) -> str | None:
        """The argument that turns off the thinking that this template turns on by default, as YAML."""
        prompt = probe(("user",))
        default = self.render(prompt, begins=True)
        for name, off in _KNOBS.items():
            if name in self.arguments or not re.search(rf"\b{name}\b", self.source):
                continue
            without = ChatTemplate(
                self.tokenizer, {**self.arguments, name: off}, day=self.day, stops=self.stops
            )
            on = ChatTemplate(
                self.tokenizer, {**self.arguments, name: _ON[name]}, day=self.day, stops=self.stops
            )
            try:
                silent, loud = without.render(prompt, begins=True), on.render(prompt, begins=True)
            except UserError:
                continue
            if silent != default and (loud == default or thoughts.left_open(default)):
                return f"{{{name}: {str(off).lower()}}}"
        return None

    # -- tokens

    @cached_property
    def _stop_names(self) -> list[str]:
        return [name for name in self.tokenizer.convert_ids_to_tokens(sorted(self.stops)) if name]

    @cached_property
    def _markers(self) -> re.Pattern | None:
        """The tokens that must not arise from a text: special ones, and those at which the engine stops."""
        added = self.tokenizer.added_tokens_decoder
        special = {str(token) for token in added.values() if token.special}
        special |= set(self.tokenizer.all_special_tokens)
        special |= set(self._stop_names)
        names = sorted((name for name in special if len(name) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None

    def _broken(self, messages: Sequence[Message]) -> tuple[list[Message], str]:
        """The messages, with a character put into every marker in their texts, and that character or ""."""
        if self._markers is None or not any(self._markers.search(m["content"]) for m in messages):
            return list(messages), ""
        everything = "".join(message["content"] for message in messages)
        mark = next(mark for mark in _BREAKS if mark not in everything)
        broken: list[Message] = [
            {
                "role": message["role"],
                "content": self._markers.sub(
                    lambda found: found[0][0] + mark + found[0][1:], message["content"]
                ),
            }
            for message in messages
        ]
        return broken, mark

    def _tokens(self, texts: list[str], mark: str) -> list[list[int] | None]:
        """Token ids; `mark` separates what is tokenized apart. Null if the ids do not decode to the text."""
        if not texts:
            return []
        if not mark:
            return list(self.tokenize(texts))
        found: list[list[int] | None] = []
        for text in texts:
            parts = [part for part in text.split(mark) if part]
            ids = [token for part in self.tokenize(parts) for token in part]
            found.append(ids if self._decoded(ids) == text.replace(mark, "") else None)
        return found

    def tokenize(self, texts: list[str], *, special: bool = False) -> list[list[int]]:
        """Token ids of texts. special: with the tokens that begin and end a text, if the model has such.

        transformers also makes offsets, masks and type ids, which take longer than the ids. Without it, any
        number of threads can tokenize.
        """
        if not texts:
            return []
        if self._raw is None:
            return self.tokenizer(texts, add_special_tokens=special)["input_ids"]
        return [found.ids for found in self._raw.encode_batch_fast(texts, add_special_tokens=special)]

    @cached_property
    def _raw(self) -> Any:
        """The tokenizer of the `tokenizers` library, if that is all that transformers would call."""
        from transformers.tokenization_utils_tokenizers import TokenizersBackend

        backend = TokenizersBackend
        if not isinstance(self.tokenizer, backend) or self.tokenizer.split_special_tokens:
            return None
        for name in ("__call__", "_encode_plus"):  # some models have a tokenizer class with its own
            if getattr(type(self.tokenizer), name) is not getattr(backend, name):
                return None
        self.tokenizer(
            ["a"], add_special_tokens=False
        )  # turns off cutting and padding that its file asks for
        return self.tokenizer.backend_tokenizer

    def _decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


# Arguments that turn thinking off in templates of known families, and on.
_KNOBS: dict[str, Scalar] = {
    "enable_thinking": False,
    "thinking": False,
    "enable_reasoning": False,
    "reasoning": False,
    "thinking_budget": 0,
}
_ON: dict[str, Scalar] = {
    "enable_thinking": True,
    "thinking": True,
    "enable_reasoning": True,
    "reasoning": True,
    "thinking_budget": -1,
}


def _tokenizer(tokenizer: Any) -> str:
    """What decides the tokens of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python; what it was made from is in its arguments
        return f"{type(tokenizer).__name__} {tokenizer.init_kwargs} {sorted(tokenizer.get_vocab().items())}"
    # A call may change the last two settings, and every call sets them.
    settings = json.loads(backend.to_str())
    return json.dumps({**settings, "truncation": None, "padding": None})


def probe(roles: tuple[str, ...]) -> list[Message]:
    """A conversation with these roles whose texts can be found again in its rendering."""
    make = {"system": system, "user": user, "assistant": assistant}
    texts = [f"qz{chr(ord('a') + number)}qz{_ANY_TEXT}qz" for number in range(len(roles))]
    return [make[role](text) for role, text in zip(roles, texts, strict=True)]
