"""The toy model that comes with the package: of the recipe as it stands, small, and there wherever the
package is."""

import os
import shutil
import tomllib
from pathlib import Path

import pytest

from pipeline import models, preflight, pretrained, prompts
from pipeline.fingerprints import fingerprints
from pipeline.settings.base import Model
from pipeline.toy import corpus, model, world
from pipeline.training import identity
from tests import scripted

ROOT = Path(__file__).parents[3]


def test_the_weights_are_of_the_recipe_as_it_is():
    shipped, now = model.shipped_recipe(), model.recipe()
    changed = [part for part in now if part != "hash" and now[part] != shipped.get(part)]
    assert shipped["hash"] == now["hash"], (
        f"the toy model's recipe has changed ({', '.join(changed)}): run `make toy`, commit"
        " pipeline/toy/weights"
    )
    assert shipped == now


# -- what the hash follows


@pytest.fixture
def recipe_hash(monkeypatch):
    monkeypatch.setattr(model, "CONVERSATIONS", 300)
    return lambda: model.recipe()["hash"]


@pytest.mark.parametrize("settings", ["TOKENIZER", "ARCHITECTURE", "OPTIMIZER", "TRAINING"])
def test_the_hash_follows_every_setting(recipe_hash, monkeypatch, settings):
    seen = {recipe_hash()}
    for name in getattr(model, settings):
        with monkeypatch.context() as changed:
            changed.setitem(getattr(model, settings), name, "other")
            seen.add(recipe_hash())
    assert len(seen) == 1 + len(getattr(model, settings))


@pytest.mark.parametrize(
    "name",
    [f"methods/{method}/prompts.yaml" for method in ("mistake_analysis", "course_correction")]
    + ["judges/rating.yaml"],
)
def test_the_hash_follows_the_prompts_as_they_are_rendered(recipe_hash, monkeypatch, name):
    before, load = recipe_hash(), prompts.load

    def changed(wanted: str) -> prompts.Prompts:
        more = "\n." if wanted == name else ""
        return prompts.Prompts({key: text + more for key, text in load(wanted).texts.items()}, wanted)

    monkeypatch.setattr(prompts, "load", changed)
    assert recipe_hash() != before


def test_the_hash_follows_what_is_drawn(recipe_hash, monkeypatch):
    hashes = [recipe_hash()]
    changes = (model, "CONVERSATIONS", 301), (model, "SEED", 1), (corpus, "DELIBERATES", 0.5)
    for place, name, value in changes:
        with monkeypatch.context() as changed:
            changed.setattr(place, name, value)
            hashes.append(recipe_hash())
    assert len(set(hashes)) == 4
    assert recipe_hash() == hashes[0]


def test_the_hash_reads_no_source(recipe_hash, monkeypatch):
    before = recipe_hash()
    world.deeds("harmful-train")  # the sentences are read once
    for module in (model, corpus):
        monkeypatch.setattr(module, "__file__", "/nowhere/else.py")
    assert recipe_hash() == before


# -- what is shipped


def test_the_weights_are_stored_in_half_precision_and_loaded_in_single():
    import torch
    from safetensors.torch import load_file

    stored = load_file(model.WEIGHTS / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    for dtype in ("float32", "auto"):
        loaded = pretrained.model(str(model.WEIGHTS), dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        assert all(parameter.isfinite().all() for parameter in loaded.parameters())
        assert 0.9e6 < loaded.num_parameters() < 1.1e6


def test_the_tokenizer_has_the_recipes_template_and_limit():
    tokenizer = pretrained.tokenizer(str(model.WEIGHTS))
    assert tokenizer.chat_template == model.CHAT_TEMPLATE
    assert len(tokenizer) == model.TOKENIZER["vocab_size"]
    assert tokenizer.model_max_length == model.ARCHITECTURE["max_position_embeddings"]


def test_what_is_shipped_is_small():
    assert sum(file.stat().st_size for file in model.WEIGHTS.iterdir()) < 3e6


def test_every_file_of_the_model_is_packaged():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = setuptools["package-data"]["pipeline"]
    packaged = {file for pattern in patterns for file in (ROOT / "pipeline").glob(pattern)}
    files = {file.name: file for file in model.WEIGHTS.iterdir()}
    needed = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", model.RECIPE_FILE)
    assert files.keys() >= set(needed)
    assert packaged >= set(files.values())


# -- at use


def test_nothing_is_made_or_downloaded_for_it(tmp_path):
    toy = scripted.config(tmp_path / "run")
    assert models.model_dir(Model(path="toy")) == models.cached_model_dir(toy.model) == str(model.WEIGHTS)


def test_a_run_is_of_the_recipe(tmp_path):
    made = fingerprints(scripted.config(tmp_path / "run"))
    assert {facts["model"]["build"] for facts in made.values()} == {model.shipped_recipe()["hash"]}


def test_a_training_goes_on_where_the_package_lies_elsewhere(tmp_path):
    elsewhere = shutil.copytree(model.WEIGHTS, tmp_path / "weights")
    os.utime(elsewhere / "model.safetensors", (0, 0))
    toy = scripted.config(tmp_path / "run")
    specs = [preflight.arm_specs(toy, str(place))["sft"] for place in (model.WEIGHTS, elsewhere)]
    names = [identity.fingerprint(spec, {}) for spec in specs]
    assert names[0] == names[1]
