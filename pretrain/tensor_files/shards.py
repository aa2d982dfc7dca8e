"""Checkpoints in several files: `model-00001-of-00002.safetensors` and its siblings, with or without their index.

transformers, diffusers and accelerate split large checkpoints in this way. The index, `model.safetensors.index.json` or
`pytorch_model.bin.index.json`, maps each tensor's name to the file that holds it.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.common.errors import UserError, label
from pretrain.common.files import file_digest
from pretrain.tensor_files.read_any import Loaded, opened, read_file

INDEX = ".index.json"
MAX_INDEX = 16 << 20  # bytes; a ResNet's has 30,000
MAX_PARTS = 1000
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.\w+)")
_WHOLE = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks for them


def read_checkpoint(path: Path) -> Loaded:
    """Read a checkpoint of one file, or of several files given by one of them, their index or their folder.

    Returns:
        As `read_file`, with the tensors of all parts and, in `parts`, the files that were read.
    Raises:
        UserError: as in `read_file` for each part; or a part is missing, or contradicts another one or the index.
    """
    files, index = _find(path)
    first, *others = [read_file(file) for file in files]
    tensors = dict(first.tensors)
    holder = dict.fromkeys(tensors, files[0])
    for file, loaded in zip(files[1:], others, strict=True):
        if twice := next((name for name in loaded.tensors if name in holder), None):
            raise UserError(
                f"{path}: {holder[twice].name} and {file.name} both hold {twice}, so they are not parts of one "
                "checkpoint: rename the file that you want, without -of-"
            )
        tensors |= loaded.tensors
        holder |= dict.fromkeys(loaded.tensors, file)
    for name, file_name in index.items():
        if name not in holder or holder[name].name != file_name:
            raise UserError(
                f"{path}: the index places {label(name)} in {file_name}, which does not hold it: the files "
                "do not belong together; download them again"
            )
    opaque = tuple(dict.fromkeys(name for loaded in (first, *others) for name in loaded.opaque))
    keys = first.keys if not others else tuple(dict.fromkeys(k for one in (first, *others) for k in one.keys))
    return replace(first, tensors=tensors, keys=keys, opaque=opaque, parts=tuple(files))


def combined_digest(parts: Sequence[Path]) -> str:
    """Return the SHA-256 of a single file, or of the digests of several, in order, as text."""
    digests = [file_digest(part) for part in parts]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def is_sharded(path: Path) -> bool:
    """Return whether a path names a checkpoint of several files: their index, one of them or a folder."""
    match = _PART.fullmatch(path.name)
    return path.is_dir() or path.name.endswith(INDEX) or bool(match and int(match["count"]) > 1)


def _find(path: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the files of a checkpoint, in order, and the index's entries if there is an index."""
    if path.is_dir():
        path = _in_folder(path)
    if path.name.endswith(INDEX):
        return _indexed(path, path)
    match = _PART.fullmatch(path.name)
    if not match or int(match["count"]) <= 1:
        return [path], {}
    index = path.with_name(f"{match['stem']}{match['ending']}{INDEX}")
    if index.is_file():
        files, entries = _indexed(index, path)
        if path.name in [file.name for file in files]:
            return files, entries
    count = int(match["count"])
    if count > MAX_PARTS:
        raise UserError(f"{path}: its name says that it is one of {count} parts: more than any ResNet needs")
    names = [f"{match['stem']}-{n:05}-of-{count:05}{match['ending']}" for n in range(1, count + 1)]
    return _present(path, names), {}


def _in_folder(folder: Path) -> Path:
    """Return the index, a part or the only file of the checkpoint that a folder holds."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror or error}") from None
    indices = [name for name in names if name.endswith(f".safetensors{INDEX}")]
    indices = indices or [name for name in names if name.endswith(f".bin{INDEX}")]
    first_parts = [n for n in names if (match := _PART.fullmatch(n)) and int(match["number"]) == 1]
    found = indices or [name for name in _WHOLE if name in names][:1] or first_parts
    if not found and (parts := [n for n in names if _PART.fullmatch(n)]):
        found = parts[:1]  # part 1 is missing, which the caller reports
    if len(found) > 1:
        raise UserError(
            f"{folder}: this folder holds several checkpoints: name one of {', '.join(found[:4])}"
        )
    if found:
        return folder / found[0]
    if ".metadata" in names and any(name.endswith(".distcp") for name in names):
        raise UserError(
            f"{folder}: this is a folder of torch.distributed.checkpoint: turn it into one file with "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} checkpoint.pth"
        )
    if "zero_to_fp32.py" in names:
        raise UserError(
            f"{folder}: this is a checkpoint folder of DeepSpeed: turn it into one file with the script "
            "zero_to_fp32.py in it"
        )
    raise UserError(
        f"{folder}: is a folder without a model.safetensors, a pytorch_model.bin or an index of their parts; "
        "name a checkpoint file"
    )


def _indexed(index: Path, given: Path) -> tuple[list[Path], dict[str, str]]:
    with opened(index) as file:
        data = file.read(MAX_INDEX)
    try:
        entries: Any = json.loads(data)["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{index}: is not the index of a checkpoint (no `weight_map`): name the checkpoint's files"
        ) from None
    if not isinstance(entries, dict) or not entries or not all(isinstance(n, str) for n in entries.values()):
        raise UserError(f"{index}: its `weight_map` does not map tensor names to file names: damaged")
    names = sorted(set(entries.values()))
    if len(names) > MAX_PARTS or any(Path(n).name != n or not n.isprintable() for n in names):
        raise UserError(f"{index}: its `weight_map` names files outside of its folder, or too many: refused")
    return _present(given, names), entries


def _present(given: Path, names: list[str]) -> list[Path]:
    """Return the named files next to `given`. Raises `UserError` if one is missing."""
    files = [given.with_name(name) for name in names]
    missing = [file.name for file in files if not file.exists()]
    if given.name in missing:
        raise UserError(f"{given}: no such checkpoint file")
    if missing:
        if given.name in names:
            what = f"is part {names.index(given.name) + 1} of {len(names)}"
        else:
            what = f"is the index of {len(names)} parts"
        more = f" ({len(missing)} missing)" if len(missing) > 1 else ""
        raise UserError(
            f"{given}: {what} of a checkpoint, but {missing[0]} is missing{more}: put all parts into one folder"
        )
    return files
