"""Templates that write today's date: a run directory keeps the day on which it began, and no resume deletes
checkpoints."""

from contextlib import nullcontext
from datetime import date

import pytest

from pipeline import experiment, models, preflight, pretrained
from pipeline.data import storage
from pipeline.errors import UserError
from pipeline.run import Machinery
from pipeline.training import arm
from pipeline.training.arm import Places
from pipeline.training.job import forget
from tests import scripted, tiny

DATED = (
    "{{ '<|im_start|>system\\n' + (date_string or strftime_now('%d %B %Y')) + '<|im_end|>\\n' }}"
    + tiny.CHATML
)
FIRST, NEXT = date(2026, 3, 1), date(2026, 3, 2)


def is_today(monkeypatch, day: date) -> None:
    class Clock(date):
        @classmethod
        def today(cls):
            return day

    monkeypatch.setattr("pipeline.preflight.run_dir.date", Clock)
    monkeypatch.setattr("pipeline.templates.date", Clock)


@pytest.fixture
def place(tmp_path):
    tiny.save(tmp_path / "model", DATED)
    tiny.write(tmp_path / "run" / "sft", tiny.rows(12))
    return tmp_path


def config(place, **changes):
    made = tiny.config(str(place / "model"))
    model = made.model.model_copy(update=changes)
    return made.model_copy(update={"run_dir": str(place / "run"), "model": model})


def prepare(place, made):
    """The training set and its state, as an attempt of `train` makes them before any worker starts."""
    from pipeline.data.dataset import Dataset

    places = Places(Dataset.at(str(place / "run" / "sft")), str(place / "adapter"), str(place / "state"))
    return arm._prepare(tiny.spec(made, "sft"), places)


def begun(made) -> None:
    storage.create(preflight.date_file(made), str(preflight.dated(made).model.date))


def test_a_training_goes_on_tomorrow(place, monkeypatch):
    is_today(monkeypatch, FIRST)
    made = config(place)
    begun(made)
    [job] = prepare(place, preflight.dated(made)).jobs
    storage.write_text(f"{job.state}/done-1/checkpoint", "days of work")
    is_today(monkeypatch, NEXT)
    [later] = prepare(place, preflight.dated(made)).jobs
    assert later.name == job.name
    assert storage.read_text(f"{job.state}/done-1/checkpoint") == "days of work"
    template = models.load_template(preflight.dated(made).model, str(place / "model"))
    assert "01 March 2026" in template.tokenizer.decode(template.prompt([{"role": "user", "content": "how"}]))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"date": NEXT}, "training set: "),
        ({"chat_template_kwargs": {"date_string": "1 April"}}, "model.chat_template_kwargs: null"),
        ({"max_length": 64}, "model.max_length: null in the run directory, 64 in this config"),
    ],
)
def test_checkpoints_of_another_fingerprint_are_refused_and_kept(place, change, difference):
    [job] = prepare(place, config(place, date=FIRST)).jobs
    storage.write_text(f"{job.state}/done-1/checkpoint", "days of work")
    with pytest.raises(UserError, match="holds an unfinished training under other settings") as e:
        prepare(place, config(place, **{"date": FIRST, **change}))
    assert difference in str(e.value) and "\n" not in str(e.value) and "--overwrite" in str(e.value)
    assert storage.read_text(f"{job.state}/done-1/checkpoint") == "days of work"


def test_other_weights_are_one_of_the_differences(place):
    [job] = prepare(place, config(place, date=FIRST)).jobs
    (place / "model" / "config.json").touch()
    with pytest.raises(UserError, match=r"\(weights: "):
        prepare(place, config(place, date=FIRST))
    assert storage.exists(job.state)


def test_checkpoints_of_arms_that_are_not_trained_here_stay(tmp_path):
    name = "0123456789abcdef"
    for child in (f"1-1/a-{name}-step-00000002", f"1-1/b-{name}-step-00000002", f"2-1/a-{name}-finished"):
        storage.write_text(str(tmp_path / "train" / child / "file"), "")
    forget(str(tmp_path / "train"), {"a"})
    left = [str(path.relative_to(tmp_path / "train")) for path in (tmp_path / "train").glob("*/*")]
    assert left == [f"1-1/b-{name}-step-00000002"]
    forget(str(tmp_path / "train"), {"a", "b"})
    assert not (tmp_path / "train").exists()


# -- the run directory


def no_files(monkeypatch) -> None:
    """The model is on no disk and in no hub."""
    monkeypatch.setattr(preflight, "check_models", lambda *_: [])
    monkeypatch.setattr(pretrained, "generation_settings", lambda *_: {})


def run(tmp_path, seen: list, overwrite: bool = False, **model) -> None:
    def engines(jobs, spec, **_):
        seen.append(spec.model.date)
        raise KeyboardInterrupt
        yield

    machinery = Machinery(lambda _: nullcontext(), lambda *_: None, engines, None)
    settings = {
        "model": {"path": "org/model", **model},
        "instructions": {"path": "toy:harmful-train", "limit": 2},
    }
    with pytest.raises(KeyboardInterrupt):
        experiment.run(
            scripted.config(tmp_path / "run", **settings),
            ["generate"],
            overwrite=overwrite,
            machinery=machinery,
            log=lambda _: None,
        )


def test_every_process_gets_the_date_of_the_run_directory(tmp_path, monkeypatch):
    no_files(monkeypatch)
    seen: list = []
    for day in (FIRST, NEXT):
        is_today(monkeypatch, day)
        run(tmp_path, seen)
    assert seen == [FIRST, FIRST]
    assert "date: '2026-03-01'" in (tmp_path / "run" / "config.yaml").read_text()
    run(tmp_path, seen, date="2026-03-01")  # as that file says
    with pytest.raises(UserError, match=r"^model\.date = 2026-03-02: the run directory .* with 2026-03-01;"):
        run(tmp_path, seen, date="2026-03-02")


def test_a_date_may_be_named(tmp_path, monkeypatch):
    no_files(monkeypatch)
    seen: list = []
    run(tmp_path, seen, date="2025-12-24")
    assert seen == [date(2025, 12, 24)]


def test_another_date_may_be_named_if_everything_is_made_anew(tmp_path, monkeypatch):
    no_files(monkeypatch)
    seen: list = []
    run(tmp_path, seen, date="2025-12-24")
    with pytest.raises(UserError, match="make all of it anew with --overwrite"):
        run(tmp_path, seen, date="2025-12-25")
    run(tmp_path, seen, overwrite=True, date="2025-12-25")
    run(tmp_path, seen)  # goes on with it
    run(tmp_path, seen, overwrite=True)
    assert seen == [date(2025, 12, 24), *[date(2025, 12, 25)] * 3]
    (tmp_path / "run" / "sft").mkdir()  # an output of a stage that is not overwritten
    with pytest.raises(UserError, match=r"^model\.date = 2025-12-26: "):
        run(tmp_path, seen, overwrite=True, date="2025-12-26")


def test_a_broken_record_of_the_date_is_one_sentence(place):
    storage.write_text(preflight.date_file(made := config(place)), "")
    with pytest.raises(UserError, match="holds no date: write the day"):
        preflight.dated(made)
