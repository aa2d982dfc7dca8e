"""Predictions of all inits side by side on the same test images, small enough for one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pretrain.common.errors import UserError
from transfer.report.run_files import halves, jpeg_uri
from transfer.reproduce.page.runs import Shown

_ROWS = 4  # images per column of the table
_WIDTH = 400  # pixels of one picture: three of them fill the page
_BUDGET = 5_000_000  # characters of all pictures together


def pictures(runs: Sequence[Shown]) -> list[dict[str, Any]]:
    """Return one group per column: `title`, `inits`, and `rows` with `name`, `truth` and, for each init, `found`.

    The pictures are those of each init's first run. Runs choose images that are evenly spread over the test set, by
    number, so equal names are equal images. Apart from the names, no text of the runs' files is used.
    """
    groups, left = [], _BUDGET
    for column in dict.fromkeys(each.column for each in runs):
        group = [each for each in runs if each.column == column]
        files = [_files(each) for each in group]
        names = sorted({name for found in files for name in found})
        rows = []
        for name in _spread(names, _ROWS):
            row = _row(name, [found.get(name) for found in files])
            left -= sum(map(len, row["found"])) + len(row["truth"])
            if left < 0:
                break
            if row["truth"]:
                rows.append(row)
        if rows:
            groups.append({"title": column, "inits": group, "rows": rows})
    return groups


def _files(each: Shown) -> dict[str, Path]:
    """Return name -> file of the first run's pictures; files outside the run's folder are left out."""
    listed = each.results[0].get("pictures")
    folder = Path(each.runs[0]["folder"]).resolve()
    paths = [(folder / name).resolve() for name in listed if isinstance(name, str) and "\0" not in name] if isinstance(
        listed, list) else []  # fmt: skip
    return {path.name: path for path in paths if path.is_relative_to(folder)}


def _row(name: str, files: Sequence[Path | None]) -> dict[str, Any]:
    """Return the annotated image once, and the predictions of each init on it."""
    truth, found = "", []
    for path in files:
        try:
            if path is None:
                raise UserError(name)
            left, right = (_small(half) for half in halves(path))
        except (UserError, Image.DecompressionBombError, ValueError):
            found.append("")
            continue
        truth = truth or jpeg_uri(left, quality=78)
        found.append(jpeg_uri(right, quality=78))
    return {"name": name, "truth": truth, "found": found}


def _small(image: Image.Image) -> Image.Image:
    if image.width <= _WIDTH:
        return image
    return image.resize(
        (_WIDTH, max(1, round(image.height * _WIDTH / image.width))), Image.Resampling.LANCZOS
    )


def _spread(names: Sequence[str], count: int) -> list[str]:
    """Return at most `count` names, evenly spread."""
    step = max(len(names) / count, 1)
    return [names[int(i * step)] for i in range(min(count, len(names)))]
