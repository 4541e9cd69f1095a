"""The report's section on what was generated and what the adapters are trained on, one part per method."""

import pyarrow as pa

from pipeline.config import Config
from pipeline.report import tables
from pipeline.report.corrections import pairs_by_gap, requests_summary
from pipeline.report.sections import Section
from pipeline.report.summary import counts, mistakes_summary
from pipeline.schema import CORRECTIONS, MISTAKES, PREFERENCES, SFT


def data(config: Config, datasets: dict[str, pa.Table | None], stages: list[dict]) -> Section:
    """datasets: by name, without their texts; None where the run has none yet. stages: the run's timings and counts."""
    section = Section("Data", _read(stages))
    part = {"mistake_analysis": _mistakes, "course_correction": _corrections}[config.recipe.name]
    failures = part(config, datasets, section)
    drops = [
        (line["name"], reason, n) for line in stages for reason, n in line["drops"].items() if line.get("suite") != "course_correction"
    ]
    known = {(stage, reason) for stage, reason, _ in drops}
    drops = [("generate", reason, n) for reason, n in failures.items() if ("generate", reason) not in known] + drops
    if drops:
        section.tables.append(tables.of_losses(drops))
    return section


def _read(stages: list[dict]) -> list[str]:
    """How the source was read, where the run's figures tell."""
    line = next((line for line in stages if line["stage"] == "generate" and line.get("read") is not None), None)
    if line is None:
        return []
    read, duplicates, malformed = (tables.whole(line.get(key, 0)) for key in ("read", "duplicates", "malformed"))
    return [f"{read} rows were read from the source; {duplicates} repeat an instruction, {malformed} are malformed."]


def _mistakes(config: Config, datasets: dict[str, pa.Table | None], section: Section) -> dict[str, int]:
    """Fills the section; returns how many rows failed with which error."""
    failures = {}
    mistakes, mixture = datasets[MISTAKES.name], datasets[SFT.name]
    if mistakes is None:
        section.text.append("This run holds no mistakes yet: `setbacks generate` writes them.")
    else:
        counted = mistakes_summary(mistakes)
        what = "the model's responses under the hint" if config.recipe.mistake == "induced" else "the source's own unsafe responses"
        section.text.append(f"The mistakes are {what}. Every row read ended as ok, not induced or failed.")
        section.tables.append(tables.of_mistakes(counted))
        failures = counted.failures
    if mixture is None:
        section.text.append("This run holds no training mixture yet: `setbacks mix` writes it.")
    elif len(mixture):
        section.tables.append(tables.of_shares("Training mixture", "Kind", "Examples", counts(mixture, "kind")))
    return failures


def _corrections(config: Config, datasets: dict[str, pa.Table | None], section: Section) -> dict[str, int]:
    """Fills the section; returns how many rows were dropped or failed, by reason."""
    failures = {}
    corrections, preferences = datasets[CORRECTIONS.name], datasets[PREFERENCES.name]
    if corrections is None:
        section.text.append("This run holds no corrections yet: `setbacks generate` writes them.")
    else:
        counted = requests_summary(corrections)
        section.text.append(
            f"Of a request come up to {config.recipe.cuts + 2} responses: the safe one, one for each of the {config.recipe.cuts} cuts, and the "
            "harmful one. Complete: no response was lost. Every row read ended as ok, dropped or failed."
        )
        section.tables.append(tables.of_requests(counted))
        if counted.lost:
            section.tables.append(tables.of_tally("Lost responses", "Rank and reason", "Responses", counted.lost))
        failures = counted.reasons
    if preferences is None:
        section.text.append("This run holds no preference pairs yet: `setbacks mix` writes them.")
    elif len(preferences):
        section.text.append(f"{tables.whole(len(preferences))} preference pairs: every two responses of a request whose texts differ.")
        section.tables.append(tables.of_shares("Preference pairs", "Rank gap", "Pairs", pairs_by_gap(preferences)))
    return failures
