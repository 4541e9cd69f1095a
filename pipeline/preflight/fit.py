"""Whether models, chat templates, lengths and precision fit what is asked of them."""

from pipeline import models, sampling
from pipeline.config import Answering, Config
from pipeline.errors import UserError
from pipeline.judges import Judge
from pipeline.methods.base import Method
from pipeline.preflight.sources import used
from pipeline.runtime.machine import cpu_has_bf16
from pipeline.settings.base import Draw, Model
from pipeline.settings.walk import sections
from pipeline.suites.base import Suite
from pipeline.templates import ChatTemplate, probe


def check_templates(config: Config, stages: set[str], suites: set[str], directory: str) -> list[str]:
    """Render what the stages will render, with texts that can be found again. Returns notices.

    Raises UserError for a conversation that a chat template cannot render, or of which it drops a text.
    """
    asked: dict[tuple[Model, str], dict[tuple[str, ...], str]] = {}
    own = (config.model, "model")

    def asks(one: Answering, conversations: dict[tuple[str, ...], str]) -> None:
        if one.engine.reads_model:
            place = (one.model, one.field)
            asked[place] = conversations | asked.get(place, {})

    for name, method in config.methods.items() if "generate" in stages else ():
        asks(config.generator(name), _asking(f"methods.{name}", method))
    for name, suite in config.suites.items().items():
        if "evaluate" in stages and name in suites:
            asks(config.answering(None), _asking(f"suites.{name}", suite))
    for field, judge in _judges(config, stages, suites).items():
        if judge.asked:
            asks(config.answering(judge.asked), _asking(field, judge))
    if "train" in stages:
        asked.setdefault(own, {})
    notices = []
    for (model, field), conversations in asked.items():
        template = models.load_template(
            model, directory if (model, field) == own else models.model_dir(model), field
        )
        template.check_arguments()
        for roles, setting in conversations.items():
            try:
                template.check_prompt(roles)
            except UserError as e:
                why, _, remedy = str(e).rpartition(": ")
                if setting:
                    raise UserError(f"{setting}: {why}: choose another value, or another template") from None
                raise UserError(f"{field}.path = {model.path}: {why}: {remedy}") from None
        if (model, field) == own:
            _check_own_template(config, stages, suites, template, directory)
        trained = (model, field) == own and "train" in stages and bool(config.arms)
        if thinking := template.thinking(trained=trained):
            notices.append(thinking)
    return notices


def _judges(config: Config, stages: set[str], suites: set[str]) -> dict[str, Judge]:
    """The judges that the stages ask, by field."""
    found: dict[str, Judge] = {}
    for name, method in config.methods.items() if "generate" in stages else ():
        found |= sections(method, Judge, f"methods.{name}")
    for name, suite in config.suites.items().items():
        later = [id(judge) for judge in suite.judges_later.values()]
        for field, judge in sections(suite, Judge, f"suites.{name}").items():
            if name in suites and ("rejudge" if id(judge) in later else "evaluate") in stages:
                found[field] = judge
    return found


def check_loaded(config: Config, stages: set[str], directory: str) -> None:
    """Raises UserError if an engine cannot load the weights of a model, or they cannot write texts."""
    for one in config.used(stages):
        if one.engine.reads_model:
            place = directory if one.field == "model" else models.model_dir(one.model)
            models.check_writes(one.model, place, one.field)
            if settings := models.quantization(one.model, place, one.field):
                one.engine.check_quantized(one.field, one.model, settings)


def _asking(place: str, part: Method | Suite | Judge) -> dict[tuple[str, ...], str]:
    """Roles of the conversations of a method, suite or judge → the field that asks for them."""
    conversations = part.conversations
    found = {roles: f"{place}.{setting}" if setting else "" for roles, setting in conversations.items()}
    prompted = [name for name, draw in sampling.of_engine(part, place).items() if draw.system]
    for roles in conversations if prompted else ():
        if roles[0] != "system":
            found.setdefault(("system", *roles), f"{prompted[0]}.system is set")
    return found


def _check_own_template(
    config: Config, stages: set[str], suites: set[str], template: ChatTemplate, directory: str
) -> None:
    """Raises UserError if the model's template cannot make training examples, or continue turns."""
    if "train" in stages and config.arms:
        for roles, setting in _trained_on(config).items():
            _check_example(config, template, directory, roles, setting)
    if "evaluate" not in stages or not config.engine.reads_model:
        return
    for name, suite in config.suites.items().items():
        if name in suites and suite.continues_turns:
            models.check_prefill(template, config.model.path, needed_by=f"suites.{name}")


def _trained_on(config: Config) -> dict[tuple[str, ...], str]:
    """Roles of the conversations that arms are trained on → the field that asks for them, if one does."""
    found: dict[tuple[str, ...], str] = {}
    for methods in config.training_sets().values():
        for name, method in methods.items():
            for roles, setting in method.training_conversations.items():
                found.setdefault(roles, f"methods.{name}.{setting}" if setting else "")
    return found


def _check_example(
    config: Config, template: ChatTemplate, directory: str, roles: tuple[str, ...], setting: str
) -> None:
    """Raises UserError if the template cannot make training examples of conversations with these roles."""
    try:
        template.frame(roles)
        [example] = template.examples([probe(roles)])  # one as `train` will make it: the tokens too
    except UserError as e:
        if setting:
            why = str(e).rpartition(": ")[0]
            raise UserError(f"{setting}: {why}: choose another value, or another template") from None
        raise UserError(f"model.path = {config.model.path}: {e}") from None
    if isinstance(example, str):
        raise UserError(
            f"model.path = {config.model.path}: {template.name} makes no training example"
            f" ({example.replace('_', ' ')}): use another template"
        )
    most = models.vocabulary(config.model, directory)
    if most is not None and (beyond := [token for token in example[0] if token >= most]):
        raise UserError(
            f"model.path = {config.model.path}: its chat template writes the token"
            f" {template.tokenizer.convert_ids_to_tokens(beyond[0])}, for which the model has no"
            f" embedding ({most} tokens): name a model that has been trained with the template"
        )


def check_lengths(config: Config, stages: set[str], suites: set[str], directory: str) -> list[str]:
    """Check lengths against the positions that the model has. Returns notices. Raises UserError."""
    limits = {one.field: _limit(one, models.model_dir(one.model)) for one in others(config, stages)}
    for name, (draw, one) in _draws(config, stages, suites).items():
        if one.field not in limits:
            limits[one.field] = _limit(
                one, directory if one.field == "model" else models.model_dir(one.model)
            )
        limit = limits[one.field]
        if limit is not None and draw.max_tokens >= limit:
            raise UserError(
                f"{name}.max_tokens = {draw.max_tokens}: leaves no room for a prompt in the model's"
                f" {limit} tokens; set it lower"
            )
    for name, suite in config.suites.items().items():
        if "evaluate" in stages and name in suites and config.engine.reads_model and suite.longest_turn:
            field, begun, draw = suite.longest_turn  # a word is at least one token
            limit = _limit(config.answering(None), directory)
            if limit is not None and begun + draw.max_tokens >= limit:
                raise UserError(
                    f"suites.{name}.{field} = {begun}: a beginning of so many and {draw.max_tokens} new"
                    f" tokens leave no room for a prompt in the model's {limit} tokens; set it lower"
                )
    if not reads_model(config, stages):
        return []
    _limit(config.answering(None), directory)
    most = models.positions(config.model, directory)
    if most is None:
        return []
    long = {
        f"{config.field_of(name, 'max_length')} = {arm.train.max_length}"
        for name, arm in config.arms.items()
        if "train" in stages and "max_length" in arm.train.model_fields_set and arm.train.max_length > most
    }
    return [
        f"{field}: the model has {most} positions and was not trained on longer texts"
        for field in sorted(long)
    ]


def _limit(one: Answering, directory: str) -> int | None:
    """The tokens of prompt and completion that a model can have. Raises UserError for an impossible limit."""
    most, given = models.positions(one.model, directory), one.model.max_length
    if most is not None and given is not None and given > most:
        raise UserError(
            f"{one.field}.max_length = {given}: the model has {most} positions; set at most {most}"
        )
    return given or most if most is not None else None


def _draws(config: Config, stages: set[str], suites: set[str]) -> dict[str, tuple[Draw, Answering]]:
    """What the stages sample from models whose files they read, by field, and from which model."""
    found, judges = {}, _judges(config, stages, suites)
    for part, section in used(config, stages - {"mix"}, suites).items():
        kind, _, name = part.partition(".")
        owner = config.generator(name) if kind == "methods" else config.answering(None)
        for field, draw in sections(section, Draw, part).items():
            by = next((judge for place, judge in judges.items() if field.startswith(f"{place}.")), None)
            one = config.answering(by.asked) if by and by.asked else owner
            if one.engine.reads_model:
                found[field] = (draw, one)
    return found


def check_precision(config: Config, stages: set[str]) -> list[str]:
    """A notice if this CPU would emulate bfloat16, which is many times slower."""
    if cpu_has_bf16():
        return []
    slow = []
    for one in config.used(stages):
        on_cpu = one.engine.reads_model and not one.engine.gpus
        if on_cpu and one.model.dtype in ("auto", "bfloat16") and f"{one.field}.dtype: float32" not in slow:
            slow.append(f"{one.field}.dtype: float32")
    if "train" in stages and any(arm.train.bf16 and not arm.train.use_gpu for arm in config.arms.values()):
        slow.append("train.bf16: false")
    return (
        [f"this CPU has no bfloat16 instructions: {' and '.join(slow)} would be much faster"] if slow else []
    )


def others(config: Config, stages: set[str]) -> list[Answering]:
    """The entries of `models` whose files the stages read."""
    found = {one.field: one for one in config.used(stages) if one.engine.reads_model and one.field != "model"}
    return list(found.values())


def reads_model(config: Config, stages: set[str]) -> bool:
    """Whether the stages read the files of the run's model."""
    return "train" in stages or any(
        one.engine.reads_model for one in config.used(stages) if one.field == "model"
    )
