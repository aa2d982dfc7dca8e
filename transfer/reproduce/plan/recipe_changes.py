"""Compares a run's settings with the paper's recipe: all settings that its numbers may depend on."""

import ast
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from pretrain.common.configs import equal, find_config, flatten, merge
from pretrain.common.errors import UserError
from transfer import results
from transfer.config.load import read_config
from transfer.data import own_coco
from transfer.linear import config

# A row of a table is an init, and each row runs with several seeds: neither belongs to the recipe.
_IRRELEVANT = (
    *results.IRRELEVANT,
    *config.IRRELEVANT,
    "SEED",
    "DATASETS.SUBSET_SEED",
    "MODEL.INIT",
    "VERSION",
    "VIS_PERIOD",
)
# Input format and stride of the paper's supervised network (MSRA's R-50): its row cannot have other values.
_MSRA: dict[str, Any] = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
}
_ROUNDED = 1e-6  # relative tolerance: numbers written as text are slightly rounded


def changes(name: str, settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """Return `KEY is A, in the recipe B` for every setting that differs from a shipped config.

    A list and a tuple with the same items count as equal.

    Args:
        name: the shipped config, such as `transfer/voc_R50_C4_24k.yaml`.
        settings: all settings of a run, nested.
        overrides: KEY, VALUE, ... that also belong to the recipe.
    """
    found, recipe = flatten(dict(settings)), _recipe(name, tuple(overrides))
    if found.get("DATASETS.TRAIN_JSON"):
        recipe = {key: value for key, value in recipe.items() if key not in own_coco.SETS}
    # An earlier version of this project wrote the settings without the younger keys.
    younger = (*results.YOUNGER, *config.YOUNGER, *(f"{section}." for section in results.YOUNGER_SECTIONS))
    recipe = {key: value for key, value in recipe.items() if key in found or not key.startswith(younger)}
    if all(equal(found.get(key), value, tolerance=_ROUNDED) for key, value in _MSRA.items()):
        recipe = recipe | _MSRA
    other = [key for key, value in recipe.items() if not equal(found.get(key), value, tolerance=_ROUNDED)]
    return tuple(f"{key} is {found.get(key)}, in the recipe {recipe[key]}" for key in other)


def pretraining_changes(cfg: CfgNode, recipe: CfgNode) -> tuple[str, ...]:
    """Return `KEY is A, in the paper B` if pre-training does not compute in the precision of the papers.

    That is float32, and for MoCo v3 what the shipped config has, whose authors computed in float16.

    Args:
        cfg: of the run.
        recipe: the shipped config.
    """
    if recipe.MOCO.MECHANISM == "mocov3":
        published, source = recipe.SOLVER.AMP, f"in the recipe {recipe.SOLVER.AMP}"
    else:
        published, source = "off", "in the paper off (float32)"
    own = cfg.SOLVER.AMP
    return () if own == published else (f"SOLVER.AMP of pre-training is {own}, {source}",)


def recipe_value(name: str, key: str) -> Any:
    """Return the value that a shipped config has for a key; None if it cannot be read."""
    try:
        value = flatten(_read(name, ())).get(key)
    except UserError:
        return None
    return list(value) if isinstance(value, tuple) else value


def is_recipes(name: str, key: str, text: str) -> bool:
    """Return whether a value written as in `--sweep`, such as 1e-4, is what a shipped config has for the key."""
    try:
        value: Any = ast.literal_eval(text)  # as the run's config reads it; YAML reads 1e-4 as a string
    except (ValueError, SyntaxError):
        value = yaml.safe_load(text)
    recipe = recipe_value(name, key)
    return recipe is not None and equal(value, recipe, tolerance=_ROUNDED)


@cache
def _recipe(name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    ignored = tuple(f"{key}." for key in _IRRELEVANT)
    values = flatten(_read(name, overrides))
    return {key: value for key, value in values.items() if not f"{key}.".startswith(ignored)}


def _read(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    if not name.startswith("linear/"):
        return dict(read_config(name, overrides))
    cfg = config.defaults()  # `config.load` would require the images
    merge(cfg, find_config(name), overrides)
    return dict(cfg)
