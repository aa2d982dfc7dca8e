"""Reading what other programs have written, or were writing when they were killed."""

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
