"""What made a data set: its origin, for its card."""

from pipeline.config import Config
from pipeline.data import storage
from pipeline.data.card import Origin
from pipeline.methods.base import Method
from pipeline.schema import Schema
from pipeline.settings.base import NameKind, Section, Source
from pipeline.settings.walk import paths, sections
from pipeline.training.durability import DURABILITY


def origin(config: Config, schema: Schema, verdicts_of: tuple[str, str] | None = None) -> Origin:
    """The origin of a data set, for its card. verdicts_of: of verdicts, the suite and the judge by name."""
    if verdicts_of:
        judge = config.suites.items()[verdicts_of[0]].judges_later[verdicts_of[1]]
        asked = config.answering(judge.asked) if judge.most_tokens() else None
        wrote = asked.engine.author(asked.model) if asked else "(none: its judge reads phrases)"
        answers = config.suites.items()[verdicts_of[0]].data_schema.name
        return Origin(
            [wrote], config.seed, [storage.join(config.run_dir, answers)], [judge], _authors(config, [judge])
        )
    authors: dict[str, None] = {}  # in order
    made_by: list[Section] = []
    for name, method in config.methods.items():
        if schema in (method.generated, *method.training_sets):
            made_by.append(method)
            found, (_, adapter) = config.generator(name), method.generator
            author = found.engine.author(found.model)
            authors[author + (f" with adapter `{adapter}`" if adapter else "")] = None
    if schema == DURABILITY and config.durability:
        made_by.append(config.durability)
        authors["(none: its texts are the source's)"] = None
    for suite in config.suites.items().values():
        if suite.data_schema == schema:
            made_by.append(suite)
            authors[config.engine.author(config.model)] = None
    read = {
        source.path
        for section in made_by
        for name, source in sections(section, Source).items()
        if _is_read(section, name, schema)
    }
    parts = [part.model_copy(update={key: {} for key in getattr(part, "LATER", ())}) for part in made_by]
    return Origin([*authors], config.seed, sorted(read), parts, _authors(config, parts))


def _authors(config: Config, parts: list[Section]) -> dict[str, str]:
    """The entries of `models` that sections name, in words."""
    names = sorted({name for part in parts for name in paths(part, NameKind.MODEL).values()})
    found = map(config.answering, names)
    return {name: one.engine.author(one.model) for name, one in zip(names, found, strict=True)}


def _is_read(section: Section, name: str, schema: Schema) -> bool:
    """Whether a source is read for a data set: a method's `generate` does not read sources of `mix`."""
    return not (
        isinstance(section, Method) and schema == section.generated and name.split(".")[0] in section.mixing
    )
