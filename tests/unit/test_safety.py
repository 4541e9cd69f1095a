"""What strangers give us executes nothing and shows nothing: models, adapters, chat templates, prompts, Parquet files, run directories.

An exploit here makes a file, `pwned`. Each is first shown to work where nobody guards against it, so that a test cannot pass by its failing.
"""

import ast
import builtins
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

import pipeline
from pipeline import preflight, pretrained, prompts
from pipeline.config import Config, Endpoint, Inference, Model, Source
from pipeline.data import instructions, pickles
from pipeline.errors import UserError
from pipeline.evaluation import report
from pipeline.inference import endpoint
from pipeline.inference.engine import VllmModel
from pipeline.show import show
from pipeline.training import arm, examples, sft, start
from pipeline.training.job import Job, write_table
from tests import tiny

PACKAGE = Path(pipeline.__file__).parent


class Exploit:
    """Unpickled, it makes a directory."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "pwned"


@pytest.fixture(scope="module")
def clean_model(tmp_path_factory) -> Path:
    return Path(tiny.save(tmp_path_factory.mktemp("safety") / "model"))


@pytest.fixture
def model(clean_model, tmp_path) -> Path:
    return Path(shutil.copytree(clean_model, tmp_path / "model"))


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# -- the source code


def calls(tree: ast.AST):
    """(name of what is called, the call): `from_pretrained` of `AutoTokenizer.from_pretrained(…)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""), node


def test_one_module_opens_models_and_none_unpickles():
    found = {
        (path.relative_to(PACKAGE).as_posix(), name) for path in PACKAGE.rglob("*.py") for name, _ in calls(ast.parse(path.read_text()))
    }
    opening = {module for module, name in found if name in ("from_pretrained", "from_config")}
    # PEFT's own: start.py opens an adapter's configuration, adapter.py the adapter it has just written.
    assert opening == {"pretrained.py", "training/start.py", "training/adapter.py"}
    assert {module for module, name in found if name in ("AsyncEngineArgs", "EngineArgs", "LLM")} == {"inference/engine.py"}
    assert {module for module, name in found if name == "load_dataset"} == {"data/instructions.py"}
    for text in (path.read_text() for path in PACKAGE.rglob("*.py")):
        for name in (
            "torch.load(",
            "pickle.load",
            "yaml.Loader",
            "FullLoader",
            "UnsafeLoader",
            "unsafe_load",
            "full_load",
            "marshal",
            "joblib",
        ):
            assert name not in text
    assert not [(module, name) for module, name in found if name in ("eval", "exec") and module != "training/dpo.py"]


def test_models_are_opened_with_remote_code_off_and_safetensors_only():
    for name, call in calls(ast.parse((PACKAGE / "pretrained.py").read_text())):
        if name in ("from_pretrained", "from_config"):
            spread = [keyword.value.id for keyword in call.keywords if keyword.arg is None]
            assert spread in (["SAFE"], ["SAFE_WEIGHTS"])
    assert pretrained.SAFE == {"trust_remote_code": False}
    assert pretrained.SAFE_WEIGHTS == {"trust_remote_code": False, "use_safetensors": True}


# -- code that comes with a model


@pytest.fixture
def coded_model(model, marker, monkeypatch):
    """A model with Python code of its own, and a user who answers yes to every question."""
    (model / "modeling_evil.py").write_text(
        f"import os\nos.mkdir({str(marker)!r})\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class EvilConfig(LlamaConfig): pass\nclass EvilModel(LlamaForCausalLM): pass\nclass EvilTokenizer(PreTrainedTokenizerFast): pass\n"
    )
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(model.parent / "modules"))
    return model


AUTO_MAP = {"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.EvilModel"}
TOKENIZER_MAP = {"AutoTokenizer": ["modeling_evil.EvilTokenizer", "modeling_evil.EvilTokenizer"]}
NEEDS_CODE = "model.path = .*it needs Python code of its own"


@pytest.fixture(params=["model", "tokenizer"])
def needs_code(coded_model, request) -> Path:
    """Neither class is one that transformers knows."""
    if request.param == "model":
        edit(coded_model / "config.json", auto_map=AUTO_MAP, model_type="evil", architectures=["EvilModel"])
    else:
        edit(coded_model / "tokenizer_config.json", auto_map=TOKENIZER_MAP, tokenizer_class="EvilTokenizer")
    return coded_model


def test_the_code_would_run_if_the_user_were_asked(needs_code, marker):
    from transformers import AutoConfig, AutoTokenizer

    with suppress(Exception):
        AutoConfig.from_pretrained(needs_code)
        AutoTokenizer.from_pretrained(needs_code)
    assert marker.exists(), "transformers' default is to ask, and to run it on a yes"


@pytest.mark.parametrize("stage", ["generate", "train", "evaluate"])
def test_a_model_that_needs_its_code_is_refused_before_anything_starts(needs_code, marker, stage):
    with pytest.raises(UserError, match=NEEDS_CODE) as e:
        preflight.check_models(tiny.config(str(needs_code)), {stage}, {"safety"}, str(needs_code))
    assert "\n" not in str(e.value)
    assert not marker.exists()


def test_neither_tokenizer_nor_trainer_nor_engine_runs_it(needs_code, marker):
    config = tiny.config(str(needs_code))
    for load in (
        lambda: preflight.load_tokenizer(config, str(needs_code)),
        lambda: arm._check(config, "sft", str(needs_code)),
        lambda: pretrained.model(str(needs_code), dtype="float32"),
        lambda: VllmModel(config.model, str(needs_code), Inference()),
    ):
        with suppress(UserError):  # a model whose tokenizer alone needs code has a loadable configuration, and the other way round
            load()
        assert not marker.exists()


def test_a_known_model_is_loaded_without_its_code(coded_model, marker):
    edit(coded_model / "config.json", auto_map=AUTO_MAP)
    edit(coded_model / "tokenizer_config.json", auto_map=TOKENIZER_MAP)
    preflight.check_models(tiny.config(str(coded_model)), {"generate", "train"}, set(), str(coded_model))
    assert pretrained.model(str(coded_model), dtype="float32").config.model_type == "llama"
    assert not marker.exists()


ENGINE = """
import sys
from pipeline.config import Inference, Model
from pipeline.inference.engine import _arguments
for directory in sys.argv[1:]:
    arguments = _arguments(Model(path=directory, dtype="float32"), directory, Inference(), [])
    assert (arguments.trust_remote_code, arguments.load_format) == (False, "safetensors")
    try:
        arguments.create_model_config()
        print("fine")
    except ValueError:
        print("refused")
"""


def test_the_engine_is_told_to_run_none(coded_model, marker, tmp_path):
    """In a process of its own, which may import vLLM."""
    changes = [{}, {"architectures": ["EvilModel"]}, {"architectures": ["EvilModel"], "model_type": "evil"}]
    models = [shutil.copytree(coded_model, tmp_path / f"model-{i}") for i in range(len(changes))]
    for directory, change in zip(models, changes, strict=True):
        edit(directory / "config.json", auto_map=AUTO_MAP, **change)
    outcomes = run_python(ENGINE, *models, stdin="y\n" * 9).splitlines()
    assert [line for line in outcomes if line in ("fine", "refused")] == ["fine", "refused", "refused"]
    assert not marker.exists()


def run_python(script: str, *arguments: object, stdin: str = "") -> str:
    """What a script prints; it must end well."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, cwd=PACKAGE.parent, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_model_does_not_choose_its_attention(model):
    edit(model / "config.json", _attn_implementation="evil/kernel", attn_implementation="evil/kernel")  # would be fetched from the hub
    assert pretrained.empty(pretrained.architecture(str(model))).config._attn_implementation == "eager"
    assert pretrained.model(str(model), dtype="float32").config._attn_implementation == "eager"


# -- pickled weights


@pytest.fixture
def pickled_model(model, marker) -> Path:
    (model / "model.safetensors").unlink()
    torch.save({"x": Exploit(marker)}, model / "pytorch_model.bin")
    with suppress(Exception):
        torch.load(model / "pytorch_model.bin", weights_only=False)
    assert marker.exists(), "the exploit works"
    marker.rmdir()
    return model


@pytest.mark.parametrize("stage", ["generate", "train", "evaluate"])
def test_pickled_weights_are_refused_before_anything_starts(pickled_model, marker, stage):
    with pytest.raises(UserError, match=r"its weights are in pytorch_model\.bin, whose format can run code; save the model as safetensors"):
        preflight.check_models(tiny.config(str(pickled_model)), {stage}, {"safety"}, str(pickled_model))
    assert not marker.exists()


def test_engine_and_trainer_refuse_them_too(pickled_model, marker):
    for load in (
        lambda: VllmModel(Model(path=str(pickled_model)), str(pickled_model), Inference()),
        lambda: pretrained.model(str(pickled_model), dtype="float32"),
    ):
        with pytest.raises(UserError, match="its weights are in"):
            load()
    (pickled_model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"x": "pytorch_model.bin"}}))
    (pickled_model / "decoy.safetensors").write_bytes(b"")
    with pytest.raises(Exception):  # noqa: B017  whatever it is, it is no execution
        pretrained.model(str(pickled_model), dtype="float32")
    assert not marker.exists()


def test_a_model_without_weights_is_refused(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        pretrained.check(str(model))


def test_pickled_adapters_are_refused(tmp_path, marker):
    (tmp_path / "adapter").mkdir()
    torch.save({"x": Exploit(marker)}, tmp_path / "adapter" / "adapter_model.bin")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        preflight.check_adapter("evaluation.adapters.a", str(tmp_path / "adapter"), str(tmp_path))
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors there"):
        start.load_config(str(tmp_path / "adapter"), "train.start.adapter")
    assert not marker.exists()


# -- templates

ATTACKS = {
    "attribute": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "global function": "{{ lipsum.__globals__['os'].mkdir(marker) }}",
    "format string": "{{ '{0.__class__.__init__.__globals__}'.format('') }}",
    "file": "{% include '/etc/passwd' %}",
    "long loop": "{% for i in range(10**9) %}{{ i }}{% endfor %}",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_chat_template_is_sandboxed(model, attack):
    (model / "chat_template.jinja").write_text(tiny.CHATML + ATTACKS[attack])
    conversation = tiny.rows(1)[0]["messages"]
    with pytest.raises(UserError, match=r"chat template of model .* cannot be rendered \(\w+\): mend its chat_template\.jinja"):
        examples.encode(pretrained.tokenizer(str(model)), [conversation])


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_prompt_is_sandboxed(tmp_path, attack):
    file = tmp_path / "prompts.yaml"
    name = next(iter(prompts.load("judge").texts))
    file.write_text(json.dumps({name: ATTACKS[attack]}))
    with pytest.raises(UserError, match=f"prompt {name} cannot be rendered"):
        prompts.load("judge", str(file))


# -- Parquet


def claiming(column: pa.Array, name: str, metadata: bytes = b"") -> pa.Field:
    """A field of the column's type, which says that it is an extension type of this name."""
    return pa.field("instruction", column.type, metadata={"ARROW:extension:name": name, "ARROW:extension:metadata": metadata})


def write_exploits(directory: Path, exploit: bytes) -> None:
    """One data set of one file each: pickles as values, deeper values, and metadata of types."""
    values, numbers = pa.array([exploit], pa.large_binary()), pa.array([[1.0]], pa.list_(pa.float64()))
    inner = pa.StructArray.from_arrays([values], fields=[claiming(values, pickles.NAME)])
    columns = {
        "value": (values, claiming(values, pickles.NAME)),
        "nested": (inner, pa.field("instruction", inner.type)),
        "in_list": (pa.array([[exploit]], listed := pa.list_(claiming(values, pickles.NAME))), pa.field("instruction", listed)),
        "type": (values, claiming(values, "arrow.py_extension_type", exploit)),
        "schema": (pa.array(["text"]), pa.field("instruction", pa.string())),
        "tensor": (numbers, claiming(numbers, "ray.data.arrow_tensor", exploit)),
    }
    for name, (column, field) in columns.items():
        (directory / name).mkdir(parents=True)
        about = {b"pandas": exploit, b"huggingface": exploit} if name == "schema" else None
        schema = pa.schema([field, pa.field("id", pa.string())], metadata=about)
        pq.write_table(pa.Table.from_arrays([column, pa.array(["1"])], schema=schema), directory / name / "data-00000.parquet")


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
from pipeline.config import Source
from pipeline.data import instructions
from pipeline.data.schema import MISTAKES
from pipeline.evaluation import report
from pipeline.show import show
from pipeline.training import examples
import datasets, ray.data
readers = {
    "instructions": lambda path: list(instructions.read(Source(path=path))),
    "columns": lambda path: list(instructions.read(Source(path=path, columns={"instruction": "id", "category": "instruction"}))),
    "show": lambda path: show(path, 5, True, Console(file=io.StringIO())),
    "report": lambda path: report._dataset(path.rsplit("/", 1)[0], MISTAKES),
    "training": lambda path: examples.dataset(path, "").to_table().to_pylist(),
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


def test_a_column_of_pickles_is_no_text(tmp_path, marker):
    write_exploits(tmp_path, pickle.dumps(Exploit(marker)))
    [row] = instructions.read(Source(path=str(tmp_path / "value"), columns={"instruction": "instruction"}))
    assert (row["status"], row["error"]) == ("failed", "instruction is not a string but bytes")


# -- a run directory


@pytest.fixture(scope="module")
def checkpoint(clean_model, tmp_path_factory) -> Path:
    """A training checkpoint of ours, and what its trainer is made of beside it."""
    place = tmp_path_factory.mktemp("run")
    trainer_of(clean_model, place).train()
    [found] = place.glob("checkpoint-*")
    return found


def trainer_of(model: Path, place: Path):
    config = tiny.config(str(model), batch_size=4, max_length=256, save_steps=1)
    tables, _, [run] = sft.prepare(tiny.tokenizer(), tiny.write(place / "sft", tiny.rows(12)), config, "sft")
    write_table(tables["sequences"], str(place / "sequences.parquet"))
    return sft.build(Job(config, "sft", str(model), str(place), 1, run, "test"), str(place))


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin", "adapter_model.bin"]
)
def test_resuming_unpickles_nothing_of_a_strangers_checkpoint(checkpoint, clean_model, tmp_path, marker, name):
    planted = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    if name == "adapter_model.bin":
        (planted / "adapter_model.safetensors").unlink()
    torch.save({"x": Exploit(marker)}, planted / name)
    with suppress(Exception):  # refused, or not looked at
        trainer_of(clean_model, tmp_path / "again").train(resume_from_checkpoint=str(planted))
    assert not marker.exists()


def test_the_same_checkpoint_resumes_where_nothing_is_planted(checkpoint, clean_model, tmp_path):
    trainer_of(clean_model, tmp_path / "again").train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize("name", ["../../etc/x", "/etc/x", "a/b", "..", ".", "a\n", "", "a b", "a\0"])
@pytest.mark.parametrize("field", ["arms", "evaluation.adapters"])
def test_names_that_become_paths_are_plain(name, field):
    tree = {"run_dir": "r", "model": {"path": "toy"}, "instructions": {"path": "x"}, "evaluation": {"harmful": {"path": "x"}}}
    if field == "arms":
        tree["arms"] = {name: {"kinds": ["safe"]}}
    else:
        tree["evaluation"]["adapters"] = {name: "somewhere"}
    with pytest.raises(ValidationError, match="pattern"):
        Config.model_validate(tree)


# -- secrets


def test_a_key_of_letters_is_not_taken_for_an_error_code():
    request = httpx.Request("POST", "http://h/", headers={"Authorization": "Bearer abcdefgh_secret"})
    for error in ({"code": "abcdefgh_secret"}, {"code": 400, "type": "abcdefgh_secret"}):
        told = endpoint._refusal(httpx.Response(400, json={"error": error}, request=request))
        assert told == "endpoint refused the request: HTTP 400"


@pytest.mark.parametrize("url", ["http://h/v1?api-key=hush", "http://h/v1#hush", "http://hush@h/v1", "http://hush:hush@h/v1"])
def test_a_url_holds_no_secret(url):
    with pytest.raises(UserError, match="a key goes into the environment") as e:
        endpoint.check(Endpoint(url=url, model="m", api_key_env=None))
    assert "hush" not in str(e.value)


def test_a_key_in_the_place_of_its_variables_name_is_not_shown():
    with pytest.raises(UserError, match="api_key_env: not a variable that is set") as e:
        endpoint.check(Endpoint(url="http://h/v1", model="m", api_key_env="sk-hush-0123"))
    assert "hush" not in str(e.value)


@pytest.mark.parametrize("field", ["run_dir", "instructions.path", "evaluation.harmful.path"])
def test_a_path_holds_no_password(field):
    tree = {"run_dir": "r", "model": {"path": "toy"}, "instructions": {"path": "toy:harmful-train"}}
    tree |= {"evaluation": {"harmful": {"path": "toy:harmful-heldout"}}}
    *parents, leaf = field.split(".")
    section = tree
    for name in parents:
        section = section[name]
    section[leaf] = "s3://me:hush@bucket/x"
    with pytest.raises(UserError, match=f"{field}: holds a password, which would be stored") as e:
        preflight.check(Config.model_validate(tree), {"generate", "evaluate"})
    assert "hush" not in str(e.value)


# -- what is shown


def test_a_map_is_masked_like_any_other_text(tmp_path):
    entries = pa.array([[("hidden key", "hidden value")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"id": ["1"], "answers": entries}), tmp_path / "a.parquet")
    assert "hidden" not in shown(tmp_path)
    assert "hidden value" in shown(tmp_path, reveal=True)


def test_names_and_metadata_command_no_terminal(tmp_path):
    nasty = "\x1b]8;;http://evil\x07[link=http://evil]x[/link]\x9b2J\u202e"
    field = pa.field(nasty, pa.string(), metadata={"description": nasty})
    pq.write_table(pa.table([[nasty], [nasty]], schema=pa.schema([field, pa.field("status", pa.string())])), tmp_path / "a.parquet")
    text = shown(tmp_path)
    assert not set("\x1b\x07\x9b\u202e") & set(text) and "[link=http://evil]" in text
    (tmp_path / "run" / f"data{nasty.replace('/', '')}").mkdir(parents=True)
    shutil.move(tmp_path / "a.parquet", next((tmp_path / "run").iterdir()))
    with pytest.raises(UserError, match="name a data set in it") as e:
        shown(tmp_path / "run")
    assert str(e.value).isprintable()


def shown(path: Path, reveal: bool = False) -> str:
    out = io.StringIO()
    show(str(path), 5, reveal, Console(file=out, width=200))
    return out.getvalue()


def test_markdown_of_the_report_holds_no_links_of_strangers():
    md = report._templates().filters["md"]
    assert md("![x](http://evil/x.png) [a](javascript:1) <b> | \\[y](z)") == (
        "!\\[x](http://evil/x.png) \\[a](javascript:1) &lt;b> \\| \\\\\\[y](z)"
    )


def test_the_report_forbids_itself_scripts_and_requests():
    page = (PACKAGE / "evaluation" / "report.html").read_text()
    assert "Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"" in page
