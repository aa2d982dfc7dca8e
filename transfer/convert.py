"""A checkpoint's backbone as a detectron2 weights file, with the settings that it needs and its origin."""

import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy

from pretrain import __version__
from pretrain.checkpoint import write_atomic
from pretrain.encoders import Architecture
from pretrain.errors import UserError
from transfer.names import detectron2_name
from transfer.layouts import IMAGENET, Input
from transfer.sources import Source, read_source
from transfer.weights_file import read_weights

# Differences below this are rounding in float64. They depend on the processor, so in the file they count as
# this much: its bytes, and digest, are then the same on every machine.
ROUNDING = 1e-9


def preprocessing(architecture: Architecture, input: Input = IMAGENET) -> dict[str, Any]:
    """The detectron2 configuration, dotted key -> value, under which the converted weights mean the same."""
    stem = architecture.stem_channels
    # detectron2 has no width factor: a group's channels are given as they are.
    group_channels = int(architecture.width_per_group * stem / 64) if architecture.bottleneck else 64
    return {
        "INPUT.FORMAT": input.format,
        "MODEL.PIXEL_MEAN": [round(value, 6) for value in input.mean],
        "MODEL.PIXEL_STD": [round(value, 6) for value in input.std],
        "MODEL.RESNETS.DEPTH": architecture.depth,
        "MODEL.RESNETS.STRIDE_IN_1X1": input.stride_in_1x1,
        "MODEL.RESNETS.NUM_GROUPS": architecture.groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": group_channels,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": stem,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": stem * (4 if architecture.bottleneck else 1),
    }


def config_block(settings: dict[str, Any], weights: Path) -> str:
    """The settings and the file's name as YAML to paste into a detectron2 configuration."""
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
            yield f"{indent}{key}: {json.dumps(value)}"  # JSON is YAML on one line


def convert(
    input: Path, output: Path, *, source: str = "auto", branch: str = "", verify: bool = True
) -> dict[str, Any]:
    """Write a checkpoint's backbone as a detectron2 weights file, once the written file has proved right.

    The same input gives the same bytes. `num_batches_tracked` is left out: no BN layer with a momentum uses
    it, FrozenBN has no such tensor, and PyTorch fills it in without a warning.

    Args:
        input: any checkpoint with a ResNet in it (see `transfer.layouts`).
        output: the file to write, `*.pkl`; replaced only by a complete and proven one.
        source: a layout's name or `auto`.
        branch: the network to take; empty: the one that the layout says.
        verify: prove the file by `transfer.verify` (needs detectron2).
    Returns:
        The contents of the file, less `model`; `record` has the proof's figures as measured.
    Raises:
        UserError: the input cannot be converted, or the proof failed; nothing is written then.
    """
    if output.suffix != ".pkl":
        raise UserError(
            f"{output}: the output must be named *.pkl, else detectron2 reads it as another format"
        )
    if output.is_dir():
        raise UserError(f"{output}: is a folder; name a file")
    found = read_source(input, source=source, branch=branch)
    if output.exists() and output.samefile(input):
        raise UserError(f"{output}: is the input; name another output")
    contents = _contents(found, input)
    measured = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.stem}.") as folder:
            draft = Path(folder) / "draft.pkl"
            write_atomic(draft, _writer(contents))
            if verify:
                measured = _prove(found, draft, contents)
            os.replace(draft, output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror or error}") from error
    contents["record"]["proof"] = measured
    return {key: value for key, value in contents.items() if key != "model"}


def _contents(source: Source, path: Path) -> dict[str, Any]:
    architecture = source.architecture
    if not architecture.bottleneck and architecture.width != 1:
        raise UserError(
            f"{path}: a ResNet-{architecture.depth} with {architecture.stem_channels} channels in the stem; "
            "detectron2 builds depths 18 and 34 with 64 only: pre-train a resnet50 at this width"
        )
    return {
        "model": {detectron2_name(name): tensor.numpy() for name, tensor in source.backbone.items()},
        "__author__": f"moco-detection-transfer {__version__}",
        "matching_heuristics": True,
        "preprocessing": preprocessing(architecture, source.input),
        "record": {
            "source_sha256": source.digest,
            "source": source.kind,
            "branch": source.branch,
            "passed_over": list(source.passed_over),
            "architecture": asdict(architecture),
            "dropped": dict(source.dropped),
            "epoch": source.epoch,
            "opaque": list(source.opaque),
            "version": __version__,
            "proof": None,
        },
    }


def _prove(source: Source, draft: Path, contents: dict[str, Any]) -> dict[str, float]:
    """Verify the draft, write it again with the figures, and check that its tensors stayed the same."""
    from transfer import verify  # imports detectron2, which --no-verify does without

    measured = verify.verify(source, draft)
    contents["record"]["proof"] = {level: max(ROUNDING, figure) for level, figure in measured.items()}
    write_atomic(draft, _writer(contents))
    written = read_weights(draft)["model"]
    for name, array in contents["model"].items():
        if not numpy.array_equal(written[name], array):
            raise UserError(f"{draft}: tensor {name} did not survive writing: is the disk full or failing?")
    return measured


def _writer(contents: dict[str, Any]) -> Callable[[IO[bytes]], None]:
    """Pickles so that numpy 1 and 2 can both read it.

    numpy 2 names its functions `numpy._core...`, which numpy 1 lacks; both know `numpy.core...`. In protocol
    3 a global is plain text with no length in front, and its first mention precedes all array data.
    """

    def write(file: IO[bytes]) -> None:
        data = pickle.dumps(contents, protocol=3)
        file.write(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1))

    return write
