"""A judge that is named in `models` has engines without adapters, even if it is the run's own model."""

from pipeline import placement
from pipeline.inference.row_chat import OWN
from pipeline.run import Run
from pipeline.runtime.nodes import Node
from tests import scripted

GPU = {"num_gpus": 1, "max_num_seqs": 64}


def config(run_dir, model: str | None):
    named = {"model": model} if model else {}
    return scripted.config(
        run_dir,
        engine=GPU,
        models={"judge": {"path": "toy", "engine": GPU}} if model else {},
        evaluation={"harmful": {"path": "toy:harmful-heldout"}, "harmless": {"kind": "rating", **named}},
    )


def test_its_engines_load_none_of_the_adapters_that_are_evaluated(tmp_path):
    given = config(tmp_path / "run", "judge")
    specs = Run(given).models(given.answering(None), ("adapter/sft",), ["evaluate"], "suites.safety.")
    assert specs[OWN].adapters == ("adapter/sft",) and specs["judge"].adapters == ()
    assert specs["judge"].model_dir == specs[OWN].model_dir, "the files are the same"
    assert list(given.passes("evaluate")) == ["engine", "models.judge.engine"], "answers come first"


def test_it_stands_beside_the_others_if_there_is_room(tmp_path):
    given = config(tmp_path / "run", "judge")
    one, two = ([Node("a", "10.0.0.1", 16, gpus)] for gpus in (1, 2))
    assert placement.standing_beside(given, "evaluate", two) == {"models.judge.engine"}
    assert placement.standing_beside(given, "evaluate", one) == set()


def test_a_judge_without_a_name_asks_the_engine_that_answers(tmp_path):
    given = config(tmp_path / "run", None)
    specs = Run(given).models(given.answering(None), ("adapter/sft",), ["evaluate"], "suites.safety.")
    assert list(specs) == [OWN] and list(given.passes("evaluate")) == ["engine"]
