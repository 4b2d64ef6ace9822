"""The JSON schema of an Axolotl YAML with a `versatune:` block, for editors and validators.

It comes from the pydantic models; what these check in code and a schema can say as well is added here. What depends on
other keys, on files or on the domains is left to `versatune check`.
"""

from versatune_plugin.config.block import VersaTuneConfig
from versatune_plugin.config.checks import START_NAMES
from versatune_plugin.config.sections import SELF
from versatune_plugin.strategies import STRATEGIES

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_DOMAIN = {
    "type": "string",
    "pattern": r"^\S(.*\S)?$",
    "description": "The domain of this dataset's rows, for the `versatune:` block.",
    "examples": ["law"],
}
_JSON_FILE = {"type": "string", "pattern": r"\.json$"}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}


def _per_domain(number: dict, example: dict) -> dict:
    """A number for each domain; editors offer the example."""
    snippet = {"label": "a number per domain", "body": example}
    return {"type": "object", "additionalProperties": number, "defaultSnippets": [snippet]}


_SAID_IN_CODE: dict[str, dict[str, list[dict]]] = {
    "VersaTuneConfig": {
        "strategy": [{"enum": list(STRATEGIES)}, {"type": "string", "pattern": "^[^:]+:[^:]+$"}],
        "initial_proportions": [
            {"enum": list(START_NAMES)},
            _JSON_FILE | {"examples": ["versatune/detection.json"]},
            _per_domain(_SHARE, {"law": 0.2, "medicine": 0.8}),
            {"type": "null"},
        ],
        "update_interval": [
            {"type": "integer", "minimum": 1},
            {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        ],
        "reference_losses": [
            {"enum": [SELF]},
            _JSON_FILE | {"examples": ["versatune/references.json"]},
            _per_domain({"type": "number", "minimum": 0}, {"law": 1.21, "medicine": 1.34}),
            {"type": "null"},
        ],
    },
    "GuardsConfig": {
        "floor": [_SHARE, _per_domain(_SHARE, {"law": 0.1})],
        "ceiling": [_SHARE, _per_domain(_SHARE, {"law": 0.5})],
    },
}
"""What the value of a key must be one of, by the model and the key."""

_KEYS_THAT_NEED_OTHERS = {"JudgeConfig": {"endpoint": ["model"]}, "ExpansionConfig": {"hold": ["start"]}}


def block_schema() -> dict:
    """The schema of the `versatune:` block alone."""
    schema = VersaTuneConfig.model_json_schema()
    definitions = schema.pop("$defs")
    for name, model in ({"VersaTuneConfig": schema} | definitions).items():
        del model["title"]
        said = _SAID_IN_CODE.get(name, {})
        model["properties"] = {
            key: _property(value, said.get(key), definitions) for key, value in model["properties"].items()
        }
        if name in _KEYS_THAT_NEED_OTHERS:
            model["dependentRequired"] = _KEYS_THAT_NEED_OTHERS[name]
    return {"$schema": DIALECT, "title": "The `versatune:` block", **schema, "$defs": definitions}


def _property(given: dict, alternatives: list[dict] | None, definitions: dict) -> dict:
    """A key's own schema, with what is said in code, and without what no editor need show."""
    kept = {
        word: value for word, value in given.items() if word != "title" and (word != "default" or value is not None)
    }
    if alternatives is not None:
        return {word: kept[word] for word in ("description", "default") if word in kept} | {"anyOf": alternatives}
    if "$ref" not in kept:
        return kept
    # A block that is left empty is the default
    description = definitions[kept["$ref"].rpartition("/")[2]]["description"]
    return {"description": description, "anyOf": [kept, {"type": "null"}]}


def yaml_schema() -> dict:
    """The schema of a whole Axolotl YAML: our block and the domains of datasets; any other key may be there."""
    block = block_schema()
    definitions = block.pop("$defs")
    del block["$schema"]
    datasets = {
        "type": ["array", "null"],
        "items": {"type": "object", "properties": {"domain": _DOMAIN}},
    }
    return {
        "$schema": DIALECT,
        "title": "An Axolotl YAML with a `versatune:` block",
        "type": "object",
        "properties": {
            "versatune": {"anyOf": [{"$ref": "#/$defs/VersaTuneConfig"}, {"type": "null"}]},
            "datasets": datasets | {"description": "Training rows; each entry with its `domain:`."},
            "test_datasets": datasets | {"description": "Held-out rows; each entry with its `domain:`."},
        },
        "$defs": {"VersaTuneConfig": block, **definitions},
    }
