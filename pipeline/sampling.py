"""How steps are sampled if the configuration leaves it open: as the model's generation_config.json says.

The values are written into the configuration before anything reads it, so that recipes, cards, fingerprints
and the run's config.yaml hold what is used. vLLM itself takes none of them (see `inference.vllm_model`).
"""

from collections.abc import Collection, Iterator
from typing import Any

from pydantic import ValidationError

from pipeline import models, pretrained
from pipeline.config import Answering, Config
from pipeline.data import storage
from pipeline.data.output import Output
from pipeline.errors import UserError
from pipeline.settings.base import Draw, NameKind, Section
from pipeline.settings.shown import shown
from pipeline.settings.walk import paths, replaced, sections

# Settings of generation_config.json that change what is sampled, are not offered here, and their neutral
# values.
_NOT_FOLLOWED: dict[str, tuple] = {
    "typical_p": (1, 1.0), "top_h": (), "epsilon_cutoff": (0, 0.0), "eta_cutoff": (0, 0.0),
    "no_repeat_ngram_size": (0,), "encoder_repetition_penalty": (1, 1.0), "num_beams": (1,),
    "penalty_alpha": (0, 0.0), "presence_penalty": (0, 0.0), "frequency_penalty": (0, 0.0),
    "bad_words_ids": ([],), "sequence_bias": ({}, []), "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],), "forced_bos_token_id": (), "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (), "min_new_tokens": (0,), "min_length": (0,),
    "stop_strings": ([], ""), "guidance_scale": (1, 1.0), "watermarking_config": (),
}  # fmt: skip


def resolved(
    config: Config, stages: Collection[str], suites: Collection[str], directory: str | None = None
) -> tuple[Config, list[str]]:
    """The configuration with every sampling setting written out that the run's engines need, and notices.

    For stages that are not run, the values are those that their data was made with. directory: of the run's
    model, if known. Raises UserError for a generation_config.json that cannot be read or used, and for
    repeated samples that would all be equal.
    """
    changes: dict[str, Section] = {}
    notices: dict[str, None] = {}
    rejudged = {f"suites.{name}" for name in suites if "rejudge" in stages}
    for place, part, own, asked in _parts(config, stages, suites):
        if not asked:
            changes |= _recorded(config, place, part)
        for name, draw in sections(part, Draw, place).items():
            one = _answering(config, part, place, name, own)
            later = any(name.startswith(f"{place}.{field}.") for field in getattr(part, "LATER", ()))
            if one.engine.reads_model and (place in rejudged if later else asked):
                mine = one.field == "model" and directory is not None
                known, told = _of_model(one, directory if mine and directory else models.model_dir(one.model))
                notices |= dict.fromkeys(told)
                changes[name] = _settled(draw, known, name, one)
    config = replaced(config, changes)
    for place, part, _, asked in _parts(config, stages, suites):
        if asked:
            _check_repeats(place, part)
    return config, [*notices]


def _parts(
    config: Config, stages: Collection[str], suites: Collection[str]
) -> Iterator[tuple[str, Any, Answering, bool]]:
    """Methods and suites: (field, section, the model that it asks, whether it is run)."""
    for name, method in config.methods.items():
        yield f"methods.{name}", method, config.generator(name), "generate" in stages
    for name, suite in config.suites.items().items():
        yield f"suites.{name}", suite, config.answering(None), "evaluate" in stages and name in suites


def _answering(config: Config, part: Section, place: str, name: str, own: Answering) -> Answering:
    """The model that a draw is asked of: the entry of `models` that the section around it names, or `own`."""
    named = _names(part, place)
    around = next((field for field in named if name.startswith(field)), None)
    return own if around is None else config.answering(named[around])


def _names(part: Section, place: str) -> dict[str, str]:
    """The entries of `models` that sections within a part name, by the beginning of the sections' fields."""
    named = paths(part, NameKind.MODEL, place).items()
    found = {f"{field.rpartition('.')[0]}.": name for field, name in named}
    return {field: name for field, name in found.items() if field != f"{place}."}


def of_engine(part: Section, place: str) -> dict[str, Draw]:
    """The draws of a part that are asked of its own engine, by field. Others are asked of named models."""
    named = tuple(_names(part, place))
    draws = sections(part, Draw, place).items()
    return {name: draw for name, draw in draws if not (named and name.startswith(named))}


def _of_model(one: Answering, directory: str) -> tuple[dict[str, Any], list[str]]:
    """The sampling settings of a model's generation_config.json, and notices. Raises UserError."""
    model = one.model
    try:
        found = pretrained.generation_settings(directory, model.revision)
    except (OSError, ValueError) as e:
        raise UserError(
            f"{one.field}.path = {model.path}: its generation_config.json cannot be read ({shown(e)})"
        ) from None
    known = {name: found[name] for name in Draw.NEUTRAL if name in found}
    if known.get("top_k") == -1:  # vLLM's word for all
        known["top_k"] = 0
    if found.get("do_sample") is False:
        known["temperature"] = 0.0
    told = []
    if known:
        values = ", ".join(f"{name} {value}" for name, value in known.items())
        told.append(f"unset sampling settings follow generation_config.json of {model.path}: {values}")
    odd = [name for name, neutral in _NOT_FOLLOWED.items() if name in found and found[name] not in neutral]
    if odd:
        told.append(
            f"generation_config.json of {model.path} also sets {', '.join(odd)}, which is not followed"
        )
    return known, told


def _settled(draw: Draw, known: dict[str, Any], name: str, one: Answering) -> Draw:
    """A draw, with the model's values for what it leaves open. Raises UserError for an unusable value."""
    missing = [field for field in Draw.NEUTRAL if getattr(draw, field) is None]
    if draw.is_greedy or ("temperature" in missing and known.get("temperature") == 0):
        # The likeliest token is taken, whatever top_p, top_k and min_p.
        known = {field: known[field] for field in ("temperature", "repetition_penalty") if field in known}
    values = {field: known.get(field, Draw.NEUTRAL[field]) for field in missing}
    try:
        found = Draw.model_validate(values)
    except ValidationError as e:
        field = str(e.errors()[0]["loc"][0])
        raise UserError(
            f"{one.field}.path = {one.model.path}: its generation_config.json has {field} ="
            f" {str(values[field])[:40]!r}, which cannot be used; fix the file, or set {name}.{field}"
        ) from None
    return draw.model_copy(update={field: getattr(found, field) for field in missing})


def _recorded(config: Config, place: str, part: Any) -> dict[str, Section]:
    """The draws of finished data, for what the configuration leaves open."""
    kind, _, _ = place.partition(".")
    schema = part.generated if kind == "methods" else part.data_schema
    found = Output(storage.absolute(config.run_dir), schema.name).fingerprint
    if found is None:
        return {}
    changes: dict[str, Section] = {}
    _, _, suite = place.partition(".")
    own = found.get(part.name) if kind == "methods" else found.get("suites", {}).get(suite)
    for name, draw in sections(part, Draw, place).items():
        at = own
        for key in name.removeprefix(f"{place}.").split("."):
            at = at.get(key) if isinstance(at, dict) else None
        if isinstance(at, dict) and "temperature" in at:
            known = Draw.NEUTRAL if at["temperature"] is not None else {}
            values = {field: at.get(field, known.get(field)) for field in Draw.NEUTRAL}
            changes[name] = draw.model_copy(
                update={field: value for field, value in values.items() if getattr(draw, field) is None}
            )
    return changes


def _check_repeats(place: str, part: Any) -> None:
    """Raises UserError if every answer to the same question would be the same."""
    field, count, draws = part.repeats
    if count > 1 and draws and all(draw.is_greedy for draw in draws.values()):
        raise UserError(
            f"{place}.{field} = {count}: sampling is greedy, so all {count} would be equal; set"
            f" {place}.{next(iter(draws))}.temperature above 0, or {field}: 1"
        )
