"""Placeholder until the page is written by its own author."""

from pathlib import Path
from typing import Any


def write(path: Path, table: dict[str, Any]) -> None:
    """Nothing yet."""
