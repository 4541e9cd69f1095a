"""`setbacks status`: progress and throughput of each output of a run, and the state of every attempt.

Reads `RUN/.state` only, never data, and imports nothing heavy, so it answers at once from any machine that
sees the run directory.
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from pipeline.data import records, storage
from pipeline.data.output import Output
from pipeline.data.store import Store
from pipeline.errors import UserError
from pipeline.runtime import attempt
from pipeline.runtime.attempt import KILLED, RUNNING
from pipeline.schema import STAGES, Schema
from pipeline.settings.shown import shown

COMPLETE, INCOMPLETE, WAITING, CORRUPT = "complete", "incomplete", "waiting", "corrupt"  # and RUNNING
UNREADABLE = "cannot be read"


def show_status(target: str, as_json: bool, overrides: Sequence[str] = ()) -> None:
    """Print the status of a run directory, or of a configuration's.

    overrides: `key=value`, of the configuration. Raises UserError if no run has used the directory.
    """
    facts = status(run_dir_of(target, overrides))
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    from rich.console import Console

    _print(facts, Console(highlight=False, width=None if sys.stdout.isatty() else 200))  # a file has no width


def status(run_dir: str) -> dict:
    """All known facts of a run:

    run_dir, state (of the newest attempt; None if there is no attempt);
    outputs:  of each: name, stage, state, done, failed, left, total, unit, per_s, tokens_per_s, eta_s,
              counts, note;
              None means unknown;
    attempts: the files of `RUN/.state/attempts`, oldest first, with their real state.

    Raises UserError if no run has used the directory.
    """
    try:
        names, attempts = _outputs(run_dir), _attempts(run_dir)
    except OSError as e:
        why = f"cannot be read ({e.strerror or e})"
        raise UserError(f"{run_dir}: {why}; fix the connection or the permissions") from None
    if not names and not attempts:
        raise UserError(f"{run_dir}: contains no run; name a run directory or its configuration")
    newest = attempts[-1] if attempts else {}
    outputs = [_output(run_dir, name, stage, newest) for name, stage in names.items()]
    begun = {output["stage"] for output in outputs}
    ahead = newest.get("stages", ()) if newest.get("state") == RUNNING else ()
    outputs += [_row(None, stage, WAITING) for stage in ahead if stage not in begun and stage != STAGES[-1]]
    return {"run_dir": run_dir, "state": newest.get("state"), "outputs": outputs, "attempts": attempts}


# -- reading


def run_dir_of(target: str, overrides: Sequence[str] = ()) -> str:
    """The run directory that a user names, or that a configuration names. Raises UserError."""
    if storage.is_local(target) and os.path.isfile(target):
        from pipeline.config import load

        return storage.absolute(load(target, list(overrides)).run_dir)
    if overrides:
        raise UserError(
            f"{target}: is no configuration file, and {shown(overrides[0], 60)} changes one; name the"
            " configuration, or leave it out"
        )
    return storage.absolute(target)


def _attempts(run_dir: str) -> list[dict]:
    """All attempts with their real state: only the newest can be running, and only if it is alive."""
    attempts = attempt.history(run_dir)
    for one in attempts:
        one.setdefault("state", UNREADABLE)
        if one["state"] == RUNNING and (one is not attempts[-1] or not attempt.is_alive(run_dir, one)):
            one["state"] = KILLED
    return attempts


def _outputs(run_dir: str) -> dict[str, str]:
    """The outputs that a run has started, with their stages, in the order of the stages."""
    state, found = storage.join(run_dir, ".state"), {}
    names = storage.directories(state)
    names += [f"adapter/{arm}" for arm in storage.directories(storage.join(state, "adapter"))]
    for name in names:
        path = storage.join(state, name, "fingerprint.json")
        if storage.exists(path):
            found[name] = STAGES[0]
            with suppress(UserError):  # `_output` says that the file is damaged
                found[name] = (records.read(path) or {}).get("stage", STAGES[0])
    return dict(sorted(found.items(), key=lambda item: STAGES.index(item[1])))


def _output(run_dir: str, name: str, stage: str, newest: dict) -> dict:
    output = (Output if stage == "train" else _store)(run_dir, name)
    try:
        output.fingerprint  # noqa: B018  damaged?
        done = output.complete
    except UserError as e:  # a shard was deleted or cut, or a file of the state is damaged
        return _row(name, stage, CORRUPT, note=str(e))
    if done is not None:
        return _complete(name, stage, done)
    made = newest.get("outputs", {}) if newest.get("state") == RUNNING else {}
    row = _row(name, stage, RUNNING if name in made else INCOMPLETE)
    if progress := made.get(name):
        return row | progress | {"left": progress["total"] - progress["done"]}
    if stage in ("generate", "evaluate", "rejudge") and (store := _store(run_dir, name)).work() is not None:
        total, committed = store.work_list.rows, store.work_list.rows_of(store.committed())
        note = _waiting(store)
        return row | {
            "unit": "rows",
            "done": committed,
            "total": total,
            "left": total - committed,
            **({"note": note} if note else {}),
        }
    return row


def _waiting(store: Store) -> str | None:
    """Who is waited for by rows that other models have begun, if any."""
    names = storage.directories(store.state(f"calls-{store.work_list.token}"))
    committed = store.committed()
    left = {number: name for number, name in store.awaited(names).items() if number not in committed}
    if not left:
        return None
    who = {"the model itself" if name == "-" else f"models.{name}" for name in left.values()}
    return f"{store.work_list.rows_of(left):,} rows are begun and wait for {' and '.join(sorted(who))}"


def _store(run_dir: str, name: str) -> Store:
    return Store(run_dir, name, Schema(name, ()))  # the columns of the rows are not needed


def _complete(name: str, stage: str, facts: dict) -> dict:
    if stage == "train":
        done = {"unit": "steps", "done": facts.get("steps"), "total": facts.get("steps"), "left": 0}
        return _row(name, stage, COMPLETE) | done | {"tokens_per_s": facts.get("tokens_per_s")}
    counts, reasons = facts["status"], facts["reasons"]
    note = max(reasons, key=reasons.get) if reasons else None
    done = {
        "unit": "rows",
        "done": facts["rows"],
        "total": facts["rows"],
        "left": 0,
        "failed": counts.get("failed", 0),
    }
    return _row(name, stage, COMPLETE) | done | {"counts": counts, "note": note}


def _row(name: str | None, stage: str, state: str, note: str | None = None) -> dict:
    unknown = dict.fromkeys(
        ("unit", "done", "failed", "left", "total", "per_s", "tokens_per_s", "eta_s", "counts")
    )
    return {"name": name, "stage": stage, "state": state, **unknown, "note": note}


# -- printing

_STYLES = {
    RUNNING: "cyan",
    COMPLETE: "green",
    "finished": "green",
    INCOMPLETE: "yellow",
    "interrupted": "yellow",
    WAITING: "dim",
}


def _print(facts: dict, console) -> None:
    from rich.text import Text

    newest = facts["attempts"][-1] if facts["attempts"] else None
    console.print(Text(facts["run_dir"], style="bold"), soft_wrap=True)
    table = _table("stage", "output", "state", "done>", "failed>", "left>", "speed>", "time left>")
    for row in facts["outputs"]:
        table.add_row(
            row["stage"],
            row["name"] or "",
            _state(row["state"]),
            _done(row),
            _count(row["failed"]),
            _count(row["left"]),
            _speed(row),
            _duration(row["eta_s"]),
        )
    console.print(table)
    for row in facts["outputs"]:
        if row["note"]:
            what = {COMPLETE: "most frequent error: ", RUNNING: "last error: "}.get(row["state"], "")
            console.print(Text(f"{row['name']}: {what}{_plain(row['note'])}", style="yellow"), soft_wrap=True)
    if newest:
        console.print()
        console.print(_attempts_table(facts["attempts"]))
    if newest and newest["state"] == RUNNING and newest.get("metrics"):
        others = f" and {len(newest['metrics']) - 1} more" if newest["metrics"][1:] else ""
        console.print(Text(f"\nmetrics: {_plain(newest['metrics'][0])}{others}"), soft_wrap=True)


def _attempts_table(attempts: list[dict]):
    table = _table("attempt>", "host", "process>", "started", "rows>", "state")
    for one in attempts:
        facts = [_plain(str(one.get(key, ""))) for key in ("host", "pid", "started")]
        table.add_row(str(one["number"]), *facts, _count(one.get("rows")), _state(_plain(one["state"])))
    return table


def _table(*headings: str):
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for heading in headings:
        right = heading.endswith(">")
        table.add_column(
            heading.rstrip(">"),
            justify="right" if right else "left",
            no_wrap=heading != "state",
            overflow="fold",
        )
    return table


def _state(state: str):
    from rich.text import Text

    return Text(state, style=_STYLES.get(state, "red"))


def _plain(text: str) -> str:
    """Text of a file, without control characters."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _done(row: dict) -> str:
    if row["done"] is None:
        return ""
    return (
        f"{row['done']:,} {row['unit']}"
        if row["state"] == COMPLETE
        else f"{row['done']:,} of {row['total']:,} {row['unit']}"
    )


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _speed(row: dict) -> str:
    speeds = [f"{row['per_s']:,.1f} {row['unit']}/s"] if row["per_s"] else []
    speeds += [f"{row['tokens_per_s']:,.0f} tokens/s"] if row["tokens_per_s"] else []
    return ", ".join(speeds)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, hours = seconds / 60, seconds / 3600
    return (
        f"{seconds:.0f} s" if seconds < 120 else f"{minutes:.0f} min" if minutes < 120 else f"{hours:.1f} h"
    )
