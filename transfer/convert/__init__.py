"""From a checkpoint of almost any project to detectron2 weights, with proof that both compute the same."""

FORMATS = ("pkl", "pth", "safetensors")  # of the written file, by its ending
TARGETS = ("torchvision", "timm", "moco")  # other libraries to export to
