"""Reading config files: YAML with `_BASE_`, `KEY VALUE` overrides, and errors that name the key.

The functions work on any fvcore `CfgNode` (yacs, as in detectron2), so pre-training, fine-tuning and the linear probe
read their files by the same rules. YAML is always read by the safe loader: detectron2's own `merge_from_file` falls
back to a loader that runs code found in the file.
"""

import difflib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from pretrain.common.errors import SHOWN, UserError, brief, has_control, label
from pretrain.common.files import read_regular
from pretrain.installed import CONFIG_ROOT, IS_CHECKOUT
from pretrain.yaml_text import parse_yaml

_MAX_BYTES = 200_000  # of a YAML file; detectron2's longest has 5,000
_MAX_FILES = 32  # in a `_BASE_` chain
_MAX_TEXT = 4096  # characters of a string, as many as a path may have on Linux
# The C version needs a tenth of the time. It breaks long non-ASCII strings elsewhere; all other text is the same.
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_SIMILAR = 0.5  # from 0 to 1, of a key, flag or name to the one that is suggested
_SIMILAR_FILES = 0.7  # names of files are longer, and share parts such as R50
_WEIGHTS = (".pth", ".tar", ".pt", ".ckpt", ".pkl", ".bin", ".safetensors", ".caffemodel", ".npz")
# What a config is for, the tool that reads it, and the sections and keys that no config of another tool has
_TOOLS = (
    ("pre-training", "tools/pretrain.py", ("MOCO", "MODEL.DIM", "MODEL.NORM", "INPUT.AUG")),
    ("fine-tuning", "tools/train_net.py", ("DATASETS", "DATALOADER", "MODEL.RESNETS", "MODEL.BACKBONE")),
    ("linear classification", "tools/linear_eval.py", ("DATA.VAL", "SWEEP", "CACHE")),
)


def find_config(name: str) -> Path:
    """Return the path of a config: as given, or else under `configs/`, which an installed package holds too.

    Raises `UserError` for a name that is not a config's, and if there is no such file; that names the most similar one.
    """
    for path in (Path(name), CONFIG_ROOT / name):
        if path.is_file():
            _refuse_other_files(path)
            return path
    if (Path(name) / "config.yaml").is_file():
        raise UserError(
            f"--config {label(name)}: a folder; did you mean {label(str(Path(name) / 'config.yaml'))}?"
        )
    known = sorted(path.relative_to(CONFIG_ROOT).as_posix() for path in CONFIG_ROOT.rglob("*.yaml"))
    shipped = "configs/" if IS_CHECKOUT else f"{CONFIG_ROOT}/"
    raise UserError(
        f"--config {label(name)}: no such file, neither here nor under {shipped}{_nearest_file(name, known)}"
    )


def _refuse_other_files(path: Path) -> None:
    if path.name.endswith(_WEIGHTS):
        raise UserError(
            f"--config {label(str(path))}: a weights file, not a YAML config; weights are given to tools/train_net.py "
            "as MODEL.WEIGHTS, to tools/linear_eval.py as --weights, and a state to continue from as --resume"
        )
    if path.suffix == ".json":
        raise UserError(
            f"--config {label(str(path))}: a JSON file, not a YAML config; tools/train_net.py is given annotations as "
            "DATASETS.TRAIN_JSON and DATASETS.TEST_JSON"
        )


def merge(cfg: CfgNode, path: Path, overrides: Sequence[str]) -> None:
    """Merge a YAML file, its `_BASE_` chain and then `KEY VALUE` pairs into `cfg`, in place.

    Raises `UserError` for unreadable YAML, an unknown key (naming the nearest known one) or a value of the wrong type.
    """
    tree = read_yaml(path)
    _check_tool(cfg, tree, path)
    for key, value in flatten(tree).items():
        if value is not None or key not in cfg:  # a section whose keys are all commented out
            set_key(cfg, key, value, origin=str(path))
    if len(overrides) % 2:
        raise UserError(f"overrides are KEY VALUE pairs: {brief(overrides[-1])} has no value")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        set_key(cfg, key, value, origin="command line")


def _check_tool(cfg: CfgNode, tree: dict[str, Any], path: Path) -> None:
    """Raise `UserError` if a file with unknown keys is the config of another tool than the one that `cfg` is for."""
    if not any(_holder(cfg, key) is None for key in flatten(tree)):
        return
    own, others = ([tool for tool in _TOOLS if _has_any(t, tool[2])] for t in (cfg, tree))
    if len(own) == len(others) == 1 and own != others:
        (purpose, script, _), (needed, _, _) = others[0], own[0]
        raise UserError(
            f"{label(str(path))}: a config of {purpose}, for {script}; needed here: one of {needed}"
        )


def _has_any(tree: Any, keys: Sequence[str]) -> bool:
    return any(get(tree, key) is not None for key in keys)


def default_output(path: Path, overrides: Sequence[str]) -> str:
    """Return the OUTPUT_DIR of a run that is given none; an empty string if the overrides or its own files state one.

    It follows from the config's name, so that two of ours never meet: `output/transfer/coco_R50_FPN` for
    `configs/transfer/coco_R50_FPN.yaml`, and `output/mine` for a `mine.yaml` elsewhere. What that one inherits from a
    config of ours counts as not stated.
    """
    if "OUTPUT_DIR" in overrides[::2]:
        return ""
    stated = next((file for file, tree in _nearest_first(path) if "OUTPUT_DIR" in tree), None)
    if stated and (stated.resolve() == path.resolve() or not _is_ours(stated)):
        return ""
    own = path.resolve().relative_to(CONFIG_ROOT) if _is_ours(path) else Path(path.name)
    return str(Path("output") / own.with_suffix(""))


def stated_nearest(path: Path, overrides: Sequence[str], keys: Sequence[str]) -> set[str]:
    """Return those of `keys` that are stated where any of them is stated last: in the overrides, the file or a base.

    Args:
        path: a file that has been read before, as its bases.
    """
    places = [overrides[::2], *(flatten(tree) for _, tree in _nearest_first(path))]
    return next(filter(None, (set(keys) & set(place) for place in places)), set())


def _is_ours(path: Path) -> bool:
    return path.resolve().is_relative_to(CONFIG_ROOT)


def _nearest_first(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield each file of a `_BASE_` chain that has been read before, and its own settings; earlier ones count more."""
    tree = _read_one(path)
    bases = tree.pop("_BASE_", [])
    yield path, tree
    for name in reversed(bases if isinstance(bases, list) else [bases]):
        yield from _nearest_first(_base(path, name))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file with its `_BASE_` chain as one nested dict.

    Raises `UserError` naming the file that is missing, not a regular file, too large, or not a mapping.
    """
    return _read_chain(path, [])


def _read_chain(path: Path, chain: list[Path]) -> dict[str, Any]:
    """Read a file over its bases; `chain` is the list of all files that were read."""
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
        _merge_trees(_read_chain(_base(path, base), chain), tree, path)
    _merge_trees(own, tree, path)
    return tree


def _base(path: Path, name: str) -> Path:
    """Return the file that a `_BASE_` of `path` names: relative to `path`, or else under `configs/`."""
    name = os.path.expanduser(name)
    places = (path.parent / name, CONFIG_ROOT / name)
    file = next((place for place in places if os.path.exists(place)), None)
    if file is None:
        raise UserError(f"{path}: _BASE_ names a missing file: {label(str(places[0]))}")
    return file


def _read_one(path: Path) -> dict[str, Any]:
    data = read_regular(path, most=_MAX_BYTES, what="a YAML config")
    try:
        tree = parse_yaml(data.decode("utf-8"))
        if not isinstance(tree, dict):
            raise ValueError(f"it is a {type(tree).__name__}")
        return tree
    except UnicodeDecodeError:
        raise UserError(
            f"{label(str(path))}: not a YAML mapping of config keys: it is not text in UTF-8"
        ) from None
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


def set_key(cfg: CfgNode, key: str, value: Any, *, origin: str) -> None:
    """Set one dotted key to a value, which may be given as a string. The default's type decides what is accepted."""
    node, leaf = _holder(cfg, key), key.rpartition(".")[2]
    if node is None:
        hint = _nearest_key(key[:SHOWN], list(flatten(cfg)))
        raise UserError(f"{origin}: unknown config key {label(key)}{hint}")
    node[leaf] = _coerce(value, node[leaf], f"{origin}: {key}")


def _holder(cfg: CfgNode, key: str) -> CfgNode | None:
    """Return the section that holds a dotted key, or None if `cfg` has no such key, or only a section of that name."""
    parent, _, leaf = key.rpartition(".")
    node: Any = cfg
    for part in parent.split(".") if parent else []:
        node = node.get(part) if isinstance(node, CfgNode) else None
    return (
        node if isinstance(node, CfgNode) and leaf in node and not isinstance(node[leaf], CfgNode) else None
    )


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


def nearest(name: str, known: Sequence[str], *, prefix: str = "") -> str:
    """Return `; did you mean X?` if a known name resembles `name`, or else an empty string.

    Args:
        prefix: that of all names, such as the dashes of flags, which makes none of them more alike.
    """
    names, plain = {each.removeprefix(prefix): each for each in known}, name.removeprefix(prefix)
    # difflib does not know that mae_vitb is closer to mae_ViTB than to mae_ViTL.
    same = [each for each in names if each.lower() == plain.lower()]
    close = same[:1] or difflib.get_close_matches(plain, names, n=1, cutoff=_SIMILAR)
    return _suggest([names[each] for each in close])


def _nearest_key(key: str, known: Sequence[str]) -> str:
    """Do the same for config keys: a right leaf under a wrong parent, such as MODEL.BASE_LR, counts most."""
    leaf = key.rpartition(".")[2]
    same = [k for k in known if k.rpartition(".")[2] == leaf]
    return _suggest(difflib.get_close_matches(key, same, n=1, cutoff=0)) or nearest(key, known)


def _nearest_file(name: str, known: Sequence[str]) -> str:
    """Do the same for the paths of files, by their names without folder and ending."""
    stems = {Path(path).stem.lower(): path for path in known}
    close = difflib.get_close_matches(Path(name).stem.lower(), stems, n=1, cutoff=_SIMILAR_FILES)
    return _suggest([stems[stem] for stem in close])


def _suggest(found: Sequence[str]) -> str:
    return f"; did you mean {found[0]}?" if found else ""
