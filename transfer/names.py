"""Torchvision's names of a ResNet's tensors -> detectron2's."""

# The same modules are in the stem and in every block; their first part becomes `stem` or `res2.0`.
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


def detectron2_name(name: str) -> str:
    """`layer1.0.bn1.weight` -> `res2.0.conv1.norm.weight`. Raises KeyError for what is in no ResNet."""
    stage, _, rest = name.partition(".")
    place = "stem"
    if stage.startswith("layer"):
        block, _, name = rest.partition(".")
        place = f"res{int(stage.removeprefix('layer')) + 1}.{block}"
    module, _, leaf = name.rpartition(".")
    return f"{place}.{MODULES[module]}.{leaf}"
