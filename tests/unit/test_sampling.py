"""Sampling settings that are left open follow the model's generation_config.json; evaluation is greedy."""

import asyncio
import json
from pathlib import Path

import pytest

from pipeline import sampling
from pipeline.chat import Sampling, system, user, with_system
from pipeline.errors import RowFailed, UserError
from pipeline.fingerprints import fingerprints
from pipeline.inference.dummy import Dummy, DummyModel
from pipeline.inference.openai import EndpointModel
from pipeline.inference.row_chat import RowChat
from pipeline.preflight import fit
from pipeline.settings.base import FOR_FINGERPRINT, Draw, Endpoint, Greedy
from tests import scripted, tiny
from tests.unit.inference.endpoint.servers import Answer, serving
from tests.unit.inference.endpoint.servers import chat as reply

ALL = ("generate", "mix", "train", "evaluate")
OWN = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.1, "do_sample": True}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("sampling") / "model")


@pytest.fixture
def made(tmp_path, weights):
    """A configuration whose model says this in generation_config.json."""

    def made(own: dict | None, **changes):
        directory = tmp_path / "model"
        directory.mkdir(exist_ok=True)
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (directory / file).write_bytes(Path(weights, file).read_bytes())
        (directory / "generation_config.json").unlink(missing_ok=True)
        if own is not None:
            (directory / "generation_config.json").write_text(json.dumps(own))
        return scripted.config(tmp_path / "run", **{"model": {"path": str(directory)}, **changes})

    return made


def resolve(config, stages=ALL):
    return sampling.resolved(config, stages, set(config.suites.items()))


def induce(config) -> Draw:
    return resolve(config)[0].methods["mistakes"].induce


def test_unset_settings_follow_the_models_file_and_set_ones_do_not(made):
    config, [notice] = resolve(made(OWN, recipe={"induce": {"temperature": 0.9, "min_p": 0.1}}))
    draw = config.methods["mistakes"].induce
    assert (draw.temperature, draw.top_p, draw.top_k, draw.min_p) == (0.9, 0.95, 20, 0.1)
    assert draw.repetition_penalty == 1.1
    assert config.methods["mistakes"].analyse.temperature == 0.6
    assert notice.startswith("unset sampling settings follow generation_config.json of ")
    assert notice.endswith(": temperature 0.6, top_p 0.95, top_k 20, repetition_penalty 1.1")


@pytest.mark.parametrize("own", [None, {}, {"eos_token_id": 2, "top_k": -1, "temperature": None}])
def test_a_model_that_says_nothing_is_sampled_from_its_plain_distribution(made, own):
    draw = induce(made(own))
    assert {name: getattr(draw, name) for name in Draw.NEUTRAL} == Draw.NEUTRAL


@pytest.mark.parametrize("own", [{"do_sample": False, "temperature": 0.6, "top_k": 20}, {"temperature": 0}])
def test_a_file_that_does_not_sample_means_greedy(made, own):
    draw = induce(made(own))
    assert (draw.temperature, draw.top_p, draw.top_k) == (0, 1, 0)


def test_evaluation_and_judges_are_greedy_unless_told_otherwise(made):
    suite = {"harmful": {"path": "toy:harmful-heldout"}, "harmless": {"kind": "rating"}}
    config = resolve(made(OWN, evaluation={**suite, "answer": {"max_tokens": 9}}))[0]
    safety = config.suites.safety
    for draw in (safety.answer, safety.harmless.draw, safety.help.draw):
        assert (draw.temperature, draw.top_p, draw.top_k) == (0, 1, 0)
        assert draw.repetition_penalty == 1.1  # the likeliest token is another one with it
    follows = resolve(made(OWN, evaluation={**suite, "answer": {"temperature": None}}))[0]
    assert (follows.suites.safety.answer.temperature, follows.suites.safety.answer.top_k) == (0.6, 20)


def test_c2_eval_samples_as_its_paper_does_whatever_the_model_says(made):
    suite = {"entries": {"path": "toy:detailed-heldout"}, "draw": {"max_tokens": 9}}
    config = resolve(made(OWN, suites={"c2_eval": suite}))[0]
    draw = config.suites.c2_eval.draw
    assert [getattr(draw, name) for name in Draw.NEUTRAL] == [0.8, 0.7, 0, 0, 1]
    assert draw.model_dump(context=FOR_FINGERPRINT) == {"max_tokens": 9, "temperature": 0.8, "top_p": 0.7}


def test_a_changed_file_of_the_model_is_another_fingerprint(made):
    first = fingerprints(resolve(made(OWN))[0])
    assert first["mistakes"]["mistake_analysis"]["induce"] == {
        "max_tokens": 512,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "repetition_penalty": 1.1,
    }
    second = fingerprints(resolve(made({**OWN, "top_k": 40, "repetition_penalty": 1.2}))[0])
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"mistakes", "evaluation"}
    # Greedy answers do not depend on top_k.
    third = fingerprints(resolve(made({**OWN, "top_k": 40}))[0])
    assert third["evaluation"] == first["evaluation"] and third["mistakes"] != first["mistakes"]


def test_a_model_without_the_file_keeps_the_fingerprints_of_older_versions(made):
    found = fingerprints(resolve(made(None))[0])["mistakes"]["mistake_analysis"]
    assert found["induce"] == {"max_tokens": 512, "temperature": 1.0, "top_p": 1.0}


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"temperature": -1}, "has temperature = '-1', which cannot be used; fix the file, or set methods."),
        ({"top_p": "much"}, "has top_p = 'much', which cannot be used"),
        ({"top_k": 2.5}, "has top_k = '2.5', which cannot be used"),
        ([1], "its generation_config.json cannot be read (generation_config.json holds no object)"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(made, own, why):
    with pytest.raises(UserError, match=r"^model\.path = ") as e:
        resolve(made(own))
    assert why in str(e.value) and "\n" not in str(e.value)


def test_settings_that_are_not_followed_are_told(made):
    _, notices = resolve(made({"no_repeat_ngram_size": 3, "typical_p": 1.0, "num_beams": 4}))
    assert len(notices) == 1 and notices[0].endswith(
        " sets no_repeat_ngram_size, num_beams, which is not followed"
    )


def test_what_a_server_is_asked_is_left_to_the_server(made):
    server = {"url": "http://127.0.0.1:1/v1", "model": "m", "api_key_env": None}
    suite = {"harmful": {"path": "toy:harmful-heldout"}, "help": {"model": "strong"}}
    config = resolve(
        made(OWN, evaluation=suite, models={"strong": {"engine": {"kind": "openai", **server}}})
    )[0]
    assert (config.suites.safety.help.draw.temperature, config.suites.safety.help.draw.top_p) == (0, None)
    method = {"engine": {"kind": "openai", **server}}
    draw = induce(made(OWN, recipe=method))
    assert (draw.temperature, draw.repetition_penalty) == (None, None)
    assert "temperature and top-p by the default of model or server" in draw.described()


def test_a_report_alone_shows_what_the_data_was_made_with(made, tmp_path):
    config = resolve(made(OWN))[0]
    found = fingerprints(config)
    for name in ("mistakes", "evaluation"):
        state = tmp_path / "run" / ".state" / name
        state.mkdir(parents=True)
        (state / "fingerprint.json").write_text(json.dumps(found[name]))
    later = sampling.resolved(made({"temperature": 0.1}), stages=(), suites=())[0]
    assert later.methods["mistakes"].induce == config.methods["mistakes"].induce
    assert later.suites.safety.answer == config.suites.safety.answer


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"evaluation": {"harmful": {"path": "toy:harmful-heldout"}, "samples": 3}},
            "suites.safety.samples = 3: sampling is greedy, so all 3 would be equal; set"
            " suites.safety.answer.temperature above 0, or samples: 1",
        ),
        (
            {
                "suites": {
                    "c2_eval": {"entries": {"path": "toy:detailed-heldout"}, "draw": {"temperature": 0}}
                }
            },
            "suites.c2_eval.paths = 20: sampling is greedy, so all 20 would be equal; set"
            " suites.c2_eval.draw.temperature above 0, or paths: 1",
        ),
        (
            {"recipe": {"samples": 2, "induce": {"temperature": 0}, "analyse": {"temperature": 0}}},
            "methods.mistakes.samples = 2: sampling is greedy, so all 2 would be equal; set"
            " methods.mistakes.induce.temperature above 0, or samples: 1",
        ),
        (
            {"recipe": {"samples": 2, "mistake": "reference", "analyse": {"temperature": 0}}},
            "methods.mistakes.samples = 2: sampling is greedy, so all 2 would be equal; set"
            " methods.mistakes.analyse.temperature above 0, or samples: 1",
        ),
    ],
)
def test_samples_that_would_all_be_equal_are_refused(made, changes, told):
    with pytest.raises(UserError) as e:
        resolve(made(None, **changes))
    assert str(e.value) == told


def test_samples_that_differ_in_one_step_are_fine(made):
    resolve(made(None, recipe={"samples": 2, "induce": {"temperature": 0}}))
    suite = {"harmful": {"path": "toy:harmful-heldout"}, "samples": 3, "answer": {"temperature": 0.7}}
    resolve(made(None, evaluation=suite))


def test_repeats_are_refused_if_the_models_file_says_greedy(made):
    with pytest.raises(UserError, match="samples = 2: sampling is greedy"):
        resolve(made({"do_sample": False}, recipe={"samples": 2}))
    resolve(made({"do_sample": False}, recipe={"samples": 2}), stages=("mix",))  # nothing is asked


# -- system prompt


def test_a_system_prompt_stands_before_all_turns():
    assert with_system([user("Hi.")], None) == [user("Hi.")]
    assert with_system([user("Hi.")], "Be brief.") == [system("Be brief."), user("Hi.")]
    both = with_system([system("Be rude."), user("Hi.")], "Be brief.")
    assert both == [system("Be brief.\n\nBe rude."), user("Hi.")]


def test_the_chat_of_a_row_sends_the_system_prompt_of_its_step():
    asked = []

    class Model:
        async def complete(self, prompt, sampling, **_):
            asked.append(prompt)
            return await DummyModel(Dummy()).complete(prompt, sampling, seed=1, adapter=None)

    chat = RowChat(Model(), 0, "row")
    asyncio.run(chat([user("Hi.")], Draw(system="Be brief.").sampling(), step="one"))
    asyncio.run(chat([user("Hi.")], Draw().sampling(), step="two"))
    assert asked == [[system("Be brief."), user("Hi.")], [user("Hi.")]]


def test_a_template_that_refuses_a_system_turn_is_told_before_anything_starts(made, tmp_path):
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    config = made(None, recipe={"analyse": {"system": "Be brief."}})
    directory = config.model.path
    fit.check_templates(config, {"generate"}, set(), directory)
    (tmp_path / "model" / "chat_template.jinja").write_text(refuses + tiny.CHATML)
    with pytest.raises(
        UserError, match=r"^methods\.mistakes\.analyse\.system is set: the chat template of .*No"
    ):
        fit.check_templates(config, {"generate"}, set(), directory)
    fit.check_templates(made(None), {"generate"}, set(), directory)


# -- engines


def test_the_dummy_ends_at_a_stop_text_which_is_left_out():
    model = DummyModel(Dummy())
    [whole] = asyncio.run(model.complete([user("Hi.")], Sampling(40), seed=1, adapter=None))
    word = whole.text.split()[4]
    stopping = Sampling(40, stop=(word, "no such text"))
    [short] = asyncio.run(model.complete([user("Hi.")], stopping, seed=1, adapter=None))
    assert short.text == whole.text[: whole.text.index(word)] and not short.is_cut
    assert short.completion_tokens == len(short.text.split())


def ask(server, draw: Draw):
    async def run():
        model = EndpointModel(Endpoint(url=server.url, model="m", retries=0))
        try:
            return await model.complete([user("Hi.")], draw.sampling(), seed=1, adapter=None)
        finally:
            await model.aclose()

    return asyncio.run(run())


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")


def test_a_server_is_sent_what_is_set_and_nothing_else(key):
    with serving(reply("Hello."), reply("Hello.")) as server:
        ask(server, Draw(max_tokens=9))
        ask(server, Draw(max_tokens=9, top_k=5, min_p=0.1, repetition_penalty=1.2, stop="###"))
    bare, full = (body for _, _, body in server.requests)
    assert set(bare) == {"model", "messages", "max_tokens", "n", "seed"}
    more = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "stop": ["###"]}
    assert full == bare | more


@pytest.mark.parametrize(
    ("draw", "error", "named"),
    [
        ({"top_k": 5}, {"message": "Unrecognized request argument supplied: top_k", "param": None}, "top_k"),
        ({"min_p": 0.1}, {"message": "Extra inputs are not permitted", "param": "min_p"}, "min_p"),
        ({"stop": ["a"] * 5}, {"message": "'stop': at most 4 are supported", "param": "stop"}, "stop"),
    ],
)
def test_a_server_that_refuses_a_setting_fails_the_row_in_one_sentence(key, draw, error, named):
    with serving(Answer(400, {"error": error})) as server, pytest.raises(RowFailed) as e:
        ask(server, Draw(**draw))
    assert (
        str(e.value) == f"endpoint refused {named}: leave it out, or use a server that takes it (vLLM does)"
    )


def test_greedy_draws_are_described_and_fingerprinted_alike_for_server_and_model():
    assert Greedy().model_dump(context=FOR_FINGERPRINT) == {"max_tokens": 512, "temperature": 0, "top_p": 1}
    assert Draw(temperature=0.5, top_p=0.9, top_k=5, stop=["#"]).described() == (
        "temperature 0.5, top-p 0.9, top-k 5, at most 512 tokens, stop at '#'"
    )


@pytest.mark.parametrize(
    "wrong", [{"stop": [""]}, {"top_k": -1}, {"min_p": 2}, {"system": ""}, {"temperature": 2.5}]
)
def test_values_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError):
        Draw(**wrong)
