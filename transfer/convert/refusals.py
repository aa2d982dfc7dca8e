"""Explain why a file cannot be converted, from what it holds, and what to do instead."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from pretrain.common.errors import label
from pretrain.tensor_files.read_any import Loaded

_HEADS = {
    "fc",
    "head",
    "heads",
    "projector",
    "predictor",
    "classifier",
    "projection_head",
    "prototypes",
    "neck",
}
_FAMILIES = {  # in this order: special families before those whose parts they borrow
    r"(^|\.)layer1\.0\.conv[12]\.paths\.": "a selective-kernel ResNet (SK)",
    r"(^|\.)stages\.\d+\.\d+\.conv\w*_kxk\.|(^|\.)stages\.\d+\.\d+\.conv1_1x1\.": "a ByobNet "
    "(one of timm's ResNets with a different stem and blocks)",
    r"(^|\.)stages\.\d+\.\d+\.conv1\.gain$": "a normaliser-free ResNet",
    r"relative_position_bias_table": "a Swin transformer",
    r"(^|\.)transformer\.resblocks\.\d|(^|\.)vision_model\.(encoder|embeddings)\.": "CLIP's or SigLIP's transformer",
    r"(^|\.)layer\.\d+\.attention\.[qkvo]_proj\.": "DINOv3's ViT, whose positions are rotary (RoPE),",
    r"(^|\.)blocks\.\d+\.attn\.": "a vision transformer (ViT)",
    r"(^|\.)(cls_token|class_token|pos_embed)$": "a vision transformer (ViT) whose blocks are not named as timm, "
    "transformers or torchvision name theirs",
    r"(^|\.)downsample_layers\.\d|(^|\.)features\.\d+\.\d+\.layer_scale$|(^|\.)stages\.\d+\.(blocks\.)?\d+\.(gamma$|grn\.|conv_dw\.|mlp\.grn\.)"
    r"|\.dwconv\.": "a ConvNeXt",
    r"(^|\.)stages\.0\.blocks\.0\.conv3\.weight$": "a pre-activation ResNet (v2)",
    r"trunk_output\.block\d|(^|\.)s[1-4]\.b\d+\.conv1": "a RegNet",
    r"(^|\.)attnpool\.": "CLIP's modified ResNet",
    r"(^|\.)conv_stem\.weight$": "an EfficientNet or MobileNet",
    r"(^|\.)features\.(\d+\.(0\.)?weight$|conv0\.|denseblock)": "a VGG, AlexNet, DenseNet or MobileNet",
}
_ONLY = "the detectors here take ResNets, ResNeXts, wide ResNets and plain ViTs"


def no_resnet(loaded: Loaded) -> str:
    """Return one sentence about a file in which no ResNet was found."""
    names = list(loaded.tensors)
    for pattern, family in _FAMILIES.items():
        if found := next((name for name in names if re.search(pattern, name)), None):
            return f"it holds {family} ({found}); {_ONLY}"
    if flat := next((name for name in names if re.search(r"(^|\.)_?flat_param(_\d+)?$", name)), None):
        return (
            f"it holds parameters that FSDP has flattened ({flat}): save a full state dict (FULL_STATE_DICT)"
        )
    heads = [name for name in names if _is_of_a_head(name)]
    if heads and len(heads) * 2 >= len(names):
        others = len(names) - len(heads)
        only = "only a head" if not others else f"a head and {others} other tensors, but no ResNet"
        return f"it holds {only} ({heads[0]}, ...): give the whole checkpoint"
    if loaded.kind not in ("dict", "OrderedDict"):
        return f"it holds a {loaded.kind}, not a dict of tensors: save model.state_dict()"
    if not names:
        return f"it does not contain tensors; its top-level keys: {', '.join(loaded.keys[:6]) or 'none'}"
    keys = ", ".join(loaded.keys[:6])
    return f"it does not contain a ResNet (no tensor like *layer1.0.conv1.weight); its top-level keys: {keys}"


def _is_of_a_head(name: str) -> bool:
    *way, leaf = name.split(".")
    return leaf in ("weight", "bias", "weight_g", "weight_v") and not _HEADS.isdisjoint(way)


def stated_variant(path: Path, loaded: Loaded, dialect: str) -> str:
    """Return why the network is not the plain ResNet that its tensors look like, or an empty string.

    timm's anti-aliased ResNets pool without any tensors, and transformers has a switch for a first stage of stride 2:
    both have exactly the tensors of a plain ResNet. Only the file's `arch`, the `config.json` next to it or the file's
    name can show the difference.
    """
    for where, text in (
        ("its `arch`", loaded.other.get("arch")),
        ("its config.json", loaded.card.get("architecture")),
        ("its name", path.name),
    ):
        if isinstance(text, str) and (found := re.search(r"(?<![a-z])resnet(blur|aa)\d+", text)):
            return f"it holds a ResNet with anti-aliased strides ({where} contains {found[0]}), {_OTHER}; {_PLAIN}"
    if dialect != "transformers":
        return ""
    if loaded.card.get("downsample_in_first_stage") is True:
        return f"it holds a ResNet with a stride in its first stage (see its config.json), {_OTHER}; {_PLAIN}"
    if (act := loaded.card.get("hidden_act", "relu")) != "relu":
        return f"it holds a ResNet with activation {label(act, 20)} (see its config.json), {_OTHER}; {_PLAIN}"
    return ""


def other_resnet(network: Mapping[str, torch.Tensor]) -> str:
    """Return why detectron2 has no module for this ResNet, or an empty string if it has one."""
    stem = network.get("conv1.weight")
    deep = next(
        (name for name in network if re.match(r"conv1\.\d|stem\.|conv[23]\.weight|bn[23]\.", name)), None
    )
    tests: list[tuple[Callable[[str], object], str]] = [
        (
            lambda n: re.search(r"\.(se|se_module|fc1|fc2|fc_reduce)\.", n),
            "squeeze-and-excitation or other channel attention",
        ),
        (lambda n: re.search(r"\.convs\.\d", n), "Res2Net's split convolutions"),
        (
            lambda n: re.search(r"\.(attn|conv2\.(conv|paths|attn))\.", n),
            "selective-kernel or attention blocks",
        ),
        (lambda n: n.endswith(".filt") or ".aa." in n, "anti-aliased strides"),
        (lambda n: re.fullmatch(r".*downsample\.2\..*", n), "average-pooled shortcuts (the D variant)"),
    ]
    if deep:
        return f"it holds a ResNet with a deep stem ({deep}), {_OTHER}; {_PLAIN}"
    for test, what in tests:
        if name := next((name for name in network if test(name)), None):
            return f"it holds a ResNet with {what} ({name}), {_OTHER}; {_PLAIN}"
    if stem is not None and stem.ndim == 4 and stem.shape[1] != 3:
        return _channels(stem)
    if stem is not None and stem.ndim == 4 and tuple(stem.shape[2:]) == (3, 3):
        return (
            f"tensor conv1.weight has shape {tuple(stem.shape)}: this is a CIFAR stem or a RegNet (3x3, no "
            f"max-pooling), {_OTHER}; {_PLAIN}"
        )
    if "bn1.weight" in network and not any(name.endswith("running_var") for name in network):
        return (
            "its norm layers have no running statistics: add --merged-norm if it has batch norms that are merged into "
            "weight and bias, as in MSRA's networks; group norm is not supported, and an incomplete file cannot be used"
        )
    quantised = next(
        (n for n, t in network.items() if t.dtype in (torch.int8, torch.uint8, torch.qint8)), None
    )
    if quantised:
        return f"tensor {quantised} holds {network[quantised].dtype}, so the file is quantised: give the float file"
    return ""


def _channels(stem: torch.Tensor) -> str:
    count = stem.shape[1]
    what = f"conv1.weight takes {count} input channel{'s' if count > 1 else ''}; detection images have 3"
    if count == 1:
        return f"{what}: repeat the channel (conv1.weight.repeat(1, 3, 1, 1) / 3), save the file and convert that"
    if count == 2:
        return f"{what}: pre-train on 3 channels"
    return (
        f"{what} (red, green, blue): keep only their filters (conv1.weight[:, [r, g, b]], where r, g and b are the "
        "positions of these bands), save the file, convert that, and give --pixel-mean and --pixel-std of these bands"
    )


_OTHER = "which detectron2's ResNet does not support"
_PLAIN = "give a plain ResNet's checkpoint"
