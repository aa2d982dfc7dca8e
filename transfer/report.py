"""The demo's pages: what a run left in its folder -> one HTML file that needs nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from pretrain.common.console import duration
from pretrain.common.files import write_text
from transfer import report_demo, report_mechanism

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["duration"] = duration


def write_demo(folder: Path, stages: Sequence[dict[str, Any]], output: Path) -> None:
    """Write the demo's page.

    Args:
        folder: of one run of the demo: `demo.json`, `pretrain/`, `convert.json`, `finetune/INIT-seedN/`.
        stages: `name`, `command`, `seconds` and `cached` of each step, in order.
        output: the HTML file; links to `mechanism.html` beside it, if that is there.
    Raises:
        UserError: a file that the page needs is missing or unreadable; names it.
    """
    other = output.with_name("mechanism.html")
    context = report_demo.context(folder) | {"mechanism": other.name if other.exists() else None}
    _write("report.html", context, stages=stages, output=output)


def write_mechanism(folder: Path, stages: Sequence[dict[str, Any]], output: Path) -> None:
    """Write the page about batch norm and momentum, as `write_demo`.

    Args:
        folder: holds `metrics.json` and `config.yaml` of each setting, in a folder of its name.
    """
    other = output.with_name("report.html")
    context = report_mechanism.context(folder) | {"report": other.name if other.exists() else None}
    _write("mechanism.html", context, stages=stages, output=output)


def _write(template: str, context: dict[str, Any], *, stages: Sequence[dict[str, Any]], output: Path) -> None:
    total = sum(stage["seconds"] for stage in stages)
    page = _TEMPLATES.get_template(template).render(**context, stages=stages, total=total)
    write_text(output, page)
