"""Do with a file what its network needs: ResNets and ViTs have converters of their own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.common.errors import UserError
from pretrain.tensor_files.read_any import Loaded
from pretrain.tensor_files.shards import read_checkpoint
from transfer.convert.convert import check_output, convert
from transfer.convert.export import check_export, export
from transfer.convert.preprocessing import FLAGS
from transfer.convert.recognise import Source, read_source
from transfer.convert.vit.convert import FLAG as RESAMPLE
from transfer.convert.vit.convert import convert_vit
from transfer.convert.vit.export import export_vit
from transfer.convert.vit.kinds import FLAG as HEADS
from transfer.convert.vit.recognise import VitSource, holds_vit, read_vit
from transfer.convert.weights_file import format_of


def read_any(path: Path, loaded: Loaded | None = None, **choice: Any) -> Source | VitSource:
    """Read a checkpoint and extract its ResNet or, in a file without a ResNet, its ViT.

    Args:
        loaded: the contents of the file, if it has been read already.
        choice: options of `read_source` and `read_vit`; those that do not concern the network must not be set.
    Raises:
        UserError: as these do, or for an option that has no effect on this network.
    """
    loaded = loaded or read_checkpoint(path)
    vit = holds_vit(path, loaded)
    options = _options(path, choice, vit=vit)
    options.pop("resample", None)
    return read_vit(path, loaded=loaded, **options) if vit else read_source(path, loaded=loaded, **options)


def reading(flags: Sequence[str]) -> dict[str, Any]:
    """Return the options of `read_any` that flags of the converter state: FLAG, VALUE, ...; it needs no others."""
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    heads = {"heads": int(given[HEADS])} if HEADS in given else {}
    return heads | ({"branch": given["--branch"]} if "--branch" in given else {})


def convert_any(path: Path, output: Path, *, overwrite: bool = False, **options: Any) -> dict[str, Any]:
    """Convert a checkpoint's ResNet or ViT, by `convert` or `convert_vit`, whose options and results these are."""
    format_of(output)
    check_output(path, output, overwrite=overwrite)  # before a large file is read
    loaded = read_checkpoint(path)
    vit = holds_vit(path, loaded)
    options = _options(path, options, vit=vit)
    written = convert_vit if vit else convert
    return written(path, output, overwrite=overwrite, loaded=loaded, **options)


def export_any(path: Path, output: Path, *, to: str, overwrite: bool, **choice: Any) -> list[str]:
    """Export a checkpoint's ResNet or ViT, by `export` or `export_vit`, whose results these are."""
    check_export(path, output, to=to, overwrite=overwrite)
    loaded = read_checkpoint(path)
    if choice.get("resample") is not None:
        raise UserError(
            f"{RESAMPLE} has no effect with --to, which writes the tensors as they are: leave it out"
        )
    found = read_any(path, loaded, **choice)
    if isinstance(found, VitSource):
        return export_vit(path, output, found, to=to)
    options = _options(path, choice, vit=False)
    return export(path, output, to=to, overwrite=overwrite, loaded=loaded, **options)


def _options(path: Path, options: Mapping[str, Any], *, vit: bool) -> dict[str, Any]:
    """Return the options that concern the network. Raises `UserError` if one of the others is set."""
    what = "a ViT" if vit else "a ResNet"
    stride = "stride_in_1x1"
    others = (
        {"keep": "--keep", "merged_norm": "--merged-norm"} if vit else {"heads": HEADS, "resample": RESAMPLE}
    )
    for name, flag in others.items():
        value = options.get(name)
        if value or type(value) is int:  # `--heads 0`, too
            raise UserError(f"{path}: {flag} has no effect on {what}: leave it out")
    if vit and stride in (options.get("given") or {}):
        raise UserError(f"{path}: {FLAGS[stride]} has no effect on {what}: leave it out")
    return {name: value for name, value in options.items() if name not in others}
