"""Turn a custom resource definition into a JSON schema, as strict as the API server with `--validate=strict`."""

import functools
import gzip
from pathlib import Path
from typing import Any

import jsonschema
import yaml

CRDS = Path(__file__).parent / "crds"


@functools.cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    """Return the validator of a kind of ray.io/v1: RayCluster, RayJob or RayService."""
    with gzip.open(CRDS / f"ray.io_{kind.lower()}s.yaml.gz") as file:
        definition = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    schema = next(v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == "v1")
    strict = _strict(schema)
    # The definition leaves the fields of `metadata` to the API server, so `_strict` would refuse all of them.
    strict["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(strict)


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with unknown fields refused. Most are misspelt, and the API server would drop them silently."""
    schema = dict(schema)
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("type", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in schema:
        schema["properties"] = {name: _strict(field) for name, field in schema["properties"].items()}
    if "items" in schema:
        schema["items"] = _strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        schema["additionalProperties"] = _strict(schema["additionalProperties"])
    elif schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema
