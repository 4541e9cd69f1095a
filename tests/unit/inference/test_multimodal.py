"""Models that read images too: engines of them have no encoder for images, and need a library to load."""

import pytest

from pipeline import models
from pipeline.errors import UserError
from pipeline.inference import vllm_start
from pipeline.inference.vllm import VLLM
from pipeline.settings.base import Model
from tests import tiny
from tests.unit.test_preflight_models import checked, config


def test_no_engine_has_an_encoder_for_images():
    model = Model(path="org/model")
    assert vllm_start.settings(model, "org/model", [], gpus=1, options={})["language_model_only"] is True
    with pytest.raises(UserError, match=r"engine.options.language_model_only is fixed: no request holds"):
        VLLM(options={"language_model_only": False}).check("engine")


def test_models_of_text_take_the_same_setting(tmp_path):
    model = Model(path=tiny.save(tmp_path / "model"), dtype="float32")
    arguments = vllm_start.arguments(model, model.path, [], gpus=0, options={})
    assert not arguments.create_model_config().is_multimodal_model


def test_a_model_that_reads_images_needs_a_library_to_generate(tmp_path, monkeypatch):
    from transformers import AutoConfig

    model = tiny.save(tmp_path / "model")
    images = AutoConfig.for_model("gemma3")
    images.architectures = ["Gemma3ForConditionalGeneration"]
    images.save_pretrained(model)
    made = config(tmp_path, model, arms={})
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Gemma3ForConditionalGeneration reads images too, .* torchvision"):
        checked(made)
    monkeypatch.setattr(models, "find_spec", lambda name: name)
    checked(made)
