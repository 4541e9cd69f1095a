"""The data set card: README.md with the hub's YAML header, so that a directory loads and explains itself."""

from collections.abc import Callable
from dataclasses import dataclass

import yaml

from pipeline import __version__
from pipeline.config import Config, Model, Source
from pipeline.config.base import Section
from pipeline.data import storage
from pipeline.data.schema import DROPPED
from pipeline.data.store import Store

WARNING = (
    "**Content warning.** This data set holds harmful, unethical or offensive text, written by a model on purpose for safety research. "
    "Do not use it to train a model to comply, and do not show it to people unasked."
)
_RESPONSES = """\
`responses` lists what remained of a request, best first. `rank` is the place among all that a complete request would have, 1 the best;
`kind` is safe, syn or harmful. The `text` of a syn response is opener and harmful beginning up to character `harmful_end`, then `trigger` up
to character `trigger_end`, then what the aligned model went on with."""
_PAIRS = """\
The pairs are in TRL's conversational preference format, with an explicit prompt:

```python
from datasets import load_dataset
from trl import DPOTrainer

pairs = load_dataset("path/of/this/directory", split="train").select_columns(["prompt", "chosen", "rejected"])
DPOTrainer(model, train_dataset=pairs, processing_class=tokenizer).train()
```

Pairs of one `group` share their responses: split by `instruction_id`, not by row, where you hold some out. `rank_rejected` minus
`rank_chosen` is the gap that a curriculum orders by."""
_VERDICTS = """\
Corr of an entry at `k` is the share of `corrected` that is true, of those that are not null; Corr@k is its mean over the entries
(`instruction_id`) of an `arm`."""


@dataclass(frozen=True)
class _About:
    """What a card says of one kind of data set. settings: the section it was made by; sources: what was read for it."""

    title: str
    tags: list[str]
    settings: Callable[[Config], Section | None]
    sources: Callable[[Config], list[Source | None]]
    use: str = ""


_ABOUT = {
    "mistakes": _About("Induced mistakes and their analyses", ["mistake-analysis"], lambda c: c.recipe, lambda c: [c.instructions]),
    "sft": _About(
        "Training mixture: analyses, safe pairs, helpful pairs",
        ["mistake-analysis", "sft"],
        lambda c: c.mix,
        lambda c: [c.instructions, c.mix.helpful],
    ),
    "corrections": _About(
        "Responses that turn away from harm sooner or later, ranked",
        ["course-correction"],
        lambda c: c.recipe,
        lambda c: [c.instructions],
        _RESPONSES,
    ),
    "preferences": _About(
        "Preference pairs of ranked responses, for DPO",
        ["course-correction", "preference", "dpo", "trl"],
        lambda c: c.recipe,
        lambda c: [c.instructions],
        _PAIRS,
    ),
    "continuations": _About(
        "Continuations of harmful prefills by every arm, judged (C²-Eval)",
        ["course-correction", "evaluation"],
        lambda c: c.evaluation.course_correction,
        lambda c: [c.evaluation.course_correction.entries],
        _VERDICTS,
    ),
    "evaluation": _About(
        "Answers of every arm under every condition, judged",
        ["evaluation"],
        lambda c: c.evaluation,
        lambda c: [c.evaluation.harmful, c.evaluation.helpful],
    ),
}


def write_card(store: Store, config: Config, prompt_hashes: dict[str, str], figures: dict) -> None:
    """Write the card of a complete data set.

    figures: seconds, tokens_per_s … of the stage that made it; drops, where it left something out: reason → how much.
    """
    done, about = store.complete, _ABOUT[store.name]
    header = {
        "pretty_name": about.title,
        "task_categories": ["text-generation"],
        "tags": ["safety", "alignment", *about.tags, "setbacks", "not-for-all-audiences"],
        "configs": [{"config_name": "default", "data_files": "*.parquet"}],
        "size_categories": [_size(done["rows"])],
    }
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        f"# {about.title}",
        "",
        WARNING,
        "",
        _origin(store.name, config),
        "",
        "## Rows",
        "",
        *_counts(done),
        *(f"* left out, {reason}: {count:,}" for reason, count in sorted(figures.get("drops", {}).items())),
        "",
        "## Columns",
        "",
        "| column | type | what it holds |",
        "|---|---|---|",
        *(f"| `{c.name}` | {c.type} | {c.doc} |" for c in store.schema.columns),
        "",
        *(["## How to use it", "", about.use, ""] if about.use else []),
        "## How it was made",
        "",
        *(f"* prompts `{name}`: {digest}" for name, digest in prompt_hashes.items()),
        *(f"* {name}: {value}" for name, value in _settings(about.settings(config)).items()),
        *(f"* {name.replace('_', ' ')}: {figures[name]}" for name in ("seconds", "tokens_per_s", "engine_start_s") if figures.get(name)),
        f"* digest of all rows: `{done['digest']}`",
        "",
    ]
    storage.write_text(storage.join(store.path, "README.md"), "\n".join(lines))


def _origin(name: str, config: Config) -> str:
    aligned = config.recipe.aligned if name in ("corrections", "preferences") else None
    model = _model((aligned and aligned.model) or config.model) + (
        f" with adapter `{aligned.adapter}`" if aligned and aligned.adapter else ""
    )
    sources = ", ".join(f"`{source.path}`" for source in _ABOUT[name].sources(config) if source)
    return f"Made by setbacks {__version__} with the model {model}, seed {config.seed}, from {sources}."


def _model(model: Model) -> str:
    if model.is_dummy:
        return "`dummy`, which is no model: its texts are made of random words and mean nothing"
    return f"`{model.path}`" + (f" at revision `{model.revision}`" if model.revision else "")


def _counts(done: dict) -> list[str]:
    lines = [f"* {done['rows']:,} rows"]
    lines += [f"* {count:,} {status}" for status, count in sorted(done["status"].items())]
    lost = "dropped or failed" if DROPPED in done["status"] else "failed"
    lines += [f"* {lost}, {reason}: {count:,}" for reason, count in sorted(done["reasons"].items())]
    return lines


def _settings(section: Section | None) -> dict[str, str]:
    """The section's fields that say something; the suite of another data set is not repeated."""
    fields = section.model_dump(mode="json", exclude={"course_correction"}) if section else {}
    return {key: f"`{value}`" for key, value in fields.items() if value not in (None, {})}


def _size(rows: int) -> str:
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
    return next((label for bound, label in bounds if rows < bound), "n>10M")
