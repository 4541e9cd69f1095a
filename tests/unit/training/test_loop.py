"""What the runs of a worker share, and what they must not."""

import os

import pytest
import torch

from pipeline.training import loop
from pipeline.training.job import Run
from pipeline.training.loop import BaseWeights
from tests import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("base") / "model")


def load(base: BaseWeights, model: str, **changes):
    return base.load(model, None, **{"dtype": "float32", "attention": "sdpa"} | changes)


def test_two_runs_share_the_weights_and_nothing_else(model):
    base = BaseWeights()
    first, second = load(base, model), load(base, model)
    tensors = [{tensor.data_ptr() for tensor in (*m.parameters(), *m.buffers())} for m in (first, second)]
    assert tensors[0] == tensors[1], "the weights are in memory once"
    first.model.layers[0].register_forward_hook(lambda layer, inputs, output: output + 1)
    first.forward = None  # as TRL replaces it
    assert not second.model.layers[0]._forward_hooks and "forward" not in vars(second)


def test_a_run_leaves_the_next_one_what_a_worker_of_its_own_would_read(model):
    from peft import LoraConfig, get_peft_model

    base, ids = BaseWeights(), torch.tensor([[5, 6, 7, 8]])
    trained = get_peft_model(load(base, model), LoraConfig(r=4, target_modules="all-linear"))
    for parameter in trained.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    fresh = load(BaseWeights(), model)
    with torch.no_grad():
        assert not torch.equal(trained(ids).logits, fresh(ids).logits)
        assert torch.equal(load(base, model)(ids).logits, fresh(ids).logits)


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"attention": "eager"}])
def test_another_precision_or_attention_is_read_again(model, changes):
    base = BaseWeights()
    load(base, model)
    other = load(base, model, **changes)
    assert other.dtype == getattr(torch, changes.get("dtype", "float32"))
    assert other.config._attn_implementation == changes.get("attention", "sdpa")


def test_a_checkpoint_belongs_to_one_run():
    """The second run of an arm has a name that begins like the first one's."""
    first, second = (
        tiny.job(
            tiny.config("unused"), "sft", "state", number, Run(4), name, group="runs/.state/train/0001-1"
        )
        for number, name in ((1, "sft-0a1b"), (2, "sft-0a1b-2"))
    )
    for job, other in ((first, second), (second, first)):
        place = f"{job.group}/{job.checkpoint(7)}"
        assert job.owns(place) and not other.owns(place)
    assert first.finished == "runs/.state/train/0001-1/sft-0a1b-finished"


# -- the user's environment


def test_variables_of_a_launcher_change_no_precision(monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_DEEPSPEED", "FSDP_VERSION", "MEGATRON_LM_TP"):
        monkeypatch.setenv(name, "fp16")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loop._forget_launchers()
    assert not [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_", "MEGATRON_LM_"))]
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    "environment",
    [
        {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"},
        {"COMET_API_KEY": "x"},
        {"CLEARML_TASK": "1"},
        {"TRACKIO_SPACE_ID": "a/b"},
        {"SWANLAB_API_KEY": "x"},
        {"NEPTUNE_API_TOKEN": "x"},
        {"TENSORBOARD_LOGGING_DIR": "/dev/null/x"},
        {"WANDB_API_KEY": "x", "WANDB_MODE": "nonsense"},
    ],
    ids=lambda environment: min(environment),
)
def test_no_variable_starts_an_integration_of_the_trainer(monkeypatch, tmp_path, environment):
    """Transformers is told of none, so it detects nothing; a key alone sends nothing."""
    from trl import SFTConfig

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    job = tiny.job(tiny.config("unused"), "sft", "state", 1, Run(4), "sft-0a1b", group="g")
    assert SFTConfig(**loop.arguments(job, 4, str(tmp_path))).report_to == []
