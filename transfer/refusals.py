"""Why a file is not taken, by what it holds, and what to do instead."""

import re
from collections.abc import Callable, Mapping

import torch

from transfer.untrusted import Loaded

_HEAD = re.compile(
    r"(.*\.)?(fc|head|heads|projector|predictor|classifier|projection_head|prototypes|neck)(\..*)?"
    r"\.(weight|bias|weight_g|weight_v)"
)
_FAMILIES = {
    r"(^|\.)(cls_token|pos_embed)$|(^|\.)blocks\.\d+\.attn\.": "a vision transformer (ViT)",
    r"relative_position_bias_table": "a Swin transformer",
    r"(^|\.)downsample_layers\.\d|(^|\.)stages\.\d+\.(blocks\.)?\d+\.gamma$|\.dwconv\.": "a ConvNeXt",
    r"trunk_output\.block\d|(^|\.)s[1-4]\.b\d+\.conv1": "a RegNet",
    r"(^|\.)attnpool\.": "CLIP's modified ResNet",
    r"(^|\.)features\.\d+\.(0\.)?weight$": "a VGG, AlexNet, DenseNet or MobileNet",
}
_ONLY = "Faster and Mask R-CNN here take ResNets, ResNeXts and wide ResNets"


def no_resnet(loaded: Loaded) -> str:
    """One sentence about a file in which no ResNet was found."""
    names = list(loaded.tensors)
    for pattern, family in _FAMILIES.items():
        if found := next((name for name in names if re.search(pattern, name)), None):
            return f"it holds {family} ({found}); {_ONLY}"
    heads = [name for name in names if _HEAD.fullmatch(name)]
    if heads and len(heads) * 2 >= len(names):
        others = len(names) - len(heads)
        only = "only a head" if not others else f"a head and {others} other tensors, but no ResNet"
        return f"it holds {only} ({heads[0]}, ...); give the whole checkpoint"
    if loaded.kind not in ("dict", "OrderedDict"):
        return f"it holds a {loaded.kind}, not a dict of tensors; save model.state_dict()"
    if not names:
        return f"no tensor in it; its top-level keys: {', '.join(loaded.keys[:6]) or 'none'}"
    keys = ", ".join(loaded.keys[:6])
    return f"no ResNet in it (no tensor like *layer1.0.conv1.weight); its top-level keys: {keys}"


def other_resnet(network: Mapping[str, torch.Tensor]) -> str:
    """Why these tensors are a ResNet that detectron2 has no module for; empty where they are not."""
    stem = network.get("conv1.weight")
    deep = next(
        (name for name in network if re.match(r"conv1\.\d|stem\.|conv[23]\.weight|bn[23]\.", name)), None
    )
    tests: list[tuple[Callable[[str], object], str]] = [
        (lambda n: re.search(r"\.(se|se_module|fc1|fc2|fc_reduce)\.", n), "squeeze-and-excitation blocks"),
        (
            lambda n: re.search(r"\.(attn|conv2\.(conv|paths|attn))\.", n),
            "selective-kernel or attention blocks",
        ),
        (lambda n: n.endswith(".filt") or ".aa." in n, "anti-aliased strides"),
        (lambda n: re.fullmatch(r".*downsample\.2\..*", n), "average-pooled shortcuts (the D variant)"),
    ]
    if deep:
        return f"a ResNet with a deep stem ({deep}), which detectron2's backbone here cannot hold; {_PLAIN}"
    for test, what in tests:
        if name := next((name for name in network if test(name)), None):
            return f"a ResNet with {what} ({name}), which detectron2's backbone cannot hold; {_PLAIN}"
    if stem is not None and stem.ndim == 4 and tuple(stem.shape[2:]) == (3, 3):
        return (
            f"tensor conv1.weight has shape {tuple(stem.shape)}: a CIFAR stem (3x3, no max-pooling), which "
            f"detectron2's backbone cannot hold; {_PLAIN}"
        )
    if "bn1.weight" in network and not any(name.endswith("running_var") for name in network):
        return f"its norms have no running statistics (group norm, or a partial file); {_PLAIN}"
    quantised = next(
        (n for n, t in network.items() if t.dtype in (torch.int8, torch.uint8, torch.qint8)), None
    )
    if quantised:
        return f"tensor {quantised} holds {network[quantised].dtype}: a quantised file; give the float one"
    return ""


_PLAIN = "give a plain ResNet's checkpoint"
