"""Training conversations of more than one exchange are tried on the chat template before an engine starts."""

import pytest

from pipeline.errors import UserError
from tests import scripted, tiny
from tests.unit.models import save
from tests.unit.test_preflight_models import checked, refused

ONE_EXCHANGE = "{% if messages | length > 2 %}{{ raise_exception('Only one exchange') }}{% endif %}"
LAST_TWO = tiny.CHATML.replace("in messages", "in messages[-2:]")
METHOD = {"name": "chain_of_hindsight", "instructions": {"path": "toy:detailed-train", "limit": 4}}


def config(tmp_path, template: str, forms: list[str]):
    mix = {"forms": forms, "loss": "safe"}
    return scripted.config(
        tmp_path / "run",
        model={"path": save(tmp_path / "model", None, template), "dtype": "float32"},
        methods={"hindsight": {**METHOD, "mix": mix}},
        train={"bf16": False},
    )


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (ONE_EXCHANGE + tiny.CHATML, "cannot be rendered (Only one exchange)"),
        (LAST_TWO, "leaves out or moves the text of the user turn"),
    ],
)
def test_a_template_for_one_exchange_is_refused_if_two_are_trained_on(tmp_path, template, why):
    told = refused(config(tmp_path, template, ["good", "bad_good"]))
    assert told.startswith("methods.hindsight.mix.forms holds bad_good: the chat template of model")
    assert why in told and told.endswith(": choose another value, or another template")


@pytest.mark.parametrize("template", [ONE_EXCHANGE + tiny.CHATML, LAST_TWO])
def test_it_is_not_refused_for_one_exchange(tmp_path, template):
    assert checked(config(tmp_path, template, ["good"]), {"train"}) == []


def test_a_usual_template_takes_both_exchanges(tmp_path):
    assert checked(config(tmp_path, tiny.CHATML, ["bad_good"]), {"generate", "mix", "train"}) == []


def test_without_training_nobody_asks(tmp_path):
    made = config(tmp_path, LAST_TWO, ["bad_good"])
    assert checked(made, {"generate"}) == []
    with pytest.raises(UserError):
        checked(made, {"train"})
