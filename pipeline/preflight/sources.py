"""Sources of instructions: which are read, and whether they can be."""

from collections import defaultdict
from collections.abc import Mapping

from pipeline.config import Config
from pipeline.errors import OutOfReach, UserError
from pipeline.settings.base import Section, Source
from pipeline.settings.walk import sections
from pipeline.sources import instructions


def sources(config: Config, stages: set[str], suites: set[str]) -> dict[str, Source]:
    """The instruction sources that the stages and suites read, by field name."""
    found: dict[str, Source] = {}
    for field, section in used(config, stages, suites).items():
        mixing: frozenset[str] = getattr(section, "mixing", frozenset())
        for name, source in sections(section, Source, field).items():
            stage = "mix" if name.removeprefix(f"{field}.").split(".")[0] in mixing else "generate"
            if stage in stages or not field.startswith("methods."):
                found[name] = source
    if config.durability and "mix" in stages:
        found["durability.data"] = config.durability.data
    return found


def unreachable(config: Config, stages: set[str]) -> dict[str, str]:
    """Sources on servers that do not answer (such as without network), and why.

    `plan` works without them, `run` does not. Any other error of a source is left to `check`.
    """
    found = {}
    for field, source in sources(config, stages, set(config.suites.items())).items():
        if source.path.startswith("hub:") or "://" in source.path:
            try:
                instructions.check(source)
            except OutOfReach as e:
                found[field] = str(e)
            except UserError:
                continue
    return found


def used(config: Config, stages: set[str], suites: set[str]) -> dict[str, Section]:
    """The sections that the stages and suites read, by field name."""
    found: dict[str, Section] = {}
    if stages & {"generate", "mix"}:
        found |= {f"methods.{name}": method for name, method in config.methods.items()}
    if stages & {"evaluate", "rejudge"}:
        found |= {f"suites.{name}": suite for name, suite in config.suites.items().items() if name in suites}
    return found


def check_source(field: str, source: Source, needs: Mapping[str, str]) -> None:
    """Check one source. needs: response that at least one row must have → remedy for the message."""
    try:
        instructions.check(source)
        for response, asker in needs.items():
            try:
                instructions.check(source, [response])
            except instructions.NoResponse as e:
                raise type(e)(f"{e}{asker}") from None
    except UserError as e:
        raise type(e)(f"{field}: {e}") from None


def needed_responses(config: Config, stages: set[str]) -> dict[str, dict[str, str]]:
    """Field of a source → response that at least one of its rows must have → remedy for the message."""
    needed: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name, method in config.methods.items():
        if method.needs_unsafe:
            needed[f"methods.{name}.instructions"]["unsafe_response"] = ""
        if method.needs_safe:
            needed[f"methods.{name}.instructions"]["safe_response"] = ""
        for kind in sorted(method.made_from.keys() & (method.kinds or ())) if "mix" in stages else ():
            arms = [arm for arm, section in config.arms.items() if kind in (section.kinds or ())]
            if arms:
                source, response = method.made_from[kind]
                remedy = f"; or leave {kind} out of arms.{arms[0]}.kinds" + (
                    f" (and of {', '.join(arms[1:])})" if arms[1:] else ""
                )
                needed[f"methods.{name}.{source}"].setdefault(response, remedy)
    if config.durability:
        needed["durability.data"]["safe_response"] = ""
    for name, suite in config.suites.items().items():
        for source in suite.needs_unsafe:
            needed[f"suites.{name}.{source}"]["unsafe_response"] = ""
    return needed
