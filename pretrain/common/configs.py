"""Reading config files: YAML with `_BASE_`, `KEY VALUE` overrides, and errors that name the key.

The functions work on any fvcore `CfgNode` (yacs, as in detectron2), so pre-training, fine-tuning and the linear probe
read their files by the same rules. YAML is always read by the safe loader: detectron2's own `merge_from_file` falls
back to a loader that runs code found in the file.
"""

import copy
import difflib
import math
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from pretrain.common.errors import SHOWN, UserError, brief, has_control, label
from pretrain.common.files import read_regular

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
CONFIG_ROOT = ROOT / "configs"
_MAX_BYTES = 200_000  # of a YAML file; detectron2's longest has 5,000
_MAX_FILES = 32  # in a `_BASE_` chain
_MAX_DEPTH = 32  # of nested lists and mappings
_MAX_NODES = 100_000  # keys and values of a YAML file with its aliases expanded
_MAX_DIGITS = 400  # characters of a number
_MAX_TEXT = 4096  # characters of a string, as many as a path may have on Linux
# The C version needs a tenth of the time. It breaks long non-ASCII strings elsewhere; all other text is the same.
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which stops at deep nesting: it needs minutes for a few kilobytes of brackets."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.name = "<file>"
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


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
        raise UserError(f"overrides are KEY VALUE pairs: {brief(overrides[-1])} has no value")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        set_key(cfg, key, value, origin="command line")


def default_output(path: Path, overrides: Sequence[str]) -> str:
    """Return the OUTPUT_DIR of a run that is given none; an empty string if the overrides or its own files state one.

    It follows from the config, so that two of them never meet: `output/transfer/coco_R50_FPN` for
    `configs/transfer/coco_R50_FPN.yaml`, and `output/mine` for a `mine.yaml` elsewhere. What that one inherits from a
    config of ours counts as not stated.
    """
    if "OUTPUT_DIR" in overrides[::2]:
        return ""
    stated = _stated_in(path, "OUTPUT_DIR")
    if stated and (stated.resolve() == path.resolve() or not _is_ours(stated)):
        return ""
    own = path.resolve().relative_to(CONFIG_ROOT) if _is_ours(path) else Path(path.name)
    return str(Path("output") / own.with_suffix(""))


def _is_ours(path: Path) -> bool:
    return path.resolve().is_relative_to(CONFIG_ROOT)


def _stated_in(path: Path, key: str) -> Path | None:
    """Return the file of a `_BASE_` chain, whose files have been read before, that gives a top-level key its value."""
    tree = _read_one(path)
    if key in tree:
        return path
    bases = tree.get("_BASE_", [])
    files = [
        path.parent / os.path.expanduser(base) for base in (bases if isinstance(bases, list) else [bases])
    ]
    return next(filter(None, (_stated_in(file, key) for file in reversed(files))), None)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file with its `_BASE_` chain as one nested dict.

    Raises `UserError` naming the file that is missing, not a regular file, too large, or not a mapping.
    """
    return _read_chain(path, [])


def _read_chain(path: Path, chain: list[Path]) -> dict[str, Any]:
    """Read a file over its bases, which are relative to it; `chain` is the list of all files that were read."""
    chain.append(path)
    if len(chain) > _MAX_FILES:
        raise UserError(
            f"{chain[0]}: its _BASE_ chain leads back to itself, or has more than {_MAX_FILES} files"
        )
    own = _read_one(path)
    bases = own.pop("_BASE_", [])
    tree: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise UserError(f"{path}: _BASE_ {brief(base)}: name the path of a file")
        if "://" in base:
            raise UserError(f"{path}: _BASE_ {brief(base)} is a URL; download the file and name its path")
        file = path.parent / os.path.expanduser(base)
        if not os.path.exists(file):
            raise UserError(f"{path}: _BASE_ names a missing file: {label(str(file))}")
        _merge_trees(_read_chain(file, chain), tree, path)
    _merge_trees(own, tree, path)
    return tree


def _read_one(path: Path) -> dict[str, Any]:
    data = read_regular(path, most=_MAX_BYTES)
    try:
        tree = parse_yaml(data.decode("utf-8"))
        if not isinstance(tree, dict):
            raise ValueError(f"it is a {type(tree).__name__}")
        return tree
    except ValueError as error:
        reason = label(str(error))
        if "python/" in reason:  # detectron2's RetinaNet configs compute their anchor sizes with one
            reason = f"its !!python tag would run code; write the value out ({reason})"
        raise UserError(f"{path}: not a YAML mapping of config keys: {reason}") from None


def _merge_trees(tree: dict[str, Any], into: dict[str, Any], path: Path) -> None:
    """Merge nested settings in place; those of `tree` replace others, except that a section is merged."""
    for key, value in tree.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise UserError(
                    f"{path}: {label(key)} is a section, but a value in its _BASE_: remove one of them"
                )
            _merge_trees(value, into[key], path)
        else:
            into[key] = value


def parse_yaml(text: str) -> Any:
    """Return the only document of a YAML text. Raises `ValueError` with a reason in one line.

    A few lines of aliases can expand to more data than memory holds, or hold themselves; a few kilobytes of digits can
    become a number that Python refuses to print.
    """
    return copy.deepcopy(_parse(text))


@lru_cache(maxsize=64)
def _parse(text: str) -> Any:
    """Parse a YAML text, which takes 20 ms for a config; planning a table reads each of its configs many times."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # PyYAML raises many classes on hostile text, such as KeyError for `!!bool 3`
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def _check_size(root: yaml.Node) -> None:
    """Raise `ValueError` for a document that is too large with its aliases expanded, or holds a very long number."""
    left, nodes = _MAX_NODES, [(root, 0)]
    while nodes:
        node, depth = nodes.pop()
        left -= 1
        if left < 0 or depth > _MAX_DEPTH:
            raise ValueError("its aliases hold themselves, or expand to too much data")
        if isinstance(node, yaml.MappingNode):
            nodes += [(part, depth + 1) for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += [(part, depth + 1) for part in node.value]
        elif node.tag in _NUMBERS and len(node.value) > _MAX_DIGITS:
            raise ValueError(f"it holds a number of {len(node.value)} characters")


def set_key(cfg: CfgNode, key: str, value: Any, *, origin: str) -> None:
    """Set one dotted key to a value, which may be given as a string. The default's type decides what is accepted."""
    parent, _, leaf = key.rpartition(".")
    node: Any = cfg
    for part in parent.split(".") if parent else []:
        node = node.get(part) if isinstance(node, CfgNode) else None
    if not isinstance(node, CfgNode) or leaf not in node or isinstance(node[leaf], CfgNode):
        known = list(flatten(cfg))
        raise UserError(f"{origin}: unknown config key {label(key)}{nearest(key[:SHOWN], known)}")
    node[leaf] = _coerce(value, node[leaf], f"{origin}: {key}")


def digest_text(cfg: CfgNode) -> str:
    """Return the effective config as YAML text with sorted keys: equal text means equal settings."""
    return str(yaml.dump(_plain(cfg), Dumper=_Dumper, sort_keys=True))


def _plain(value: Any) -> Any:
    """Return nested settings as plain dicts, which YAML can represent."""
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value


def _coerce(value: Any, default: Any, where: str) -> Any:
    decoded = _decode(value) if isinstance(value, str) and not isinstance(default, str) else value
    if fault := _fault(decoded):
        raise UserError(f"{where}: {fault}")
    if isinstance(default, str):
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return str(value)
        raise UserError(f"{where}: {brief(value)} is not a string")
    is_list = isinstance(default, list | tuple)
    if isinstance(value, str):
        if is_list and not isinstance(decoded, list | tuple) and all(isinstance(v, str) for v in default):
            return type(default)([value])  # DATA.TRAIN my/photos
        value = decoded
    numbers = is_list and len(default) > 0 and all(isinstance(v, int | float) for v in default)
    if numbers and isinstance(value, list | tuple) and not all(isinstance(v, int | float) for v in value):
        raise UserError(f"{where}: {brief(value)} is not a list of numbers (the default is {default!r})")
    if numbers and type(value) in (int, float):
        return type(default)([value])  # SOLVER.STEPS 40
    strings = is_list and len(default) > 0 and all(isinstance(v, str) for v in default)
    if strings and isinstance(value, list | tuple) and not all(isinstance(v, str) for v in value):
        raise UserError(f"{where}: {brief(value)} is not a list of strings (the default is {default!r})")
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if is_list and isinstance(value, list | tuple):
        return type(default)(value)
    raise UserError(
        f"{where}: {brief(value)} is not of type {type(default).__name__} (the default is {default!r})"
    )


def _decode(text: str) -> Any:
    """Return the Python literal that a text is, or else the text itself."""
    try:
        return CfgNode._decode_cfg_value(text)
    except (RecursionError, MemoryError):  # thousands of signs or brackets
        return text


def _fault(value: Any) -> str:
    """Return what is wrong with a value whatever its key: text for a terminal, or a number that nothing can store."""
    if isinstance(value, list | tuple | dict):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return next(filter(None, map(_fault, parts)), "")
    if isinstance(value, str):
        if len(value) > _MAX_TEXT:
            return (
                f"{brief(value)} has {len(value)} characters, more than the {_MAX_TEXT} that a value may have"
            )
        return f"{brief(value)} holds a control character" if has_control(value) else ""
    return f"{brief(value)} is too large" if isinstance(value, int) and value.bit_length() > 64 else ""


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
