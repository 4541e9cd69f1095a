"""All commands: each parses its arguments and makes one call.

Exit codes: 0, 1 (the run failed), 2 (wrong usage, configuration or input), 130 and 143 (interrupted by
Ctrl-C, by SIGTERM).
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from pipeline import __version__
from pipeline.errors import RunFailed, UserError

app = typer.Typer(
    help=(
        "Align a chat model by letting it make mistakes on purpose, explain them, and learn from the"
        " explanations."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML configuration")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="values that replace the file's")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="discard earlier output of these stages instead of resuming")
]
# works with click and with the copy that newer Typer versions contain
_UsageError: Any = typer.BadParameter.__base__
STOP_S = 8.0  # longest time from a signal to the end; a sender may send SIGKILL after that
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="rerun failed rows")]


def _stage(name: str, text: str):
    def command(
        config: ConfigFile,
        overrides: Overrides = None,
        overwrite: Overwrite = False,
        retry_failed: RetryFailed = False,
    ):
        _run(config, overrides, [name], overwrite, retry_failed)

    app.command(name, help=text)(command)


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    retry_failed: RetryFailed = False,
):
    """Run all stages: generate, mix, train, evaluate, rejudge, report. Resumes an earlier attempt."""
    _run(config, overrides, None, overwrite, retry_failed)


_stage(
    "generate",
    "Induce and analyze mistakes (RUN/mistakes), or write ranked corrections (RUN/corrections).",
)
_stage("mix", "Make the training set: conversations (RUN/sft) or preference pairs (RUN/preferences).")
_stage("train", "Fine-tune one LoRA adapter per arm: RUN/adapter.")


@app.command()
def evaluate(
    config: ConfigFile,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    retry_failed: RetryFailed = False,
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", help="name of a suite in `suites`; without it, all configured ones run"),
    ] = None,
):
    """Put every arm through the suites: answers (RUN/evaluation), corrections after a harmful prefill
    (RUN/continuations)."""
    _run(config, overrides, ["evaluate"], overwrite, retry_failed, suite or [])


_stage(
    "rejudge",
    "Let more judges judge the stored answers: verdicts of each (RUN/verdicts_NAME). Generates no answer.",
)


@app.command()
def report(config: ConfigFile, overrides: Overrides = None):
    """Write RUN/report.html and RUN/report.md from the results so far."""
    _run(config, overrides, ["report"], False, False)


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    tokens_per_s: Annotated[float | None, typer.Option(min=1, help="measured speed of one engine")] = None,
):
    """Preview a run without starting an engine: prompts, token lengths, GPUs, estimated time."""
    from pipeline.commands.plan import show_plan
    from pipeline.config import load

    show_plan(load(config, overrides or []), tokens_per_s)


@app.command()
def manifest(
    config: ConfigFile,
    overrides: Overrides = None,
    image: Annotated[
        str | None,
        typer.Option("--image", help="of every pod, with its tag; default setbacks:VERSION-gpu or -cpu"),
    ] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="a RayCluster to submit jobs to, instead of a RayJob")
    ] = False,
):
    """Print a RayJob for Kubernetes (KubeRay), sized from the configuration. See cluster/README.md."""
    from pipeline.commands.manifest import manifest as text
    from pipeline.config import load

    print(text(load(config, overrides or []), image, interactive=cluster), end="")


@app.command()
def show(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="directory of a data set, such as RUN/mistakes")
    ],
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="rows shown")] = 5,
    reveal: Annotated[bool, typer.Option("--reveal", help="show harmful text")] = False,
):
    """Show rows of a data set in the terminal, harmful text masked."""
    from rich.console import Console

    from pipeline.commands.show import show as show_rows

    show_rows(dataset, rows, reveal, Console())


@app.command()
def judge(
    answers: Annotated[
        str,
        typer.Argument(
            metavar="ANSWERS",
            help="RUN/evaluation, or a file of answers (JSONL, JSON, CSV, Parquet), such as PKU-SafeRLHF's",
        ),
    ],
    judge: Annotated[
        str | None,
        typer.Option("--judge", help="judge anew: a kind, such as refusal, or '{kind: …, model: NAME}'"),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option("--models", help="`models` for --judge, or a configuration; default: the run's own"),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="compare with a file of `id` and `harmful`: a person's, or --out's"),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", help="write the verdicts to this file, JSONL without texts")
    ] = None,
    review: Annotated[
        str | None, typer.Option("--review", help="write answers for a person to label, JSONL with texts")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="answers for --review")] = 100,
    keep: Annotated[
        str | None,
        typer.Option("--keep", help="write the judge's error for the report: RUN/judge_errors/NAME.json"),
    ] = None,
):
    """Judge stored answers again, and measure a judge against labels: accuracy, kappa, errors, corrected
    rate. Generates no answer."""
    from rich.console import Console

    from pipeline.commands.judge import judge as judge_answers

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    judge_answers(answers, judge, models, labels, out, review, rows, keep, console)


@app.command()
def serve(
    config: ConfigFile,
    arm: Annotated[
        str, typer.Argument(metavar="ARM", help="an arm of the run, a name in `adapters`, or vanilla")
    ],
    overrides: Overrides = None,
    host: Annotated[str, typer.Option("--host", help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="port to listen on")] = 8000,
    api_key_env: Annotated[
        str | None,
        typer.Option("--api-key-env", help="variable that holds the key to ask for; default: none"),
    ] = None,
):
    """Serve a trained arm, and the base model as vanilla, to OpenAI clients until Ctrl-C. See
    docs/serving.md."""
    from pipeline.commands.serve import serve as serve_arm
    from pipeline.config import load

    _until_stopped(
        "setbacks: the server has been stopped",
        lambda: serve_arm(load(config, overrides or []), arm, host, port, api_key_env, _tell),
    )


@app.command()
def status(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="a run directory (also on an object store), or the CONFIG of one"),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="print the same as JSON")] = False,
):
    """Show progress, throughput and past attempts. Works during a run, from any machine."""
    from pipeline.commands.status import show_status

    show_status(run, as_json)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False):
    if version:
        print(f"setbacks {__version__}")
        raise typer.Exit()


def _run(
    config: str,
    overrides: list[str] | None,
    stages,
    overwrite: bool,
    retry_failed: bool,
    suites: Sequence[str] = (),
) -> None:
    from pipeline import experiment
    from pipeline.config import load

    again = "the same command without --overwrite" if overwrite else "the same command"
    _until_stopped(
        f"setbacks: interrupted; rerun {again} to resume",
        lambda: experiment.run(
            load(config, overrides or []),
            stages,
            overwrite=overwrite,
            retry_failed=retry_failed,
            suites=suites,
            log=_tell,
        ),
    )


def _until_stopped(message: str, work: Callable[[], None]) -> None:
    """Do the work. If a signal interrupts it, print the message and exit with the signal's code."""
    try:
        with _stoppable(message):
            work()
    except KeyboardInterrupt as e:  # caught here because typer would exit silently
        print(message, file=sys.stderr, flush=True)
        sys.stdout.flush()
        # Not sys.exit: during interpreter shutdown, an interrupted Ray thread may abort the process.
        os._exit(128 + getattr(e, "signum", signal.SIGINT))


class _Stop(KeyboardInterrupt):
    def __init__(self, signum: int):
        self.signum = signum


@contextmanager
def _stoppable(message: str) -> Iterator[None]:
    """The first SIGINT or SIGTERM interrupts the body; later ones are ignored.

    After STOP_S the process exits anyway.
    """

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
    """Exit after a library swallowed the interrupt, or while a shutdown hangs.

    A local Ray, and a job's actors, end with this process.
    """
    from pipeline.runtime import attempt

    attempt.end(attempt.INTERRUPTED)
    print(message, file=sys.stderr, flush=True)
    os._exit(code)


def _tell(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Run the command line and exit: the entry point `setbacks`."""
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

    print(safe_text(" ".join(message.split())), file=sys.stderr)  # may contain names from a data set
    sys.exit(code)


if __name__ == "__main__":
    main()
