"""How a configuration differs from the paper and from plain detectron2, with the source of each value."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import detectron2
from detectron2.config import CfgNode, get_cfg
from tabulate import tabulate

from pretrain.common.configs import equal, flatten, merge
from transfer.config.keys import add_keys
from transfer.config.paper_models import C4, FPN, OPEN, TRAINED, Facts
from transfer.config.paper_tasks import RECIPES, Recipe

# Keys that do not change the numbers of a run, or that identify the run.
_BOOKKEEPING = (
    "DATALOADER.NUM_WORKERS", "DATASETS.ROOT", "LOG.", "MODEL.CHANNELS_LAST", "MODEL.COMPILE", "MODEL.DEVICE",
    "MODEL.INIT", "MODEL.WEIGHTS", "OUTPUT_DIR", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.LOG_PERIOD", "SOLVER.SAVE_MINUTES",
    "TEST.EVAL_PERIOD",
    "TEST.KEEP_BEST", "TEST.PICTURE", "VERSION", "VIS_PERIOD", "CUDNN_BENCHMARK",
)  # fmt: skip
# Reasons for values that are in no recipe.
_REASONS = {
    "SEED": "every run is reproducible",
    "DATASETS.TRAIN": "the data",
    "DATASETS.TEST": "the data",
    "MODEL.FPN.NORM": FPN["MODEL.FPN.NORM"][1],
    "TEST.PRECISE_BN.ENABLED": FPN["TEST.PRECISE_BN.ENABLED"][1],
}
_LONGEST = 26  # characters of a list in a table; longer ones are shortened
_INDENT = "  "  # of a table
_NARROWEST = 30  # columns in which a text can be read


def explain(cfg: CfgNode, name: str, *, width: int = 0) -> list[str]:
    """Return lines that compare a configuration with the paper's recipe of that name and with detectron2.

    Args:
        cfg: as returned by `transfer.config.load.load_config`, including overrides.
        name: the config that it was loaded from, such as `transfer/coco_R50_FPN.yaml`.
        width: columns of the terminal, into which text is wrapped; 0: one line for each row, as `grep` needs it.
    """
    recipe = RECIPES.get(Path(name).stem)
    return [*_paper(cfg, Path(name).stem, recipe, width), "", *_plain(cfg, recipe, width)]


def differences(cfg: CfgNode, facts: Facts) -> list[str]:
    """Return the keys of `facts` whose value in `cfg` is different, sorted."""
    values = flatten(cfg)
    return sorted(key for key, (value, _) in facts.items() if not equal(values[key], value))


def _paper(cfg: CfgNode, name: str, recipe: Recipe | None, width: int) -> Iterator[str]:
    if recipe is None:
        yield from _wrapped(
            f"{name}: the paper has no recipe of this name; recipes are {', '.join(RECIPES)}", width
        )
        return
    values = flatten(cfg)
    wrong = differences(cfg, recipe.facts)
    yield from _wrapped(f"{name}: {recipe.experiment}", width)
    yield f"Differences from that recipe, in {len(recipe.facts)} values: {len(wrong) or 'none'}"
    rows = [(key, _text(values[key]), _text(recipe.facts[key][0]), recipe.facts[key][1]) for key in wrong]
    yield from _table(("key", "here", "recipe", "source of the recipe's value"), rows, width)
    chosen = [key for key, (_, source) in sorted(recipe.facts.items()) if source.startswith(OPEN)]
    if chosen:
        yield ""
        yield f"Not stated by the authors, so our choice in the recipe: {len(chosen)}"
        reasons = [
            (key, _text(recipe.facts[key][0]), recipe.facts[key][1].removeprefix(OPEN)) for key in chosen
        ]
        yield from _table(("key", "recipe", "reason"), reasons, width)


def _plain(cfg: CfgNode, recipe: Recipe | None, width: int) -> Iterator[str]:
    zoo = recipe.zoo if recipe else _nearest_base(cfg)
    base = get_cfg()
    add_keys(base)
    path = _zoo_path(zoo) if zoo else None
    if path:
        merge(base, path, ())
    plain = flatten(base)
    open_ended = ("SOLVER.MAX_ITER", "SOLVER.STEPS") if cfg.SOLVER.EPOCHS else ()  # known once the data are
    rows = [
        (key, _text(value), _text(plain[key]), _reason(key, value, cfg, recipe))
        for key, value in sorted(flatten(cfg).items())
        if not equal(value, plain[key]) and not key.startswith((*_BOOKKEEPING, *open_ended))
    ]
    against = f"its defaults and its {zoo}" if path else "its defaults"
    yield from _wrapped(f"Differences from plain detectron2, {against}: {len(rows) or 'none'}", width)
    yield from _table(("key", "here", "detectron2", "why"), rows, width)


def _reason(key: str, value: Any, cfg: CfgNode, recipe: Recipe | None) -> str:
    # The authors' own configs have other names than our recipes.
    as_published = cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeadsExtraNorm"
    facts = recipe.facts if recipe else C4 if as_published else TRAINED
    if key in facts and equal(value, facts[key][0]):
        return facts[key][1]
    if key in facts and recipe:
        return "differs from the recipe: set in this config or on the command line"
    return _REASONS.get(key, "set in this config or on the command line")


def _nearest_base(cfg: CfgNode) -> str:
    if "fpn" in cfg.MODEL.BACKBONE.NAME:
        return "Base-RCNN-FPN.yaml"
    if "GeneralizedRCNN" not in cfg.MODEL.META_ARCHITECTURE or "vit" in cfg.MODEL.BACKBONE.NAME:
        return ""
    return "Base-RCNN-DilatedC5.yaml" if cfg.MODEL.RESNETS.RES5_DILATION == 2 else "Base-RCNN-C4.yaml"


def _zoo_path(name: str) -> Path | None:
    """Return a config of detectron2's zoo: inside an installed package, or next to the package in a checkout."""
    package = Path(detectron2.__file__).parent
    places = (package / "model_zoo" / "configs" / name, package.parent / "configs" / name)
    return next((place for place in places if place.is_file()), None)


def _text(value: Any) -> str:
    text = repr(tuple(value) if isinstance(value, list) else value)
    if isinstance(value, list | tuple) and len(value) > 3 and len(text) > _LONGEST:
        return f"({value[0]!r}, ... {len(value)} ... {value[-1]!r})"
    return text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Yield the lines of an indented table; none if there are no rows.

    The last column is wrapped. If the terminal leaves little room for it, everything but the key follows below the key.
    """
    if not rows:
        return
    *columns, _ = zip(head, *rows, strict=True)
    room = width - len(_INDENT) - sum(max(map(len, column)) + 2 for column in columns)
    if width > 0 and room < _NARROWEST:
        for key, *values, text in rows:
            yield f"{_INDENT}{key}"
            named = ", ".join(f"{name} {value}" for name, value in zip(head[1:-1], values, strict=True))
            yield from (
                f"{2 * _INDENT}{line}" for line in _wrapped(f"{named}: {text}", width - 2 * len(_INDENT))
            )
        return
    cells: list[list[str]] = []
    for *values, text in (head, *rows):
        first, *more = _wrapped(text, max(room, 0), indent="")
        cells += [[*values, first], *([*[""] * len(values), line] for line in more)]
    for line in tabulate(cells, tablefmt="plain", disable_numparse=True).splitlines():
        yield f"{_INDENT}{line.rstrip()}"


def _wrapped(text: str, width: int, *, indent: str = "  ") -> list[str]:
    """Return the lines of a text of at most `width` columns, from the second one on indented; 0: a single line."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False) if width else [text]
