"""Export the backbone of any supported checkpoint to torchvision's, timm's or MoCo's format."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pretrain.common.errors import UserError
from pretrain.model.encoders import ARCHITECTURES, Architecture
from pretrain.tensor_files.checkpoint import save
from pretrain.tensor_files.read_any import Loaded
from transfer.convert.architecture import described, recorded
from transfer.convert.convert import check_output
from transfer.convert.preprocessing import IMAGENET
from transfer.convert.recognise import Source, read_source
from transfer.convert.weights_file import write_safetensors


def export(
    input: Path,
    output: Path,
    *,
    to: str,
    source: str = "auto",
    branch: str = "",
    overwrite: bool = False,
    given: Mapping[str, Any] | None = None,
    merged_norm: bool = False,
    loaded: Loaded | None = None,
) -> list[str]:
    """Write the ResNet of `input` under the names that `to` uses, bit for bit.

    torchvision and timm use the same names; timm's hub files are `.safetensors`. `moco` writes a query encoder without
    a head, in the layout of the public MoCo files.

    Args:
        input: any checkpoint that `read_source` accepts, including detectron2's.
        output: `*.pth`, `*.pth.tar` or, except for moco, `*.safetensors`.
        to: one of `transfer.convert.TARGETS`.
        overwrite: replace any file at `output`; by default, only a file written by `convert` is replaced.
        given, merged_norm, loaded: as in `read_source`.
    Returns:
        Lines that describe what was written and how to load it.
    Raises:
        UserError: the input cannot be read, torchvision cannot build its network, or the output is refused.
    """
    check_export(input, output, to=to, overwrite=overwrite)
    safe = output.suffix == ".safetensors"
    found = read_source(
        input, source=source, branch=branch, given=given, merged_norm=merged_norm, loaded=loaded
    )
    if found.input.stride_in_1x1:
        raise UserError(
            f"{input}: its bottlenecks have the stride in the 1x1 convolution, as in MSRA's networks; {to} does not "
            "build such networks"
        )
    arch = _name(found.architecture)
    if safe:
        write_safetensors(output, found.backbone, metadata={"format": "pt"})
    else:
        save(output, _contents(found, to, arch))
    return [*_summary(found, output, arch), *_advice(found, output, to=to, arch=arch)]


def check_export(input: Path, output: Path, *, to: str, overwrite: bool) -> None:
    """Raise `UserError` for an output that is refused, or whose name does not have an ending for `to`."""
    check_output(input, output, overwrite=overwrite)
    safe = output.suffix == ".safetensors"
    if (not safe and output.suffix not in (".pth", ".tar", ".pt")) or (safe and to == "moco"):
        raise UserError(
            f"{output}: name the output *.pth{'' if to == 'moco' else ' or *.safetensors'} for --to {to}"
        )


def _contents(found: Source, to: str, arch: str) -> dict[str, Any]:
    if to != "moco":
        return dict(found.backbone)
    state: dict[str, torch.Tensor] = {f"module.encoder_q.{name}": t for name, t in found.backbone.items()}
    return {"epoch": found.epoch or 0, "arch": arch, "state_dict": state}


def _name(architecture: Architecture) -> str:
    for name, known in ARCHITECTURES.items():
        if known == architecture:
            return name
    plain = ARCHITECTURES[f"resnet{architecture.depth}"]
    if architecture == replace(plain, width_per_group=128):
        return f"wide_resnet{architecture.depth}_2"
    return ""


def _summary(found: Source, output: Path, arch: str) -> list[str]:
    network = arch or f"a {described(recorded(found.architecture))}"
    return [
        f"source    {found.kind}, branch {found.branch or '(none)'} ({found.why})",
        f"wrote     {output}: {network}, {len(found.backbone)} tensors, without a head",
    ]


def _advice(found: Source, output: Path, *, to: str, arch: str) -> list[str]:
    lines = []
    if found.input != IMAGENET:
        scale = ", ".join(f"{value / 255:.4g}" for value in found.input.std)
        lines.append(
            f"note      this network expects {found.input.format}, mean "
            f"{', '.join(f'{value / 255:.4g}' for value in found.input.mean)}, std {scale} for pixels in [0, 1]"
        )
    if not arch:
        return [*lines, f"note      {to} has no constructor for these widths: build the network yourself"]
    if to == "timm":
        lines.append(f'load      timm.create_model("{arch}", num_classes=0, checkpoint_path="{output}")')
    elif to == "torchvision":
        lines.append(
            f'load      torchvision.models.{arch}().load_state_dict(torch.load("{output}"), strict=False)'
        )
    return lines
