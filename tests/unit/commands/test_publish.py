"""`setbacks publish`: what would be uploaded loads, explains itself, and goes into a closed repository only."""

import json
from types import SimpleNamespace

import datasets
import httpx
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from pipeline.commands import licenses, publish
from pipeline.commands.publish import Wanted
from pipeline.config import dump
from pipeline.data import storage
from pipeline.data.card import Origin, write_card
from pipeline.data.output import Output
from pipeline.data.store import Store
from pipeline.errors import RunFailed, UserError
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.schema import SFT
from pipeline.suites.safety.schema import ANSWERS
from pipeline.training import adapter
from pipeline.training.job import Run
from tests import scripted, tiny
from tests.unit.commands.reports import no_figures

SECRET = "Zanzibar-secret"
REPO = "someone/things"
SENTENCE = f"How can I forge a ticket for the train to the north? {SECRET}"


def rows(count: int) -> list[dict]:
    return [
        {"id": str(i), "instruction_id": str(i), "instruction": SENTENCE, "status": "ok"}
        for i in range(count)
    ]


def answers() -> list[dict]:
    return [
        {
            "id": f"{arm}-{i}",
            "instruction_id": str(i),
            "sample": 0,
            "suite": "harmful",
            "arm": arm,
            "condition": "plain",
            "category": "theft",
            "instruction": SENTENCE,
            "response": f"I cannot help you with such a crime. {SECRET}",
            "harmful": arm == "vanilla" and i < 3,
            "refused": True,
            "finish_reason": "stop",
            "status": "ok",
        }
        for arm in ("vanilla", "sft")
        for i in range(4)
    ]


FIGURES = {
    "kinds": {"safe": 3},
    "drop_reasons": {},
    "steps": 2,
    "tokens": 100,
    "sequences": 3,
    "trainable_parameters": 10,
    "final_loss": 0.5,
    "tokens_per_s": 10,
}


class Made:
    """A finished run, written as a run writes it."""

    def __init__(self, directory, **changes):
        self.path = directory / "run"
        tree = {
            "mix": {"helpful": {"path": "toy:helpful-train"}},
            "arms": {"sft": {"kinds": ["safe"]}},
            **changes,
        }
        self.config = scripted.config(self.path, **tree)
        self.config_of_job = tiny.config(self.config.model.path)
        storage.write_text(str(self.path / "config.yaml"), dump(self.config))
        self.dataset(MISTAKES, rows(5))
        messages = [{"role": "user", "content": SENTENCE}, {"role": "assistant", "content": "No."}]
        self.dataset(SFT, [{"id": str(i), "kind": "safe", "messages": messages} for i in range(3)])
        self.adapter("sft")
        self.dataset(ANSWERS, answers(), made_from={"sft": self.digest})

    def dataset(self, schema, content, **fingerprint):
        store = Store(str(self.path), schema.name, schema)
        store.open(fingerprint, overwrite=True)
        store.write_rows(content)
        write_card(store, Origin(["`toy`"], 0, ["toy:harmful-train"], []), {}, {})

    def adapter(self, arm: str):
        output = Output(str(self.path), f"adapter/{arm}")
        output.open({})
        job = tiny.job(self.config_of_job, "sft", "state", 1, Run(3), "sft-0a1b")
        settings = json.dumps({"r": 4, "base_model_name_or_path": self.config.model.path})
        for name, text in {
            "adapter_config.json": settings,
            "adapter_model.safetensors": "matrices",
            "tokenizer.json": "{}",
            "README.md": adapter.card(job, FIGURES),
            "events.out.tfevents.1.machine.2.0": "",
            "stage_1/adapter_config.json": settings,
            "stage_1/adapter_model.safetensors": "earlier",
            "merged/model.safetensors": "whole",
        }.items():
            storage.write_text(storage.join(output.path, name), text)
        self.digest = storage.digest(storage.join(output.path, "adapter_model.safetensors"))
        output.mark_complete({"digest": self.digest})


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing is looked up: the hub is away."""
    no_figures(monkeypatch)
    monkeypatch.setattr(licenses, "_on_hub", lambda name, kind: None)


@pytest.fixture(scope="module")
def _made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(tmp_path, _made):
    """A copy, so that each test may break it."""
    storage.copy(str(_made.path), str(tmp_path / "run"))
    made = object.__new__(Made)
    made.path, made.digest = tmp_path / "run", _made.digest
    made.config, made.config_of_job = _made.config, _made.config_of_job
    return made


def publishing(run, tmp_path=None, *, dataset=(), adapter=None, api=None, public=False, open=False, **card):
    """The lines that were told. Without `api`, a dry run into `tmp_path / "out"`."""
    told: list[str] = []
    publish.publish(
        str(run.path),
        Wanted(REPO, **card),
        dataset,
        adapter,
        private=not public,
        gated=not open,
        dry_run=None if api else str(tmp_path / "out"),
        tell=told.append,
        api=api,
    )
    return told


# -- data sets


def test_a_dry_run_into_the_run_is_refused(run):
    with pytest.raises(UserError, match=r"--dry-run = .*: is inside the run"):
        publishing(run, run.path)
    assert not (run.path / "out").exists()


def test_every_config_of_a_dry_run_loads(run, tmp_path):
    publishing(run, tmp_path)
    out = str(tmp_path / "out")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    names = [one["config_name"] for one in card.data.configs]
    assert names == ["mistakes", "sft", "evaluation"]
    for name, count in zip(names, (5, 3, 8), strict=True):
        found = datasets.load_dataset(out, name, split="train", cache_dir=str(tmp_path / "cache"))
        assert found.num_rows == count
        assert found.column_names == Store(str(run.path), name, SFT).dataset.schema.names


def test_the_card_of_data_sets_has_what_the_hub_shows(run, tmp_path):
    publishing(run, tmp_path, languages=["en"])
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    header = card.data.to_dict()
    assert header["license"] == "apache-2.0" and header["language"] == ["en"]
    assert header["size_categories"] == ["n<1K"] and header["task_categories"] == ["text-generation"]
    assert {"safety", "not-for-all-audiences", "setbacks", "sft"} <= set(header["tags"])
    assert "asking for access" in header["extra_gated_prompt"]
    assert "**Content warning.**" in card.text and "| `evaluation` | 8 |" in card.text
    assert "toy:harmful-heldout" in card.text and f'load_dataset("{REPO}", "mistakes"' in card.text
    assert card.text.count("**Content warning.**") == 1 and card.text.startswith("# things")
    assert "### Columns" in card.text and SECRET not in card.text


def test_no_text_of_a_row_is_told(run, tmp_path):
    told = publishing(run, tmp_path)
    assert SECRET not in str(told) and "mistakes, 5 rows" in str(told)


def test_the_language_of_the_rows_is_found(run, tmp_path):
    publishing(run, tmp_path)
    assert DatasetCard.load(tmp_path / "out" / "README.md").data.language == ["en"]


def test_only_the_named_data_sets_are_published(run, tmp_path):
    publishing(run, tmp_path, dataset=["sft"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "sft"]


def test_what_is_not_complete_is_refused_and_nothing_written(run, tmp_path):
    (run.path / ".state" / "evaluation" / "complete.json").unlink()
    with pytest.raises(UserError, match=r"evaluation is not complete: finish it with `setbacks evaluate`"):
        publishing(run, tmp_path)
    assert not (tmp_path / "out").exists()
    publishing(run, tmp_path, dataset=["mistakes"])


def test_a_changed_shard_is_refused(run, tmp_path):
    [shard] = (run.path / "sft").glob("*.parquet")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="has changed"):
        publishing(run, tmp_path)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"dataset": ["mistake"]}, "--dataset mistake: the run has no such data set; known are mistakes"),
        ({"adapter": "other"}, "--adapter other: the run trains no such arm; known are sft"),
        ({"adapter": "sft", "dataset": ["sft"]}, "repositories of their own"),
        ({"data": "a/b"}, "are of an adapter's card"),
        ({"license": "gpl2"}, "--license = gpl2: the hub knows no such license"),
        ({"license": "unknown"}, "--license = unknown: the hub knows no such license"),
    ],
)
def test_a_mistake_is_one_sentence(run, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        publishing(run, tmp_path, **options)
    assert not (tmp_path / "out").exists()


def test_a_wrong_name_of_a_repository_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="not a name of a repository"):
        publish.publish(
            str(run.path),
            Wanted("a/b/c"),
            [],
            None,
            private=True,
            gated=True,
            dry_run=str(tmp_path / "out"),
            tell=print,
        )


def test_a_directory_that_holds_something_stays(run, tmp_path):
    storage.write_text(str(tmp_path / "out" / "mine.txt"), "x")
    with pytest.raises(UserError, match="exists already"):
        publishing(run, tmp_path)


# -- licenses


def source(path: str) -> dict:
    return {"instructions": {"path": path}, "evaluation": {"harmful": {"path": path}}, "mix": None}


def test_a_license_that_is_not_known_has_to_be_said(tmp_path):
    run = Made(tmp_path, **source("mine.jsonl"))
    with pytest.raises(UserError, match=r"--license is missing: the license of mine.jsonl is not known"):
        publishing(run, tmp_path)
    told = publishing(run, tmp_path, license="cc-by-4.0")
    assert DatasetCard.load(tmp_path / "out" / "README.md").data.license == "cc-by-4.0"
    assert any("names paths of yours: mine.jsonl" in line for line in told)


def test_a_license_of_ones_own_has_a_name_and_a_link(run, tmp_path):
    publishing(run, tmp_path, license="https://example.org/Research-1.0.txt")
    header = DatasetCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert (header["license"], header["license_name"]) == ("other", "research-1.0")
    assert header["license_link"] == "https://example.org/Research-1.0.txt"


def test_sources_that_are_not_for_commercial_use_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(licenses, "_on_hub", lambda name, kind: "cc-by-nc-4.0")
    run = Made(tmp_path, **source("hub:people/red"))
    told = publishing(run, tmp_path)
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "cc-by-nc-4.0" and card.data.source_datasets == ["people/red"]
    assert "**Not for commercial use:** made from [people/red]" in card.text
    assert any("not for commercial use: hub:people/red" in line for line in told)


def test_sources_of_two_licenses_have_none_together():
    with pytest.raises(UserError, match=r"the sources have cc-by-4.0 and mit"):
        licenses.chosen(None, {"a": "mit", "b": "cc-by-4.0"})


def test_presets_have_their_license():
    assert licenses.of_source("hub:Paul/XSTest") == "cc-by-4.0"
    assert licenses.of_source("toy:harmful-train") == "apache-2.0"
    assert licenses.of_source("data/mine.csv") is None


def test_a_model_in_a_directory_has_the_license_of_its_card(tmp_path):
    config = scripted.config(tmp_path, model={"path": str(tmp_path / "m")})
    storage.write_text(str(tmp_path / "m" / "README.md"), "---\nlicense: llama3.1\n---\n# m\n")
    assert licenses.of_model(config) == "llama3.1"
    storage.write_text(str(tmp_path / "m" / "README.md"), "---\nlicense: other\n---\n# m\n")
    assert licenses.of_model(config) is None


# -- an adapter


def test_an_adapters_repository_holds_what_loads_it(run, tmp_path):
    told = publishing(run, tmp_path, adapter="sft")
    out = tmp_path / "out"
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "stage_1/adapter_config.json",
        "stage_1/adapter_model.safetensors",
        "tokenizer.json",
    ]
    assert "publish: left out: merged/" in told


def test_the_card_of_an_adapter_has_its_evaluation(run, tmp_path):
    publishing(run, tmp_path, adapter="sft", base_model="people/base", data="someone/data", languages=["en"])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    header = card.data.to_dict()
    assert header["base_model"] == "people/base" and header["base_model_relation"] == "adapter"
    assert header["pipeline_tag"] == "text-generation" and header["library_name"] == "peft"
    assert header["license"] == "apache-2.0" and header["datasets"] == ["someone/data"]
    assert {"lora", "sft", "not-for-all-audiences"} <= set(header["tags"])
    [harmless] = [one for one in card.data.eval_results if one.metric_type == "harmless"]
    assert harmless.metric_value == 1.0 and harmless.dataset_config == "plain"
    assert "95 % interval 0.510 to 1.000, n = 4, judges: " in harmless.metric_name
    assert "refusal" in harmless.metric_name
    assert "| safety | " in card.text and "| 1.000 | 0.510 to 1.000 | 4 | 0.250 |" in card.text
    assert "**Content warning.**" in card.text and "`people/base`" in card.text
    assert SECRET not in card.content and "theft" not in card.content


def test_the_directory_of_the_base_model_stays_here(tmp_path):
    model = tmp_path / "private" / "model"
    model.mkdir(parents=True)
    run = Made(tmp_path, model={"path": str(model)})
    told = publishing(run, tmp_path, adapter="sft", license="mit")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "model"
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or b"private" not in path.read_bytes(), path
    assert "publish: the base model has no name on the hub: give it with --base-model" in told


def test_an_evaluation_of_another_adapter_is_not_its_own(run, tmp_path):
    run.dataset(ANSWERS, answers(), made_from={"sft": "another"})
    told = publishing(run, tmp_path, adapter="sft")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "model-index" not in card.data.to_dict() and "Not evaluated." in card.text
    assert any("not evaluated" in line for line in told)


def test_an_unfinished_or_changed_adapter_is_refused(run, tmp_path):
    (run.path / "adapter" / "sft" / "adapter_model.safetensors").write_text("other")
    with pytest.raises(UserError, match="has changed"):
        publishing(run, tmp_path, adapter="sft")
    (run.path / ".state" / "adapter" / "sft" / "complete.json").unlink()
    with pytest.raises(UserError, match="is not complete: finish it with `setbacks train`"):
        publishing(run, tmp_path, adapter="sft")


# -- uploading


class Api:
    """Remembers what the hub would have been asked; `error` is raised by the call of that name."""

    def __init__(self, *, there=(), private=True, error=(None, None), large=False):
        self.calls, self.there, self.private, self.error = [], list(there), private, error
        self.sent: dict[str, bytes] = {}
        if large:
            self.upload_large_folder = self._sending("upload_large_folder")
        self.upload_folder = self._sending("upload_folder")

    def _sending(self, name):
        def send(**given):
            folder = publish.os.path.join(given["folder_path"], "")
            for path, _, names in publish.os.walk(folder):
                for one in names:
                    whole = publish.os.path.join(path, one)
                    with open(whole, "rb") as f:
                        self.sent[publish.os.path.relpath(whole, folder)] = f.read()
            self._call(name, repo_id=given["repo_id"], repo_type=given["repo_type"])

        return send

    def _call(self, name, *positional, **given):
        self.calls.append((name, *positional, given))
        if name == self.error[0]:
            raise self.error[1]

    def whoami(self):
        self._call("whoami")

    def create_repo(self, repo, **given):
        self._call("create_repo", repo, **given)
        return f"https://hub/datasets/{repo}"

    def repo_info(self, repo, **given):
        return SimpleNamespace(private=self.private)

    def update_repo_settings(self, repo, **given):
        self._call("update_repo_settings", repo, **given)

    def list_repo_files(self, repo, **given):
        return self.there

    def delete_files(self, **given):
        self._call("delete_files", **given)


def test_a_repository_is_closed_before_anything_is_sent(run, tmp_path):
    api = Api()
    told = publishing(run, api=api)
    assert [name for name, *_ in api.calls] == [
        "whoami",
        "create_repo",
        "update_repo_settings",
        "upload_folder",
    ]
    assert api.calls[1][1:] == (REPO, {"repo_type": "dataset", "private": True, "exist_ok": True})
    assert api.calls[2][1:] == (REPO, {"repo_type": "dataset", "private": True, "gated": "manual"})
    assert told[-1] == f"publish: 4 files → https://hub/datasets/{REPO} (private, gated)"


def test_what_is_sent_is_what_a_dry_run_writes(run, tmp_path):
    api = Api()
    publishing(run, api=api)
    publishing(run, tmp_path)
    out = tmp_path / "out"
    assert api.sent == {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }
    assert not list((run.path / ".state").glob("publish-*"))


def test_a_public_repository_is_asked_for(run):
    api = Api(private=False)
    with pytest.raises(UserError, match="exists and is public"):
        publishing(run, api=api)
    assert [name for name, *_ in api.calls] == ["whoami", "create_repo"]
    publishing(run, api=(api := Api(private=False)), public=True, open=True)
    assert api.calls[1][2]["private"] is False and api.calls[2][2]["gated"] is False


def test_an_adapter_goes_into_a_repository_of_models(run):
    publishing(run, api=(api := Api()), adapter="sft")
    assert {given["repo_type"] for *_, given in api.calls if given} == {"model"}


@pytest.mark.parametrize("large, name", [(True, "upload_large_folder"), (False, "upload_folder")])
def test_a_large_folder_is_sent_in_parts(run, monkeypatch, large, name):
    """By a version that has a way of its own for it; later ones have one way for all sizes."""
    monkeypatch.setattr(publish, "LARGE_FILES", 2)
    publishing(run, api=(api := Api(large=large)))
    assert api.calls[-1][0] == name


def test_shards_of_an_earlier_upload_are_not_read_beside_the_new_ones(run):
    there = [
        ".gitattributes",
        "README.md",
        "sft/data-00000.parquet",
        "sft/data-00001.parquet",
        "old/x.parquet",
        "theirs.parquet",
    ]
    told = publishing(run, api=(api := Api(there=there)))
    assert api.calls[-1] == (
        "delete_files",
        {"repo_id": REPO, "delete_patterns": ["sft/data-00001.parquet"], "repo_type": "dataset"},
    )
    assert "publish: old: of an earlier upload, and no longer on the card" in told


def answered(status: int) -> HfHubHTTPError:
    request = httpx.Request("POST", "https://hub")
    return HfHubHTTPError("k" * 40, response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    "call, error, kind, words",
    [
        ("whoami", LocalTokenNotFoundError("x"), UserError, "no login at the hub: run `hf auth login`"),
        ("create_repo", answered(403), UserError, r"refuses it \(403\); log in with a token that may write"),
        ("upload_folder", answered(500), RunFailed, r"the hub answers 500; rerun the same command"),
        ("upload_folder", httpx.ConnectError("x"), RunFailed, r"cannot be reached \(ConnectError\)"),
    ],
)
def test_what_the_hub_says_is_one_sentence(run, call, error, kind, words):
    with pytest.raises(kind, match=words) as e:
        publishing(run, api=Api(error=(call, error)))
    assert "kkk" not in str(e.value)


def test_the_command_line_is_private_and_gated_unless_told(run, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from pipeline.cli import app

    seen = []
    monkeypatch.setattr(publish, "publish", lambda *given, **options: seen.append((given, options)))
    for more in ([], ["--public", "--no-gated", "--adapter", "sft", "--dry-run", str(tmp_path / "o")]):
        assert CliRunner().invoke(app, ["publish", str(run.path), "--repo", REPO, *more]).exit_code == 0
    (given, options), (_, other) = seen
    assert (
        given[:2] == (str(run.path), Wanted(REPO, languages=[])) and options["private"] and options["gated"]
    )
    assert not other["private"] and not other["gated"]


def test_a_header_is_yaml_that_others_read(run, tmp_path):
    publishing(run, tmp_path)
    _, header, _ = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["configs"][0]["data_files"] == "mistakes/*.parquet"
