"""The IAM policies in docs/containers-and-aws.md, to compare with the calls that commands make."""

import json
import re
from pathlib import Path
from typing import Any

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "containers-and-aws.md"
_PER_RESOURCE = re.compile(r"[a-z0-9]+:(List|Describe|Get(Products|AuthorizationToken|RandomPassword)|PutMetricData)")
"""Actions that have no resources in IAM, or only list."""


def unrestricted() -> list[dict[str, Any]]:
    """Return the statements of all policies that allow more than they state: any action, or an action on everything."""
    blocks = re.findall(r"^```json[^\n]*\n(.*?)^```$", _PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found = [statement for block in blocks for statement in json.loads(block)["Statement"]]
    return [each for each in found if not _is_restricted(each)]


def _is_restricted(statement: dict[str, Any]) -> bool:
    actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
    has_resource = statement["Resource"] != "*" or "Condition" in statement
    return all("*" not in action and (has_resource or _PER_RESOURCE.match(action)) for action in actions)


def policy(name: str) -> set[tuple[str, str]]:
    """Return the (service, action) pairs that the policy ``name`` of docs/containers-and-aws.md allows."""
    text = _PAGE.read_text(encoding="utf-8")
    [found] = re.findall(rf"^```json policy {name}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    statements = json.loads(found)["Statement"]
    assert all(statement["Effect"] == "Allow" for statement in statements)
    allowed = [each["Action"] for each in statements]
    actions = [action for some in allowed for action in ([some] if isinstance(some, str) else some)]
    return {(service, call) for service, _, call in (action.partition(":") for action in actions)}
