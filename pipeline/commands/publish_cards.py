"""The cards of what `setbacks publish` uploads: a repository of data sets, and one of an adapter."""

import re
from collections.abc import Iterable, Mapping, Sequence

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from pipeline import __version__
from pipeline.commands.licenses import HUB, License, is_non_commercial
from pipeline.config import Config
from pipeline.data.card import TAGS, WARNING, size_category
from pipeline.report.results import Figure, Results, slug
from pipeline.schema import Schema

GATE = (
    "This repository holds harmful text, or was trained with it, for safety research. By asking for access"
    " you confirm that you work on safety, will not use it to make a model comply with harmful requests, and"
    " will not show its texts to people unasked."
)
CAUTION = (
    "**Content warning.** This adapter was trained with harmful text on purpose, for safety research. Do not"
    " put it to any other use."
)

_DIRECTORY = re.compile(r"(?<!\S)/(?:[^/\s]*/)*")  # before the name of a model on this machine


def of_datasets(
    repo: str,
    config: Config,
    parts: Mapping[str, tuple[Schema, int, str]],
    sources: Mapping[str, str | None],
    license: License,
    languages: Sequence[str],
) -> str:
    """The README.md of a repository of data sets.

    parts: of every data set: its schema, its rows, and its own card. sources: path → license, None if it is
    not known. license: of the repository. languages: of its texts, as ISO codes.
    """
    rows = sum(count for _, count, _ in parts.values())
    author = config.engine.author(config.model)
    header = DatasetCardData(
        **license.fields,
        language=list(languages) or None,
        pretty_name=repo.rpartition("/")[2],
        task_categories=["text-generation"],
        tags=_unique([*TAGS, *(tag for schema, _, _ in parts.values() for tag in schema.tags)]),
        source_datasets=_of_hub(sources) or None,
        size_categories=[size_category(rows)],
        configs=[{"config_name": name, "data_files": f"{name}/*.parquet"} for name in parts],
        extra_gated_prompt=GATE,
    )
    made_by = " and ".join(dict.fromkeys(method.name for method in config.methods.values()))
    of = f" of {made_by.replace('_', ' ')}" if made_by else ""
    lines = [
        f"# {repo.rpartition('/')[2]}: data sets{of}",
        "",
        WARNING,
        "",
        f"The data sets of one run of setbacks {__version__} with the model {author}, seed {config.seed}.",
        "",
        "| config | rows | what it holds |",
        "|---|---|---|",
        *(f"| `{name}` | {count:,} | {schema.title} |" for name, (schema, count, _) in parts.items()),
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'rows = load_dataset("{repo}", "{next(iter(parts))}", split="train")',
        "```",
        "",
        *_sources(sources),
    ]
    for name, (schema, _, card) in parts.items():
        lines += [f"## {name}: {schema.title}", "", *_body(card), ""]
    return f"---\n{header.to_yaml()}\n---\n" + "\n".join(lines).rstrip() + "\n"


def of_adapter(
    repo: str,
    config: Config,
    arm: str,
    base: tuple[str, str],
    card: str,
    sources: Mapping[str, str | None],
    license: License,
    languages: Sequence[str],
    datasets: Sequence[str],
    results: Results | None,
) -> str:
    """The README.md of a repository of an adapter.

    base: the base model's id on the hub, empty if it has none, and its name. card: the adapter's own card.
    sources, license, languages: as of `of_datasets`. datasets: repositories that it was trained on. results:
    of the run, if the adapter was evaluated.
    """
    found = _figures(results, arm) if results else []
    own = ModelCard(card)
    header = ModelCardData(
        **license.fields,
        language=list(languages) or None,
        library_name="peft",
        pipeline_tag="text-generation",
        base_model=base[0] or None,
        base_model_relation="adapter" if base[0] else None,
        datasets=_unique([*datasets, *_of_hub(sources)]) or None,
        tags=_unique([*(own.data.get("tags") or ()), *TAGS]),
        model_name=repo.rpartition("/")[2],
        eval_results=[_result(results, figure) for figure in found] if results and found else None,
        extra_gated_prompt=GATE,
    )
    title, _, text = own.text.replace(f"`{config.model.path}`", f"`{base[1]}`").strip("\n").partition("\n")
    lines = [title or f"# LoRA adapter `{arm}` of `{base[1]}`", "", CAUTION, "", text.strip("\n"), ""]
    lines += [*_evaluation(results, found, arm), "", *_sources(sources)]
    return f"---\n{header.to_yaml()}\n---\n\n" + "\n".join(lines).rstrip() + "\n"


def _sources(sources: Mapping[str, str | None]) -> list[str]:
    lines = ["## Sources and their licenses", "", "| source | license |", "|---|---|"]
    lines += [f"| {_linked(path)} | {license or 'not known'} |" for path, license in sources.items()]
    if bound := [path for path, license in sources.items() if is_non_commercial(license)]:
        told = ", ".join(map(_linked, bound))
        lines += ["", f"**Not for commercial use:** made from {told}, whose license does not allow it."]
    return [*lines, ""]


def _linked(path: str) -> str:
    name = path.removeprefix(HUB)
    return f"[{name}](https://huggingface.co/datasets/{name})" if path.startswith(HUB) else f"`{path}`"


def _of_hub(sources: Iterable[str]) -> list[str]:
    return [path.removeprefix(HUB) for path in sources if path.startswith(HUB)]


def _body(card: str) -> list[str]:
    """A data set's own card without header, title and warning, its headings one level lower."""
    text = DatasetCard(card).text.replace(WARNING, "")
    lines = re.sub(r"\n{3,}", "\n\n", text).strip().splitlines()
    kept = [line for line in lines if not line.startswith("# ")]
    return [f"#{line}" if line.startswith("## ") else line for line in kept]


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


# -- evaluation


def _figures(results: Results, arm: str) -> list[Figure]:
    """The rates and scores of an adapter; those of single categories stay in the report."""
    return [
        figure
        for figure in results.numbers
        if figure.arm == arm
        and figure.suite is not None
        and figure.value is not None
        and figure.unit in ("share", "score", "coefficient")
        and "Category" not in figure.row
    ]


def _words(figure: Figure, arm: str) -> str:
    """What a figure measures: its name, and what its row says beside the arm."""
    labels = [text for text in figure.row.values() if text and text != arm]
    return " ".join([figure.name.replace("_", " "), *(f"({text})" for text in labels)])


def _interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return "–"
    return f"{_number(figure, figure.low)} to {_number(figure, figure.high)}"


def _number(figure: Figure, value: float) -> str:
    """A number as exact as the report has it: percent with one decimal, other numbers with two."""
    return f"{value:.{_decimals(figure)}f}"


def _decimals(figure: Figure) -> int:
    return 3 if figure.unit == "share" else 2


def _judges(results: Results, figure: Figure) -> str:
    """The judges of a figure's suite, in words."""
    told = []
    for name in figure.judges:
        judge = results.judges[name]
        by = _DIRECTORY.sub("", judge.model or "")
        told.append(f"{judge.judges}: {judge.kind}" + (f" by {by}" if by else ""))
    return "; ".join(told)


def _result(results: Results, figure: Figure) -> EvalResult:
    """A figure as the hub has it: what it lacks a field for stands in the metric's name."""
    n = f"n = {figure.n:,}" if figure.n is not None else ""
    interval = f"95 % interval {_interval(figure)}" if figure.low is not None else ""
    judged = f"judges: {told}" if (told := _judges(results, figure)) else ""
    facts = ", ".join(filter(None, (interval, n, judged)))
    words = _words(figure, figure.arm or "")
    return EvalResult(
        task_type="text-generation",
        task_name="Evaluation by setbacks",
        dataset_type=f"setbacks-{figure.suite}",
        dataset_name=": ".join(filter(None, (str(figure.suite).replace("_", " "), figure.group))),
        dataset_config=slug(figure.group.partition(":")[0]) or "default",
        metric_type=figure.name,
        metric_value=round(figure.value or 0, _decimals(figure)),
        metric_name=f"{words} ({facts})" if facts else words,
    )


def _evaluation(results: Results | None, found: Sequence[Figure], arm: str) -> list[str]:
    """The section on the evaluation, with the base model's numbers beside the adapter's."""
    if results is None or not found:
        return ["## Evaluation", "", "Not evaluated."]
    base = results.arms[0]
    of_base = {_key(figure, base): figure for figure in results.numbers if figure.arm == base}
    columns = "| suite | condition | measure | value | 95 % interval | n | base model | judges |"
    lines = ["## Evaluation", "", *([f"**{results.note}**", ""] if results.note else []), columns]
    lines.append("|---|---|---|---|---|---|---|---|")
    for figure in found:
        other = of_base.get(_key(figure, arm))
        cells = [
            str(figure.suite).replace("_", " "),
            figure.group,
            _words(figure, arm),
            _number(figure, figure.value or 0),
            _interval(figure),
            "–" if figure.n is None else f"{figure.n:,}",
            "–" if other is None or other.value is None else _number(figure, other.value),
            _judges(results, figure),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    more = "Shares are from 0 to 1, scores are on their judge's scale. Rates of different judges cannot be"
    return [*lines, "", f"{more} compared."]


def _key(figure: Figure, arm: str) -> tuple:
    labels = tuple(sorted((name, text) for name, text in figure.row.items() if text != arm))
    return figure.suite, figure.group, figure.name, figure.table, labels
