"""All commands: each parses its arguments and makes one call.

Exit codes: see EXIT_CODES.
"""

import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from pipeline import __version__
from pipeline.errors import RunFailed, UserError, of_place
from pipeline.runtime.stopping import until_stopped

MOST_ROWS = 2**31 - 1
EXIT_CODES = (
    "Exit codes: 0 done; 1 the run failed, or a number of the report is beyond its limit; 2 wrong usage,"
    " configuration or input, before anything started; 130 and 143 interrupted by Ctrl-C or SIGTERM: the same"
    " command resumes."
)
app = typer.Typer(
    help=(
        "Align a chat model by letting it make mistakes on purpose, explain them, and learn from the"
        " explanations."
    ),
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
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
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="rerun failed rows")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print warnings and errors only")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="print the messages of Ray and other libraries too")
]
AsJson = Annotated[bool, typer.Option("--json", help="print the same as JSON")]
Reveal = Annotated[bool, typer.Option("--reveal", help="show harmful text")]


def _stage(name: str, text: str):
    def command(
        config: ConfigFile,
        overrides: Overrides = None,
        overwrite: Overwrite = False,
        retry_failed: RetryFailed = False,
        quiet: Quiet = False,
        verbose: Verbose = False,
    ):
        _talk(quiet, verbose)
        _run(config, overrides, [name], overwrite, retry_failed)

    app.command(name, help=text)(command)


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    retry_failed: RetryFailed = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
):
    """Run all stages: generate, mix, train, evaluate, rejudge, report. Resumes an earlier attempt."""
    _talk(quiet, verbose)
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
    quiet: Quiet = False,
    verbose: Verbose = False,
):
    """Put every arm through the suites: answers (RUN/evaluation), corrections after a harmful prefill
    (RUN/continuations)."""
    _talk(quiet, verbose)
    _run(config, overrides, ["evaluate"], overwrite, retry_failed, suite or [])


_stage(
    "rejudge",
    "Let more judges judge the stored answers: verdicts of each (RUN/verdicts_NAME). Generates no answer.",
)


@app.command()
def report(
    config: ConfigFile,
    overrides: Overrides = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            metavar="NAME=NUMBER",
            help="exit with 1 if a number is below, as plain.harmless=0.9; harmless=0.9: every condition",
        ),
    ] = None,
    fail_over: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-over", metavar="NAME=NUMBER", help="exit with 1 if a number is above, as over_refusal=0.1"
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option("--arm", help="arms whose numbers are checked; default: all but the base model"),
    ] = None,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="also write RUN/inspect/*.eval for `inspect view`, with texts")
    ] = False,
    quiet: Quiet = False,
):
    """Write RUN/report.html, RUN/report.md and RUN/results.json from the results so far, and check numbers
    of them. See docs/results_json.md."""
    from pipeline.commands import inspect_logs, report_results, thresholds
    from pipeline.config import load

    _talk(quiet)
    limits = thresholds.limits(fail_under or [], fail_over or [])
    if inspect:
        inspect_logs.available()
    _run(config, overrides, ["report"], False, False)
    if inspect:
        loaded = load(config, overrides or [])
        inspect_logs.write_logs(loaded, loaded.run_dir, _tell)
    if limits or arm:
        run_dir = load(config, overrides or []).run_dir
        thresholds.check(report_results.read(run_dir), limits, arm or [])


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="run directories, or their configurations")
    ],
    arm: Annotated[list[str] | None, typer.Option("--arm", help="only this arm; may be repeated")] = None,
    different_judges: Annotated[
        bool, typer.Option("--different-judges", help="also compare rates of different judges, marked")
    ] = False,
    html: Annotated[str | None, typer.Option("--html", help="write the comparison to this file too")] = None,
    as_json: AsJson = False,
):
    """Compare runs with the first one: paired over the rows and instructions that they share, with 95 %
    bootstrap intervals, and what differs in their configurations."""
    from pipeline.commands.compare import show_comparison

    show_comparison(runs, arm or [], different_judges, html, as_json, _console())


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    tokens_per_s: Annotated[float | None, typer.Option(min=1, help="measured speed of one engine")] = None,
    reveal: Reveal = False,
    as_json: AsJson = False,
):
    """Preview a run without starting an engine: prompts, token lengths, GPUs, estimated time."""
    from pipeline.commands.plan import show_plan
    from pipeline.config import load

    show_plan(load(config, overrides or []), tokens_per_s, as_json=as_json, reveal=reveal)


@app.command()
def preview(
    config: ConfigFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="instructions used")] = 5,
    reveal: Reveal = False,
    verbose: Verbose = False,
):
    """Generate a few rows with the real engine and show them, harmful text masked. Keeps nothing."""
    from pipeline.config import load
    from pipeline.preview import preview as show_preview

    _talk(verbose=verbose)
    loaded = load(config, overrides or [])
    until_stopped(
        lambda: show_preview(loaded, rows, reveal, _console(), _tell),
        "setbacks: interrupted; nothing is kept",
    )


@app.command()
def init(
    file: Annotated[str, typer.Argument(metavar="FILE", help="configuration to write")] = "setbacks.yaml",
    model: Annotated[
        str | None, typer.Option("--model", help="directory or hub id of the chat model, or toy")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source", help="red-team instructions: file, directory, glob, hub:NAME or toy:harmful-train"
        ),
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="how the model is aligned")] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            "--held-out",
            help="red-team instructions for evaluation only, or toy:harmful-heldout; `none` = no evaluation",
        ),
    ] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=0, help="GPUs; 0 = on CPUs")] = None,
):
    """Write a commented configuration. Asks for what no option says, if there is a terminal."""
    from pipeline.commands.init import init as write

    ask = (lambda question, default: typer.prompt(question, default=default)) if sys.stdin.isatty() else None
    write(file, model, source, method, held_out, gpus, ask, _tell)


@app.command()
def schema(
    results: Annotated[bool, typer.Option("--results", help="the schema of results.json instead")] = False,
):
    """Print the JSON schema of configurations, for editors: `# yaml-language-server: $schema=FILE`."""
    from pipeline.commands import schemas

    print(schemas.results() if results else schemas.configuration(), end="")


@app.command()
def env(as_json: AsJson = False):
    """Print versions and devices, for a bug report."""
    from pipeline.commands.environment import show_environment

    show_environment(as_json)


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
    gpus_per_node: Annotated[
        int | None,
        typer.Option(
            "--gpus-per-node",
            min=1,
            help="GPUs of a pod for training; default: 1, or an engine's",
        ),
    ] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="a batch script for Slurm instead")] = False,
):
    """Print a RayJob for Kubernetes (KubeRay), or a batch script for Slurm, sized from the configuration.

    See cluster/README.md.
    """
    from pipeline.commands import manifest
    from pipeline.commands import slurm as batch
    from pipeline.config import load

    if slurm and (image or cluster or gpus_per_node):
        raise UserError(
            "--slurm: goes with none of --image, --cluster and --gpus-per-node, which are about Kubernetes"
        )
    read = load(config, overrides or [])
    if slurm:
        text = batch.script(read)
    else:
        text = manifest.manifest(read, image, interactive=cluster, gpus_per_node=gpus_per_node)
    print(text, end="")


@app.command()
def show(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="directory of a data set, such as RUN/mistakes")
    ],
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="COLUMN=VALUE", help="only rows with this value, as arm=sft, id=…"),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, max=MOST_ROWS, help="rows shown")] = 5,
    offset: Annotated[int, typer.Option("--offset", min=0, max=MOST_ROWS, help="rows passed over first")] = 0,
    reveal: Reveal = False,
    as_json: AsJson = False,
):
    """Show rows of a data set in the terminal, harmful text masked."""
    from rich.console import Console

    from pipeline.commands.show import show as show_rows

    show_rows(dataset, rows, reveal, Console(), where=where or [], offset=offset, as_json=as_json)


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
    as_json: AsJson = False,
):
    """Judge stored answers again, and measure a judge against labels: accuracy, kappa, errors, corrected
    rate. Generates no answer."""
    from pipeline.commands.judge import judge as judge_answers

    judge_answers(answers, judge, models, labels, out, review, rows, keep, _console(), as_json=as_json)


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

    until_stopped(
        lambda: serve_arm(load(config, overrides or []), arm, host, port, api_key_env, _tell),
        "setbacks: the server has been stopped",
    )


@app.command()
def publish(
    run: Annotated[str, typer.Argument(metavar="RUN", help="run directory, or its configuration")],
    repo: Annotated[
        str, typer.Option("--repo", help="repository on the Hugging Face Hub, ORGANIZATION/NAME")
    ],
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", help="only this data set, such as mistakes; may be repeated"),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", metavar="ARM", help="this arm's adapter instead of data sets")
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="the hub's id of a license, or the https:// address of its text; default: that"
            " of the sources, if they have one and the same",
        ),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option("--language", help="ISO code; may be repeated; default: of some rows"),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", help="with --adapter: hub name of a base model read from a directory"),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="with --adapter: repository of the run's data sets")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="for everyone to see; default: private")] = False,
    no_gated: Annotated[
        bool, typer.Option("--no-gated", help="without asking for access; default: you approve each request")
    ] = False,
    dry_run: Annotated[
        str | None,
        typer.Option("--dry-run", metavar="DIR", help="write what would be uploaded to this new directory"),
    ] = None,
):
    """Upload the finished data sets of a run, or an adapter, with a card. See docs/sharing.md."""
    from pipeline.commands import publish as command

    wanted = command.Wanted(repo, license, language or [], base_model, data)
    until_stopped(
        lambda: command.publish(
            run,
            wanted,
            dataset or [],
            adapter,
            private=not public,
            gated=not no_gated,
            dry_run=dry_run,
            tell=_tell,
        ),
        "setbacks: interrupted; rerun the same command to upload the rest",
    )


@app.command()
def status(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="a run directory (also on an object store), or the CONFIG of one"),
    ],
    overrides: Overrides = None,
    as_json: AsJson = False,
):
    """Show progress, throughput and past attempts. Works during a run, from any machine."""
    from pipeline.commands.status import show_status

    show_status(run, as_json, overrides or [])


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
    until_stopped(
        lambda: experiment.run(
            load(config, overrides or []),
            stages,
            overwrite=overwrite,
            retry_failed=retry_failed,
            suites=suites,
            log=_tell,
        ),
        f"setbacks: interrupted; rerun {again} to resume",
    )


def _talk(quiet: bool = False, verbose: bool = False) -> None:
    from pipeline.runtime.console import level

    if quiet and verbose:
        raise UserError("--quiet and --verbose: give one of them")
    level.quiet, level.verbose = quiet, verbose


def _tell(line: str) -> None:
    from pipeline.runtime.console import level

    if not level.quiet or line.startswith("WARNING"):
        print(line, flush=True)


def _console():
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def main() -> None:
    """Run the command line and exit: the entry point `setbacks`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever characters the terminal has
            stream.reconfigure(errors="replace")
    try:
        sys.exit(app(standalone_mode=False))
    except UserError as e:
        _end(f"setbacks: {e}", 2)
    except RunFailed as e:
        _end(f"setbacks: {e}", 1)
    except OSError as e:
        from pipeline.schema import STAGES  # imports a large library

        if (told := of_place(e)) is None:
            raise
        _end(f"setbacks: {told}", 1 if sys.argv[1] in (*STAGES, "run") else 2)
    except typer.Abort:  # at a question of `init`
        _end("setbacks: interrupted", 130)
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
