"""`models` in a configuration: what is refused before anything starts, what a plan, a cluster and a manifest
make of it, and what fingerprints hold."""

import io
import json

import pytest
import yaml
from rich.console import Console

from pipeline import models, placement, preflight
from pipeline.commands.manifest import worker_groups
from pipeline.commands.plan import show_plan
from pipeline.commands.status import status
from pipeline.config import Config, load
from pipeline.data.store import Store
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from pipeline.placement import Node
from pipeline.suites.safety.schema import ANSWERS
from tests import scripted, tiny

SERVER = {"engine": {"kind": "openai", "url": "http://h/v1", "model": "m", "api_key_env": None}}
ALL = {"evaluate", "rejudge"}


def tree(run_dir="runs/mine", named=None, judge=None, **safety) -> dict:
    suite = {
        "harmful": {"path": "toy:harmful-heldout", "limit": 2},
        "harmless": judge or {"kind": "llama_guard", "model": "guard"},
        "help": None,
        **safety,
    }
    named = {"guard": {"path": "toy", "dtype": "float32"}} if named is None else named
    return {
        "run_dir": str(run_dir),
        "model": {"path": "toy", "dtype": "float32"},
        "models": named,
        "suites": {"safety": suite},
    }


def config(*arguments, **changes) -> Config:
    return Config.model_validate(tree(*arguments, **changes))


def refused(tmp_path, given: dict) -> str:
    """The sentence with which a configuration is refused when it is read."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(given))
    with pytest.raises(UserError) as e:
        load(path)
    assert "\n" not in str(e.value)
    return str(e.value)


WRONG = {
    "unknown name": (
        {"judge": {"kind": "llama_guard", "model": "gard"}},
        "suites.safety.harmless.model = gard: models has no such entry; known are guard",
    ),
    "unknown name of one more judge": (
        {"more_judges": {"x": {"kind": "rating", "model": "y"}}},
        "suites.safety.more_judges.x.model = y: models has no such entry; known are guard",
    ),
    "no models": ({"named": {}}, "models has no such entry; there are none"),
    "no path": ({"named": {"guard": {}}}, "path is missing: give the model's directory or hub id"),
    "a path and a server": (
        {"named": {"guard": {"path": "org/m", **SERVER}}},
        "path = org/m: engine.kind = openai has its own model; leave path out",
    ),
    "an odd name": ({"named": {"my guard": {"path": "org/m"}}}, "models"),
    "the old key of a server": (
        {"judge": {"kind": "rating", "endpoint": {"url": "http://h/v1", "model": "m"}}},
        "suites.safety.harmless.endpoint is no longer a key: a server is an entry of models",
    ),
}


@pytest.mark.parametrize(("change", "told"), WRONG.values(), ids=WRONG)
def test_a_wrong_name_or_entry_is_refused_when_the_configuration_is_read(tmp_path, change, told):
    assert told in refused(tmp_path, tree(**change))


METHOD = {
    "run_dir": "runs/mine",
    "model": {"path": "toy"},
    "models": {"good": {"path": "org/good"}},
    "train": {"method": "dpo"},
}
SOURCE = {"path": "toy:detailed-train"}


def correction(**method) -> dict:
    given = {"name": "course_correction", "instructions": SOURCE, **method}
    return {**METHOD, "methods": {"c": given}}


def test_an_aligned_model_is_named_and_its_old_form_is_answered(tmp_path):
    told = refused(tmp_path, correction(aligned={"model": {"path": "org/good"}}))
    assert "methods.c.aligned.model now names an entry of models" in told
    made = Config.model_validate(correction(aligned={"model": "good"}))
    assert made.generator("c").model.path == "org/good"
    told = refused(tmp_path, correction(aligned={"model": "good"}, engine={"actors": 2}))
    assert "methods.c.engine: c generates with models.good, which has its own engine" in told


def test_configurations_that_older_versions_wrote_are_read(tmp_path):
    given = tree(judge={"kind": "rating", "endpoint": None})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(given))
    assert load(path).suites.safety.harmless.model is None


def test_a_judge_without_a_name_has_the_fingerprint_that_it_had():
    """Finished outputs of older versions stay valid: the dump has the null of the old key."""
    made = fingerprints(config(judge={"kind": "rating"}))["evaluation"]
    judge = made["suites"]["safety"]["harmless"]
    assert judge["endpoint"] is None and "model" not in judge
    assert "models" not in made and "more_judges" not in made["suites"]["safety"]


def test_fingerprints_hold_what_a_named_model_is_and_not_how_it_runs():
    def made(**changes):
        return fingerprints(config(named={"guard": {"path": "toy", **changes}}))["evaluation"]

    assert made() == made(engine={"actors": 3, "num_gpus": 2, "rows_per_commit": 7})
    for other in ({"path": "org/m"}, {"dtype": "float32"}, {"revision": "x"}, {"max_length": 99}):
        assert made() != made(**other), other
    unused = {"guard": {"path": "toy"}, "spare": {"path": "org/m"}}
    assert made() == fingerprints(config(named=unused))["evaluation"]


def test_more_judges_change_no_fingerprint_of_the_answers_or_of_each_other():
    one = fingerprints(config(more_judges={"a": {"kind": "refusal"}}))
    two = fingerprints(config(more_judges={"b": {"kind": "rating"}, "a": {"kind": "refusal"}}))
    assert fingerprints(config())["evaluation"] == one["evaluation"] == two["evaluation"]
    assert one["verdicts_a"] == two["verdicts_a"] != two["verdicts_b"]


def test_a_dummy_judges_nothing_real():
    made = config(named={"guard": {"engine": {"kind": "dummy"}}})
    with pytest.raises(UserError, match=r"models\.guard\.engine\.kind = dummy: no model writes its texts"):
        preflight.check(made, {"evaluate"})


def test_a_dummy_may_judge_in_a_rehearsal():
    given = {
        "run_dir": "runs/mine",
        "model": {"path": "x"},
        "engine": {"kind": "dummy"},
        "models": {"guard": {"engine": {"kind": "dummy"}}},
        "methods": {
            "m": {
                "name": "mistake_analysis",
                "instructions": {"path": "toy:harmful-train"},
                "verify": {"kind": "rating", "model": "guard"},
                "mix": {"helpful": None},
            }
        },
        "arms": {},
    }
    preflight.check(Config.model_validate(given), {"generate"})


# -- models on this disk


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("tiny"))


def checked(made: Config, stages=frozenset({"evaluate"})) -> list[str]:
    preflight.check(made, set(stages))
    return preflight.check_models(made, set(stages), {"safety"}, models.model_dir(made.model))


def named(path: str, **more) -> dict:
    return {"guard": {"path": path, "dtype": "float32", **more}}


def test_a_named_model_that_fits_is_accepted(tmp_path, tiny_model):
    assert checked(config(tmp_path / "run", named(tiny_model))) == []


def broken(place, kind: str) -> str:
    drops = "{% for m in messages if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}{% endfor %}"
    path = tiny.save(place, drops if kind == "template" else tiny.CHATML)
    if kind == "weights":
        for file in place.glob("*.safetensors"):
            file.unlink()
    if kind == "quantized":
        settings = json.loads((place / "config.json").read_text())
        settings["quantization_config"] = {"quant_method": "unheard_of"}
        (place / "config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("kind", ["weights", "template", "quantized"])
@pytest.mark.parametrize("again", [False, True], ids=["headline", "more_judges"])
def test_a_named_model_that_cannot_judge_is_refused_before_an_engine_starts(tmp_path, kind, again):
    found = named(broken(tmp_path / "model", kind))
    judge = {"kind": "llama_guard", "model": "guard"}
    if again:
        made = config(tmp_path / "run", found, {"kind": "refusal"}, more_judges={"x": judge})
    else:
        made = config(tmp_path / "run", found)
    assert checked_fails(made, {"rejudge"} if again else {"evaluate"}).startswith("models.guard.")
    if again:
        assert checked(made, {"evaluate"}) == [], "`evaluate` alone does not ask it"


def checked_fails(made: Config, stages) -> str:
    with pytest.raises(UserError) as e:
        checked(made, stages)
    return str(e.value)


def test_a_missing_directory_is_named(tmp_path):
    assert "models.guard.path" in checked_fails(
        config(tmp_path / "run", named("/nowhere/guard")), {"evaluate"}
    )


def test_a_judges_answer_has_to_fit_into_its_model(tmp_path, tiny_model):
    judge = {"kind": "rating", "model": "guard", "draw": {"max_tokens": 600}}
    assert checked(config(tmp_path / "run", named(tiny_model), judge)) == []
    told = checked_fails(config(tmp_path / "run", named(tiny_model, max_length=512), judge), {"evaluate"})
    assert "suites.safety.harmless.draw.max_tokens = 600" in told and "512 tokens" in told
    told = checked_fails(config(tmp_path / "run", named(tiny_model, max_length=4096)), {"evaluate"})
    assert "models.guard.max_length = 4096: the model has 1024 positions" in told


def test_a_server_is_checked_like_any_engine(tmp_path):
    wrong = {"guard": {"engine": {**SERVER["engine"], "api_key_env": "NO_SUCH_KEY"}}}
    told = checked_fails(config(tmp_path / "run", wrong), {"evaluate"})
    assert "models.guard.engine.api_key_env = NO_SUCH_KEY: not set" in told


# -- plan, cluster, manifest, status


def planned(made: Config) -> str:
    console = Console(width=200, soft_wrap=True, record=True, file=io.StringIO())
    show_plan(made, None, console)
    return console.export_text()


def test_a_plan_shows_the_passes_and_who_is_asked_beside(tmp_path):
    found = named("toy", engine={"actors": 2, "kind": "vllm"}) | {"far": SERVER}
    more = {"rated": {"kind": "rating", "model": "far"}, "own": {"kind": "yes_no_harmful"}}
    text = planned(config(tmp_path / "run", found, more_judges=more))
    assert "models.guard: 2 engines × no GPU = 0 GPUs; a pass of its own" in text
    assert "rejudge    stored answers by rated, own; no answer is generated" in text
    assert "models.far: http://h/v1" in text
    beside = planned(config(tmp_path / "run", {"guard": SERVER}))
    assert "models.guard: http://h/v1, 64 requests in flight per actor × 1; asked by the actors" in beside


def test_a_pass_takes_room_on_the_cluster_and_a_server_does_not(tmp_path):
    made = config(named=named("toy", engine={"num_gpus": 2, "actors": 3}))
    with pytest.raises(UserError, match=r"models\.guard\.engine\.actors: evaluate takes 3 engines"):
        placement.check(made, ["evaluate"], [Node("a", "10.0.0.1", 16, 4)])
    placement.check(made, ["evaluate"], [Node("a", "10.0.0.1", 16, 6)])
    placement.check(config(named={"guard": SERVER}), ["evaluate"], [Node("a", "10.0.0.1", 1, 0)])
    needs = placement.needs(config(named={"guard": SERVER}, more_judges={"x": {"kind": "refusal"}}), ALL)
    assert [(need.stage, need.field) for need in needs] == [("evaluate", "engine.actors")]


@pytest.mark.parametrize(
    ("own", "guard", "pods"),
    [
        ({"num_gpus": 4, "actors": 2}, {"num_gpus": 1, "actors": 8}, (2, 4)),
        ({"num_gpus": 4, "actors": 2}, {"num_gpus": 1, "actors": 9}, (3, 4)),
        ({"num_gpus": 1, "actors": 2}, {"num_gpus": 4, "actors": 1}, (1, 4)),
        ({"num_gpus": 0}, {"num_gpus": 2, "actors": 3}, (3, 2)),
    ],
)
def test_a_manifest_counts_the_gpus_of_every_pass(own, guard, pods):
    made = Config.model_validate({**tree(named=named("org/m", engine=guard)), "engine": own})
    [group] = [group for group in worker_groups(made) if group.gpus]
    assert (group.most, group.gpus) == pods


def test_status_says_who_is_waited_for(tmp_path):
    store = Store(str(tmp_path), ANSWERS.name, ANSWERS)
    store.open({"stage": "evaluate"})
    store.write_work([{"id": f"r{i}"} for i in range(3)], ANSWERS, block_rows=2)
    waiting = {"r0": {"for": ["guard"], "calls": {}}, "r1": {"for": ["guard"], "calls": {}}}
    store.block(store.work_list, 0).suspend([], waiting, ["-", "guard"])
    [row] = status(str(tmp_path))["outputs"]
    assert row["note"] == "2 rows are begun and wait for models.guard"
    store.block(store.work_list, 0).commit([{"id": "r0"}, {"id": "r1"}])
    [row] = status(str(tmp_path))["outputs"]
    assert row["done"] == 2 and row["note"] is None


def test_what_a_judge_wrote_is_masked(tmp_path, capsys):
    from pipeline.commands.show import show
    from pipeline.suites.verdicts import VERDICTS

    store = Store(str(tmp_path), "verdicts_x", VERDICTS)
    store.open({"stage": "rejudge"})
    store.write_rows([{"id": "a", "answer_id": "a", "judge": "x", "raw": "secret words", "status": "ok"}])
    console = Console(record=True, file=io.StringIO(), width=200)
    show(store.path, 5, False, console)
    assert "secret" not in console.export_text()
    console = Console(record=True, file=io.StringIO(), width=200)
    show(store.path, 5, True, console)
    assert "secret words" in console.export_text()


def test_a_named_model_is_asked_by_scripted_chats_too():
    import asyncio

    from pipeline.judges import Exchange, Rating

    chat = scripted.ScriptedChat(harmless="Rating: [[7]]")
    verdict = asyncio.run(Rating(model="guard")(Exchange("r", "a"), chat, "harmless"))
    assert verdict.ok and chat.models == {"harmless": "guard"}


def test_a_card_says_who_the_named_models_are():
    from pipeline.origin import origin

    made = origin(config(named={"guard": {"path": "org/m", "revision": "v1"}, "far": SERVER}), ANSWERS)
    assert made.named == {"guard": "`org/m` at revision `v1`"}, "and not those that it does not name"
    more = config(named={"guard": {"path": "org/m"}}, more_judges={"x": {"kind": "rating", "model": "guard"}})
    from pipeline.suites.verdicts import VERDICTS

    assert origin(more, VERDICTS, ("safety", "x")).authors == ["`org/m`"]
