"""Keys of older configurations, each answered with its new place."""

from typing import Any

from pipeline.settings.base import tag


def answered(tree: dict) -> dict:
    """Parsed YAML of a configuration without the old keys that are null. Raises ValueError for the others."""
    for key, place in _MOVED.items():
        if _holds(tree, key.split(".")):
            raise ValueError(f"{key} is no longer a key: {place}")
    if tag(tree.get("model"), "path", None) == "dummy" and tag(tree.get("engine"), "kind", None) != "dummy":
        raise ValueError("model.path = 'dummy' is no longer a model: set engine: {kind: dummy}")
    return {key: _without_endpoints(part, str(key)) for key, part in tree.items()}


_MOVED = {
    "instructions": "it moved to the method that reads it, as methods.NAME.instructions",
    "recipe": "each method has a name, as methods.NAME: {name: mistake_analysis, …}",
    "mix": "it moved to mistake analysis, as methods.NAME.mix",
    "evaluation": "it became suites.safety, suites.c2_eval (for course_correction) and adapters",
    "model.dummy": "it became an engine, as engine: {kind: dummy, latency_s: …, failures: …, tokens: …}",
    "inference.endpoint": (
        "it became an engine, as methods.NAME.engine: {kind: openai, url: …, model: …} for a server that only"
        " generates, or as engine"
    ),
    "inference": "it became engine, with the same fields, as engine: {kind: vllm, actors: …, num_gpus: …}",
}


def _without_endpoints(tree: Any, place: str) -> Any:
    """Parsed YAML without the judges' old key `endpoint`, if that is null.

    Raises ValueError, with the new place, if it is not, and for a model in the place of a model's name.
    """
    if not isinstance(tree, dict) or place.partition(".")[0] not in ("methods", "suites"):
        return tree
    if tree.get("endpoint") is not None:
        raise ValueError(
            f"{place}.endpoint is no longer a key: a server is an entry of models, as models: {{NAME:"
            f" {{engine: {{kind: openai, url: …, model: …}}}}}}, and {place}.model: NAME names it"
        )
    aligned = tree.get("aligned")
    if isinstance(aligned, dict) and isinstance(aligned.get("model"), dict):
        raise ValueError(
            f"{place}.aligned.model now names an entry of models: give models: {{NAME: {{path: …}}}},"
            f" and {place}.aligned.model: NAME"
        )
    return {
        key: _without_endpoints(part, f"{place}.{key}") for key, part in tree.items() if key != "endpoint"
    }


def _holds(tree: Any, keys: list[str]) -> bool:
    """Whether parsed YAML has a value under these keys."""
    return isinstance(tree, dict) and keys[0] in tree and (not keys[1:] or _holds(tree[keys[0]], keys[1:]))
