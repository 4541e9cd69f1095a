"""Whether the data sets that a run has made hold enough to go on."""

from collections import Counter
from collections.abc import Mapping

import pyarrow.compute as pc

from pipeline.config import Config
from pipeline.data.store import Store
from pipeline.errors import RunFailed
from pipeline.sources.counts import Accounts


def too_few(config: Config, generated: Mapping[str, Store]) -> str | None:
    """A sentence for a finished data set of which a method finds too few rows usable to train on."""
    made = {name: method for of in config.training_sets().values() for name, method in of.items()}
    for name, method in made.items():
        if told := few(generated[name], method.min_usable):
            remedy = "change what causes that and use --overwrite, or set it lower to go on"
            return f"methods.{name}.min_usable = {method.min_usable:g}: {told}; {remedy}"
    return None


def few(store: Store, least: float) -> str | None:
    """A sentence if less than the least share of a finished data set's rows is usable.

    A row that is neither dropped nor failed is usable; rows that were not selected do not count.
    """
    done = store.complete
    if done is None:
        return None
    selection = Counter(done.get("not_selected", {}))
    rows = done["rows"] - selection.total()
    lost = Counter(done["reasons"]) - selection
    usable = rows - lost.total()
    if not rows or usable >= least * rows:
        return None
    common = ", ".join(f"{why} ({count:,})" for why, count in lost.most_common(3))
    share = f"only {usable:,} of {rows:,} rows ({usable / rows:.1%}) of {store.path} are usable"
    return f"{share}, most others are lost with: {common}"


def check_kinds(config: Config, store: Store, generated: Mapping[str, Store], read_by_mix: Accounts) -> None:
    """Raises RunFailed if a training set has no example of a kind that is made and trained on.

    generated: method → what it made. read_by_mix: how `mix` read its sources, if it has just read them.
    """
    if "kind" not in store.schema.names:
        return
    present = set(pc.unique(store.dataset.table(["kind"])["kind"]).to_pylist())
    for name, method in config.training_sets().get(store.schema, {}).items():
        for kind in [kind for kind in method.kinds or () if kind not in present]:
            arms = [
                arm
                for arm, section in config.arms.items()
                if kind in (section.kinds or ()) and section.train.accepts == store.schema
            ]
            if not arms or kind not in method.example_kinds.get(store.schema.name, ()):
                continue
            text = f"mix: no example of kind {kind}, on which arms.{arms[0]} is trained"
            if kind not in method.made_from:
                raise RunFailed(f"{text}; see what became of the rows of {generated[name].path}")
            source, response = method.made_from[kind]
            field = f"methods.{name}.{source}"
            read = read_by_mix.known(field) or sources(generated[name]).known(field)
            told = f"{field} = {read.told()}" if read else field
            raise RunFailed(
                f"{text}: it is made from the {response} of {told}; name its column as"
                f" columns.{response}, or leave {kind} out of the arms' kinds"
            )


def sources(store: Store) -> Accounts:
    """How the sources of a work list were read."""
    return Accounts.from_facts((store.work() or {}).get("sources"))
