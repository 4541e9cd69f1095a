"""`setbacks preview CONFIG`: a few rows by the real engine, shown and not kept.

The run directory is another one beside the configured one, so that every node sees it; it is removed at the
end.
"""

import secrets
from collections.abc import Callable

from rich.console import Console

from pipeline import experiment
from pipeline.commands.show import show
from pipeline.config import Config
from pipeline.data import storage
from pipeline.errors import UserError
from pipeline.run import Machinery
from pipeline.settings.base import Source
from pipeline.settings.walk import replaced, sections


def preview(
    config: Config,
    rows: int,
    reveal: bool,
    console: Console,
    log: Callable[[str], object],
    machinery: Machinery | None = None,
) -> None:
    """Generate from the first `rows` instructions of every method (without methods: evaluate on those of
    every suite), and print the rows. Suites that another program runs are left out.

    Raises UserError as `run` does before it starts, RunFailed if nothing could be generated.
    """
    config = config.only(name for name, suite in config.suites.items().items() if not suite.runs_apart)
    stage = next((one for one in ("generate", "evaluate") if one in config.stages), None)
    if stage is None:
        raise UserError("nothing to preview: the configuration neither generates nor evaluates")
    small = few(config, rows)
    outputs = [
        *(method.generated.name for method in config.methods.values() if stage == "generate"),
        *(suite.data_schema.name for suite in config.suites.items().values() if stage == "evaluate"),
    ]
    try:
        experiment.run(small, [stage], log=log, machinery=machinery)
        for name in outputs:
            console.print()
            show(storage.join(storage.absolute(small.run_dir), name), rows, reveal, console)
    finally:
        storage.remove(storage.absolute(small.run_dir))
    console.print("Nothing was kept.", style="dim")


def few(config: Config, rows: int) -> Config:
    """The configuration with at most `rows` instructions of every source, and `rows` rows of a method that
    makes its own, in a directory of its own."""
    limits = {
        name: source.model_copy(update={"limit": min(rows, source.limit or rows)})
        for name, source in sections(config, Source).items()
    }
    beside = f"{config.run_dir.rstrip('/')}.preview-{secrets.token_hex(4)}"
    small = replaced(config, limits)
    methods = {name: method.few(rows) for name, method in small.methods.items()}
    return small.model_copy(update={"run_dir": beside, "methods": methods})
