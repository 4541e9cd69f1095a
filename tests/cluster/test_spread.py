"""One engine on two machines, by vLLM's executor for Ray. Its build for CPUs has that executor, but no name for
its devices among Ray's resources: here they are the GPUs that nodes claim to have.

vLLM 0.32 cannot divide layers on CPUs (pipeline parallel), so each layer is divided.
"""

import json
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.toy.model import WEIGHTS

pytestmark = pytest.mark.timeout(600)

# Python imports this module when a process starts.
DEVICES_OF_RAY = """
import importlib.abc, importlib.util, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "vllm.platforms.cpu":
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec(name)
        run = found.loader.exec_module
        def exec_module(module):
            run(module)
            module.CpuPlatform.ray_device_key = "GPU"
        found.loader.exec_module = exec_module
        return found

sys.meta_path.insert(0, Finder())
"""

SPREAD = """
import json, sys, time
from pathlib import Path
import ray
from ray.util.state import list_actors
from pipeline.chat import Sampling
from pipeline.data.store import Store
from pipeline.inference.pool import Job, ModelSpec, run_recipes
from pipeline.inference.vllm import VLLM
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.schema import INSTRUCTIONS
from pipeline.settings.base import Model
from pipeline.toy.model import WEIGHTS
from tests import scripted

place, modules = map(Path, sys.argv[1:])
greedy = Sampling(max_tokens=12, temperature=0)

async def recipe(row, chat):
    [answer] = await chat.complete(row["instruction"], greedy, step="ask")
    return {"status": "ok", "response": answer.text}

ray.init(logging_level="ERROR", log_to_driver=False, runtime_env={"env_vars": {
    "PYTHONPATH": f"{modules}:{sys.path[0] or '.'}",
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
}})
ray.data.DataContext.get_current().enable_progress_bars = False
store = Store(str(place / "mistakes"), "mistakes", MISTAKES)
store.open({})
asked = [scripted.instruction(f"How do I open door {i}?", id=f"r{i}") for i in range(8)]
store.write_work(asked, INSTRUCTIONS, block_rows=4)
on_cpu = {"enforce_eager": True, "enable_chunked_prefill": False, "block_size": 32}
engine = VLLM(num_gpus=2, num_nodes=2, actors=1, options={"pipeline_parallel_size": 1} | on_cpu)
spec = ModelSpec(Model(path="toy", dtype="float32"), str(WEIGHTS), engine)
list(run_recipes([Job(recipe, store)], spec, seed=0, label="generate"))
store.finish()

workers = list_actors(filters=[("class_name", "=", "RayWorkerProc")], detail=True)
nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
end = time.monotonic() + 60
while ray.available_resources().get("GPU") != 2 and time.monotonic() < end:
    time.sleep(0.5)
print(json.dumps({
    "rows": [{name: row[name] for name in ("instruction", "response", "status")} for row in store.dataset.rows()],
    "workers": sorted(nodes[worker["node_id"]] for worker in workers),
    "free": ray.available_resources().get("GPU"),
}))
"""


@pytest.fixture
def machines(network):
    """Two machines with a GPU each, as they say."""
    found = [network.add(cpus=1, gpus=1) for _ in range(2)]
    yield found
    for machine in found:
        network.lose(machine)


def test_an_engine_on_two_machines_answers_as_one_and_frees_them(network, machines, tmp_path):
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(DEVICES_OF_RAY)
    code, said = network.head.run(sys.executable, "-c", SPREAD, str(tmp_path), str(modules), seconds=500)
    assert code == 0, said
    found = json.loads(said.splitlines()[-1])
    assert found["workers"] == sorted(machine.address for machine in machines)
    assert found["free"] == 2, "the GPUs are set aside no longer"
    assert [row["status"] for row in found["rows"]] == ["ok"] * 8
    expected = [greedy(row["instruction"]) for row in found["rows"]]
    equal = sum(row["response"] == text for row, text in zip(found["rows"], expected, strict=True))
    assert equal >= 7, (found["rows"], expected)  # sums of two parts are rounded otherwise


def greedy(text: str) -> str:
    """The toy's likeliest continuation, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype="float32")
    tokens = tokenizer(text, return_tensors="pt").input_ids
    made = model.generate(tokens, max_new_tokens=12, do_sample=False)
    return tokenizer.decode(made[0, tokens.shape[1] :], skip_special_tokens=True)
