"""The published schema of `audit.json`."""

import json
from importlib.resources import files
from typing import Any

__all__ = ["FORMAT", "SCHEMA_ID", "schema"]

FORMAT = 1
SCHEMA_ID = "https://sfumato.dev/schema/audit-1.json"
"""An identifier, not an address: the schema comes with the package."""


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that every `audit.json` of this format satisfies."""
    value: dict[str, Any] = json.loads(files("sfumato.audit").joinpath("schema.json").read_text(encoding="utf-8"))
    return value
