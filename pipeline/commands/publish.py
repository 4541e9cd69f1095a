"""`setbacks publish`: the data sets of a run, or one of its adapters, as a repository on Hugging Face's hub.

Private and gated, unless told otherwise. What is not finished is refused.
No text of a row is printed.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from pipeline import __version__, gates
from pipeline.commands import licenses, report
from pipeline.commands.compare import config_of
from pipeline.commands.licenses import License
from pipeline.commands.status import run_dir_of
from pipeline.config import Config
from pipeline.data import adapter as adapter_files
from pipeline.data import storage
from pipeline.data.dataset import changed
from pipeline.data.output import Output
from pipeline.data.store import Store
from pipeline.errors import RunFailed, UserError
from pipeline.report.results import Results
from pipeline.schema import MESSAGES, Schema
from pipeline.settings.base import PathKind, Section, Source
from pipeline.settings.shown import plural, shown
from pipeline.settings.walk import paths, sections
from pipeline.training.durability import DURABILITY

Kind = Literal["dataset", "model"]
LARGE_BYTES, LARGE_FILES = 20 * 2**30, 2000  # above it, an upload is split into commits that go on if cut off
_SAMPLED = 300  # rows of a data set whose language is looked at
_LEAST = 0.05  # share of the rows that a language has to have
_CERTAIN = 0.9  # of a row's language
_NO_LANGUAGE = "the card names no language: give it as --language en"
_LOCAL_ONLY = ("events.out.tfevents.",)  # name the machine that trained


@dataclass
class Repo:
    """What a repository is to hold.

    files: place in the repository → a path on any storage, or the content. told: lines for the user.
    """

    kind: Kind
    files: dict[str, str | bytes]
    told: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wanted:
    """What the user wants of the card. base_model, data: hub names, of an adapter's card."""

    repo: str
    license: str | None = None
    languages: Sequence[str] = ()
    base_model: str | None = None
    data: str | None = None


def publish(
    target: str,
    wanted: Wanted,
    datasets: Sequence[str],
    adapter: str | None,
    *,
    private: bool,
    gated: bool,
    dry_run: str | None,
    tell: Callable[[str], Any],
    api: Any = None,
) -> None:
    """Upload data sets of a run, or the adapter of an arm.

    target: a run directory or the configuration of one. datasets: names; none = all of the run. dry_run: a
    new directory to write to instead. api: `huggingface_hub.HfApi`, or a stand-in. Raises UserError before
    anything is sent; RunFailed if the hub breaks off.
    """
    for option, name in (("repo", wanted.repo), ("base-model", wanted.base_model), ("data", wanted.data)):
        _check_name(f"--{option}", name)
    if (
        dry_run is not None
        and os.path.exists(dry_run)
        and (not os.path.isdir(dry_run) or os.listdir(dry_run))
    ):
        raise UserError(f"--dry-run = {dry_run}: exists already; name a new directory")
    if adapter is None and (wanted.base_model or wanted.data):
        raise UserError("--base-model and --data are of an adapter's card; give --adapter too")
    if adapter is not None and datasets:
        raise UserError("--adapter and --dataset are for repositories of their own; give one of them")
    run_dir = run_dir_of(target)
    config = config_of(run_dir)
    if dry_run is not None and Path(dry_run).resolve().is_relative_to(Path(run_dir).resolve()):
        raise UserError(f"--dry-run = {dry_run}: is inside the run {run_dir}; name a directory elsewhere")
    made = of_datasets(config, run_dir, wanted, datasets) if adapter is None else None
    made = made or of_adapter(config, run_dir, wanted, str(adapter))
    for line in made.told:
        tell(f"publish: {line}")
    if dry_run is not None:
        _write(made, dry_run, shutil.copyfile)
        tell(f"publish: {plural(len(made.files), 'file')} → {dry_run}; nothing was sent")
        return
    # Beside the run's files, so that they can be linked instead of copied.
    state = storage.join(run_dir, ".state") if storage.is_local(run_dir) else None
    with tempfile.TemporaryDirectory(dir=state, prefix="publish-") as folder, _hub(wanted.repo):
        _upload(made, wanted.repo, folder, private, gated, tell, api or _api())


def _check_name(option: str, name: str | None) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if name is None:
        return
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(
            f"{option} = {shown(name, 60)}: not a name of a repository on the hub; write ORGANIZATION/NAME"
        ) from None


# -- data sets


def of_datasets(config: Config, run_dir: str, wanted: Wanted, names: Sequence[str]) -> Repo:
    """The repository of a run's data sets. Raises UserError if one is not complete, or has changed."""
    from pipeline.commands import publish_cards

    known = _stores(config, run_dir)
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"--dataset {shown(unknown[0], 60)}: the run has no such data set; known are {', '.join(known)}"
        )
    files: dict[str, str | bytes] = {}
    told, parts = [], {}
    for name, store in {name: known[name] for name in names or known}.items():
        if (done := store.complete) is None:
            raise UserError(
                f"{store.path} is not complete: finish it with `setbacks {store.schema.stage or 'run'}`, or"
                " name the finished data sets with --dataset"
            )
        for shard, facts in done["shards"].items():
            _check_digest(store.path, shard, facts["digest"])
            files[f"{name}/{shard}"] = storage.join(store.path, shard)
        parts[name] = (store.schema, done["rows"], _card(store.path))
        told.append(f"{name}, {plural(done['rows'], 'row')}")
    sources = {path: licenses.of_source(path) for path in _sources(config, parts)}
    license = licenses.chosen(wanted.license, sources)
    languages = wanted.languages or _languages(known[name] for name in parts)
    card = publish_cards.of_datasets(wanted.repo, config, parts, sources, license, languages)
    told += [*_told(sources, license, languages), *_places(config, card)]
    return Repo("dataset", {"README.md": card.encode(), **files}, told)


def _stores(config: Config, run_dir: str) -> dict[str, Store]:
    """All data sets of a run, in the order of its stages."""
    schemas: dict[str, Schema] = {
        method.generated.name: method.generated for method in config.methods.values()
    }
    schemas |= {schema.name: schema for schema in config.training_sets()}
    if config.further:
        schemas[DURABILITY.name] = DURABILITY
    suites = config.suites.items().values()
    schemas |= {suite.data_schema.name: suite.data_schema for suite in suites}
    schemas |= {
        suite.verdicts_name(judge): suite.verdicts for suite in suites for judge in suite.judges_later
    }
    return {name: Store(run_dir, name, schema) for name, schema in schemas.items()}


def _sources(config: Config, names: Iterable[str]) -> list[str]:
    """Paths of the sources from which these data sets were made."""
    chosen, makers = set(names), list[Section]()
    for method in config.methods.values():
        if chosen & {schema.name for schema in (method.generated, *method.training_sets)}:
            makers.append(method)
    for suite in config.suites.items().values():
        if chosen & {suite.data_schema.name, *map(suite.verdicts_name, suite.judges_later)}:
            makers.append(suite)
    if config.durability and DURABILITY.name in chosen:
        makers.append(config.durability)
    return sorted({source.path for maker in makers for source in sections(maker, Source).values()})


def _languages(stores: Iterable[Store]) -> list[str]:
    """ISO codes of the languages of some rows' texts, the most frequent first; [] if none is certain.

    Texts are columns of text, and conversations.
    """
    counted: dict[str, int] = {}
    looked_at = 0
    for store in stores:
        columns = [column for column in store.schema.columns if column.text is not None]
        names = [
            column.name
            for column in columns
            if column.type in (pa.string(), MESSAGES) and column.name != "source"
        ]
        table = next(store.dataset.tables(names), None) if names else None
        for row in table.slice(0, _SAMPLED).to_pylist() if table is not None else ():
            language, certainty = gates.language(" ".join(_words(row.values())))
            looked_at += 1
            if certainty >= _CERTAIN:
                counted[language] = counted.get(language, 0) + 1
    frequent = [language for language, count in counted.items() if count >= _LEAST * looked_at]
    return sorted(frequent, key=lambda language: -counted[language])


def _words(values: Iterable[Any]) -> Iterator[str]:
    """The texts of a row's columns, and of the turns of its conversations."""
    for value in values:
        if isinstance(value, list):
            yield from (turn["content"] or "" for turn in value)
        elif value:
            yield value


def _told(sources: dict[str, str | None], license: License, languages: Sequence[str]) -> list[str]:
    """What the user is to know of a card."""
    told = [f"license {license.told}"]
    told.append(f"languages {', '.join(languages)}" if languages else _NO_LANGUAGE)
    if bound := [path for path, known in sources.items() if licenses.is_non_commercial(known)]:
        told.append(f"WARNING: made from sources that are not for commercial use: {', '.join(bound)}")
    if local := [path for path in sources if not path.startswith(("toy:", licenses.HUB))]:
        told.append(f"WARNING: the card names paths of yours: {', '.join(local)}")
    return told


def _places(config: Config, card: str) -> list[str]:
    """A warning of local models and adapters that a card names."""
    models = [config.model, *(named.model for named in config.models.values())]
    given = [*(model.path for model in models), *paths(config, PathKind.ADAPTER).values()]
    found = sorted({path for path in given if path in card and (os.path.isabs(path) or os.path.isdir(path))})
    return [f"WARNING: the card names places of yours: {', '.join(found)}"] if found else []


def _card(path: str) -> str:
    """The README.md of an output; empty if a crash came before it."""
    with suppress(FileNotFoundError):
        return storage.read_text(storage.join(path, "README.md"))
    return "---\n{}\n---\n"


def _check_digest(path: str, name: str, digest: str) -> None:
    if storage.digest(storage.join(path, name)) != digest:
        raise changed(path, name, "is corrupt or has changed")


# -- an adapter


def of_adapter(config: Config, run_dir: str, wanted: Wanted, arm: str) -> Repo:
    """The repository of an arm's adapter. Raises UserError if it is not complete, or has changed."""
    from pipeline.commands import publish_cards

    known = [*config.replicas, *config.further]
    if arm not in known:
        raise UserError(
            f"--adapter {shown(arm, 60)}: the run trains no such arm; known are {', '.join(known) or 'none'}"
        )
    output = Output(run_dir, f"adapter/{arm}")
    if (done := output.complete) is None:
        raise UserError(f"{output.path} is not complete: finish it with `setbacks train`")
    _check_digest(output.path, adapter_files.FILES[1], done["digest"])
    base = _base(config, wanted.base_model)
    methods = {schema.name for method in config.methods.values() for schema in method.training_sets}
    sources = {path: licenses.of_source(path) for path in _sources(config, methods)}
    named = {f"the base model {base[1]}": licenses.of_model(config), **sources}
    license = licenses.chosen(wanted.license, named)
    results = _results(config, run_dir, arm, done["digest"])
    languages = wanted.languages or _languages(_trained_on(config, run_dir, arm))
    files, left_out = _adapter_files(output.path, base)
    card = publish_cards.of_adapter(
        *(wanted.repo, config, arm, base, _card(output.path), sources, license),
        *(languages, [wanted.data] if wanted.data else [], results),
    )
    told = [f"adapter {arm}", *_told(sources, license, languages), *_places(config, card)]
    told += [] if base[0] else ["the base model has no name on the hub: give it with --base-model"]
    told += [] if results else ["not evaluated, so the card has no results: `setbacks evaluate` first"]
    told += [f"left out: {', '.join(left_out)}"] if left_out else []
    return Repo("model", {"README.md": card.encode(), **files}, told)


def _trained_on(config: Config, run_dir: str, arm: str) -> list[Store]:
    """The finished data sets that an arm was trained on; none if they are gone."""
    replica = config.replicas.get(arm)
    schema = DURABILITY if replica is None else replica.section.train.accepts
    store = Store(run_dir, schema.name, schema)
    with suppress(UserError):  # the adapter is whole, whatever became of its data
        return [store] if store.complete is not None else []
    return []


def _base(config: Config, given: str | None) -> tuple[str, str]:
    """The base model's id on the hub, empty if it has none, and its name without the directory it lay in."""
    path = config.model.path
    if given:
        return given, given
    if path == "toy" or os.path.isdir(path) or os.path.isabs(path):
        return "", storage.name(path)
    return path, path


def _adapter_files(path: str, base: tuple[str, str]) -> tuple[dict[str, str | bytes], list[str]]:
    """The files of an adapter's repository, and what of its directory stays here."""
    names = [name for name in storage.sizes(path) if not name.startswith(_LOCAL_ONLY) and name != "README.md"]
    files: dict[str, str | bytes] = {name: storage.join(path, name) for name in names}
    files[adapter_files.FILES[0]] = _settings(path, base)
    left_out = []
    for directory in storage.directories(path):
        place = storage.join(path, directory)
        if not adapter_files.is_whole(place):
            left_out.append(f"{directory}/")  # merged weights: a model of its own
            continue
        files[f"{directory}/{adapter_files.FILES[1]}"] = storage.join(place, adapter_files.FILES[1])
        files[f"{directory}/{adapter_files.FILES[0]}"] = _settings(place, base)
    return files, left_out


def _settings(adapter: str, base: tuple[str, str]) -> bytes:
    """adapter_config.json with the base model's name for others in the place of a directory."""
    found = adapter_files.settings(adapter) | {"base_model_name_or_path": base[1]}
    return (json.dumps(found, indent=2, sort_keys=True) + "\n").encode()


def _results(config: Config, run_dir: str, arm: str, digest: str) -> Results | None:
    """What `setbacks report` says now, without the suites that evaluated another adapter of this name."""
    stale = set()
    for name, suite in config.suites.items().items():
        made_from = (Store(run_dir, suite.data_schema.name, suite.data_schema).fingerprint or {}).get(
            "made_from"
        )
        if (made_from or {}).get(arm) != digest:
            stale.add(name)
    if stale == set(config.suites.items()):
        return None
    found = report.results(config, run_dir)
    return found.model_copy(update={"numbers": [one for one in found.numbers if one.suite not in stale]})


# -- writing and sending


def _write(made: Repo, folder: str, copy: Callable[[str, str], Any]) -> None:
    """Put the files into a local directory. copy: how a local file gets there."""
    for place, source in made.files.items():
        target = os.path.join(folder, place)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if isinstance(source, str) and storage.is_local(source):
            copy(storage.absolute(source), target)
        else:
            with open(target, "wb") as f:
                f.write(source if isinstance(source, bytes) else storage.read_bytes(source))


def _linked(source: str, target: str) -> None:
    """A second name of a file; a copy if the disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="setbacks", library_version=__version__)


def _upload(
    made: Repo, repo: str, folder: str, private: bool, gated: bool, tell: Callable[[str], Any], api: Any
) -> None:
    """Create the repository, close it, and only then send the files."""
    api.whoami()
    address = api.create_repo(repo, repo_type=made.kind, private=private, exist_ok=True)
    if private and not api.repo_info(repo, repo_type=made.kind).private:
        raise UserError(
            f"--repo = {repo}: the repository exists and is public; name another, or add --public if all may"
            " see its texts"
        )
    if not private and api.repo_info(repo, repo_type=made.kind).private:
        _check_opening(made, repo, api)
    api.update_repo_settings(repo, repo_type=made.kind, private=private, gated="manual" if gated else False)
    _write(made, folder, _linked)
    size = sum(os.path.getsize(os.path.join(folder, place)) for place in made.files)
    large = size > LARGE_BYTES or len(made.files) > LARGE_FILES
    if large and hasattr(api, "upload_large_folder"):  # newer versions have one way for all sizes
        api.upload_large_folder(repo_id=repo, folder_path=folder, repo_type=made.kind)
    else:
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type=made.kind,
            commit_message=f"Upload by setbacks {__version__}",
        )
    _forget(made, repo, tell, api)
    seen = f"{'private' if private else 'public'}, {'gated' if gated else 'not gated'}"
    tell(f"publish: {plural(len(made.files), 'file')} → {address} ({seen})")


def _check_opening(made: Repo, repo: str, api: Any) -> None:
    """Raises UserError if a private repository holds files that would become public beside the new ones."""
    own = {*made.files, ".gitattributes"}
    others = sorted(set(api.list_repo_files(repo, repo_type=made.kind)) - own)
    if others:
        raise UserError(
            f"--public: {repo} is private and holds {plural(len(others), 'other file')}, such as"
            f" {shown(others[0], 60)}, which everyone could see then; name another repository, or make this"
            " one public on the hub first"
        )


def _forget(made: Repo, repo: str, tell: Callable[[str], Any], api: Any) -> None:
    """Delete shards of earlier uploads of the same data sets: they would be read beside the new ones."""
    there = [name for name in api.list_repo_files(repo, repo_type=made.kind) if name.endswith(".parquet")]
    places = {name.rpartition("/")[0] for name in made.files if name.endswith(".parquet")}
    old = [name for name in there if name not in made.files and name.rpartition("/")[0] in places]
    if old:
        api.delete_files(repo_id=repo, delete_patterns=old, repo_type=made.kind)
        tell(f"publish: {plural(len(old), 'file')} of an earlier upload deleted")
    if others := sorted({name.rpartition("/")[0] for name in there} - {*places, ""}):
        tell(f"publish: {', '.join(others)}: of an earlier upload, and no longer on the card")


@contextmanager
def _hub(repo: str) -> Iterator[None]:
    """The hub's errors as sentences. Raises UserError if the user can mend it, RunFailed else."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError("no login at the hub: run `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as e:
        status = e.response.status_code if e.response is not None else "no answer"
        if status in (401, 403, 404):
            raise UserError(
                f"--repo = {repo}: the hub refuses it ({status}); log in with a token that may write there"
            ) from None
        raise RunFailed(f"--repo = {repo}: the hub answers {status}; rerun the same command") from None
    except (httpx.HTTPError, ConnectionError) as e:
        raise RunFailed(
            f"--repo = {repo}: the hub cannot be reached ({type(e).__name__}); rerun the same command"
        ) from None
