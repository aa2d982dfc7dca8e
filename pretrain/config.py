"""Configuration of both stages: YAML with `_BASE_`, `KEY VALUE` overrides, and errors that name the key.

The language is fvcore's `CfgNode` (yacs), which detectron2 users know. The functions here work on any
`CfgNode`, so that `transfer/` reads its detectron2 configs by the same rules; `defaults` holds the keys of
pre-training. YAML is always read by the safe loader: detectron2's own `merge_from_file` falls back to one
that runs code found in the file.
"""

import difflib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from pretrain.errors import UserError
from pretrain.validate import validate
from pretrain.yaml_numbers import write_out

CONFIG_ROOT = Path(__file__).resolve().parents[1] / "configs"
_MAX_DEPTH = 32  # of lists and mappings within each other in a config that was written out


class _SafeFiles(CfgNode):
    """Reads a YAML file and its `_BASE_` chain from this machine's disk only."""

    @classmethod
    def _open_cfg(cls, filename: str) -> Any:
        if "://" in filename:
            raise UserError(f"_BASE_: {filename} is a URL; download the file and name its path")
        with open(filename, encoding="utf-8") as file:
            return io.StringIO(write_out(file.read()))


def load(name: str, overrides: Sequence[str] = (), *, processes: int = 1) -> CfgNode:
    """The frozen pre-training config of a YAML file and `KEY VALUE` pairs.

    Raises `UserError` for everything that cannot work, here with `processes` processes.
    """
    cfg = defaults()
    merge(cfg, find_config(name), overrides)
    validate(cfg, processes=processes)
    cfg.freeze()
    return cfg


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
    for key, value in _flatten(read_yaml(path)):
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
        known = [name for name, _ in _flatten(cfg)]
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


def _flatten(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean X?`, where a known name or key resembles `name`; else nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # a right leaf under a wrong parent: MODEL.BASE_LR for SOLVER.BASE_LR
        separator = "." if any("." in k and "/" not in k for k in known) else os.sep
        leaf = name.rsplit(separator, 1)[-1]
        close = [k for k in known if k.rsplit(separator, 1)[-1] == leaf][:1]
    return f"; did you mean {close[0]}?" if close else ""


def defaults() -> CfgNode:
    """Every key of pre-training with its default: MoCo v2's values (Chen et al. 2020; He et al. Sec. 4)."""
    return CfgNode(
        {
            "MODEL": {
                "ARCH": "resnet50",  # resnet18|34|50|101|152, resnext50_32x8d, resnext101_32x8d
                "WIDTH": 1.0,  # multiplies every channel count of the backbone
                "DIM": 128,  # size of the query and key vectors
                "HEAD": "mlp",  # linear (v1) | mlp (v2: hidden layer as wide as the feature, ReLU)
                "NORM": "ShuffleBN",  # ShuffleBN | SyncBN | BN
                "BN_GROUP_SIZE": 32,  # images normalised together; 256 / 8 GPUs in the paper
                "COMPILE": False,  # torch.compile
            },
            "MOCO": {
                "MECHANISM": "moco",  # moco | endtoend | memorybank (He et al. Figure 2)
                "K": 65536,  # keys in the queue; negatives drawn from the memory bank
                "M": 0.999,  # momentum of the key encoder
                "T": 0.2,  # temperature; 0.07 in v1
                "BANK_M": 0.5,  # momentum of the memory bank's features (Wu et al. 2018)
                "SHUFFLE": True,  # False only to see the leak that shuffling prevents (Figure A.1)
            },
            "INPUT": {
                "SIZE": 224,  # pixels, of the square views
                "AUG": "v2",  # v1 | v2
                "WITHOUT": [],  # parts of AUG to leave out: crop flip jitter gray blur
                "VIEWS": "cpu",  # cpu | gpu: where colours are changed and views blurred
                "MIN_SCALE": 0.2,  # smallest share of the image that a crop may cover
                "MEAN": [0.485, 0.456, 0.406],  # of RGB in [0, 1]
                "STD": [0.229, 0.224, 0.225],
            },
            "DATA": {
                "TRAIN": ["datasets/imagenet/train"],  # folders, text lists, tar shards; labels are not used
                "NUM_WORKERS": 4,  # loader processes of each training process
                "MAX_BROKEN": 0.01,  # stop when more than this share of the images cannot be read
            },
            "SOLVER": {
                "BASE_LR": 0.03,
                "IMS_PER_BATCH": 256,  # total over all processes
                "MOMENTUM": 0.9,
                "WEIGHT_DECAY": 1e-4,
                "SCHEDULE": "cosine",  # cosine | step | exponential
                "STEPS": [120, 160],  # epochs at which `step` multiplies the rate by 0.1
                "GAMMA": 0.9,  # `exponential` multiplies the rate by it
                "GAMMA_PERIOD": 62500,  # every so many iterations
                "MAX_EPOCH": 200,
                "MAX_ITER": 0,  # stop after so many iterations; 0: only MAX_EPOCH counts
                "AMP": "auto",  # auto (bf16 on GPUs that have it; on CPUs a timed step tells) | bf16 | fp16 | off
                "CHECKPOINT_PERIOD": 10,  # epochs; the checkpoint of every so manieth one stays for good
                "KEEP_LAST": 3,  # checkpoints of the last epochs that stay besides; 0 keeps all
                "SAVE_MINUTES": 15.0,  # save inside an epoch too, so often; 0: only at its end
                "SAVE_ERRORS": "stop",  # stop | continue, when a checkpoint cannot be written
                "LOG_PERIOD": 20,  # iterations
            },
            "KNN": {
                "TRAIN": "",  # folder of class folders; empty: DATA.TRAIN's own, if it has them
                "VAL": "",  # folder of class folders; empty: leave-one-out on TRAIN
                "K": 20,
                "T": 0.07,
                "PERIOD": 10,  # epochs; the last epoch is always measured; 0: no monitor
                "MAX_IMAGES": 5000,  # of each folder, evenly spread; and one of each class that this leaves out
            },
            "LOG": {
                "TENSORBOARD": True,
                "WANDB": "",  # project; empty: none
            },
            "OUTPUT_DIR": "output/pretrain",
            "SEED": 0,
            "DEVICE": "auto",  # auto | cpu | cuda
        }
    )
