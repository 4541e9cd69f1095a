"""Prompts are data: YAML files of named jinja2 templates. Python code contains no prompt text."""

import hashlib
from functools import cache, cached_property
from pathlib import Path

import yaml
from jinja2 import StrictUndefined, Template, meta
from jinja2.sandbox import SandboxedEnvironment

from pipeline.errors import UserError
from pipeline.settings import yaml_text
from pipeline.settings.shown import shown

_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
_ENVIRONMENT.globals.clear()  # no range, lipsum etc.: a prompt uses only its variables


class Prompts:
    """The templates of one YAML file, named. `hash` identifies their exact texts."""

    def __init__(self, texts: dict[str, str], source: str):
        self.texts = texts
        self.source = source

    def __reduce__(self):  # compiled templates cannot be pickled
        return Prompts, (self.texts, self.source)

    def render(self, name: str, **variables: str) -> str:
        """Fill template `name`. Raises UserError if the template is missing or uses an unknown variable."""
        if name not in self.texts:
            raise UserError(f"{self.source}: prompt {name} is missing; known are {', '.join(self.texts)}")
        try:
            return self._templates[name].render(**variables)
        except Exception as e:  # a template can hold any expression, which can raise anything
            raise UserError(f"{self.source}: prompt {name} cannot be rendered ({shown(e)})") from None

    def lines(self, name: str) -> list[str]:
        """The non-blank lines of a text that is a list. Raises UserError if there is none."""
        found = [line.strip() for line in self.render(name).splitlines() if line.strip()]
        if not found:
            raise UserError(f"{self.source}: prompt {name} is empty; it must be a list, one text per line")
        return found

    def without(self, *names: str) -> "Prompts":
        """The prompts without some, such as those that a configuration does not use: `hash` ignores them."""
        return Prompts({name: text for name, text in self.texts.items() if name not in names}, self.source)

    @property
    def hash(self) -> str:
        return _hash(tuple(sorted(self.texts.items())))

    @cached_property
    def _templates(self) -> dict:
        templates = {}
        for name, text in self.texts.items():
            try:
                templates[name] = _compiled(text)
            except Exception as e:  # jinja's own errors, and Python's errors in the code that jinja generates
                raise UserError(
                    f"{self.source}: prompt {name} is not a valid template ({shown(e)})"
                ) from None
        return templates


def load(name: str, replacement: str | None = None) -> Prompts:
    """The prompt set of a file of this package, such as `judges/rating.yaml`; a user's `replacement` file
    overrides it prompt by prompt.

    Raises UserError if the replacement is missing, is not a mapping of names to texts, names an unknown
    prompt, or has a template that cannot be rendered with the variables of the original.
    """
    own = _own(name)
    if replacement is None:
        return own
    texts = own.texts
    changed = _read(Path(replacement).expanduser())
    if unknown := changed.keys() - texts.keys():
        raise UserError(
            f"{replacement}: {shown(min(unknown), 60)} is not a prompt of {name}; known are"
            f" {', '.join(texts)}"
        )
    replaced = Prompts({**texts, **changed}, replacement)
    for prompt in changed:
        replaced.render(prompt, **dict.fromkeys(_variables(texts[prompt]), "text"))
    return replaced


@cache
def _own(name: str) -> Prompts:
    """A file of this package, read once: configurations ask for its prompts, and their hash, many times."""
    return Prompts(_read(Path(__file__).parent / name), name)


@cache
def _compiled(text: str) -> Template:
    """A template, compiled once, whichever prompt files it is in."""
    return _ENVIRONMENT.from_string(text)


@cache
def _hash(texts: tuple[tuple[str, str], ...]) -> str:
    """Computed once: every check, fingerprint and card of a run asks for the hashes of the same prompts."""
    canonical = yaml.safe_dump(dict(texts), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _variables(text: str) -> set[str]:
    return meta.find_undeclared_variables(_ENVIRONMENT.parse(text))


def _read(path: Path) -> dict[str, str]:
    try:
        texts = yaml_text.read(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such prompt file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise UserError(f"{path}: cannot be read as YAML ({shown(e)})") from None
    if not isinstance(texts, dict) or not all(
        isinstance(text, str) for pair in texts.items() for text in pair
    ):
        raise UserError(f"{path}: a prompt file maps names to texts")
    return texts
