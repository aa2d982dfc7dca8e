"""The dialects in which projects name a ResNet's tensors, and their translation to torchvision's names."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretrain.common.errors import UserError

# Modules of the stem and of every block: torchvision's name -> detectron2's, which follows `stem.` or `res2.0.`.
MODULES = {
    "conv1": "conv1",
    "bn1": "conv1.norm",
    "conv2": "conv2",
    "bn2": "conv2.norm",
    "conv3": "conv3",
    "bn3": "conv3.norm",
    "downsample.0": "shortcut",
    "downsample.1": "shortcut.norm",
}

Tensors = dict[str, torch.Tensor]  # keys: the whole path to the tensor, joined by dots
# What wraps a module and says nothing about it, at any depth of a name: torch.compile, activation checkpointing, FSDP,
# fairscale, and Lightning's or DeepSpeed's strategies. No network has a submodule of its own with such a name.
_TRANSPARENT = frozenset(
    {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module", "_forward_module"}
)
# Wrappers in front of a network: in addition those of the file and of DistributedDataParallel.
_WRAPPERS = _TRANSPARENT | {"state_dict", "model_state_dict", "module"}

# Tensors of a ResNet under torchvision's names; everything else belongs to a head or to another network.
TRUNK = re.compile(
    r"(conv1|bn1|layer[1-4]\.\d+\.(conv[1-3]|bn[1-3]|downsample\.[01]))"
    r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)


@dataclass(frozen=True)
class Dialect:
    """One way of naming.

    Attributes:
        name: for messages.
        anchor: matches the full names of tensors that every ResNet of this dialect has; group 1 is the prefix. It
            matches several, because a query network that lacks the only one would be overlooked, and the key network
            taken instead.
        translate: a name without the prefix -> torchvision's name, or None if it is not a tensor of a ResNet.
    """

    name: str
    anchor: re.Pattern[str]
    translate: Callable[[str], str | None]


def _torchvision(name: str) -> str | None:
    return name if TRUNK.fullmatch(name) else None


def _sequential(name: str) -> str | None:
    """Translate names in an `nn.Sequential` of a ResNet's children: 0 conv1, 1 bn1, 4 to 7 layer1 to layer4."""
    index, _, rest = name.partition(".")
    modules = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    return _torchvision(f"{modules[index]}.{rest}") if index in modules else None


_HF_LAYER = re.compile(
    r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:(shortcut)|layer\.(\d+))\.(convolution|normalization)\.(\w+)"
)


def _transformers(name: str) -> str | None:
    """Translate names in the `ResNetModel` of Hugging Face's transformers."""
    for ours, theirs in (("conv1", "convolution"), ("bn1", "normalization")):
        prefix = f"embedder.embedder.{theirs}."
        if name.startswith(prefix):
            return _torchvision(f"{ours}.{name.removeprefix(prefix)}")
    match = _HF_LAYER.fullmatch(name)
    if not match:
        return None
    stage, block, shortcut, index, kind, leaf = match.groups()
    if shortcut:
        module = f"downsample.{int(kind == 'normalization')}"
    else:
        module = f"{'conv' if kind == 'convolution' else 'bn'}{int(index) + 1}"
    return _torchvision(f"layer{int(stage) + 1}.{block}.{module}.{leaf}")


_D2_BLOCK = re.compile(r"res([2-5])\.(\d+)\.(conv([1-3])|shortcut)\.(norm\.)?(\w+)")


def _detectron2(name: str) -> str | None:
    if match := re.fullmatch(r"stem\.conv1\.(norm\.)?(\w+)", name):
        return _torchvision(f"{'bn1' if match[1] else 'conv1'}.{match[2]}")
    match = _D2_BLOCK.fullmatch(name)
    if not match:
        return None
    stage, block, _, index, norm, leaf = match.groups()
    module = f"{'bn' if norm else 'conv'}{index}" if index else f"downsample.{int(bool(norm))}"
    return _torchvision(f"layer{int(stage) - 1}.{block}.{module}.{leaf}")


_C2_BLOCK = re.compile(r"res([2-5])_(\d+)_branch(1|2a|2b|2c)_(w|bn_(?:s|b|rm|riv))")
_C2_LEAVES = {
    "w": "weight",
    "bn_s": "weight",
    "bn_b": "bias",
    "bn_rm": "running_mean",
    "bn_riv": "running_var",
}


def _caffe2(name: str) -> str | None:
    """Translate names of Detectron 1 and the MSRA files; most have batch norm merged into `bn_s` and `bn_b`."""
    if match := re.fullmatch(r"(?:res_)?conv1_(w|bn_(?:s|b|rm|riv))", name):
        return f"{'conv1' if match[1] == 'w' else 'bn1'}.{_C2_LEAVES[match[1]]}"
    match = _C2_BLOCK.fullmatch(name)
    if not match:
        return None
    stage, block, branch, part = match.groups()
    norm = part != "w"
    module = (
        f"downsample.{int(norm)}"
        if branch == "1"
        else f"{'bn' if norm else 'conv'}{'abc'.index(branch[1]) + 1}"
    )
    return f"layer{int(stage) - 1}.{block}.{module}.{_C2_LEAVES[part]}"


# He's names, as in `scale4b22_branch2a` or, for ResNet-50, `bn4f_branch2a`; and those of Yahoo's open_nsfw.
_CAFFE_HE = re.compile(
    r"(res|bn|scale)(?P<stage>[2-5])(?P<letter>[a-z])(?P<number>\d*)_branch(?P<branch>1|2[abc])"
)
_CAFFE_YAHOO = re.compile(
    r"(conv|bn|scale)_stage(?P<stage>[0-3])_block(?P<block>\d+)_(branch(?P<branch>2[abc])|proj_shortcut)"
)
_CAFFE_STEM = re.compile(r"conv_?1|(bn|scale)_(conv)?1")


def caffe_name(name: str) -> str | None:
    """Translate layers of a Caffe network, whose batch norm is a BatchNorm followed by a Scale (`caffe_files.py`)."""
    layer, _, leaf = name.rpartition(".")
    norm = layer.startswith(("bn", "scale"))
    if _CAFFE_STEM.fullmatch(layer):
        return f"{'bn1' if norm else 'conv1'}.{leaf}"
    if match := _CAFFE_HE.fullmatch(layer):
        number = match["number"]
        if number and match["letter"] != "b":
            return name
        stage, block = int(match["stage"]) - 1, int(number or ord(match["letter"]) - ord("a"))
    elif match := _CAFFE_YAHOO.fullmatch(layer):
        stage, block = int(match["stage"]) + 1, int(match["block"])
    else:  # what a block has in addition must not be dropped: as it is, it has no place
        return name if re.match(r"(res|bn|scale)[2-5][a-z]|[a-z]+_stage\d", layer) else None
    if match["branch"] in (None, "1"):
        return f"layer{stage}.{block}.downsample.{int(norm)}.{leaf}"
    return f"layer{stage}.{block}.{'bn' if norm else 'conv'}{'abc'.index(match['branch'][1]) + 1}.{leaf}"


DIALECTS = (
    Dialect("torchvision", re.compile(r"(.*\.)?layer[12]\.0\.conv[12]\.weight"), _torchvision),
    Dialect("sequential", re.compile(r"(.*\.)?[45]\.0\.conv[12]\.weight"), _sequential),
    Dialect(
        "transformers",
        re.compile(r"(.*\.)?encoder\.stages\.[01]\.layers\.0\.layer\.[01]\.convolution\.weight"),
        _transformers,
    ),
    Dialect("detectron2", re.compile(r"(.*\.)?res[23]\.0\.conv[12]\.weight"), _detectron2),
    Dialect("caffe", re.compile(r"()(res[23]a|conv_stage[01]_block0)_branch2[ab]\.weight"), caffe_name),
    Dialect("caffe2", re.compile(r"(.*\.)?res[23]_0_branch2[ab]_w"), _caffe2),
)


@dataclass(frozen=True)
class Candidate:
    """A network in a file, given by its prefix."""

    prefix: str
    dialect: Dialect

    @property
    def branch(self) -> str:
        """The prefix without wrappers: `encoder_q` for `state_dict.module.encoder_q.`."""
        return clean(self.prefix).rstrip(".")

    def __str__(self) -> str:
        return self.prefix.rstrip(".") or "the top"


def clean(name: str) -> str:
    """Return a tensor's name or prefix without wrappers such as `module`."""
    return ".".join(token for token in name.split(".") if token not in _WRAPPERS)


def unwrapped(path: Path, tensors: Tensors) -> Tensors:
    """Return the tensors under their names without the wrappers inside them.

    `module` is left out only within a ResNet, as in `layer1.module.0.conv1.weight`, where no dialect has it. In front
    of a network it stays, since it can distinguish two networks, and in a head it can be a submodule's own name.

    Raises:
        UserError: two names become the same. The message starts with `path` and has both.
    """
    found: Tensors = {}
    origin: dict[str, str] = {}
    for name, tensor in tensors.items():
        plain = ".".join(token for token in name.split(".") if token not in _TRANSPARENT)
        inner = _without_module(plain)
        # The first convolution and norm of an nn.Sequential are `0.weight` and `1.weight`, as in many heads.
        if inner != plain and not (_STEM_OF_SEQUENTIAL.search(inner) and inner in tensors):
            plain = inner
        if plain in origin:
            raise UserError(
                f"{path}: {origin[plain]} and {name} are the same tensor's name without the wrappers in them: "
                "save only the wanted network"
            )
        found[plain], origin[plain] = tensor, name
    return found


_LONGEST = 20  # components of a name within a ResNet, wrappers included; the longest dialect has 9
_STEM_OF_SEQUENTIAL = re.compile(r"(^|\.)[01]\.\w+$")


def _without_module(name: str) -> str:
    """Return a name without `module` inside the part that belongs to a ResNet; most names have none."""
    if ".module." not in name:
        return name
    tokens = name.split(".")
    for start in range(max(0, len(tokens) - _LONGEST), len(tokens) - 2):
        rest = tokens[start:]
        if rest[0] == "module" or "module" not in rest:
            continue
        inner = ".".join(token for token in rest if token != "module")
        if any(dialect.translate(inner) for dialect in DIALECTS):
            return ".".join([*tokens[:start], inner])
    return name


def find_candidates(tensors: Mapping[str, Any], dialects: Sequence[Dialect] = DIALECTS) -> list[Candidate]:
    """Return every network in a file that has names of these dialects, in the file's order."""
    found = {}
    for name in tensors:
        for dialect in dialects:
            if match := dialect.anchor.fullmatch(name):
                found[match[1] or "", dialect.name] = Candidate(match[1] or "", dialect)
    return list(found.values())


def has_resnet(tensors: Mapping[str, Any]) -> bool:
    """Return whether the tensor names contain a ResNet in another dialect than detectron2's or Caffe2's."""
    found = find_candidates(dict.fromkeys(map(clean, tensors)))
    return any(c.dialect.name not in ("detectron2", "caffe2") for c in found)


def has_detectron2_names(tensors: Mapping[Any, Any], *, bare: bool = False) -> bool:
    """Return whether there is a ResNet with detectron2's names; if `bare`, one whose names have nothing before them."""
    found = find_candidates(dict.fromkeys(map(str, tensors)))
    return any(c.dialect.name == "detectron2" and not (bare and c.prefix) for c in found)


def translated(tensors: Tensors, candidate: Candidate) -> Tensors:
    """Return the candidate's tensors under torchvision's names."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(candidate.prefix):
            translated = candidate.dialect.translate(name.removeprefix(candidate.prefix))
            if translated:
                found[translated] = tensor
    return found


def same(tensors: Tensors, first: Candidate, second: Candidate) -> bool:
    """Return whether two candidates are the same network: OpenSelfSup's `backbone` is an alias of `encoder_q.0`."""
    pair = [translated(tensors, candidate) for candidate in (first, second)]
    return pair[0].keys() == pair[1].keys() and all(
        (tensor.shape, tensor.dtype) == (pair[1][name].shape, pair[1][name].dtype)
        and torch.equal(tensor, pair[1][name])
        for name, tensor in pair[0].items()
    )


def places(candidates: list[Candidate]) -> str:
    """Return the prefixes of at most eight candidates, for messages."""
    return ", ".join(map(str, candidates[:8])) + (", ..." if len(candidates) > 8 else "")


def detectron2_name(name: str) -> str:
    """Translate `layer1.0.bn1.weight` to `res2.0.conv1.norm.weight`. Raises `KeyError` if no ResNet has that tensor."""
    stage, _, rest = name.partition(".")
    place = "stem"
    if stage.startswith("layer"):
        block, _, name = rest.partition(".")
        place = f"res{int(stage.removeprefix('layer')) + 1}.{block}"
    module, _, leaf = name.rpartition(".")
    return f"{place}.{MODULES[module]}.{leaf}"
