"""The language of all config files: YAML with `_BASE_`, `KEY VALUE` overrides, and errors that name the key.

The functions work on any of fvcore's `CfgNode` (yacs), which detectron2 users know, so that pre-training, fine-tuning
and the linear probe read their files by the same rules. YAML is always read by the safe loader: detectron2's own
`merge_from_file` falls back to one that runs code found in the file.
"""

import difflib
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from pretrain.common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
CONFIG_ROOT = ROOT / "configs"
_MAX_DEPTH = 32  # of lists and mappings within each other in a config that was written out


class _SafeFiles(CfgNode):
    """Reads a YAML file and its `_BASE_` chain from this machine's disk only."""

    @classmethod
    def _open_cfg(cls, filename: str) -> Any:
        if "://" in filename:
            raise UserError(f"_BASE_: {filename} is a URL; download the file and name its path")
        with open(filename, encoding="utf-8") as file:
            return io.StringIO(file.read())


def find_config(name: str) -> Path:
    """Path of a config: as given, else under `configs/`. Raises `UserError` that names the nearest file."""
    for path in (Path(name), CONFIG_ROOT / name):
        if path.is_file():
            return path
    known = sorted(str(path.relative_to(CONFIG_ROOT)) for path in CONFIG_ROOT.rglob("*.yaml"))
    raise UserError(f"--config {name}: no such file, here or under configs/{nearest(name, known)}")


def merge(cfg: CfgNode, path: Path, overrides: Sequence[str]) -> None:
    """Merge a YAML file, its `_BASE_` chain and then `KEY VALUE` pairs into `cfg`, in place.

    Raises `UserError` for unreadable YAML, an unknown key (with the nearest one) or a value of a wrong type.
    """
    for key, value in flatten(read_yaml(path)).items():
        if value is not None or key not in cfg:  # a section whose keys are all commented out
            set_key(cfg, key, value, origin=str(path))
    if len(overrides) % 2:
        raise UserError(f"overrides come in pairs, KEY VALUE: {overrides[-1]!r} has no value")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        set_key(cfg, key, value, origin="command line")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file with its `_BASE_` chain as one nested dict. Raises `UserError` naming the file."""
    try:
        tree = _SafeFiles.load_yaml_with_base(str(path), allow_unsafe=False)
        if not isinstance(tree, dict):
            raise TypeError(f"it is a {type(tree).__name__}")
        return tree
    except FileNotFoundError as error:
        raise UserError(f"{path}: _BASE_ names a missing file: {error.filename}") from None
    except RecursionError:
        raise UserError(f"{path}: its _BASE_ leads back to itself") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, AssertionError, OSError) as error:
        reason = " ".join(str(error).split())
        if "python/" in reason:  # detectron2's RetinaNet configs compute their anchor sizes so
            reason = f"its !!python tag would run code; write the value out ({reason})"
        raise UserError(f"{path}: not a YAML mapping of config keys: {reason}") from None


def read_dump(text: str) -> Any:
    """A config that a tool of this project wrote into a file, as nested dicts. Raises `yaml.YAMLError`, `ValueError`.

    References are refused: ours have none, and a few lines of them can stand for more than a memory holds. So are
    brackets in brackets beyond reason, of which a few kilobytes take PyYAML minutes.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it refers to parts of itself")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deep")
    return yaml.safe_load(text)


def set_key(cfg: CfgNode, key: str, value: Any, *, origin: str) -> None:
    """Set one dotted key to a value, or to the text of one. The default's type decides what is accepted."""
    parent, _, leaf = key.rpartition(".")
    node: Any = cfg
    for part in parent.split(".") if parent else []:
        node = node.get(part) if isinstance(node, CfgNode) else None
    if not isinstance(node, CfgNode) or leaf not in node or isinstance(node[leaf], CfgNode):
        known = list(flatten(cfg))
        raise UserError(f"{origin}: unknown config key {key}{nearest(key, known)}")
    node[leaf] = _coerce(value, node[leaf], f"{origin}: {key}")


def digest_text(cfg: CfgNode) -> str:
    """The effective config as YAML text with sorted keys: equal text means equal settings."""
    return cfg.dump(sort_keys=True)


def _coerce(value: Any, default: Any, where: str) -> Any:
    if isinstance(default, str):
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
        raise UserError(f"{where}: {value!r} is not a text")
    is_list = isinstance(default, list | tuple)
    if isinstance(value, str):
        decoded = CfgNode._decode_cfg_value(value)
        if is_list and not isinstance(decoded, list | tuple) and all(isinstance(v, str) for v in default):
            return type(default)([value])  # DATA.TRAIN my/photos
        value = decoded
    numbers = is_list and len(default) > 0 and all(isinstance(v, int | float) for v in default)
    if numbers and isinstance(value, list | tuple) and not all(isinstance(v, int | float) for v in value):
        raise UserError(f"{where}: {value!r} is no list of numbers (the default is {default!r})")
    texts = is_list and len(default) > 0 and all(isinstance(v, str) for v in default)
    if texts and isinstance(value, list | tuple) and not all(isinstance(v, str) for v in value):
        raise UserError(f"{where}: {value!r} is no list of texts (the default is {default!r})")
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if is_list and isinstance(value, list | tuple):
        return type(default)(value)
    raise UserError(f"{where}: {value!r} is no {type(default).__name__} (the default is {default!r})")


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one dict with dotted keys. An empty section stays as it is."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def get(node: Any, key: str, default: Any = None) -> Any:
    """Return the value of a dotted key in nested settings; `default` where there is none."""
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = node[part]
    return node


def equal(a: Any, b: Any, *, tolerance: float = 0.0) -> bool:
    """Whether two settings are the same: lists and tuples alike, floats up to a relative `tolerance`."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(equal(x, y, tolerance=tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) or isinstance(b, float):
        return (
            isinstance(a, int | float)
            and isinstance(b, int | float)
            and math.isclose(a, b, rel_tol=tolerance)
        )
    return bool(a == b)


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean X?`, where a known name or key resembles `name`; else nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # a right leaf under a wrong parent: MODEL.BASE_LR for SOLVER.BASE_LR
        separator = "." if any("." in k and "/" not in k for k in known) else os.sep
        leaf = name.rsplit(separator, 1)[-1]
        close = [k for k in known if k.rsplit(separator, 1)[-1] == leaf][:1]
    return f"; did you mean {close[0]}?" if close else ""
