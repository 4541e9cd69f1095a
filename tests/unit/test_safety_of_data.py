"""What strangers give us executes nothing and shows nothing: Parquet files, run directories, keys and
passwords, texts."""

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
from pipeline.commands import report as report
from pipeline.commands.show import show
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.inference import openai as endpoint
from pipeline.inference.openai_refusals import refusal
from pipeline.settings.base import Endpoint, Source
from pipeline.sources import instructions
from pipeline.training import sft
from pipeline.training.job import write_table
from tests import scripted, tiny
from tests.exploits import PACKAGE, Exploit, write_exploits

# -- Parquet


def test_a_column_of_pickles_is_no_text(tmp_path, marker):
    write_exploits(tmp_path, pickle.dumps(Exploit(marker)))
    [row] = instructions.read(Source(path=str(tmp_path / "value"), columns={"instruction": "instruction"}))
    assert (row["status"], row["error"]) == ("failed", "instruction is not valid UTF-8")


def test_reading_arrow_files_executes_nothing(tmp_path, marker):
    write_exploits(tmp_path, pickle.dumps(Exploit(marker)))
    for directory in (tmp_path / name for name in ("value", "nested", "in_list")):
        table = pq.read_table(directory / "data-00000.parquet")
        with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
            writer.write_table(table)
        source = Source(path=str(tmp_path / "a.arrow"), columns={"instruction": "instruction"})
        assert len(list(instructions.read(source))) == 1, directory.name
        assert not marker.exists(), directory.name


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
    made = tiny.prepared(config, "sft", tiny.write(place / "sft", tiny.rows(12)))
    write_table(made.tables["sequences"], str(place / "sequences.parquet"))
    return sft.build(tiny.job(config, "sft", str(place), 1, made.runs[0], "test"), str(place))


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "training_args.bin",
        "pytorch_model.bin",
        "adapter_model.bin",
    ],
)
def test_resuming_unpickles_nothing_of_a_strangers_checkpoint(
    checkpoint, clean_model, tmp_path, marker, name
):
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
@pytest.mark.parametrize("field", ["arms", "adapters"])
def test_names_that_become_paths_are_plain(name, field):
    tree = scripted.tree("r")
    if field == "arms":
        tree["arms"] = {name: {"kinds": ["safe"]}}
    else:
        tree["adapters"] = {name: "somewhere"}
    with pytest.raises(ValidationError, match="pattern"):
        Config.model_validate(tree)


# -- secrets


def test_a_key_of_letters_is_not_taken_for_an_error_code():
    request = httpx.Request("POST", "http://h/", headers={"Authorization": "Bearer abcdefgh_secret"})
    for error in ({"code": "abcdefgh_secret"}, {"code": 400, "type": "abcdefgh_secret"}):
        told = refusal(httpx.Response(400, json={"error": error}, request=request))
        assert told == "endpoint refused the request: HTTP 400"


@pytest.mark.parametrize(
    "url", ["http://h/v1?api-key=hush", "http://h/v1#hush", "http://hush@h/v1", "http://hush:hush@h/v1"]
)
def test_a_url_holds_no_secret(url):
    with pytest.raises(UserError, match="a key goes into the environment") as e:
        endpoint.check(Endpoint(url=url, model="m", api_key_env=None))
    assert "hush" not in str(e.value)


def test_a_key_in_the_place_of_its_variables_name_is_not_shown():
    with pytest.raises(UserError, match="api_key_env: not a variable that is set") as e:
        endpoint.check(Endpoint(url="http://h/v1", model="m", api_key_env="sk-hush-0123"))
    assert "hush" not in str(e.value)


@pytest.mark.parametrize(
    "field", ["run_dir", "methods.mistakes.instructions.path", "suites.safety.harmful.path"]
)
def test_a_path_holds_no_password(field):
    tree = scripted.tree("r")
    *parents, leaf = field.split(".")
    section = tree
    for name in parents:
        section = section[name]
    section[leaf] = "s3://me:hush@bucket/x"
    with pytest.raises(UserError, match=f"{field}: contains a password, which would be stored") as e:
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
    pq.write_table(
        pa.table([[nasty], [nasty]], schema=pa.schema([field, pa.field("status", pa.string())])),
        tmp_path / "a.parquet",
    )
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
    md = report.templates().filters["md"]
    assert (
        md("![x](http://evil/x.png) [a](javascript:1) <b> | \\[y](z)")
        == "!\\[x](http://evil/x.png) \\[a](javascript:1) &lt;b> \\| \\\\\\[y](z)"
    )


def test_the_report_forbids_itself_scripts_and_requests():
    page = (PACKAGE / "commands" / "report.html").read_text()
    assert "Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"" in page
