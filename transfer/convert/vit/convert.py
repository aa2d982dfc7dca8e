"""Convert a checkpoint's ViT to a weights file of the detectors that records its settings and its origin."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pretrain import __version__
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.run_folder import held_file
from pretrain.tensor_files.read_any import Loaded
from transfer.convert.convert import AUTHOR, ROUNDING, check_output, write_verified
from transfer.convert.vit.fold import LEFT_OUT, detector_tensors
from transfer.convert.vit.recognise import VitSource, read_vit
from transfer.convert.weights_file import format_of

PATCH = 16  # pixels, of the detectors' ViTs: their pyramids are built for it
FLAG = "--resample-patch"
BACKBONE = "build_vit_sfp_backbone"


def convert_vit(
    input: Path,
    output: Path,
    *,
    source: str = "auto",
    branch: str = "",
    heads: int | None = None,
    resample: int | None = None,
    verify: bool = True,
    overwrite: bool = False,
    given: Mapping[str, Any] | None = None,
    loaded: Loaded | None = None,
) -> dict[str, Any]:
    """Write a checkpoint's ViT as a weights file for detectron2, and verify it before it gets its name.

    The same input gives the same bytes.

    Args:
        input: any checkpoint that holds a ViT (see `transfer.convert.vit.kinds`).
        output: the file to write, `*.pkl`, `*.pth` or `*.safetensors`. It appears, or replaces an older file, only when
            it is complete and verified.
        resample: resample the patch embedding to this size, in pixels.
        verify: compare the file with its source by `transfer.convert.vit.verify` (needs detectron2).
        overwrite: replace any file at `output`; by default, only a file written by this converter is replaced.
        source, branch, heads, given, loaded: as in `read_vit`.
    Returns:
        The contents of the file except `model`; `record["proof"]` has the differences as measured.
    Raises:
        UserError: the input cannot be converted, or the verification failed. Then nothing is written.
    """
    form = format_of(output)
    check_output(input, output, overwrite=overwrite)
    with held_file(output):
        found = read_vit(input, source=source, branch=branch, heads=heads, given=given, loaded=loaded)
        patch_size = _patch_size(input, found, resample)
        contents = _contents(found, patch_size)

        def prove(draft: Path) -> dict[str, float]:
            return _verify(found, draft, contents, input=input)

        measured = write_verified(output, form, contents, prove if verify else None)
    contents["record"]["proof"] = measured
    return {key: value for key, value in contents.items() if key != "model"}


def _patch_size(input: Path, source: VitSource, resample: int | None) -> int:
    """Return the size of the written patches in pixels. Raises `UserError` unless that is `PATCH`.

    Says so if there is nothing to resample.
    """
    own = source.shape.patch_size
    if own == PATCH:
        if resample is not None:
            say(
                f"note: {FLAG} {resample}: {input} has patches of {PATCH} pixels already, so nothing is resampled"
            )
        return PATCH
    if own > PATCH:
        raise UserError(
            f"{input}: its patches have {own} pixels; the detectors' ViTs have {PATCH}, and resampling to smaller "
            f"patches loses information: use a ViT with patches of {PATCH} pixels or less"
        )
    if resample != PATCH:
        raise UserError(
            f"{input}: its patches have {own} pixels; the detectors' ViTs have {PATCH}: add {FLAG} {PATCH} to resample "
            "the patch embedding (FlexiViT's pseudo-inverse); what that changes is measured and printed"
        )
    return PATCH


def settings(source: VitSource, patch_size: int = PATCH) -> dict[str, Any]:
    """Return the settings, dotted key -> value, that the converted weights need."""
    shape, fed = source.shape, source.input
    return {
        "INPUT.FORMAT": fed.format,
        "MODEL.PIXEL_MEAN": [round(value, 6) for value in fed.mean],
        "MODEL.PIXEL_STD": [round(value, 6) for value in fed.std],
        "MODEL.BACKBONE.NAME": BACKBONE,
        "MODEL.VIT.PATCH_SIZE": patch_size,
        "MODEL.VIT.WIDTH": shape.width,
        "MODEL.VIT.DEPTH": shape.depth,
        "MODEL.VIT.HEADS": shape.heads,
        "MODEL.VIT.MLP_RATIO": shape.mlp_ratio,
        "MODEL.VIT.NORM_EPS": shape.eps,
        "MODEL.VIT.PRETRAIN_SIZE": shape.grid * patch_size,
        "MODEL.VIT.CLASS_POSITION": shape.class_position,
    }


def _contents(source: VitSource, patch_size: int) -> dict[str, Any]:
    left_out = Counter(name.split(".")[0] for name in LEFT_OUT if name in source.backbone)
    return {
        "model": {name: t.numpy() for name, t in detector_tensors(source, patch_size).items()},
        "__author__": f"{AUTHOR} {__version__}",
        "matching_heuristics": True,
        "preprocessing": settings(source, patch_size),
        "record": {
            "source_sha256": source.digest,
            "source": source.kind,
            "branch": source.branch,
            "why": source.why,
            "input": source.input_origin,
            "origins": source.origins,
            "heads": source.heads_origin,
            "passed_over": list(source.passed_over),
            "architecture": asdict(source.shape),
            "changed": changes(source, patch_size),
            "kept": [],
            "dropped": dict(left_out) | source.dropped,
            "epoch": source.epoch,
            "opaque": list(source.opaque),
            "version": __version__,
            "proof": None,
        },
    }


def changes(source: VitSource, patch_size: int = PATCH) -> list[str]:
    """Return what the converted tensors differ in from the file's, in words."""
    shape = source.shape
    made = []
    if source.fused:
        made.append("separate q, k and v joined")
    if shape.layer_scale:
        made.append("LayerScale folded into attn.proj and mlp.fc2")
    if not shape.qkv_bias:
        made.append("zeros as biases of q, k and v, which the file does not have")
    if patch_size != shape.patch_size:
        made.append(f"patches resampled from {shape.patch_size} to {patch_size} pixels")
    return made


def _verify(source: VitSource, draft: Path, contents: dict[str, Any], *, input: Path) -> dict[str, float]:
    """Verify the draft, put the differences into the contents, and return them as measured."""
    from transfer.convert.vit import notes, verify  # imports detectron2, which --no-verify does not need

    try:
        measured = verify.verify(source, draft)
    except UserError as error:
        raise UserError(f"{input}: {error}") from error
    contents["record"]["proof"] = {name: max(ROUNDING, figure) for name, figure in measured.items()}
    found = notes.notes(source, contents["preprocessing"]["MODEL.VIT.PATCH_SIZE"])
    # Two digits, so that the bytes of the file do not depend on the processor's rounding.
    contents["record"]["notes"] = {name: float(f"{figure:.1e}") for name, figure in found.items()}
    return measured
