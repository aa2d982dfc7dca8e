"""Reading config files: YAML with `_BASE_`, `KEY VALUE` overrides, and errors that name the key.

The functions work on any fvcore `CfgNode` (yacs, as in detectron2), so pre-training, fine-tuning and the linear probe
read their files by the same rules. YAML is always read by the safe loader: detectron2's own `merge_from_file` falls
back to a loader that runs code found in the file.
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
_MAX_DEPTH = 32  # of nested lists and mappings in a config read from a checkpoint or weights file


class _SafeFiles(CfgNode):
    """A config node that reads YAML files and their `_BASE_` chain from local files only."""

    @classmethod
    def _open_cfg(cls, filename: str) -> Any:
        if "://" in filename:
            raise UserError(f"_BASE_: {filename} is a URL; download the file and name its path")
        with open(filename, encoding="utf-8") as file:
            return io.StringIO(file.read())


def find_config(name: str) -> Path:
    """Return the path of a config: as given, or else under `configs/`.

    Raises `UserError` that names the most similar file if there is no such file.
    """
    for path in (Path(name), CONFIG_ROOT / name):
        if path.is_file():
            return path
    known = sorted(str(path.relative_to(CONFIG_ROOT)) for path in CONFIG_ROOT.rglob("*.yaml"))
    raise UserError(f"--config {name}: no such file, neither here nor under configs/{nearest(name, known)}")


def merge(cfg: CfgNode, path: Path, overrides: Sequence[str]) -> None:
    """Merge a YAML file, its `_BASE_` chain and then `KEY VALUE` pairs into `cfg`, in place.

    Raises `UserError` for unreadable YAML, an unknown key (naming the nearest known one) or a value of the wrong type.
    """
    for key, value in flatten(read_yaml(path)).items():
        if value is not None or key not in cfg:  # a section whose keys are all commented out
            set_key(cfg, key, value, origin=str(path))
    if len(overrides) % 2:
        raise UserError(f"overrides are KEY VALUE pairs: {overrides[-1]!r} has no value")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        set_key(cfg, key, value, origin="command line")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file with its `_BASE_` chain as one nested dict. Raises `UserError` naming the file."""
    try:
        tree = _SafeFiles.load_yaml_with_base(str(path), allow_unsafe=False)
        if not isinstance(tree, dict):
            raise TypeError(f"it is a {type(tree).__name__}")
        return tree
    except FileNotFoundError as error:
        raise UserError(f"{path}: _BASE_ names a missing file: {error.filename}") from None
    except RecursionError:
        raise UserError(f"{path}: its _BASE_ chain leads back to itself") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, AssertionError, OSError) as error:
        reason = " ".join(str(error).split())
        if "python/" in reason:  # detectron2's RetinaNet configs compute their anchor sizes with one
            reason = f"its !!python tag would run code; write the value out ({reason})"
        raise UserError(f"{path}: not a YAML mapping of config keys: {reason}") from None


def read_dump(text: str) -> Any:
    """Return a config that a tool of this project stored in a file, as nested dicts.

    YAML aliases are refused: our configs have none, and a few lines of them can expand to more data than memory holds.
    So is very deep nesting, because PyYAML needs minutes for a few kilobytes of brackets.

    Raises `yaml.YAMLError` or `ValueError`.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it contains YAML aliases")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
    return yaml.safe_load(text)


def set_key(cfg: CfgNode, key: str, value: Any, *, origin: str) -> None:
    """Set one dotted key to a value, which may be given as a string. The default's type decides what is accepted."""
    parent, _, leaf = key.rpartition(".")
    node: Any = cfg
    for part in parent.split(".") if parent else []:
        node = node.get(part) if isinstance(node, CfgNode) else None
    if not isinstance(node, CfgNode) or leaf not in node or isinstance(node[leaf], CfgNode):
        known = list(flatten(cfg))
        raise UserError(f"{origin}: unknown config key {key}{nearest(key, known)}")
    node[leaf] = _coerce(value, node[leaf], f"{origin}: {key}")


def digest_text(cfg: CfgNode) -> str:
    """Return the effective config as YAML text with sorted keys: equal text means equal settings."""
    return cfg.dump(sort_keys=True)


def _coerce(value: Any, default: Any, where: str) -> Any:
    if isinstance(default, str):
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
        raise UserError(f"{where}: {value!r} is not a string")
    is_list = isinstance(default, list | tuple)
    if isinstance(value, str):
        decoded = CfgNode._decode_cfg_value(value)
        if is_list and not isinstance(decoded, list | tuple) and all(isinstance(v, str) for v in default):
            return type(default)([value])  # DATA.TRAIN my/photos
        value = decoded
    numbers = is_list and len(default) > 0 and all(isinstance(v, int | float) for v in default)
    if numbers and isinstance(value, list | tuple) and not all(isinstance(v, int | float) for v in value):
        raise UserError(f"{where}: {value!r} is not a list of numbers (the default is {default!r})")
    strings = is_list and len(default) > 0 and all(isinstance(v, str) for v in default)
    if strings and isinstance(value, list | tuple) and not all(isinstance(v, str) for v in value):
        raise UserError(f"{where}: {value!r} is not a list of strings (the default is {default!r})")
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if is_list and isinstance(value, list | tuple):
        return type(default)(value)
    raise UserError(
        f"{where}: {value!r} is not of type {type(default).__name__} (the default is {default!r})"
    )


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one dict with dotted keys. An empty section stays an empty dict."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def get(node: Any, key: str, default: Any = None) -> Any:
    """Return the value of a dotted key in nested settings, or `default` if there is none."""
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return default
        node = node[part]
    return node


def equal(a: Any, b: Any, *, tolerance: float = 0.0) -> bool:
    """Return whether two settings are equal: a list equals a tuple, and floats may differ by a relative `tolerance`."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(equal(x, y, tolerance=tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) or isinstance(b, float):
        if not isinstance(a, int | float) or not isinstance(b, int | float):
            return False
        try:
            return math.isclose(a, b, rel_tol=tolerance)
        except OverflowError:  # an integer that no float can hold
            return False
    return bool(a == b)


def nearest(name: str, known: Sequence[str]) -> str:
    """Return `; did you mean X?` if a known name or key resembles `name`, or else an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # a right leaf under a wrong parent: MODEL.BASE_LR for SOLVER.BASE_LR
        separator = "." if any("." in k and "/" not in k for k in known) else os.sep
        leaf = name.rsplit(separator, 1)[-1]
        close = [k for k in known if k.rsplit(separator, 1)[-1] == leaf][:1]
    return f"; did you mean {close[0]}?" if close else ""
