"""The data set card: README.md with the hub's YAML header, so that a directory loads and explains itself."""

from dataclasses import dataclass, field

from pipeline import __version__
from pipeline.data import endings, faults, storage
from pipeline.data.store import Store
from pipeline.schema import DROPPED, Column
from pipeline.settings.base import Section

WARNING = (
    "**Content warning.** This data set holds harmful, unethical or offensive text, written by a model on"
    " purpose for safety research. Do not use it to train a model to comply, and do not show it to people"
    " unasked."
)
_SPEEDS = (
    ("seconds", "seconds", ",.1f"),
    ("tokens_per_s", "tokens per second", ",.0f"),
    ("engine_start_s", "seconds until the engine had started", ",.1f"),
)
TAGS = ("safety", "alignment", "setbacks", "not-for-all-audiences")


@dataclass(frozen=True)
class Origin:
    """What made a data set.

    authors: the models that wrote its texts, in words; made_by: sections of the configuration; sources: paths
    of the sources read; named: the entries of `models` that the sections name, in words.
    """

    authors: list[str]
    seed: int
    sources: list[str]
    made_by: list[Section]
    named: dict[str, str] = field(default_factory=dict)


def write_card(store: Store, origin: Origin, prompt_hashes: dict[str, str], figures: dict) -> None:
    """Write the card of a complete data set.

    figures: seconds, tokens_per_s … of the stage that made it; drops, if it left rows out: reason → how many;
    sources, how each was read, a line each.
    """
    from huggingface_hub import DatasetCardData  # slow import, and not every command writes a card

    done, schema = store.facts, store.schema
    header = DatasetCardData(
        pretty_name=schema.title,
        task_categories=["text-generation"],
        tags=[*TAGS[:2], *schema.tags, *TAGS[2:]],
        configs=[{"config_name": "default", "data_files": "*.parquet"}],
        size_categories=[size_category(done["rows"])],
    )
    lines = [
        "---",
        header.to_yaml(),
        "---",
        f"# {schema.title}",
        "",
        WARNING,
        "",
        _made_by(origin),
        "",
        "## Rows",
        "",
        *_counts(done),
        *(f"* left out, {reason}: {count:,}" for reason, count in sorted(figures.get("drops", {}).items())),
        "",
        *(
            ["## Sources", "", *(f"* {line}" for line in figures["sources"]), ""]
            if figures.get("sources")
            else []
        ),
        "## Columns",
        "",
        "| column | type | what it holds |",
        "|---|---|---|",
        *(f"| `{c.name}` | {_type(c)} | {c.doc} |" for c in schema.columns),
        *(f"| `{c.name}[].{m.name}` | {m.type} | {m.doc} |" for c in schema.columns for m in c.members),
        "",
        *(["## How to use it", "", schema.use, ""] if schema.use else []),
        "## How it was made",
        "",
        *(f"* prompts `{name}`: {digest}" for name, digest in prompt_hashes.items()),
        *(f"* {name}: {value}" for section in origin.made_by for name, value in _settings(section).items()),
        *(f"* model `{name}`: {author}" for name, author in origin.named.items()),
        *(f"* {words}: {figures[name]:{form}}" for name, words, form in _SPEEDS if figures.get(name)),
        f"* digest of all rows: `{done['digest']}`",
        "",
    ]
    storage.write_text(storage.join(store.path, "README.md"), "\n".join(lines))


def _type(column: Column) -> str:
    return "list of structs" if column.members else str(column.type)


def _made_by(origin: Origin) -> str:
    authors = " and ".join(origin.authors)
    sources = ", ".join(f"`{path}`" for path in origin.sources)
    made = f"Made by setbacks {__version__} with the model {authors}, seed {origin.seed}"
    return f"{made}, from {sources}." if sources else f"{made}."


def _counts(done: dict) -> list[str]:
    lines = [f"* {done['rows']:,} rows"]
    lines += [f"* {count:,} {status}" for status, count in sorted(done["status"].items())]
    lost = "dropped or failed" if DROPPED in done["status"] else "failed"
    lines += [f"* {lost}, {reason}: {count:,}" for reason, count in sorted(done["reasons"].items())]
    told = [*endings.told(done), *faults.told(done.get("faults", {}), done.get("endings", {}))]
    lines += [f"* {sentence}" for sentence in told]
    return lines


def _settings(section: Section) -> dict[str, str]:
    """The section's fields that are set, without an engine's: the authors say who wrote the texts."""
    fields = section.model_dump(mode="json", exclude={"engine"})
    return {key: f"`{value}`" for key, value in fields.items() if value not in (None, {})}


def size_category(rows: int) -> str:
    """A number of rows as the hub's search has it."""
    bounds = [
        (10**3, "n<1K"),
        (10**4, "1K<n<10K"),
        (10**5, "10K<n<100K"),
        (10**6, "100K<n<1M"),
        (10**7, "1M<n<10M"),
    ]
    return next((label for bound, label in bounds if rows < bound), "n>10M")
