"""What programs rely on of the API: its description without the words for people, in tests/wire/openapi.json."""

import json
from pathlib import Path
from typing import Any

from fedcybgd.coordinator.app import create_app
from fedcybgd.coordinator.settings import Settings

SNAPSHOT = Path(__file__).parents[1] / "tests" / "wire" / "openapi.json"
FOR_PEOPLE = {"title", "description", "summary", "operationId", "tags", "info"}
# What FastAPI adds by itself differs from one of its releases to the next.
NOT_OURS = {"HTTPValidationError", "ValidationError"}


def snapshot() -> str:
    document = create_app(Settings()).openapi()
    schemas = {name: schema for name, schema in document["components"]["schemas"].items() if name not in NOT_OURS}
    kept = _bare({"components": {"schemas": schemas}, "paths": document["paths"]})
    return json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _bare(value: Any, names: bool = False) -> Any:
    """`value` without the words for people; with `names`, its keys are names of ours and stay whatever they are."""
    if isinstance(value, list):
        return [_bare(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if names or key not in FOR_PEOPLE}
    return {key: _bare(item, names=not names and key in ("properties", "schemas", "paths", "responses")) for key, item in kept.items()}
