"""Export the ViT of any supported checkpoint under timm's names."""

from pathlib import Path

import torch

from pretrain.common.errors import UserError
from pretrain.tensor_files.checkpoint import save
from transfer.convert.preprocessing import IMAGENET, describe_input
from transfer.convert.vit.architecture import Shape
from transfer.convert.vit.recognise import VitSource
from transfer.convert.weights_file import write_safetensors

# (width, blocks, heads) -> the name of timm's constructors
_NAMES = {
    (192, 12, 3): "tiny",
    (384, 12, 6): "small",
    (384, 12, 12): "small",
    (768, 12, 12): "base",
    (1024, 24, 16): "large",
    (1280, 32, 16): "huge",
}


def export_vit(input: Path, output: Path, found: VitSource, *, to: str) -> list[str]:
    """Write a ViT under timm's names, bit for bit: all of it that the file has, class token and final norm included.

    Registers without positions get positions of zeros if the class token has one.

    Args:
        output: `*.pth` or `*.safetensors`, which the caller has checked.
        to: must be `timm`.
    Returns:
        Lines that describe what was written and how to load it.
    Raises:
        UserError: another library was asked for.
    """
    if to != "timm":
        raise UserError(f"{input}: it holds a ViT, which can be exported with --to timm only, not --to {to}")
    tensors = dict(found.backbone)
    if (
        found.shape.registers and found.shape.class_position
    ):  # timm gives positions to all of them, or to none
        table, zeros = tensors["pos_embed"], torch.zeros(1, found.shape.registers, found.shape.width)
        tensors["pos_embed"] = torch.cat([table[:, :1], zeros, table[:, 1:]], dim=1)
    if output.suffix == ".safetensors":
        write_safetensors(output, tensors, metadata={"format": "pt"})
    else:
        save(output, tensors)
    missing = [
        name for name in ("cls_token", "norm.weight") if name not in tensors and _expected(found.shape, name)
    ]
    lines = [
        f"source    {found.kind}, branch {found.branch or '(none)'} ({found.why})",
        f"wrote     {output}: {found.shape}, {len(tensors)} tensors, without a head",
    ]
    if missing:
        lines.append(
            f"note      the file has no {' and no '.join(missing)}, which timm will leave as initialised"
        )
    if found.input != IMAGENET:
        lines.append(f"note      this network expects {describe_input(found.input, resnet=False)}")
    return [*lines, f"load      {_load(found.shape, output, complete=not missing)}"]


def _expected(shape: Shape, name: str) -> bool:
    return name != "cls_token" or shape.class_position


def _load(shape: Shape, output: Path, *, complete: bool) -> str:
    """Return the Python that loads the file into timm's network."""
    size = _NAMES.get((shape.width, shape.depth, shape.heads))
    options: dict[str, object] = {"num_classes": 0, "img_size": shape.image_size}
    if size is None:
        name = "vit_base_patch16_224"
        options |= {"patch_size": shape.patch_size, "embed_dim": shape.width, "depth": shape.depth,
                    "num_heads": shape.heads, "mlp_ratio": shape.mlp_ratio}  # fmt: skip
    else:
        name = f"vit_{size}_patch16_224" if size != "huge" else "vit_huge_patch14_224"
        options |= {"patch_size": shape.patch_size, "num_heads": shape.heads}
    if shape.registers:
        options["reg_tokens"] = shape.registers
    if shape.registers or not shape.class_position:
        options["no_embed_class"] = not shape.class_position
    if not shape.class_token and not shape.class_position:
        options |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
    if shape.layer_scale:
        options["init_values"] = 1.0
    if not shape.qkv_bias:
        options["qkv_bias"] = False
    if complete:
        options["checkpoint_path"] = str(output)
    made = f"timm.create_model({name!r}, {', '.join(f'{key}={value!r}' for key, value in options.items())})"
    return made if complete else f"{made}.load_state_dict(torch.load({str(output)!r}), strict=False)"
