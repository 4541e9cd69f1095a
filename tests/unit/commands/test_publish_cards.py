"""What a card says of itself: a title, rounded numbers, languages. And private files of others stay private."""

import pytest
from huggingface_hub import ModelCard

from pipeline.commands import licenses
from pipeline.errors import UserError
from pipeline.schema import PREFERENCES, SFT
from pipeline.suites.safety.schema import ANSWERS
from tests.unit.commands.reports import no_figures
from tests.unit.commands.test_publish import REPO, Api, Made, answers, publishing


@pytest.fixture(scope="module", autouse=True)
def no_network():
    with pytest.MonkeyPatch.context() as patch:
        no_figures(patch)
        patch.setattr(licenses, "_on_hub", lambda name, kind: None)
        yield


@pytest.fixture
def run(tmp_path):
    return Made(tmp_path)


def written(tmp_path) -> ModelCard:
    return ModelCard.load(tmp_path / "out" / "README.md")


def test_an_adapter_has_the_language_of_what_it_was_trained_on(run, tmp_path):
    told = publishing(run, tmp_path, adapter="sft")
    assert written(tmp_path).data.language == ["en"] and "publish: languages en" in told


def test_so_has_one_that_was_trained_on_pairs(tmp_path):
    ask = "Wie kann ich heimlich eine Fahrkarte fälschen, ohne dass es jemand merkt?"
    turn = {"role": "assistant", "content": "Dabei helfe ich nicht, denn das schadet anderen Menschen."}
    pair = {
        "prompt": [{"role": "user", "content": ask}],
        "chosen": [turn],
        "rejected": [turn],
        "kind": "pair",
    }
    run = Made(
        tmp_path,
        recipe={"name": "course_correction"},
        mix=None,
        train={"method": "dpo"},
        arms={"sft": {}},
        instructions={"path": "toy:detailed-train"},
    )
    run.dataset(PREFERENCES, [{"id": str(n), "instruction_id": str(n), **pair} for n in range(5)])
    publishing(run, tmp_path, adapter="sft")
    assert written(tmp_path).data.language == ["de"]


def test_a_language_that_is_given_goes_before(run, tmp_path):
    publishing(run, tmp_path, adapter="sft", languages=["nl"])
    assert written(tmp_path).data.language == ["nl"]


@pytest.mark.parametrize("damage", [False, True])
def test_without_a_certain_language_the_line_is_left_out_with_a_hint(run, tmp_path, damage):
    if damage:  # the adapter is whole all the same
        run.dataset(ANSWERS, answers(), made_from={"sft": "another"})
        [shard] = (run.path / "sft").glob("*.parquet")
        shard.unlink()
    else:
        run.dataset(SFT, [{"id": "1", "kind": "safe", "messages": []}])
    told = publishing(run, tmp_path, adapter="sft")
    assert "language" not in written(tmp_path).data.to_dict()
    assert "publish: the card names no language: give it as --language en" in told


def test_the_titles_say_what_it_is(run, tmp_path):
    publishing(run, tmp_path, adapter="sft")
    assert written(tmp_path).text.strip().startswith("# LoRA adapter `sft` of `toy`, trained by SFT\n")


def test_data_sets_are_called_after_their_methods(run, tmp_path):
    publishing(run, tmp_path)
    assert written(tmp_path).text.strip().startswith("# things: data sets of mistake analysis\n")


def test_numbers_are_as_exact_as_in_the_report(run, tmp_path):
    run.dataset(ANSWERS, answers_of_three(), made_from={"sft": run.digest})
    publishing(run, tmp_path, adapter="sft")
    card = written(tmp_path)
    [harmless] = [one for one in card.data.eval_results if one.metric_type == "harmless"]
    assert harmless.metric_value == 0.667
    assert "| 0.667 | " in card.text and "0.6666" not in card.content


def answers_of_three() -> list[dict]:
    """Three answers per arm, of which one is harmful."""
    kept = [row for row in answers() if not row["id"].endswith("-3")]
    return [{**row, "harmful": row["id"].endswith("-0")} for row in kept]


# -- opening a private repository


def test_a_private_repository_with_files_of_others_is_not_opened(run):
    api = Api(private=True, there=[".gitattributes", "README.md", "notes/mine.txt", "sft/data-00000.parquet"])
    with pytest.raises(UserError) as e:
        publishing(run, api=api, public=True)
    assert str(e.value) == (
        f"--public: {REPO} is private and holds 1 other file, such as notes/mine.txt, which everyone could see"
        " then; name another repository, or make this one public on the hub first"
    )
    assert [name for name, *_ in api.calls] == ["whoami", "create_repo"], "nothing was changed or sent"


def test_one_that_holds_only_what_is_sent_is_opened(run, tmp_path):
    publishing(run, tmp_path)
    own = [
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()
    ]
    publishing(run, api=(api := Api(private=True, there=[".gitattributes", *own])), public=True)
    assert [name for name, *_ in api.calls][2:] == ["update_repo_settings", "upload_folder"]


def test_a_private_upload_may_go_beside_other_files(run):
    publishing(run, api=(api := Api(private=True, there=["notes/mine.txt"])))
    assert [name for name, *_ in api.calls][-1] == "upload_folder"
