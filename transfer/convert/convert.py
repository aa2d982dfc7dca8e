"""Convert a checkpoint's backbone to a detectron2 weights file that records its settings and its origin."""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy

from pretrain import __version__
from pretrain.common.errors import UserError
from pretrain.common.run_folder import held_file
from pretrain.model.encoders import Architecture
from pretrain.tensor_files.read_any import Loaded
from transfer.convert.architecture import recorded
from transfer.convert.extra_heads import settings as kept_settings
from transfer.convert.preprocessing import IMAGENET, Input
from transfer.convert.recognise import Source, read_source
from transfer.convert.tensor_names import detectron2_name
from transfer.convert.weights_file import format_of, read_weights, write_weights

AUTHOR = "moco-detection-transfer"
# Differences below this are float64 rounding, which depends on the processor. The file records this number instead, so
# that its bytes and its digest are the same on every machine.
ROUNDING = 1e-9
_EXPONENT = re.compile(r"-?\d+e[-+]?\d+")


def convert(
    input: Path,
    output: Path,
    *,
    source: str = "auto",
    branch: str = "",
    keep: tuple[str, ...] = (),
    verify: bool = True,
    overwrite: bool = False,
    given: Mapping[str, Any] | None = None,
    merged_norm: bool = False,
    loaded: Loaded | None = None,
) -> dict[str, Any]:
    """Write a checkpoint's ResNet as a detectron2 weights file, and verify it before it gets its name.

    The same input gives the same bytes. `num_batches_tracked` is left out: BN layers with a momentum do not use it,
    FrozenBN does not have it, and PyTorch fills it in without a warning.

    Args:
        input: any checkpoint that holds a ResNet (see `transfer.convert.layouts`).
        output: the file to write, `*.pkl`, `*.pth` or `*.safetensors`. It appears, or replaces an older file, only when
            it is complete and verified.
        source: a layout's name or `auto`.
        branch: the network to take; if empty, the layout decides.
        keep: `fpn`, `box_head`: parts outside the backbone that are also written, bit for bit but not verified.
        verify: compare the file with its source by `transfer.convert.verify` (needs detectron2).
        overwrite: replace any file at `output`; by default, only a file written by this converter is replaced.
        given, merged_norm, loaded: as in `read_source`.
    Returns:
        The contents of the file except `model`; `record["proof"]` has the differences as measured.
    Raises:
        UserError: the input cannot be converted, or the verification failed. Then nothing is written.
    """
    form = format_of(output)
    check_output(input, output, overwrite=overwrite)
    with held_file(output):
        found = read_source(
            input,
            source=source,
            branch=branch,
            keep=keep,
            given=given,
            merged_norm=merged_norm,
            loaded=loaded,
        )
        contents = _contents(found, input)

        def prove(draft: Path) -> dict[str, float]:
            return _verify(found, draft, contents, input=input)

        measured = write_verified(output, form, contents, prove if verify else None)
    contents["record"]["proof"] = measured
    return {key: value for key, value in contents.items() if key != "model"}


def write_verified(
    output: Path, form: str, contents: dict[str, Any], prove: Callable[[Path], dict[str, float]] | None
) -> dict[str, float] | None:
    """Write a weights file, which gets its name only when it is complete and verified.

    Args:
        form: one of `FORMATS`.
        prove: verifies a draft of the file, puts what it measures into `contents`, and returns it; None: do not verify.
    Returns:
        What `prove` returns.
    Raises:
        UserError: the file cannot be written, or the verification failed. Then nothing is written.
    """
    measured = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            draft = Path(folder) / "draft.pkl"
            write_weights(draft, contents)
            if prove:
                measured = prove(draft)
            draft = draft.with_suffix(f".{form}")
            write_weights(draft, contents)  # now with the measured differences
            _check_written(draft, contents)
            os.replace(draft, output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror or error}") from error
    return measured


def _contents(source: Source, path: Path) -> dict[str, Any]:
    architecture = source.architecture
    if not architecture.bottleneck and architecture.out_channels != 64:
        raise UserError(
            f"{path}: this is a ResNet-{architecture.depth} with {architecture.out_channels} channels in layer1; "
            "detectron2 builds depths 18 and 34 only with 64: pre-train a resnet50 at this width"
        )
    return {
        "model": {detectron2_name(n): t.numpy() for n, t in source.backbone.items()} | source.kept,
        "__author__": f"{AUTHOR} {__version__}",
        "matching_heuristics": True,
        "preprocessing": preprocessing(architecture, source.input) | kept_settings(source.kept),
        "record": {
            "source_sha256": source.digest,
            "source": source.kind,
            "branch": source.branch,
            "why": source.why,
            "input": source.input_origin,
            "origins": source.origins,
            "passed_over": list(source.passed_over),
            "architecture": recorded(architecture),
            "kept": list(source.kept),
            "dropped": dict(source.dropped),
            "epoch": source.epoch,
            "opaque": list(source.opaque),
            "version": __version__,
            "proof": None,
        },
    }


def _verify(source: Source, draft: Path, contents: dict[str, Any], *, input: Path) -> dict[str, float]:
    """Verify the draft, put the differences into the contents, and return them as measured."""
    from transfer.convert import verify  # imports detectron2, which --no-verify does not need

    try:
        measured = verify.verify(source, draft)
        pooling = verify.pooling_difference(source)
    except UserError as error:
        raise UserError(f"{input}: {error}") from error
    contents["record"]["proof"] = {level: max(ROUNDING, figure) for level, figure in measured.items()}
    if pooling:
        contents["record"]["pooling"] = {level: round(figure, 3) for level, figure in pooling.items()}
    return measured


def _check_written(draft: Path, contents: dict[str, Any]) -> None:
    written = read_weights(draft)["model"]
    for name, array in contents["model"].items():
        if not numpy.array_equal(written[name], array):
            raise UserError(f"{draft}: tensor {name} was not written correctly: is the disk full or failing?")


def check_output(input: Path, output: Path, *, overwrite: bool) -> None:
    """Refuse an output that is a folder, the input itself or, without `overwrite`, a file written by another program.

    If two files match, a shell expands `*.pth` to INPUT OUTPUT, and the second one is the user's checkpoint.

    Raises:
        UserError: the output is refused.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder: name a file, or use --output-dir {output}")
    if output.exists() and input.exists() and output.samefile(input):
        raise UserError(f"{output} is the input: name another output")
    if output.exists() and not overwrite and not _is_ours(output):
        raise UserError(
            f"{output} exists and was not written by this converter: name another output, or add --overwrite"
        )


def _is_ours(path: Path) -> bool:
    try:
        return str(read_weights(path)["author"]).startswith(AUTHOR)
    except UserError:
        return False


def preprocessing(architecture: Architecture, input: Input = IMAGENET) -> dict[str, Any]:
    """Return the detectron2 settings, dotted key -> value, that the converted weights need."""
    return {
        "INPUT.FORMAT": input.format,
        "MODEL.PIXEL_MEAN": [round(value, 6) for value in input.mean],
        "MODEL.PIXEL_STD": [round(value, 6) for value in input.std],
        "MODEL.RESNETS.DEPTH": architecture.depth,
        "MODEL.RESNETS.STRIDE_IN_1X1": input.stride_in_1x1,
        "MODEL.RESNETS.NUM_GROUPS": architecture.groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": architecture.width_per_group,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": architecture.stem_channels,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": architecture.out_channels,
    }


def config_block(settings: dict[str, Any], weights: Path) -> str:
    """Return the settings and the file's name as YAML to paste into a detectron2 configuration."""
    tree: dict[str, Any] = {"MODEL": {"WEIGHTS": str(weights)}}
    for key, value in settings.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return "\n".join(_yaml_lines(tree))


def _yaml_lines(tree: dict[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _yaml_lines(value, indent + "  ")
        else:
            text = json.dumps(value)  # JSON is YAML on one line, except that YAML's floats have a point
            yield f"{indent}{key}: {text.replace('e', '.0e') if _EXPONENT.fullmatch(text) else text}"
