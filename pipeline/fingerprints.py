"""The settings that determine each output of a run.

Outputs of another fingerprint are refused, never mixed.
"""

from pipeline.config import Config
from pipeline.judges import Judge
from pipeline.settings.base import FOR_FINGERPRINT, Model, Section
from pipeline.toy.model import shipped_recipe
from pipeline.training.durability import DURABILITY


def fingerprints(config: Config) -> dict[str, dict]:
    """By output name: the model and engine, the seed, and the prompts and sections that the stage reads.

    Each stage adds `made_from` when it opens an output: the digests of earlier outputs and of given adapters.
    """
    model = _model(config.model)

    def made_with(stage: str, model: dict, prompt_hashes: dict, **sections: dict | None) -> dict:
        return {"stage": stage, "model": model, "seed": config.seed, "prompts": prompt_hashes, **sections}

    found = {}
    for name, method in config.methods.items():
        section = _dumped(method, exclude={*method.OPERATIONAL, *method.mixing})
        generator = {**model, **config.generator(name).engine.determines()}
        named = _named(config, "generate", f"methods.{name}.")
        found[method.generated.name] = made_with(
            "generate", generator, method.prompt_hashes(), **{method.name: section}, **named
        )
    for schema, methods in config.training_sets().items():
        texts = {name: text for method in methods.values() for name, text in method.prompt_hashes().items()}
        mixed = {
            method.name: _dumped(method, include=set(method.mixing_of(schema))) for method in methods.values()
        }
        found[schema.name] = made_with("mix", model, texts, mix=mixed)
    for name, replica in config.replicas.items():
        arm = replica.section
        weights = arm.train.determines("merge")
        if not arm.train.equal_steps:  # finished adapters of older versions do not have it
            weights["equal_steps"] = False
        made = made_with("train", model, {}, train=weights, arm={"kinds": arm.kinds})
        found[f"adapter/{name}"] = {**made, "seed": replica.seed}
    if config.durability:
        found[DURABILITY.name] = made_with("mix", model, {}, data=_dumped(config.durability.data))
        for name, one in config.further.items():
            found[f"adapter/{name}"] = made_with(
                "train", model, {}, durability=config.durability.determines(one, config.train)
            )
    evaluator = {**model, **config.engine.determines()}
    for name, suite in config.suites.items().items():
        section = {name: _dumped(suite, exclude=set(suite.LATER))}
        if suite.compares_seen:
            section["seen"] = {field: _dumped(source) for field, source in config.trained_on().items()}
        named = _named(config, "evaluate", f"suites.{name}.")
        if config.asks and not suite.runs_apart:
            plain = sorted(suite.plain_steps)
            named["asks"] = {"texts": config.asks, "but": plain} if plain else config.asks
        found[suite.data_schema.name] = made_with(
            "evaluate", evaluator, suite.prompt_hashes(), suites=section, adapters=config.adapters, **named
        )
        for judge_name, judge in suite.judges_later.items():
            found[suite.verdicts_name(judge_name)] = {
                "stage": "rejudge",
                "seed": config.seed,
                **of_judge(judge, asked_by(config, judge)),
            }
    return found


def of_judge(judge: Judge, asked: dict) -> dict:
    """What determines a judge's verdicts on given answers: itself, its prompts, and the model that it asks.

    asked: as of `asked_by`. The name that the model has in `models` is no part of it.
    """
    section = _dumped(judge)
    if judge.asked:
        section["model"] = "named"
    return {"judge": section, "prompts": judge.prompt_hashes(), "model": asked}


def asked_by(config: Config, judge: Judge) -> dict:
    """What determines the texts of the model that a judge asks; {} if it asks none."""
    if judge.asked:
        return config.models[judge.asked].determines()
    return {**_model(config.model), **config.engine.determines()} if judge.tokens() else {}


def _named(config: Config, stage: str, field: str) -> dict[str, dict]:
    """What determines the texts of the entries of `models` that a section names; {} if it names none."""
    named = {
        name: config.models[name].determines()
        for place, name in config.named([stage]).items()
        if place.startswith(field)
    }
    return {"models": named} if named else {}


def _dumped(section: Section, include: set[str] | None = None, exclude: set[str] | None = None) -> dict:
    return section.model_dump(mode="json", context=FOR_FINGERPRINT, include=include, exclude=exclude)


def _model(model: Model) -> dict:
    facts = model.identity()
    if model.path == "toy":
        facts["build"] = shipped_recipe()["hash"]
    return facts
