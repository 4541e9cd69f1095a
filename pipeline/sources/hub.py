"""Data sets of the hub through `datasets`, streamed."""

import re
from collections.abc import Callable, Container, Iterator
from typing import Any

from pipeline.errors import OutOfReach, UserError
from pipeline.settings.base import Source
from pipeline.settings.shown import shown
from pipeline.sources.network import is_unreachable


def rows(source: Source, name: str) -> Callable[[Container[str] | None], Iterator[dict]]:
    """A function that streams the rows of a split, with only some columns; class labels are their names.

    Raises OutOfReach without a network, and UserError for a set, configuration or split that is not there.
    """
    if not name:
        raise UserError(f"{source.path}: names no data set; write hub:OWNER/NAME")
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # it prints every retry; the exception has the details
    try:
        dataset = datasets.load_dataset(
            name, *filter(None, [source.config]), split=source.split, streaming=True
        )
    except Exception as e:  # the hub client raises a dozen kinds, network errors among them
        raise _refusal(source, e) from None
    features = dataset.features or {}
    labels = {column: kind for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)}

    def stream(columns: Container[str] | None) -> Iterator[dict]:
        wanted = [c for c in dataset.column_names or () if columns is None or c in columns]
        try:
            for row in dataset.select_columns(wanted) if wanted else dataset:
                yield {column: _named(labels.get(column), value) for column, value in row.items()}
        except Exception as e:
            kind = OutOfReach if is_unreachable(e) else UserError
            raise kind(f"{source.path}: the hub's data cannot be read ({shown(e)})") from None

    return stream


def _named(label: Any, value: Any) -> Any:
    """The name of a class label; -1 stands for none."""
    if label is None or not isinstance(value, int):
        return value
    return label.names[value] if 0 <= value < len(label.names) else None


def _refusal(source: Source, error: Exception) -> UserError:
    text = str(error)
    if "scripts are no longer supported" in text:
        return UserError(
            f"{source.path}: is a loading script, which datasets does not run; name one of its data files, as"
            " in hf://datasets/OWNER/NAME/FILE.json"
        )
    if names := re.search(r"Config name is missing.*?available configs: (\[.*?\])", text, re.DOTALL):
        return UserError(f"{source.path}: has several configurations; name one as config: {names[1]}")
    if names := re.search(r"BuilderConfig '(.*?)' not found. Available: (\[.*?\])", text, re.DOTALL):
        return UserError(f"{source.path}: config = {source.config} is none of its configurations {names[2]}")
    if "GatedRepo" in type(error).__name__ or "gated dataset" in text.lower():
        return UserError(
            f"{source.path}: is gated; accept its terms on its page of the hub, and log in with"
            " `hf auth login` or HF_TOKEN"
        )
    kind = OutOfReach if is_unreachable(error) else UserError
    return kind(f"{source.path}: split {source.split} cannot be loaded from the hub ({shown(error)})")
