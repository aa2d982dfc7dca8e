"""What a run prints before its first step: data, network, machine and length."""

from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from pretrain.common import distributed
from transfer.data import catalog, datasets
from transfer.data.train_stream import Source

LAPTOP = "transfer/laptop_custom.yaml"  # the config for machines without a GPU
# Memory of a step on the CPU, from squares of the shorter side: 16 images of 800 pixels need 14 GB.
_GB_PER_PIXEL, _GB_AT_REST = 1.2e-6, 1.5
_MUCH = 7.5  # GB


def lines(cfg: CfgNode, model: nn.Module, source: Source | None, *, rule: str = "") -> Iterator[str]:
    """Yield the lines about a run that trains on `source`, or that only tests.

    Args:
        cfg: after `datasets.prepare`; `MODEL.DEVICE` is cpu or cuda.
        rule: how SOLVER.MAX_ITER followed from the number of images, if it did.
    """
    tests = ", ".join(f"{catalog.counts(name)[0]} in {name}" for name in cfg.DATASETS.TEST)
    trains = (
        f"{len(source.records)} images to train on in {', '.join(cfg.DATASETS.TRAIN)}; " if source else ""
    )
    yield f"{trains}images to test on: {tests or 'none'}; {_classes(cfg)}"
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    share = f", {trained:.1f} of them trained" if source and trained < millions else ""
    machine = f"{cfg.MODEL.DEVICE}, {distributed.world_size()} process(es)"
    yield f"{network(cfg)}, {millions:.1f} million parameters{share}; {machine}"
    if source:
        solver = cfg.SOLVER
        epochs = solver.MAX_ITER * solver.IMS_PER_BATCH / len(source.records)
        yield (
            f"{solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} images, {epochs:.1f} epochs"
            f"{f' ({rule})' if rule else ''}; {solver.OPTIMIZER}, learning rate {solver.BASE_LR:g}; "
            f"results in {cfg.OUTPUT_DIR}"
        )


def memory_gb(cfg: CfgNode) -> float:
    """Return roughly how many GB of memory a training step of one process takes on the CPU."""
    share = cfg.SOLVER.IMS_PER_BATCH // distributed.world_size() // cfg.SOLVER.ACCUMULATE
    return _GB_AT_REST + _GB_PER_PIXEL * share * max(cfg.INPUT.MIN_SIZE_TRAIN) ** 2


def memory_note(cfg: CfgNode) -> str:
    """Return a note if training on the CPU with a batch of this size needs much memory; else an empty string."""
    if cfg.MODEL.DEVICE != "cpu" or memory_gb(cfg) < _MUCH:
        return ""
    share = cfg.SOLVER.IMS_PER_BATCH // distributed.world_size() // cfg.SOLVER.ACCUMULATE
    return (
        f"note: {share} images of {max(cfg.INPUT.MIN_SIZE_TRAIN)} pixels at a time need more than 10 GB of memory on "
        f"this CPU; --config {LAPTOP} needs little"
    )


def network(cfg: CfgNode) -> str:
    """Return the detector in a few words, such as `Mask R-CNN, R50-FPN`."""
    model, vit = cfg.MODEL, cfg.MODEL.VIT
    depth = f"R{model.RESNETS.DEPTH}"
    is_vit = "vit" in model.BACKBONE.NAME
    if is_vit:
        depth = f"ViT of {vit.DEPTH} blocks of width {vit.WIDTH}, simple feature pyramid"
    if "GeneralizedRCNN" not in model.META_ARCHITECTURE:
        return f"{model.META_ARCHITECTURE}, {depth}"
    kind = "Mask R-CNN" if model.MASK_ON else "Keypoint R-CNN" if model.KEYPOINT_ON else "Faster R-CNN"
    if is_vit:
        return f"{kind}, {depth}"
    if "fpn" in model.BACKBONE.NAME:
        return f"{kind}, {depth}-FPN"
    return f"{kind}, {depth}-{'DC5' if model.RESNETS.RES5_DILATION == 2 else 'C4'}"


def _classes(cfg: CfgNode) -> str:
    name = cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else cfg.DATASETS.TRAIN[0]
    kind = "thing_classes" if hasattr(MetadataCatalog.get(name), "thing_classes") else "stuff_classes"
    names = datasets.class_names(name, kind)
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{len(names)} class(es): {shown}"
