"""Every field of the configuration says what it means."""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

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
        "model.dummy.latency_s",
        "methods.NAME.verify.draw.top_p",
        "arms.NAME.train.lora.rank",
        "suites.c2_eval.judge.endpoint.url",
    } <= names


def test_a_field_without_a_description_is_named():
    """The check above can fail."""

    class Inner(Section):
        bare: int = 0

    class Outer(Section):
        inner: list[Inner] | None = Field(None, description="some")

    assert undescribed(Outer) == ["inner.bare"]
