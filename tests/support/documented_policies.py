"""The IAM policies in docs/aws.md, to compare with the calls that commands make."""

import json
import re
from pathlib import Path


def policy(name: str) -> set[tuple[str, str]]:
    """Return the (service, action) pairs that the policy ``name`` of docs/aws.md allows."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "aws.md").read_text(encoding="utf-8")
    [found] = re.findall(rf"^```json policy {name}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    statements = json.loads(found)["Statement"]
    assert all(statement["Effect"] == "Allow" for statement in statements)
    allowed = [each["Action"] for each in statements]
    actions = [action for some in allowed for action in ([some] if isinstance(some, str) else some)]
    return {(service, call) for service, _, call in (action.partition(":") for action in actions)}
