"""JSON schemas: of configurations, for editors, and of results.json.

A configuration is written by hand, and completed when it is read: an arm has only what differs from `train`.
The schema accepts what people write, and says what it means where the cursor stands. What no schema can say,
such as the kinds that a method makes, `setbacks plan` says.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.report import results as kit

DOCS = Path(__file__).parents[2] / "docs"
CONFIGURATION = DOCS / "configuration.schema.json"
RESULTS = DOCS / "results.schema.json"


def configuration() -> str:
    """The JSON schema of configurations."""
    schema = _written(Config.model_json_schema())
    # What a configuration may leave out, although every read one has it.
    schema["required"].remove("arms")
    schema["$defs"]["Arm"]["required"].remove("train")
    schema["title"] = "setbacks configuration"
    return _text({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def results() -> str:
    """The JSON schema of results.json."""
    return _text(kit.schema())


def _text(schema: dict) -> str:
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _written(node: Any) -> Any:
    """The schema without titles, which repeat names, and with unions as people write them.

    Members of a union are told apart by a tag that may have a default, so several can fit: `anyOf`. Where
    the tag has to be given, it is required.
    """
    if isinstance(node, list):
        return [_written(one) for one in node]
    if not isinstance(node, dict):
        return node
    found = {key: _written(value) for key, value in node.items() if key not in ("title", "properties")}
    if "properties" in node:
        found["properties"] = {name: _written(value) for name, value in node["properties"].items()}
    if "oneOf" in found:
        found["anyOf"] = found.pop("oneOf")
    if (tag := found.pop("discriminator", None)) is not None:
        found["required"] = [tag["propertyName"]]
    if "patternProperties" in found:
        found.setdefault("additionalProperties", False)
    return found
