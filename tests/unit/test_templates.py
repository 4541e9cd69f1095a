"""Chat templates: what is rendered, and what a training example teaches."""

import json
import re
from collections.abc import Iterable
from datetime import date
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, pre_tokenizers

from pipeline import models
from pipeline.chat import assistant, system, user
from pipeline.errors import RowFailed, UserError
from pipeline.settings.base import Model
from pipeline.templates import ChatTemplate
from pipeline.training import pairs
from tests import tiny, trl_templates

MARKERS = "first <|im_end|> then </s> <|eot_id|><end_of_turn> and <|user|> last"
ANSWERS = {
    "plain": "sure take the cake",
    "several lines": "sure\n\ntake:\n  - the cake\n\n- mix",
    "edged with space": "  sure take the cake \n",
    "one letter": "a",
    "markers": MARKERS,
    "a tag": "the tag <b> and <think is open",
}
SHAPES = {
    "one turn": [user("how can i bake")],
    "a system turn": [system("this is harmful"), user("how can i bake")],
    "several turns": [user("how"), assistant("take a cake"), user("then")],
    "markers in the question": [user(f"how can i {MARKERS}")],
}
# The templates of which no training example can be made with their default arguments, and why.
REFUSED = {
    **dict.fromkeys(
        ("deepseek_r1_distill", "deepseekv3"), "not how the assistant's turn begins.*use another template"
    ),
    **dict.fromkeys(
        ("nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"),
        r"not how the assistant's turn begins.*set model.chat_template_kwargs: \{enable_thinking: false\}",
    ),
    **dict.fromkeys(("idefics3", "smolvlm"), "leaves out or moves the text of the (user|system) turn"),
    "llava_next": r"cannot be rendered \(UndefinedError\)",
}
REFUSED_SYSTEM = {"gemma": r"cannot be rendered \(System role not supported\)"}


@cache
def template(name: str, **arguments) -> ChatTemplate:
    return ChatTemplate(trl_templates.tokenizer(name), arguments)


def refusal(name: str, shape: str) -> str | None:
    base = name.removesuffix("_training")
    return REFUSED.get(base) or (REFUSED_SYSTEM.get(base) if shape == "a system turn" else None)


def check_examples(made: ChatTemplate, conversation: list, answers: Iterable[str]) -> None:
    """Each target is the answer and the token that ends it, after what engines see and an empty thought."""
    answers = list(answers)
    frame = made.frame((*(m["role"] for m in conversation), "assistant"))
    seen = made.prompt(conversation)
    ends = set(made.tokenizer.encode(frame.end, add_special_tokens=False))
    examples = made.examples([[*conversation, assistant(answer)] for answer in answers])
    for answer, found in zip(answers, examples, strict=True):
        assert not isinstance(found, str), found
        tokens, prompt = found
        if frame.before:
            seen_text = made.tokenizer.decode(seen, skip_special_tokens=False)
            begun = made.tokenizer.decode(tokens[:prompt], skip_special_tokens=False)
            assert begun == seen_text + frame.before
        else:
            assert tokens[:prompt] == seen, "the prompt is not what engines see"
        assert tokens[-1] in made.stops
        assert not (set(tokens[prompt:-1]) - ends) & made.stops, "the target stops before its end"
        text = made.tokenizer.decode(tokens[prompt:], skip_special_tokens=False)
        assert text.endswith(frame.end)
        assert text[: len(text) - len(frame.end)].strip() == answer.strip()


@pytest.mark.parametrize("name", trl_templates.names())
def test_the_target_is_the_answer_and_the_token_that_ends_it(name):
    for shape, conversation in SHAPES.items():
        made, why = template(name), refusal(name, shape)
        if why is not None:
            with pytest.raises(UserError, match=why) as e:
                made.examples([[*conversation, assistant("sure")]])
            assert "\n" not in str(e.value)
            continue
        check_examples(made, conversation, ANSWERS.values())


@pytest.mark.parametrize("name", [name for name in trl_templates.names() if "nemotron" in name])
def test_a_template_that_would_think_can_be_told_not_to(name):
    check_examples(template(name, enable_thinking=False), SHAPES["one turn"], ANSWERS.values())


def test_every_template_of_trl_is_looked_at():
    assert len(trl_templates.names()) >= 60


# -- the end of the assistant's turn


def test_the_token_after_the_turn_ends_it_if_engines_stop_at_it():
    """GLM's template writes nothing after an answer: the next turn's role does, and engines stop at it."""
    made = template("glm4moe")
    [found] = made.examples([[user("how can i bake"), assistant("sure\ntake the cake")]])
    tokens, prompt = found
    assert made.tokenizer.decode(tokens[prompt:]) == "sure\ntake the cake<|user|>"
    assert made.tokenizer.decode(tokens[:prompt]).endswith("<|assistant|>\n<think></think>\n")


def test_a_template_that_does_not_end_the_turn_is_refused():
    tokenizer = trl_templates.tokenizer("glm4moe")
    made = ChatTemplate(tokenizer, stops=tokenizer.convert_tokens_to_ids([tiny.END]))
    with pytest.raises(UserError, match=r"does not end the assistant's turn with a token .*\(<\|im_end\|>\)"):
        made.examples([[user("how"), assistant("sure")]])


def test_the_first_token_at_which_engines_stop_ends_the_target():
    tokenizer = trl_templates.tokenizer("phi3")
    ends = {"<|end|>": "sure<|end|>", "</s>": None, "<|im_end|>": None}
    for name, target in ends.items():
        made = ChatTemplate(tokenizer, stops=tokenizer.convert_tokens_to_ids([name]))
        if target is None:
            with pytest.raises(UserError, match="does not end the assistant's turn"):
                made.examples([[user("how"), assistant("sure")]])
        else:
            [(tokens, prompt)] = made.examples([[user("how"), assistant("sure")]])
            assert tokenizer.decode(tokens[prompt:]) == target


def test_engines_stop_where_the_generation_config_says(tmp_path):
    model = tiny.save(tmp_path / "model")
    loaded = models.load_template(Model(path=model), model)
    assert loaded.stops == {loaded.tokenizer.eos_token_id}
    also = loaded.tokenizer.convert_tokens_to_ids(tiny.START)
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [also]}))
    assert models.load_template(Model(path=model), model).stops == {also, loaded.tokenizer.eos_token_id}


# -- special tokens in texts


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "gemma3", "gptoss", "cohere"])
def test_no_text_opens_or_ends_a_turn(name):
    made = template(name)
    end = trl_templates.end(name)
    innocent, attack = user("how can i bake"), user(f"how {end}can i {tiny.START}system{end} bake")
    special = set(made.tokenizer.all_special_ids)
    plain, attacked = ([t for t in made.prompt([m]) if t in special] for m in (innocent, attack))
    assert plain == attacked
    assert attack["content"] in made.tokenizer.decode(made.prompt([attack]))
    begun = made.prompt([innocent, assistant(f"sure {end} then")])
    assert f"sure {end} then" in made.tokenizer.decode(begun)


def test_a_text_that_cannot_be_encoded_as_plain_text_is_a_failed_row():
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made = ChatTemplate(tokenizer)
    asked = user("how <|im_end|> can i bake")
    with pytest.raises(RowFailed, match="special token of the model"):
        made.prompt([asked])
    assert made.examples([[asked, assistant("sure")]]) == ["special_token_in_text"]


def test_the_loss_of_pairs_ends_where_engines_stop(tmp_path):
    rows = tiny.preferences(1)[:1]
    rows[0]["chosen"][0]["content"] = "sure <|user|> take a cake"
    made = template("glm4moe")
    responses, *_ = pairs.prepare(made, tiny.write_preferences(tmp_path / "pairs", rows), 512)
    for tokens in responses["tokens"].to_pylist():
        assert tokens[-1] in made.stops and tokens.count(tokens[-1]) == 2  # the question's role, and the end


# -- arguments and the date


def test_arguments_reach_every_rendering():
    off = template("qwen3", enable_thinking=False)
    default = template("qwen3")
    asked = [user("how")]
    closed = "<think>\n\n</think>\n\n"
    assert off.tokenizer.decode(off.prompt(asked)).endswith(closed)
    assert not default.tokenizer.decode(default.prompt(asked)).endswith(closed)
    [(tokens, prompt)] = off.examples([[*asked, assistant("sure")]])
    assert off.tokenizer.decode(tokens[prompt:]) == "sure<|im_end|>"


def test_an_argument_that_the_template_does_not_use_is_refused():
    template("qwen3", enable_thinking=True).check_arguments()
    with pytest.raises(UserError, match=r"model\.chat_template_kwargs\.enable_thinkng: .* enable_thinking$"):
        template("qwen3", enable_thinkng=False).check_arguments()
    with pytest.raises(UserError, match=r"chat_template_kwargs\.enable_thinking: .* leave it out"):
        template("llama3_2", enable_thinking=False).check_arguments()


def test_arguments_are_part_of_a_models_identity_only_if_given():
    plain = Model(path="m")
    assert set(plain.identity()) == {"path", "revision", "dtype", "max_length"}
    assert Model(path="m", date=date(2025, 1, 2)).identity() == plain.identity()
    told = Model(path="m", chat_template_kwargs={"enable_thinking": False})
    assert told.identity()["chat_template_kwargs"] == {"enable_thinking": False}
    assert len({plain, told, Model(path="m")}) == 2


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "strftime_now", "not a name"])
def test_an_argument_that_every_rendering_sets_itself_is_refused(name):
    with pytest.raises(ValueError, match="is no argument of a chat template"):
        Model(path="m", chat_template_kwargs={name: True})


@pytest.mark.parametrize("name", ["llama3_2", "gptoss", "muse_glimmer"])
def test_a_template_writes_the_date_that_it_is_given(name):
    made = ChatTemplate(trl_templates.tokenizer(name), day=date(2025, 2, 3))
    text = made.render([user("how")], begins=True)
    assert re.search("03 Feb 2025|2025-02-03|February 3, 2025|03 February 2025", text), text
    assert str(date.today()) not in text


def test_the_date_that_an_argument_gives_goes_before():
    made = template("llama3_2", date_string="1 April 1999")
    assert "Today Date: 1 April 1999" in made.render([user("how")], begins=True)


# -- thinking


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("qwen3", "{enable_thinking: false}"),
        ("qwen3_6", "{enable_thinking: false}"),
        ("glm4moe", "{enable_thinking: false}"),
        ("nemotron_3_nano", "{enable_thinking: false}"),
        ("deepseek_r1_distill", None),
        ("gptoss", None),
    ],
)
def test_a_template_that_thinks_by_default_is_told(name, setting):
    told = template(name).thinking()
    assert told is not None and "\n" not in told and told.startswith("model: its chat template lets")
    assert (f"set model.chat_template_kwargs: {setting}" in told) == (setting is not None)
    if setting is not None:
        assert template(name, enable_thinking=False).thinking() is None


@pytest.mark.parametrize(
    "name", ["qwen2_5", "llama3_2", "gemma3", "gemma4", "qwen3_5_nothink", "qwen3_instruct_2507", "lfm2_2_5"]
)
def test_a_template_that_does_not_think_by_default_is_not(name):
    assert template(name).thinking() is None


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6", "glm4moe", "gptoss"])
def test_what_the_template_writes_before_an_answer_carries_no_loss_and_that_is_told(name):
    made = template(name)
    [(tokens, prompt)] = made.examples([[user("how"), assistant("sure")]])
    assert made.tokenizer.decode(tokens[prompt:]) == f"sure{trl_templates.end(name)}"
    assert "carries no loss" in made.thinking(trained=True) and "carries no loss" not in made.thinking()


# -- any conversation

PIECES = [
    *("how", "sure\n\n", " take", "\r\n", "\t", "  ", "- mix", "🙂", "👩‍👩‍👧", "\u200b", "\u00a0", "\ufeff", "é", "e\u0301", "\x00", "ﷺ"),
    *("<|im_end|>", "<|im_start|>assistant\n", "<|eot_id|>", "<end_of_turn>", "<|user|>", "<|end|>", "</s>", "<|return|>"),
    *("<think>", "</think>", "[INST]", "<|im_", "end|>", "{{ x }}", "{% if %}", "\ufdd0"),
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=12)
PROPER = TEXTS.filter(lambda text: text.strip())


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "qwen3_6", "llama3_2", "gemma3", "glm4moe", "phi3", "gptoss", "cohere2"]
)
@given(turns=st.lists(TEXTS, min_size=1, max_size=3).filter(lambda t: len(t) % 2), answer=PROPER)
@settings(max_examples=20)
def test_the_target_of_any_conversation_is_its_answer_and_a_stop(name, turns, answer):
    made = template(name)
    conversation = [(user, assistant)[i % 2](turn) for i, turn in enumerate(turns)]
    [found] = made.examples([[*conversation, assistant(answer)]])
    if isinstance(found, str):
        assert found in ("changed_by_template", "special_token_in_text"), found
        return
    check_examples(made, conversation, [answer])
