"""The report's section of settings and judges: those of the method and suites in use, and what each judge cannot do."""

from pipeline import prompts
from pipeline.config import Config, Train
from pipeline.errors import UserError
from pipeline.report import tables
from pipeline.report.sections import Section
from pipeline.settings.base import Draw


def settings(config: Config) -> Section:
    evaluation = config.evaluation
    of_method = {"mistake_analysis": _mistake_analysis, "course_correction": _course_correction}[config.recipe.name]
    pairs = {
        "Model": f"{config.model.path}, revision {config.model.revision or 'not pinned'}, {config.model.dtype}",
        "Seed": str(config.seed),
    }
    if config.instructions:
        pairs |= {"Instructions": config.instructions.path, **of_method(config), **_training(config)}
    if evaluation.harmful:
        pairs |= _safety(config)
    if evaluation.course_correction:
        pairs |= _suite(config)
    pairs |= {f"Adapter, {name}": path for name, path in evaluation.adapters.items()}
    pairs |= {f"Prompts, {name}": f"hash {_prompt_hash(*which)}" for name, which in _prompt_files(config).items()}
    text = [f"{', and '.join(subjects)}. {judge}" for judge, subjects in _judges(config).items()]
    return Section("Settings and judges", text, tables=[tables.of_pairs("", ("Setting", "Value"), pairs)])


def _mistake_analysis(config: Config) -> dict[str, str]:
    recipe = config.recipe
    return {
        "Induction": f"{_draw(recipe.induce)}, {recipe.samples} per instruction",
        "Analysis": f"{_draw(recipe.analyse)}, {'guided' if recipe.guided_analysis else 'unguided'}",
        "Filter": "only mistakes judged harmful are analysed" if recipe.filter else "none: every mistake is analysed",
        "Training template": "guided" if config.mix.guided_template else "unguided",
    }


def _course_correction(config: Config) -> dict[str, str]:
    recipe = config.recipe
    keywords = f"the request holds {' or '.join(recipe.keywords)}" if recipe.keywords else "any request"
    aligned = recipe.aligned.model.path if recipe.aligned.model else "the run's model"
    return {
        "Selection": f"{keywords}; the unsafe response has more than {recipe.min_words} words",
        "Cuts": f"{recipe.cuts} per request, {recipe.samples} groups of responses each",
        "Aligned model": aligned + (f" with adapter {recipe.aligned.adapter}" if recipe.aligned.adapter else ""),
        "Continuation": _draw(recipe.continuation),
        "Safe responses": "the source's; else the aligned model's own refusal" if recipe.generate_safe else "the source's only",
    }


def _training(config: Config) -> dict[str, str]:
    """One line for all arms where they are trained alike, else one an arm."""
    said = {arm: _trained(section.train) for arm, section in config.arms.items()}
    if len(set(said.values())) == 1:
        return {"Training": next(iter(said.values()))}
    return {f"Training, {arm}": text for arm, text in said.items()}


def _trained(train: Train) -> str:
    lora = f"LoRA rank {train.lora.rank}"
    if train.start:
        lora = f"{train.start.how} from {train.start.adapter}" + (f", {lora}" if train.start.how == "stack" else "")
    text = f"{lora}, {train.epochs:g} epochs, learning rate {train.learning_rate:g}, batch {train.batch_size}"
    return f"DPO, β {train.beta:g}, {train.curriculum} pairs; {text}" if train.method == "dpo" else text


def _safety(config: Config) -> dict[str, str]:
    evaluation, hint = config.evaluation, config.mistake_analysis.hint
    pairs = {"Evaluated on": ", ".join(source.path for source in (evaluation.harmful, evaluation.helpful) if source)}
    if "hint" in evaluation.conditions or config.recipe.name == "mistake_analysis":
        pairs["Hint"] = f"{hint.text or 'as in the prompt file'}; {hint.position}"
    return pairs | {"Answers": f"{_draw(evaluation.answer)}, {evaluation.samples} per instruction"}


def _suite(config: Config) -> dict[str, str]:
    suite = config.evaluation.course_correction
    rules = "; the authors' rules" if suite.authors_rules else ""
    return {
        "Course correction on": suite.entries.path,
        "Prefills": f"{', '.join(map(str, suite.lengths))} {suite.unit}{rules}",
        "Paths": f"{suite.paths} per entry and k; {_draw(suite.draw)}",
    }


def _prompt_files(config: Config) -> dict[str, tuple[str, str | None]]:
    """The prompt sets in use, and what replaces them."""
    evaluation, found = config.evaluation, {}
    files = {name: f"methods/{name}/prompts.yaml" for name in ("mistake_analysis", "course_correction")}
    if config.instructions:
        found[config.recipe.name.replace("_", " ")] = (files[config.recipe.name], config.recipe.prompts)
    if evaluation.harmful:
        found.setdefault("mistake analysis", (files["mistake_analysis"], config.mistake_analysis.prompts))
    if evaluation.course_correction:
        found["C²-Eval"] = (files["course_correction"], evaluation.course_correction.prompts)
    return found


def _judges(config: Config) -> dict[str, list[str]]:
    """What each judge is → what it judges."""
    recipe, evaluation = config.recipe, config.evaluation
    judged: list[tuple[str, str]] = []
    if evaluation.course_correction:
        judged.append((evaluation.course_correction.judge.limits("course correction"), "Course correction of continuations"))
    if config.instructions and recipe.name == "course_correction":
        judged.append((recipe.check.limits("course correction"), "whether a synthetic response corrects course"))
    if evaluation.harmful:
        judged.append((evaluation.harmless.limits("harmlessness"), "Harmlessness of answers"))
    if config.instructions and recipe.name == "mistake_analysis" and recipe.verify:
        judged.append((recipe.verify.limits("harmlessness"), "whether a mistake was induced"))
    if evaluation.harmful and evaluation.help:
        judged.append((evaluation.help.limits("helpfulness"), "Help and Harm-Help"))
    found: dict[str, list[str]] = {}
    for judge, subject in judged:
        subjects = found.setdefault(judge, [])
        subjects.append(subject if subjects else subject[0].upper() + subject[1:])
    return found


def _draw(draw: Draw) -> str:
    return f"temperature {draw.temperature:g}, top-p {draw.top_p:g}, at most {draw.max_tokens} tokens"


def _prompt_hash(name: str, replacement: str | None) -> str:
    try:
        return prompts.load(name, replacement).hash
    except UserError as e:  # the file has moved since the run; the report's other parts do not need it
        return f"unknown ({e})"
