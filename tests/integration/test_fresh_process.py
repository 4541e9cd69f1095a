"""What fresh processes import, what they execute and how they end: here, since each of them imports torch, Ray
or vLLM and takes seconds."""

import os
import pickle
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests import scripted, tiny
from tests.exploits import AUTO_MAP, Exploit, add_code, edit, run_python, write_exploits


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "pwned"


# -- what is imported

PLAN = """
import sys
from pipeline import cli
hub, *others = sys.argv[1:]
def plan(file):
    sys.argv[1:] = ["plan", file]
    try:
        cli.main()
    except SystemExit as e:
        assert not e.code, e.code
plan(hub)
assert "torch" not in sys.modules, "only a model's own tokenizer needs torch"
for other in others:
    plan(other)
print([name for name in ("vllm", "ray") if name in sys.modules])
"""


def test_a_plan_imports_no_engine(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("VLLM_")]:  # set by an engine of another test
        monkeypatch.delenv(name)
    local = tiny.save(tmp_path / "model")
    files = []
    for number, model in enumerate(("org/model-on-the-hub", local, "toy")):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(yaml.safe_dump(scripted.tree(tmp_path / "run", model={"path": model})))
    told = run_python(PLAN, *files)
    assert told.splitlines()[-1] == "[]"
    assert told.count("Time") == 3


DRIVER = """
import sys
from pipeline.data.dataset import Dataset
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.training import arm
from tests import tiny
model, data = sys.argv[1:]
for method in ("sft", "dpo"):
    config = tiny.config(model, method=method)
    arm.check_lora([tiny.spec(config, method)])
    made = tiny.prepared(config, method, Dataset.at(f"{data}/{method}"))
    assert made.runs[0].items and made.counts.kinds.total()
    print([name for name in ("trl", "vllm", "ray.data") if name in sys.modules])
"""


def test_the_driver_of_a_training_imports_no_trainer(tmp_path):
    """TRL, whose import takes seconds, is the workers' affair."""
    tiny.write(tmp_path / "data" / "sft", tiny.rows(12))
    tiny.write_preferences(tmp_path / "data" / "dpo", tiny.preferences(2))
    assert run_python(DRIVER, tiny.save(tmp_path / "model"), tmp_path / "data").split("\n") == [
        "[]",
        "[]",
        "",
    ]


# -- what is executed

ENGINE = """
import sys
from pipeline.inference.vllm_start import arguments as arguments_of
from pipeline.settings.base import Model
for directory in sys.argv[1:]:
    arguments = arguments_of(Model(path=directory, dtype="float32"), directory, [], gpus=0, options={})
    assert (arguments.trust_remote_code, arguments.load_format) == (False, "safetensors")
    try:
        arguments.create_model_config()
        print("fine")
    except ValueError:
        print("refused")
"""


def test_the_engine_is_told_to_run_no_code_of_a_model(tmp_path, marker):
    changes = [{}, {"architectures": ["EvilModel"]}, {"architectures": ["EvilModel"], "model_type": "evil"}]
    models = [Path(tiny.save(tmp_path / f"model-{i}")) for i in range(len(changes))]
    for directory, change in zip(models, changes, strict=True):
        add_code(directory, marker)
        edit(directory / "config.json", auto_map=AUTO_MAP, **change)
    outcomes = run_python(ENGINE, *models, stdin="y\n" * 9).splitlines()
    assert [line for line in outcomes if line in ("fine", "refused")] == ["fine", "refused", "refused"]
    assert not marker.exists()


READ_EVERYTHING = """
import io, pathlib, sys
place, ray_first = pathlib.Path(sys.argv[1]), sys.argv[2] == "ray first"
marker = place / "pwned"
import pyarrow.dataset as pads
import pyarrow.parquet as pq
if ray_first:
    import ray.data
    pq.read_table(place / "files" / "value").to_pylist()
    assert marker.exists(), "the exploit does not work"
    marker.rmdir()
from rich.console import Console
from pipeline.settings.base import Source
from pipeline.sources import instructions
from pipeline.data.dataset import Dataset
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.commands import report as report
from pipeline.commands.show import show
import datasets, ray.data
readers = {
    "instructions": lambda path: list(instructions.read(Source(path=path))),
    "columns": lambda path: list(instructions.read(Source(path=path, columns={"instruction": "id", "category": "instruction"}))),
    "show": lambda path: show(path, 5, True, Console(file=io.StringIO())),
    "training": lambda path: Dataset.at(path).table().to_pylist(),
    "report": lambda path: report._numbers(Dataset.at(path), MISTAKES),
    "datasets": lambda path: list(datasets.load_dataset("parquet", data_files=f"{path}/*.parquet", split="train", streaming=True)),
    "pandas": lambda path: pads.dataset(path).to_table().to_pandas(),
    "ray": lambda path: ray.data._internal.object_extensions.arrow.raise_on_pickle_object_columns(pq.read_table(path)),
}
for file in sorted((place / "files").iterdir()):
    for name, read in readers.items():
        try:
            read(str(file))
            outcome = "read"
        except Exception as e:
            outcome = type(e).__name__
        assert not marker.exists(), f"{name} executed {file.name}"
        print(file.name, name, outcome)
"""


@pytest.mark.parametrize("order", ["ray first", "pipeline first"])
def test_reading_parquet_executes_nothing(tmp_path, marker, order):
    write_exploits(tmp_path / "files", pickle.dumps(Exploit(marker)))
    printed = run_python(READ_EVERYTHING, tmp_path, order)
    outcomes = {tuple(line.split()[:2]): line.split()[2] for line in printed.splitlines()}
    assert outcomes["value", "instructions"] == "read", "the row is kept as a failed one"
    assert outcomes["value", "training"] == "read" and outcomes["schema", "show"] == "read"
    assert outcomes["value", "ray"] == "ValueError", "Ray's own refusal still stands"


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="pip install 'setbacks[qlora]'")
def test_bitsandbytes_fetches_no_kernel(tmp_path):
    """On CPUs with AVX-512 BF16 it would, when it is imported; on others this test says nothing."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__): open('fetched', 'w')")
    code = "import sys; from pipeline import pretrained; pretrained._nf4('bfloat16'); import kernels"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        timeout=120,
    )
    assert not (tmp_path / "fetched").exists()


# -- how it ends

HANGS = """
import time
from pipeline.inference import pool
pool.EXIT_S = 1

class CoreWorker:  # as Ray's hangs at times, while the interpreter is taken down
    def __init__(self):
        self.actor = pool.RecipeActor.__new__(pool.RecipeActor)
        self.actor._in_ray = True
    def __del__(self):
        del self.actor
        time.sleep(60)

worker = CoreWorker()
"""


def test_an_actor_that_hangs_while_it_ends_is_ended():
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HANGS], timeout=50)
    assert done.returncode == -signal.SIGALRM
    assert time.monotonic() - started < 30
