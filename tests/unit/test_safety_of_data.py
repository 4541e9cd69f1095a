"""What strangers give us executes nothing and shows nothing: Parquet files, run directories, keys and passwords, texts."""

import io
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from pipeline import preflight
from pipeline.config import Config, Endpoint, Source
from pipeline.data import instructions, pickles
from pipeline.errors import UserError
from pipeline.evaluation import report
from pipeline.inference import endpoint
from pipeline.show import show
from pipeline.training import methods, sft
from pipeline.training.job import Job, write_table
from tests import tiny
from tests.unit.exploits import PACKAGE, Exploit, run_python

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
    tables, _, [run] = methods.Supervised.prepare(tiny.tokenizer(), tiny.write(place / "sft", tiny.rows(12)), config, "sft")
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
