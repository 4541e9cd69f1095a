"""Every command: arguments in, one call out.

Exit codes: 0, 1 (the run failed), 2 (wrong usage, configuration or input), 130 and 143 (interrupted by Ctrl-C, by SIGTERM).
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from pipeline import __version__
from pipeline.errors import RunFailed, UserError

app = typer.Typer(
    help="Align a chat model by letting it make mistakes on purpose, explain them, and learn from the explanations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML configuration")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="values that replace the file's")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="discard what these stages wrote before; without it they resume")]
_UsageError: Any = typer.BadParameter.__base__  # Typer has its own click by now; from it or from click, this is the one that is raised
STOP_S = 8.0  # from a signal to the end, at most; then whoever sent it may lose patience
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="run rows again that failed")]


def _stage(name: str, text: str):
    def command(config: ConfigFile, overrides: Overrides = None, overwrite: Overwrite = False, retry_failed: RetryFailed = False):
        _run(config, overrides, [name], overwrite, retry_failed)

    app.command(name, help=text)(command)


@app.command()
def run(config: ConfigFile, overrides: Overrides = None, overwrite: Overwrite = False, retry_failed: RetryFailed = False):
    """Everything there is to do: generate, mix, train, evaluate, report. Resumes what an earlier attempt left."""
    _run(config, overrides, None, overwrite, retry_failed)


_stage("generate", "Induce mistakes and analyse them (RUN/mistakes), or write ranked corrections (RUN/corrections).")
_stage("mix", "Make the training set: conversations (RUN/sft) or preference pairs (RUN/preferences).")
_stage("train", "Fine-tune one LoRA adapter per arm: RUN/adapter.")


@app.command()
def evaluate(
    config: ConfigFile,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    retry_failed: RetryFailed = False,
    suite: Annotated[
        list[str] | None, typer.Option("--suite", help="a suite by its name in `suites`; without it all configured ones")
    ] = None,
):
    """Put every arm through the suites: answers (RUN/evaluation), corrections after a harmful prefill (RUN/continuations)."""
    _run(config, overrides, ["evaluate"], overwrite, retry_failed, suite or [])


@app.command()
def report(config: ConfigFile, overrides: Overrides = None):
    """Write RUN/report.html and RUN/report.md from what is there."""
    _run(config, overrides, ["report"], False, False)


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    tokens_per_s: Annotated[float | None, typer.Option(min=1, help="measured speed of one engine")] = None,
):
    """Say what a run would do, without an engine: prompts, lengths, engines and GPUs, time."""
    from pipeline.commands.plan import show_plan
    from pipeline.config import load

    show_plan(load(config, overrides or []), tokens_per_s)


@app.command()
def manifest(
    config: ConfigFile,
    overrides: Overrides = None,
    image: Annotated[str | None, typer.Option("--image", help="of every pod, with its tag; default setbacks:VERSION-gpu or -cpu")] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="a RayCluster to submit jobs to, instead of a RayJob")] = False,
):
    """Print a RayJob for Kubernetes (KubeRay), sized from the configuration. See cluster/README.md."""
    from pipeline.commands.manifest import manifest as text
    from pipeline.config import load

    print(text(load(config, overrides or []), image, interactive=cluster), end="")


@app.command()
def show(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="directory of a data set, such as RUN/mistakes")],
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="rows shown")] = 5,
    reveal: Annotated[bool, typer.Option("--reveal", help="show harmful text")] = False,
):
    """Show rows of a data set in the terminal, harmful text masked."""
    from rich.console import Console

    from pipeline.commands.show import show as show_rows

    show_rows(dataset, rows, reveal, Console())


@app.command()
def status(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run directory (also on an object store), or the CONFIG of one")],
    as_json: Annotated[bool, typer.Option("--json", help="print the same as JSON")] = False,
):
    """Say how far a run is, how fast, and what became of every attempt; also while it runs, from anywhere."""
    from pipeline.commands.status import show_status

    show_status(run, as_json)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="print the version and end")] = False):
    if version:
        print(f"setbacks {__version__}")
        raise typer.Exit()


def _run(config: str, overrides: list[str] | None, stages, overwrite: bool, retry_failed: bool, suites: Sequence[str] = ()) -> None:
    from pipeline import experiment
    from pipeline.config import load

    again = "the same command without --overwrite" if overwrite else "the same command"
    message = f"setbacks: interrupted; {again} goes on from what is committed"
    try:
        with _stoppable(message):
            experiment.run(load(config, overrides or []), stages, overwrite=overwrite, retry_failed=retry_failed, suites=suites, log=_tell)
    except KeyboardInterrupt as e:  # caught here, since typer would end without a word
        print(message, file=sys.stderr, flush=True)
        sys.stdout.flush()
        # Not sys.exit: while the interpreter is taken down, a thread of Ray's that was interrupted too may abort the process.
        os._exit(128 + getattr(e, "signum", signal.SIGINT))


class _Stop(KeyboardInterrupt):
    def __init__(self, signum: int):
        self.signum = signum


@contextmanager
def _stoppable(message: str) -> Iterator[None]:
    """The first SIGINT or SIGTERM interrupts the body, further ones change nothing; what has not ended STOP_S later is ended."""

    def stop(signum: int, _frame) -> None:
        for known in list(before):
            signal.signal(known, lambda *_: None)
        before.clear()
        last_word = threading.Timer(STOP_S, _abandon, [message, 128 + signum])
        last_word.daemon = True
        last_word.start()
        raise _Stop(signum)

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _abandon(message: str, code: int) -> None:
    """The interrupt was lost in a library, or a shutdown hangs. A local Ray ends with this process, a job's actors with their driver."""
    from pipeline.runtime import attempt

    attempt.end(attempt.INTERRUPTED)
    print(message, file=sys.stderr, flush=True)
    os._exit(code)


def _tell(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    try:
        sys.exit(app(standalone_mode=False))
    except UserError as e:
        _end(f"setbacks: {e}", 2)
    except RunFailed as e:
        _end(f"setbacks: {e}", 1)
    except _UsageError as e:
        if not sys.argv[1:]:
            sys.exit(2)  # the help has been printed
        usage = f"; see `{e.ctx.command_path} --help`" if e.ctx else ""
        _end(f"setbacks: {e.format_message().rstrip('.')}{usage}", 2)


def _end(message: str, code: int) -> None:
    from pipeline.commands.show import safe_text

    print(safe_text(" ".join(message.split())), file=sys.stderr)  # names from a data set can stand in it
    sys.exit(code)


if __name__ == "__main__":
    main()
