"""What determines the content of each output of a run. A run directory made under another fingerprint is refused, never mixed."""

from pipeline import prompts
from pipeline.config import Config
from pipeline.recipes import method
from pipeline.settings.base import Model
from pipeline.toy.model import shipped_recipe


def fingerprints(config: Config) -> dict[str, dict]:
    """By output name: the model, the seed, and the prompts and sections that the output's stage reads.

    What an output is derived from is added when its stage is opened (`made_from`, the digests of earlier outputs and of given adapters).
    """
    model = _model(config.model)
    endpoint = config.inference.endpoint
    generator = {**model, "endpoint": {"url": endpoint.url, "model": endpoint.model}} if endpoint else model
    recipe = config.recipe.model_dump(mode="json")
    recipe_texts = {config.recipe.name: prompts.load(f"methods/{config.recipe.name}/prompts.yaml", config.recipe.prompts).hash}
    judge = getattr(config.recipe, "verify", None) or getattr(config.recipe, "check", None)
    verify = judge.prompt_hashes() if judge else {}

    def made_with(model: dict, prompt_hashes: dict, **sections: dict | None) -> dict:
        return {"model": model, "seed": config.seed, "prompts": prompt_hashes, **sections}

    made = method(config)
    source = config.instructions and config.instructions.model_dump(mode="json")
    found = {
        made.generated.name: made_with(generator, recipe_texts | verify, instructions=source, recipe=recipe),
        made.training_set.name: made_with(model, recipe_texts, mix=config.mix and config.mix.model_dump(mode="json")),
    }
    for name, arm in config.arms.items():
        weights = arm.train.model_dump(mode="json", exclude=arm.train.OPERATIONAL - {"merge"})
        found[f"adapter/{name}"] = made_with(model, {}, train=weights, arm={"kinds": arm.kinds})
    return found | _suites(config, model, made_with)


def _suites(config: Config, model: dict, made_with) -> dict[str, dict]:
    evaluation, suite = config.evaluation, config.evaluation.course_correction
    asked = config.mistake_analysis
    texts = {
        "mistake_analysis": prompts.load("methods/mistake_analysis/prompts.yaml", asked.prompts).hash,
        **evaluation.harmless.prompt_hashes(),
        **(evaluation.help.prompt_hashes() if evaluation.help else {}),
    }
    section = evaluation.model_dump(mode="json", exclude={"course_correction"})
    found = {"evaluation": made_with(model, texts, evaluation=section, hint=asked.hint.model_dump(mode="json"))}
    if suite is not None:
        texts = {"course_correction": prompts.load("methods/course_correction/prompts.yaml", suite.prompts).hash}
        texts |= suite.judge.prompt_hashes()
        section = {"course_correction": suite.model_dump(mode="json"), "adapters": evaluation.adapters}
        found["continuations"] = made_with(model, texts, evaluation=section)
    return found


def _model(model: Model) -> dict:
    facts = model.model_dump(mode="json", exclude={"dummy": {"latency_s"}})
    if model.path == "toy":
        facts["build"] = shipped_recipe()["hash"]
    return facts
