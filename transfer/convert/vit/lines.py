"""What is printed about a ViT: as a file holds it, and after its conversion."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfer.convert.vit.architecture import Shape
from transfer.convert.vit.convert import FLAG, PATCH, changes
from transfer.convert.vit.fold import LEFT_OUT
from transfer.convert.vit.kinds import KINDS, Kind
from transfer.convert.vit.recognise import VitSource


def shape(found: VitSource) -> list[str]:
    """Return lines about the shape of a ViT that a file holds, and what a conversion would change and leave out."""
    lines = [f"shape     {found.shape}", f"heads     {found.shape.heads}: {found.heads_origin}"]
    if changed := changes(found, found.shape.patch_size):
        lines.append(f"changed   {'; '.join(changed)}")
    if found.shape.patch_size != PATCH:
        lines.append(
            f"patches   of {found.shape.patch_size} pixels; the detectors' ViTs have {PATCH} ({FLAG} {PATCH})"
        )
    if left_out := [name for name in LEFT_OUT if name in found.backbone]:
        lines.append(f"left out  {', '.join(left_out)}: the detectors' ViT does not have them")
    return lines


def network(record: Mapping[str, Any]) -> list[str]:
    """Return lines about the network of a converted file, from its record."""
    lines = [f"network   {Shape(**record['architecture'])}", f"heads     {record['heads']}"]
    return [*lines, f"changed   {'; '.join(record['changed'])}"] if record["changed"] else lines


def verified(record: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return lines about the verification of a converted file."""
    from transfer.convert.verify import TOLERANCE  # imports detectron2, which --no-verify does not need
    from transfer.convert.vit.notes import CLASS_TOKEN, INTERPOLATIONS, PATCHES, POSITIONS
    from transfer.convert.vit.verify import RESIZED, other_grid

    blocks = {name: figure for name, figure in record["proof"].items() if name != RESIZED}
    worst = max(blocks, key=lambda name: blocks[name])
    own = Shape(**record["architecture"])
    patch_size = settings["MODEL.VIT.PATCH_SIZE"]
    side = own.grid * patch_size
    lines = [
        "verified  the source network without its class token and the detectors' ViT differ by at most "
        f"(relative; limit {TOLERANCE:.0e}):",
        f"          {len(blocks)} blocks at {side} px, with windows of {own.grid} x {own.grid}: {blocks[worst]:.1e} "
        f"({worst}); all blocks global at {other_grid(own.grid) * patch_size} px: {record['proof'][RESIZED]:.1e}",
    ]
    if own.layer_scale or patch_size != own.patch_size:
        lines.append("          (the products and resampled patches are rounded to float32: about 1e-7)")
    notes = record.get("notes", {})
    if CLASS_TOKEN in notes:
        lines.append(
            "note      a detector does not feed the class token and registers; feeding them changes the source's last "
            f"tokens by {notes[CLASS_TOKEN]:.2g} (root mean square, relative)"
        )
    if PATCHES in notes:
        lines.append(
            f"note      patches of {patch_size} pixels instead of {own.patch_size}, on one picture at {side} and "
            f"{own.image_size} px, change the last tokens by {notes[PATCHES]:.2g} (root mean square, relative)"
        )
    layout = KINDS.get(record["source"])
    if POSITIONS in notes and isinstance(layout, Kind):
        lines.append(
            f"note      {record['source']}'s own code resizes positions {INTERPOLATIONS[layout.interpolation]}, the "
            f"detectors' ViT without; that changes the last tokens at {other_grid(own.grid) * own.patch_size} px by "
            f"{notes[POSITIONS]:.2g} (root mean square, relative)"
        )
    return lines


def lazy_config(settings: Mapping[str, Any], output: Path) -> list[str]:
    """Return lines on how detectron2's own ViT, which its main branch has for LazyConfig files only, is set up."""
    net = {
        "patch_size": settings["MODEL.VIT.PATCH_SIZE"],
        "embed_dim": settings["MODEL.VIT.WIDTH"],
        "depth": settings["MODEL.VIT.DEPTH"],
        "num_heads": settings["MODEL.VIT.HEADS"],
        "mlp_ratio": settings["MODEL.VIT.MLP_RATIO"],
        "pretrain_img_size": settings["MODEL.VIT.PRETRAIN_SIZE"],
        "pretrain_use_cls_token": settings["MODEL.VIT.CLASS_POSITION"],
    }
    mean, std = (list(settings[f"MODEL.PIXEL_{part}"]) for part in ("MEAN", "STD"))
    eps = settings["MODEL.VIT.NORM_EPS"]
    norm = (
        [f"model.backbone.net.norm_layer = partial(torch.nn.LayerNorm, eps={eps!r})"] if eps != 1e-6 else []
    )
    return [
        "",
        "For detectron2's own ViTDet, in a LazyConfig file of its main branch:",
        "",
        f"model.backbone.net.update({', '.join(f'{key}={value!r}' for key, value in net.items())})",
        *norm,
        f"model.pixel_mean, model.pixel_std = {mean}, {std}",
        f"model.input_format = {settings['INPUT.FORMAT']!r}",
        f"train.init_checkpoint = {str(output)!r}",
    ]
