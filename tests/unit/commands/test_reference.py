"""Every field of the configuration has a description, and docs/configuration.md is made of them."""

import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from pipeline.commands import reference
from pipeline.config import Config
from pipeline.settings.base import Section


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections in a type: itself, or members of a union, values of a dict, items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models(part)


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field below a section, by dotted name; sections of a dict stand under `NAME`."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        named = ".NAME" if str(field.annotation).startswith("dict[") else ""
        for inner in models(field.annotation):
            yield from fields(inner, f"{prefix}{name}{named}.")


def undescribed(model: type[BaseModel]) -> list[str]:
    return sorted({name for name, field in fields(model) if not field.description})


def test_every_field_has_a_description():
    assert undescribed(Config) == []


def test_the_walk_reaches_every_kind_of_section():
    """The check above looks into unions, optional sections, dicts and lists."""
    names = {name for name, _ in fields(Config)}
    assert {
        "seed",
        "engine.latency_s",
        "methods.NAME.engine.url",
        "methods.NAME.verify.draw.top_p",
        "arms.NAME.train.lora.rank",
        "suites.c2_eval.judge.model",
        "models.NAME.engine.url",
    } <= names


def test_a_field_without_a_description_is_named():
    """The check above can fail."""

    class Inner(Section):
        bare: int = 0

    class Outer(Section):
        inner: list[Inner] | None = Field(None, description="some")

    assert undescribed(Outer) == ["inner.bare"]


def test_the_page_is_what_the_code_says():
    written = reference.FILE.read_text(encoding="utf-8")
    assert written == reference.reference(), "docs/configuration.md is out of date: run `make reference`"


def test_every_field_is_on_the_page():
    page = reference.reference()
    assert [name for name, _ in fields(Config) if f"| `{name.rpartition('.')[2]}` |" not in page] == []


def test_links_lead_to_headings():
    page = reference.reference()
    titles = re.findall(r"^## (.*)", page, re.M)
    headings = [re.sub(r"[`():]", "", title).lower().replace(" ", "-") for title in titles]
    assert len(set(headings)) == len(headings)
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= set(headings)


def test_types_and_defaults_are_said_in_words():
    page = reference.reference()
    assert "| `seed` | integer ≥ 0 | `0` |" in page
    assert "| `dropout` | number ≥ 0, < 1 | `0.0` |" in page
    assert "| `run_dir` | text | – |" in page
    assert "| `tokens` | [integer ≥ 1, integer ≥ 1] | `[16, 48]` |" in page
    assert "| `help` | [Rating (`kind: rating`)](#rating-kind-rating) or `null` | `{kind: rating}` |" in page
