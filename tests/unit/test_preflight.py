"""What is found to be wrong before anything starts."""

import json
import struct

import pytest

from pipeline import models, preflight
from pipeline.adapters import check_adapter
from pipeline.errors import UserError
from pipeline.preflight import run_dir
from tests import scripted, tiny

ALL = {"generate", "mix", "train", "evaluate"}
SERVER = {"kind": "openai", "url": "http://localhost:1/v1", "model": "m", "api_key_env": None}


def refused(check, *arguments) -> str:
    with pytest.raises(UserError) as e:
        check(*arguments)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.fixture
def model_dir(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return directory


def config(tmp_path, **changes):
    return scripted.config(tmp_path / "run", **changes)


def test_a_sound_configuration_passes_and_leaves_no_trace(tmp_path, model_dir):
    preflight.check(config(tmp_path), ALL)
    preflight.check(config(tmp_path, model={"path": str(model_dir)}, mix={"helpful": None}), ALL)
    preflight.check(config(tmp_path, model={"path": "org/chat-7b"}), ALL)
    assert not (tmp_path / "run").exists()


# -- the model


@pytest.mark.parametrize(
    "path",
    ["./model", "/no/such/model", "~/no-such-model", "../m", "model", "a/b/c", "toy2", "a b/c", "Hug!!/c"],
)
def test_a_model_that_is_not_there(tmp_path, path):
    message = refused(preflight.check, config(tmp_path, model={"path": path}), ALL)
    assert message.startswith(f"model.path = {path}: no such model directory")


def test_a_model_in_the_home_directory(tmp_path, model_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    at_home = config(tmp_path, model={"path": "~/model"})
    preflight.check(at_home, ALL)
    assert models.model_dir(at_home.model) == models.cached_model_dir(at_home.model) == str(model_dir)


def test_a_directory_that_is_no_model(tmp_path, model_dir):
    (model_dir / "config.json").unlink()
    assert "holds no config.json" in refused(
        preflight.check, config(tmp_path, model={"path": str(model_dir)}), ALL
    )


@pytest.mark.parametrize("settings", ['{"chat_template": null}', "{}", None])
def test_a_model_without_a_chat_template(tmp_path, model_dir, settings):
    file = model_dir / "tokenizer_config.json"
    file.unlink() if settings is None else file.write_text(settings)
    assert "no chat template; add chat_template.jinja" in refused(
        preflight.check, config(tmp_path, model={"path": str(model_dir)}), ALL
    )
    (model_dir / "chat_template.jinja").write_text("{{ messages }}")
    preflight.check(config(tmp_path, model={"path": str(model_dir)}), ALL)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[]"])
def test_a_model_with_broken_tokenizer_settings(tmp_path, model_dir, content):
    (model_dir / "tokenizer_config.json").write_bytes(content)
    assert "tokenizer_config.json cannot be read as JSON" in refused(
        preflight.check, config(tmp_path, model={"path": str(model_dir)}), ALL
    )


# -- sources


def test_only_sources_of_the_stages_at_hand_are_looked_at(tmp_path):
    no_helpful = config(tmp_path, mix={"helpful": {"path": str(tmp_path / "none.jsonl")}})
    preflight.check(no_helpful, {"generate", "evaluate"})
    assert "methods.mistakes.mix.helpful: " in refused(preflight.check, no_helpful, ALL)


@pytest.mark.parametrize("field", ["harmful", "helpful"])
def test_a_source_is_named_by_its_field(tmp_path, field):
    broken = config(
        tmp_path, evaluation={"harmful": {"path": "toy:harmful-heldout"}, field: {"path": "toy:nonsense"}}
    )
    message = refused(preflight.check, broken, {"evaluate"})
    assert message.startswith(f"suites.safety.{field}: toy:nonsense is not a split")
    assert preflight.unreachable(broken, ALL) == {}  # only hub sources can be out of reach


# -- a server


def test_a_missing_key_matters_only_where_it_is_used(tmp_path, monkeypatch):
    monkeypatch.delenv("A_KEY_OF_THE_TESTS", raising=False)
    remote = config(tmp_path, recipe={"engine": {**SERVER, "api_key_env": "A_KEY_OF_THE_TESTS"}})
    assert "methods.mistakes.engine.api_key_env = A_KEY_OF_THE_TESTS: not set" in refused(
        preflight.check, remote, {"generate"}
    )
    preflight.check(remote, {"evaluate"})
    monkeypatch.setenv("A_KEY_OF_THE_TESTS", "k")
    preflight.check(remote, ALL)


# -- the run directory


def test_a_run_directory_in_the_way_of_a_file(tmp_path):
    (tmp_path / "run").write_text("a file")
    assert "is not a directory" in refused(preflight.check, config(tmp_path), {"mix"})
    below = scripted.config(tmp_path / "run" / "below" / "it")
    assert f"{tmp_path}/run is not a directory" in refused(preflight.check, below, {"mix"})


def test_a_run_directory_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "os.access", lambda place, mode: False
    )  # the tests may run as root, who may write everywhere
    assert f"{tmp_path} is not writable" in refused(preflight.check, config(tmp_path), {"mix"})


def test_a_run_directory_nobody_can_open():
    assert "nowhere://bucket/run: cannot be opened" in refused(
        preflight.check, scripted.config("nowhere://bucket/run"), {"mix"}
    )


def test_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.storage.free_bytes", lambda _path: 3 * 2**20)
    assert "only 3 MiB are free on its disk, at least 256 are needed" in refused(
        preflight.check, config(tmp_path), {"mix"}
    )


# -- adapters


def safetensors(file, shapes: dict[str, list[int]]) -> None:
    header = json.dumps(
        {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    ).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.fixture
def adapter(tmp_path, model_dir):
    def make(inputs: int = 64, rank: int = 4, target: str = "model.layers.0.self_attn.q_proj") -> str:
        safetensors(model_dir / "model.safetensors", {"model.layers.0.self_attn.q_proj.weight": [64, 64]})
        prefix = f"base_model.model.{target}"
        shapes = {f"{prefix}.lora_A.weight": [rank, inputs], f"{prefix}.lora_B.weight": [64, rank]}
        safetensors(tmp_path / "adapter" / "adapter_model.safetensors", shapes)
        (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
        return str(tmp_path / "adapter")

    return make


def test_an_adapter_that_fits(adapter, model_dir):
    check_adapter("arms.sft", adapter(), str(model_dir))
    check_adapter("arms.sft", adapter(inputs=32), "org/on-the-hub")


def test_an_adapter_of_another_model(adapter, model_dir):
    assert "does not fit the model" in refused(check_adapter, "arms.sft", adapter(inputs=32), str(model_dir))
    assert "is absent in the model" in refused(
        check_adapter, "arms.sft", adapter(target="h.0.attn"), str(model_dir)
    )


@pytest.mark.parametrize(
    "content", [b"", b"\x01", struct.pack("<Q", 9) + b"{", b"garbage of some length", None]
)
def test_an_adapter_that_cannot_be_read(adapter, model_dir, tmp_path, content):
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    adapter()
    file.unlink() if content is None else file.write_bytes(content)
    message = refused(check_adapter, "arms.sft", str(tmp_path / "adapter"), str(model_dir))
    assert message.startswith("arms.sft: ") and "is not a readable PEFT adapter" in message


CORRECTION = {
    "recipe": {"name": "course_correction"},
    "train": {"method": "dpo", "bf16": False},
    "evaluation": {"course_correction": {"entries": {"path": "toy:detailed-heldout"}}},
}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> str:
    from tests import tiny

    return tiny.save(tmp_path_factory.mktemp("tiny"))


def correction(tmp_path, model: str, **changes):
    return config(tmp_path, **{**CORRECTION, "model": {"path": model, "dtype": "float32"}, **changes})


def test_course_correction_needs_unsafe_responses(tmp_path):
    benign = tmp_path / "benign.jsonl"
    benign.write_text('{"instruction": "How are you?", "safe_response": "Well."}\n')
    for field, changes in {
        "methods.corrections.instructions": {"instructions": {"path": str(benign)}},
        "suites.c2_eval.entries": {"evaluation": {"course_correction": {"entries": {"path": str(benign)}}}},
    }.items():
        with pytest.raises(UserError, match=rf"{field}: .* none of its first 1 rows has an unsafe response"):
            preflight.check(config(tmp_path, **{**CORRECTION, **changes}), {"generate", "evaluate"})


def test_another_tokenizer_of_the_aligned_model_is_told(tmp_path, tiny_model):
    import shutil

    other = shutil.copytree(tiny_model, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["neverbefore"] = max(tokenizer["model"]["vocab"].values()) + 1
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    aligned = {**CORRECTION["recipe"], "aligned": {"model": "other"}}
    models = {"other": {"path": str(other), "dtype": "float32"}}
    [notice] = preflight.check_models(
        correction(tmp_path, tiny_model, recipe=aligned, models=models), {"generate"}, set(), tiny_model
    )
    assert "another tokenizer" in notice and str(other) in notice
    assert preflight.check_models(correction(tmp_path, tiny_model), {"generate"}, set(), tiny_model) == []


def test_a_template_that_cannot_continue_a_turn_is_refused(tmp_path):
    from tests import tiny

    model = tiny.save(
        tmp_path / "model", tiny.CHATML.replace("m['content'] +", "m['content'].split(':')[-1] +")
    )
    with pytest.raises(UserError, match="its chat template cannot continue an assistant's turn"):
        preflight.check_models(correction(tmp_path, model), {"evaluate"}, {"c2_eval"}, model)


def test_given_adapters_are_looked_at_before_anything_starts(tmp_path, tiny_model):
    aligned = {**CORRECTION["recipe"], "aligned": {"adapter": str(tmp_path / "none")}}
    suite = {**CORRECTION["evaluation"], "adapters": {"other": str(tmp_path / "none")}}
    for field, stage, changes in (
        ("methods.corrections.aligned.adapter", "generate", {"recipe": aligned}),
        ("adapters.other", "evaluate", {"evaluation": suite}),
    ):
        with pytest.raises(UserError, match=rf"{field}: .*none is not a readable PEFT adapter"):
            preflight.check_models(correction(tmp_path, tiny_model, **changes), {stage}, set(), tiny_model)


# -- what engines can do


def test_an_engine_that_cannot_continue_turns_is_refused_where_turns_are_continued(tmp_path):
    """By methods in `generate` and by suites in `evaluate`; the field to change is named."""
    cannot, can = SERVER, {**SERVER, "prefill": True}
    for stage, engines, told in (
        ("generate", {"engine": cannot}, "engine.prefill = false: methods.corrections continues turns"),
        ("generate", {"own": cannot}, "methods.corrections.engine.prefill = false: "),
        ("generate", {"engine": cannot, "own": can}, None),
        ("generate", {"engine": can}, None),
        ("evaluate", {"engine": cannot}, "engine.prefill = false: suites.c2_eval continues turns"),
        ("evaluate", {"engine": can}, None),
        ("evaluate", {"own": cannot}, None),
    ):
        recipe = CORRECTION["recipe"] | ({"engine": engines["own"]} if "own" in engines else {})
        changes = {key: value for key, value in engines.items() if key == "engine"}
        made = correction(tmp_path, "toy", recipe=recipe, arms={}, **changes)
        if told:
            assert told in refused(preflight.check, made, {stage})
        else:
            preflight.check(made, {stage})


def test_a_method_with_a_model_or_adapter_of_its_own_needs_an_engine_that_loads_them(tmp_path):
    server = {**SERVER, "prefill": True}
    for aligned, told in (
        ({"adapter": "a"}, "methods.corrections.aligned.adapter: engine.kind = openai takes no adapters"),
        (
            {"model": "m", "adapter": "a"},
            "methods.corrections.aligned.adapter: models.m.engine.kind = openai takes no adapters",
        ),
    ):
        recipe = {**CORRECTION["recipe"], "aligned": aligned}
        made = correction(tmp_path, "toy", engine=server, recipe=recipe, models={"m": {"engine": server}})
        assert told in refused(preflight.check, made, {"generate"})
        recipe = {**recipe, "aligned": {**aligned, "model": None}}
        rehearsed = correction(tmp_path, "toy", engine={"kind": "dummy"}, recipe=recipe)
        preflight.check(rehearsed, {"generate"})
        assert preflight.check_models(rehearsed, {"generate"}, set(), "toy") == []


def test_an_engine_without_adapters_evaluates_the_base_model_only(tmp_path):
    """Arms and given adapters alike: one sentence, before anything starts, with the way out."""
    for changes in ({}, {"arms": {}, "adapters": {"other": "adapters/other"}}):
        stages = ALL - {"train"} if changes else ALL
        told = refused(preflight.check, config(tmp_path, engine=SERVER, **changes), stages)
        assert "engine.kind = openai: takes no adapters, and evaluate has " in told
        assert "methods.NAME.engine" in told
        preflight.check(config(tmp_path, engine=SERVER, **changes), stages - {"evaluate"})
        preflight.check(config(tmp_path, recipe={"engine": SERVER}, **changes), stages)
    preflight.check(config(tmp_path, engine=SERVER, arms={}), ALL - {"train"})
    preflight.check(config(tmp_path, engine=SERVER, instructions=None), {"evaluate"})


@pytest.mark.parametrize(
    "changes", [{"engine": {"kind": "dummy"}}, {"recipe": {"engine": {"kind": "dummy"}}}]
)
def test_words_without_a_model_are_no_training_data(tmp_path, changes):
    made = config(tmp_path, **changes)
    assert made.stages == ["generate", "mix", "report"]
    preflight.check(made, {"generate", "mix"})
    assert "kind = dummy: no model writes its texts" in refused(preflight.check, made, {"train"})


def test_random_words_are_not_evaluated(tmp_path):
    made = config(tmp_path, instructions=None, engine={"kind": "dummy"})
    assert made.stages == ["evaluate", "report"]
    assert "there is nothing to evaluate" in refused(preflight.check, made, {"evaluate"})


def test_the_model_of_a_rehearsal_is_not_looked_at(tmp_path):
    """A configuration for a machine that has the model runs on one that has not."""
    elsewhere = {"path": "/models/of/another/machine"}
    made = config(tmp_path, model=elsewhere)
    assert "no such model directory" in refused(preflight.check, made, ALL)
    rehearsed = config(tmp_path, model=elsewhere, engine={"kind": "dummy"})
    preflight.check(rehearsed, set(rehearsed.stages))
    assert preflight.check_models(rehearsed, set(rehearsed.stages), set(), elsewhere["path"]) == []
    assert preflight.directories(rehearsed, {"generate"}, str(tmp_path)) == {}


def test_nodes_must_see_a_model_that_is_trained_though_a_server_generates(tmp_path, model_dir):
    made = config(tmp_path, model={"path": str(model_dir)}, engine=SERVER)
    assert preflight.directories(made, {"generate"}, str(model_dir)) == {}
    assert preflight.directories(made, {"generate", "train"}, str(model_dir)) == {
        "model.path": str(model_dir)
    }


def test_a_cpu_without_bfloat16_is_told(tmp_path, tiny_model, monkeypatch):
    slow = config(tmp_path, **{**CORRECTION, "model": {"path": tiny_model}, "train": {"method": "dpo"}})
    for has, told in ((False, "model.dtype: float32 and train.bf16: false"), (True, None)):
        monkeypatch.setattr("pipeline.preflight.fit.cpu_has_bf16", lambda has=has: has)
        monkeypatch.setattr(preflight, "check_lora", lambda *_: None)
        notices = preflight.check_models(slow, {"evaluate", "train"}, set(), tiny_model)
        assert [told in notice for notice in notices] == ([True] if told else [])


@pytest.mark.parametrize("suite, source", [("safety", "harmful"), ("jailbreak", "goals")])
def test_phrases_judge_harm_only_if_asked_for_or_on_the_toy(tmp_path, suite, source):
    given = {source: {"path": "toy:harmful-heldout"}}

    def checked(model: str, **more) -> None:
        path = tiny.save(tmp_path / "tiny") if model == "tiny" else model
        made = config(
            tmp_path, model={"path": str(path)}, instructions=None, suites={suite: {**given, **more}}, arms={}
        )
        preflight.check(made, {"evaluate"})

    checked("toy")
    checked("tiny", harmless={"kind": "refusal"})
    checked("tiny", harmless={"kind": "yes_no_harmful"})
    with pytest.raises(UserError, match=rf"^suites\.{suite}\.harmless is missing: its default reads phrases"):
        checked("tiny")


def test_nodes_that_share_an_engine_read_adapters_from_a_common_file_system(monkeypatch):
    monkeypatch.setattr(run_dir.storage, "filesystem", lambda _: None)
    made = scripted.config("s3://b/mine", engine={"num_gpus": 4, "num_nodes": 2})
    run_dir.check_run_dir(made, {"generate"})
    with pytest.raises(
        UserError, match=r"run_dir = s3://b/mine: engine\.num_nodes = 2, and every node of an"
    ):
        run_dir.check_run_dir(made, {"generate", "evaluate"})


@pytest.mark.parametrize(
    ("place", "told"),
    [
        (" ", "run_dir is blank"),
        ("ftp://h/x", "run_dir = ftp://h/x: a run cannot write there; choose a directory"),
        ("http://h/x", "a run cannot write there"),
        ("memory://x", "a run cannot write there"),
        ("s3:/b/x", "a slash is missing; write s3://"),
    ],
)
def test_a_run_dir_that_no_run_can_write_is_refused(place, told):
    made = scripted.config(place)
    for check in (lambda: run_dir.check_run_dir(made, ALL), lambda: run_dir.dated(made)):
        assert told in refused(check)


def test_a_run_within_another_is_refused(tmp_path):
    (tmp_path / "one" / ".state").mkdir(parents=True)
    (tmp_path / "one" / "config.yaml").touch()
    made = scripted.config(tmp_path / "one" / "mistakes" / "new")
    assert f"is inside the run {tmp_path / 'one'}; choose another" in refused(
        run_dir.check_run_dir, made, ALL
    )
    run_dir.check_run_dir(scripted.config(tmp_path / "one"), ALL)
