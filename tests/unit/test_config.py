"""Configuration: what is written is read back, and everything wrong is one sentence that names the field."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config import Config, dump, load
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from tests import scripted

# A path or name holds no control character.
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
positive = st.floats(1e-12, 1e12)
sources = st.fixed_dictionaries({"path": texts}, optional={"split": texts, "limit": st.integers(1, 10**9)})
judges = st.one_of(
    st.just({"kind": "refusal"}),
    st.fixed_dictionaries({"kind": st.just("rating")}, optional={"threshold": st.floats(1, 10)}),
)
trees = st.fixed_dictionaries(
    {
        "run_dir": texts,
        "model": st.fixed_dictionaries({"path": texts}, optional={"revision": st.none() | texts}),
        "instructions": sources,
        "evaluation": st.fixed_dictionaries(
            {"harmful": sources}, optional={"helpful": st.none() | sources, "harmless": judges}
        ),
    },
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "engine": st.fixed_dictionaries(
            {"actors": st.integers(1, 99) | st.tuples(st.integers(1, 9), st.integers(9, 99)).map(list)}
        ),
        "recipe": st.fixed_dictionaries(
            {}, optional={"hint": st.fixed_dictionaries({"text": st.none() | texts}), "verify": judges}
        ),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": positive,
                "epochs": positive,
                "lora": st.just({"target_modules": ["q_proj"]}),
            },
        ),
        "arms": st.dictionaries(
            st.from_regex(r"[a-z0-9_]{1,8}", fullmatch=True).filter(lambda n: n != "vanilla"),
            st.just({"kinds": ["safe"]}),
        ),
    },
)


@pytest.fixture
def write(tmp_path):
    def write(content) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    return write


@settings(max_examples=25)
@given(trees)
def test_a_dumped_configuration_reads_back_equal(tmp_path_factory, tree):
    config = Config.model_validate(scripted.composed(tree))
    path = tmp_path_factory.mktemp("dumped") / "config.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(path) == config


def test_defaults_are_all_written_out():
    written = yaml.safe_load(dump(scripted.config()))
    assert written["train"]["lora"] == {
        "rank": 16,
        "alpha": 32.0,
        "dropout": 0.0,
        "target_modules": "all-linear",
    }
    assert written["arms"].keys() == {"sft", "mistake_analysis"}


def test_a_loaded_configuration_cannot_change():
    with pytest.raises(ValidationError):
        scripted.config().seed = 3


def sections(model=Config, prefix=()):
    """Every section of the tree that exists by default, as a path of keys."""
    yield prefix
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from sections(field.annotation, (*prefix, name))


@pytest.mark.parametrize("where", sections(), ids=".".join)
def test_an_unknown_key_is_named_wherever_it_stands(write, where):
    tree = scripted.tree("runs/a")
    node = tree
    for name in where:
        node = node.setdefault(name, {})
    node["no_such_key"] = 1
    with pytest.raises(
        UserError, match=r"\.".join([*where, "no_such_key"]) + " is not a known key; known are "
    ):
        load(write(tree))


SUGGESTIONS = {
    "trian.epochs=1": "trian is not a known key; did you mean train?",
    "train.epoch=1": "train.epoch is not a known key; did you mean epochs?",
    "train.lora.rnak=1": "train.lora.rnak is not a known key; did you mean rank?",
    "engine={kind: openai, url: 'http://a/v1', model: m, retry: 1}": (
        "engine.retry is not a known key; did you mean retries?"
    ),
    "methods.mistakes.verify={kind: rating, treshold: 3}": (
        "methods.mistakes.verify.treshold is not a known key; did you mean threshold?"
    ),
    "suites.safety.help.draw.temprature=1": (
        "suites.safety.help.draw.temprature is not a known key; did you mean temperature?"
    ),
    "arms.sft={kinds: [safe], knds: 1}": "arms.sft.knds is not a known key; did you mean kinds?",
    "engine={url: 'http://a/v1'}": "engine.url is not a known key; it is a key of kind: openai",
    "engine.latency_s=2": "engine.latency_s is not a known key; it is a key of kind: dummy",
    "methods.mistakes.engine.num_gpu=2": (
        "methods.mistakes.engine.num_gpu is not a known key; did you mean num_gpus?"
    ),
    "train.beta=1": "train.beta is not a known key; it is a key of method: dpo",
    "methods.mistakes.cuts=1": (
        "methods.mistakes.cuts is not a known key; it is a key of name: course_correction"
    ),
    "methods.mistakes.mix.induce=1": "methods.mistakes.mix.induce is not a known key; known are ",
}


@pytest.mark.parametrize(("override", "sentence"), SUGGESTIONS.items())
def test_a_misspelt_key_gets_a_suggestion(write, override, sentence):
    with pytest.raises(UserError) as e:
        load(write(scripted.tree("runs/a")), [override])
    assert sentence in str(e.value)


WRONG = {
    "seed=-1": "seed = -1: ",
    "seed=1.5": "seed = 1.5: ",
    "seed=many": "seed = 'many': ",
    "seed=null": "seed = null: ",
    "run_dir=''": "run_dir = '': ",
    "train=3": "train = 3: ",
    "train=null": "train = null: ",
    "train.epochs=0": "train.epochs = 0: ",
    "train.learning_rate=.nan": "train.learning_rate = nan: ",
    "train.learning_rate=.inf": "train.learning_rate = inf: ",
    "train.warmup=1.5": "train.warmup = 1.5: ",
    "train={batch_size: 3, workers: 2}": "batch_size = 3 cannot be shared by 2 workers",
    "train.workers=[4,2]": "workers must be [min, max]",
    "engine.actors=x": "engine.actors = 'x': ",
    "engine.actors=0": "engine.actors = 0: ",
    "engine.actors=[3,1]": "actors must be [min, max] with min <= max, not [3, 1]",
    "engine={kind: openai, url: 'ftp://a', model: m}": "engine.url = 'ftp://a': ",
    "engine={kind: none}": "engine.kind = 'none': known are vllm, ",
    "engine={kind: null}": "engine.kind is missing; known are vllm, ",
    "engine={kind: [vllm]}": "engine.kind = ['vllm']: known are vllm, ",
    "engine=null": "engine = null: should be a mapping",
    "engine=vllm": "engine = 'vllm': should be a mapping",
    "methods.mistakes.engine={kind: none}": "methods.mistakes.engine.kind = 'none': known are vllm, ",
    "methods.mistakes.engine.actors=x": "methods.mistakes.engine.actors = 'x': ",
    "train.method=ppo": "train.method = 'ppo': known are sft, dpo",
    "train.method=null": "train.method is missing; known are sft, dpo",
    "methods.mistakes.verify={threshold: 3}": "methods.mistakes.verify.kind is missing; known are refusal,",
    "methods.mistakes.verify={kind: guess}": "methods.mistakes.verify.kind = 'guess': known are refusal,",
    "methods.mistakes={name: mistake_analysis, instructions: {path: x}, filter: true, verify: null}": (
        "filter needs a verdict"
    ),
    "model.dtype=int8": "model.dtype = 'int8': ",
    "model={}": "model.path is missing",
    "suites.safety.conditions=[]": "suites.safety.conditions = []: ",
    "suites.safety.conditions=[calm]": "suites.safety.conditions.0 = 'calm': ",
    "arms={vanilla: {kinds: [safe]}}": "arms.vanilla is the base model itself",
    "arms={sft: {kinds: [safer]}}": (
        "arms.sft.kinds: safer is not a kind of example; known are analysis, safe_analysis, safe, helpful"
    ),
    "arms={SFT: {kinds: [safe]}}": "SFT",
}


@pytest.mark.parametrize(("override", "opening"), WRONG.items())
def test_a_wrong_value_is_named_with_its_field(write, override, opening):
    with pytest.raises(UserError) as e:
        load(write(scripted.tree("runs/a")), [override])
    message = str(e.value)
    assert opening in message
    assert "\n" not in message
    assert (
        "constrained" not in message and "tuple[" not in message
    )  # pydantic's names for types mean nothing to a user


def test_several_errors_are_counted(write):
    with pytest.raises(UserError, match=r"\(and 1 more\)$"):
        load(write(scripted.tree("runs/a")), ["seed=-1", "train.epochs=0"])


FILES = {
    "": "is empty",
    "# only a comment\n": "is empty",
    "- a\n- b\n": "not list",
    "just text": "not str",
    "a: [1, 2": "not valid YAML",
    "a: b: c": "not valid YAML",
    "a: !!python/object/apply:os.getcwd []": "not valid YAML",
    "1: 2": "keys should be strings",
    "null: 2": "keys should be strings",
}


@pytest.mark.parametrize(("content", "why"), FILES.items())
def test_a_file_that_is_no_configuration(write, content, why):
    with pytest.raises(UserError) as e:
        load(write(content))
    assert why in str(e.value)
    assert "\n" not in str(e.value)


# -- overrides


def test_overrides_replace_add_and_are_typed(write):
    path = write(scripted.tree("runs/a", train={"epochs": 2}))
    config = load(
        path,
        [
            "train.epochs=1",
            "train.lora.rank=4",
            "train.learning_rate=1e-4",
            "train.packing=false",
            "engine.actors=[1, 3]",
            "methods.mistakes.hint.text='Be rude: now, please = yes'",
            "methods.mistakes.mix.helpful={path: 'a b.jsonl'}",
            "run_dir=runs/with space",
            "methods.mistakes.verify=null",
            "model.revision='123'",
        ],
    )
    assert (
        config.train.epochs,
        config.train.lora.rank,
        config.train.learning_rate,
        config.train.packing,
    ) == (1, 4, 1e-4, False)
    assert config.engine.actors == (1, 3)
    method = config.methods["mistakes"]
    assert method.hint.text == "Be rude: now, please = yes"
    assert method.mix.helpful.path == "a b.jsonl"
    assert config.run_dir == "runs/with space"
    assert method.verify is None
    assert config.model.revision == "123"


@pytest.mark.parametrize(
    "override", ["seed", "=3", " =3", "seed=[1", "seed.sub=1", "model.path.sub=1", "a: b=c: d"]
)
def test_a_wrong_override_is_quoted(write, override):
    with pytest.raises(UserError) as e:
        load(write(scripted.tree("runs/a", seed=3)), [override])
    assert override.partition("=")[0] in str(e.value)
    assert "\n" not in str(e.value)


MINIMAL = yaml.safe_dump(scripted.tree("r"))
CORRECTION = yaml.safe_dump(scripted.tree("r", recipe={"name": "course_correction"}))
DPO = "train: {method: dpo}\n"


def test_course_correction_trains_one_arm_by_dpo(write):
    config = load(write(CORRECTION + DPO))
    assert list(config.arms) == ["dpo"]
    assert config.arms["dpo"].train == config.train and config.train.beta == 0.1
    assert load(write(dump(config))) == config


def test_an_arm_has_the_training_of_all_with_its_own_changes(write):
    arms = "arms: {a: {train: {learning_rate: 0.5, lora: {rank: 4}}}, b: {}}\n"
    train = "train: {method: dpo, epochs: 7, lora: {rank: 8, alpha: 3}}\n"
    config = load(write(CORRECTION + train + arms))
    a, b = config.arms["a"].train, config.arms["b"].train
    assert (a.epochs, a.learning_rate, a.lora.rank, a.lora.alpha) == (7, 0.5, 4, 3)
    assert b == config.train and b.lora.rank == 8
    assert load(write(dump(config))) == config


def test_without_a_method_there_is_nothing_to_train(write):
    config = load(
        write(
            "run_dir: r\nmodel: {path: toy}\nsuites: {c2_eval: {entries: {path: 'toy:detailed-heldout'}}}\n"
        )
    )
    assert config.arms == {} and list(config.suites.items()) == ["c2_eval"]


def test_two_methods_train_side_by_side(write):
    """Conversations for one arm, pairs for the other; taking one away leaves the other as it was."""
    mistakes, corrections = (
        {"name": name, "instructions": {"path": "toy:harmful-train"}}
        for name in ("mistake_analysis", "course_correction")
    )
    tree = scripted.tree(
        "r", methods={"a": mistakes, "b": corrections}, train={"lora": {"rank": 3}, "batch_size": 8}
    )
    both = load(write(tree))
    assert {name: arm.train.method for name, arm in both.arms.items()} == {
        "sft": "sft",
        "mistake_analysis": "sft",
        "dpo": "dpo",
    }
    assert both.arms["dpo"].train.lora.rank == 3, "what both trainers have is shared"
    assert both.arms["dpo"].train.batch_size == 64, "a batch of pairs is another thing than one of sequences"
    assert {schema.name: list(methods) for schema, methods in both.training_sets().items()} == {
        "sft": ["a"],
        "preferences": ["b"],
    }
    alone = load(write(tree | {"methods": {"a": mistakes}}))
    ours, theirs = fingerprints(alone), fingerprints(both)
    assert {name: theirs[name] for name in ours} == ours


def test_two_methods_that_make_the_same_data_set_are_refused(write):
    method = {"name": "mistake_analysis", "instructions": {"path": "x"}}
    with pytest.raises(
        UserError, match=r"methods\.b and methods\.a both make mistakes: use a run directory for each"
    ):
        load(write(scripted.tree("r", methods={"a": method, "b": method})))


@pytest.mark.parametrize("key", ["instructions", "recipe", "mix", "evaluation"])
def test_an_old_key_is_answered_with_its_new_place(write, key):
    with pytest.raises(UserError, match=f"{key} is no longer a key: .*(methods|suites)"):
        load(write(MINIMAL + f"{key}: {{}}\n"))


WRONG_TOGETHER = {
    "train.method=dpo arms={sft: {kinds: [safe]}}": [
        "arms.sft: dpo trains on preferences",
        "set train.method: sft",
    ],
    "arms={sft: {}}": ["arms.sft.kinds is missing"],
    "train.beta=0.1": ["train.beta is not a known key"],
    "arms={sft: {kinds: [safe], train: {epochs: 0}}}": ["arms.sft.train.epochs = 0"],
    "suites={safety: {helpful: {path: 'toy:helpful-heldout'}}}": ["suites.safety.harmful is missing"],
    "suites={c2_eval: {entries: {path: x}, lengths: [20, 10]}}": ["lengths must rise"],
    "suites={c2_eval: {entries: {path: x}, unit: tokens, authors_rules: true}}": [
        "authors_rules count words"
    ],
    "suites={c2_eval: {entries: {path: x}, judge: {kind: exact}}}": ["suites.c2_eval.judge"],
    "adapters={sft: d}": ["arms.sft is also a name in adapters"],
    "adapters={vanilla: d}": ["adapters.vanilla"],
    "methods={} suites={}": ["nothing would be done: give methods"],
    "methods={} arms={a: {kinds: [safe]}}": ["arms need a method that makes their training sets"],
}


@pytest.mark.parametrize(("override", "words"), WRONG_TOGETHER.items())
def test_sections_that_do_not_fit_together(write, override, words):
    with pytest.raises(UserError) as e:
        load(write(MINIMAL), re.split(r" (?=\w+=)", override))
    assert all(word in str(e.value) for word in words), str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("methods.corrections.mix={safe: 1}", "methods.corrections.mix.safe is not a known key"),
        ("arms={dpo: {kinds: [safe]}}", "safe is not a kind of example; known are correction"),
        ("train.packing=true", "train.packing is not a known key"),
        ("train.curriculum=hard", "train.curriculum = 'hard'"),
        ("train.start.adapter=", "train.start.adapter"),
    ],
)
def test_settings_that_course_correction_has_no_use_for(write, override, words):
    with pytest.raises(UserError) as e:
        load(write(CORRECTION + DPO), [override])
    assert words in str(e.value), str(e.value)


# -- engines


def test_an_engine_of_no_kind_is_vllm_on_a_cpu():
    assert scripted.config().engine == scripted.config(engine={}).engine
    for run, method in (({"actors": 2}, {}), ({"kind": "vllm", "actors": 2}, {"num_gpus": 1})):
        config = scripted.config(engine=run, recipe={"engine": method} if method else {})
        assert (config.engine.kind, config.engine.actors, config.engine.gpus) == ("vllm", 2, 0)
        found = config.generator("mistakes")
        assert (found.engine_field, found.engine) == (
            ("methods.mistakes.engine", config.methods["mistakes"].engine)
            if method
            else ("engine", config.engine)
        )


def test_the_kind_can_be_changed_on_the_command_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(scripted.tree("runs/mine", engine={"num_gpus": 2, "actors": 8})))
    assert load(path, ["engine={kind: dummy}", "engine.actors=3"]).engine.actors == 3
    assert load(path, ["engine.actors=3"]).engine.gpus == 2
    assert load(path, ["methods.mistakes.engine.max_num_seqs=3"]).methods["mistakes"].engine.kind == "vllm"


def test_a_rehearsed_configuration_may_have_any_model():
    assert scripted.config(model={"path": "dummy"}, engine={"kind": "dummy"}).read_models() == {}
    for engine in ({}, {"kind": "vllm"}):
        with pytest.raises(ValidationError, match=r"set engine: \{kind: dummy\}"):
            scripted.config(model={"path": "dummy"}, engine=engine)


def test_the_models_that_stages_read_are_those_of_engines_that_load_them_and_of_training():
    server = {"kind": "openai", "url": "http://a/v1", "model": "m", "api_key_env": None}
    assert scripted.config(engine=server, arms={}).read_models().keys() == set()
    assert scripted.config(engine=server).read_models().keys() == {"model"}, "it is trained"
    assert scripted.config(recipe={"engine": server}, arms={}).read_models().keys() == {"model"}, "evaluated"
    for unit, read in (("words", set()), ("tokens", {"model"})):
        suites = {"c2_eval": {"entries": {"path": "toy:detailed-heldout"}, "unit": unit}}
        changes = {"instructions": None, "engine": {**server, "prefill": True}}
        assert scripted.config(suites=suites, **changes).read_models().keys() == read
    aligned = {"name": "course_correction", "aligned": {"model": "m"}}
    both, models = {"model", "models.m"}, {"m": {"path": "org/m"}}
    assert (
        scripted.config(recipe=aligned, models=models, train={"method": "dpo"}).read_models().keys() == both
    )


def test_what_changes_no_text_of_an_engine_is_in_no_fingerprint():
    server = {"kind": "openai", "url": "http://a/v1", "model": "m"}
    dummy = {"kind": "dummy", "failures": 0.1}
    for base, same, other in (
        ({}, {"actors": 4, "num_gpus": 2, "max_num_seqs": 8, "kv_cache_gib": 9}, server),
        (server, {**server, "concurrency": 2, "prefill": True, "retries": 1}, {**server, "model": "n"}),
        (server, {**server, "api_key_env": None, "rows_per_commit": 9}, {**server, "url": "http://b/v1"}),
        (dummy, {**dummy, "latency_s": 9, "actors": [1, 2]}, {**dummy, "tokens": [1, 2]}),
    ):
        made = fingerprints(scripted.config(engine=base))
        assert made == fingerprints(scripted.config(engine=same))
        assert made["mistakes"] == fingerprints(scripted.config(recipe={"engine": base}))["mistakes"]
        changed = fingerprints(scripted.config(engine=other))
        assert {name for name in made if made[name] != changed[name]} == {"mistakes", "evaluation"}


def test_how_a_judges_server_is_asked_is_in_no_fingerprint():
    def made(**changes):
        models = {"j": {"engine": {"kind": "openai", "url": "http://a/v1", "model": "m", **changes}}}
        judge = {"kind": "rating", "model": "j"}
        suite = {"harmful": {"path": "toy:harmful-heldout"}, "harmless": judge}
        return fingerprints(
            scripted.config(recipe={"verify": judge}, suites={"safety": suite}, models=models)
        )

    how = {"concurrency": 2, "retries": 1, "timeout_s": 9, "api_key_env": None, "prefill": True}
    assert made() == made(**how)
    for other in ({"model": "n"}, {"url": "http://b/v1"}):
        assert {name for name in made() if made()[name] != made(**other)[name]} == {"mistakes", "evaluation"}


def test_reading_a_configuration_imports_no_engine():
    heavy = ("vllm", "torch", "ray", "transformers", "httpx")
    code = (
        "import sys; from pipeline.config import Config; from tests import scripted;"
        "server = {'kind': 'openai', 'url': 'http://a/v1', 'model': 'm'};"
        "scripted.config(engine={'kind': 'dummy'}, recipe={'engine': server}); scripted.config();"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed=null", "seed = null: should be a whole number"),
        ("seed=true", "seed = true: should be a whole number"),
        ("train.max_length=true", "train.max_length = true: should be a whole number"),
        ("train.learning_rate=fast", "train.learning_rate = 'fast': should be a number"),
        ("run_dir=null", "run_dir = null: should be a text"),
        (
            "methods={m: {name: red_team, instructions: {path: a}}}",
            "methods.m.instructions = {'path': 'a'}: has no meaning here; leave it out",
        ),
    ],
)
def test_values_of_another_type_are_named_as_yaml_has_them(override, told):
    with pytest.raises(UserError, match=re.escape(told)):
        load(Path(__file__).parents[2] / "configs" / "quickstart.yaml", [override])
