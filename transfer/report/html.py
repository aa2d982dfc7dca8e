"""Renders the HTML pages of all reports from one set of templates. Each page is one self-contained file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from pretrain.common.console import duration

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["duration"] = duration


def render(template: str, context: Mapping[str, Any], **filters: Callable[..., Any]) -> str:
    """Fill in a template of `templates/` and return the page.

    Args:
        filters: functions that this template calls by these names, in addition to `duration`.
    """
    environment = _TEMPLATES.overlay() if filters else _TEMPLATES
    environment.filters = {**_TEMPLATES.filters, **filters}
    return environment.get_template(template).render(**context)
