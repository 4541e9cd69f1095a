"""An output that a run makes once: its fingerprint, its completion mark, and what happens if it exists."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.data import records, storage
from pipeline.errors import RunFailed, UserError


def unfenced() -> None:
    """The fence of an output that has no other writer."""


@dataclass(frozen=True)
class Output:
    """An output that a run makes once. It knows its fingerprint and whether it is complete.

    name:  its path under the run.
    fence: called before anything is published; raises RunFailed if another attempt has taken over the run
           directory.
    """

    run_dir: str
    name: str
    fence: Callable[[], None] = field(default=unfenced, kw_only=True, repr=False, compare=False)

    @property
    def path(self) -> str:
        return storage.join(self.run_dir, self.name)

    def state(self, *parts: str) -> str:
        return storage.join(self.run_dir, ".state", self.name, *parts)

    @property
    def fingerprint(self) -> dict | None:
        """The fingerprint under which the output was opened; None if it was not. Raises UserError if the
        file is damaged."""
        return records.read(self.state("fingerprint.json"))

    def open(self, fingerprint: dict, *, overwrite: bool = False) -> None:
        """Start or resume this output under a fingerprint: a nested dict of everything that determines its
        content.

        Raises UserError, with a readable difference, if an output of another fingerprint exists. A difference
        in `made_from` alone (an earlier stage was redone) does not raise: the derived output is made anew.
        """
        if overwrite:
            self.clear()
        self.check(fingerprint)
        known = self.fingerprint
        if known is not None and differences(known, fingerprint):
            self.clear()
        records.write(self.state("fingerprint.json"), fingerprint)

    def check(self, fingerprint: dict) -> None:
        """Raises UserError if an output of another fingerprint (`made_from` apart) or foreign files exist."""
        if self.fingerprint is None and storage.exists(self.path):
            raise UserError(
                f"{self.path} exists and was not made by this run: choose another run_dir, or replace it with"
                " --overwrite"
            )
        if changes := self.changes(fingerprint):
            raise UserError(
                f"{self.path} was made with another configuration ({'; '.join(changes)}): "
                "restore the configuration, choose another run_dir, or restart with --overwrite"
            )

    def changes(self, fingerprint: dict) -> list[str]:
        """Readable differences between the fingerprint that the output was begun with and this one,
        `made_from` apart."""
        known = self.fingerprint
        if known is None:
            return []
        return differences(known, {**fingerprint, "made_from": known.get("made_from")})

    def other_inputs(self, made_from: Mapping[str, str]) -> list[str]:
        """Readable differences between the inputs that the output was begun with and these."""
        known = self.fingerprint
        return [] if known is None else differences(known.get("made_from") or {}, dict(made_from))

    def clear(self) -> None:
        """Delete the output and its state, the completion mark first: half-cleared never looks complete."""
        storage.remove(self.state("complete.json"))
        storage.remove(self.path)
        storage.remove(self.state())

    def mark_complete(self, facts: dict) -> dict:
        """Write the completion mark. Raises RunFailed if another attempt has taken over the run directory.

        An attempt that is suspended after it has passed the fence does not replace the mark of a newer one.
        """
        self.fence()
        if not records.create(self.state("complete.json"), facts):
            self.fence()
            records.write(self.state("complete.json"), facts)
        return facts

    @property
    def complete(self) -> dict | None:
        """The facts of the completion mark; None if the output is not complete or has been deleted.

        Raises UserError if the mark is damaged.
        """
        return records.read(self.state("complete.json")) if storage.exists(self.path) else None

    @property
    def facts(self) -> dict:
        """`complete` of a finished output. Raises RunFailed if the output is not complete."""
        facts = self.complete
        if facts is None:
            raise RunFailed(f"{self.path} is not complete")
        return facts


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Readable differences of two nested dicts: `seed: 1 in the run directory, 2 in this config`."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{name}.")
        elif a != b:
            found.append(f"{name}: {json.dumps(a)} in the run directory, {json.dumps(b)} in this config")
    return found
