"""Published accuracies of linear classifiers on ImageNet-1k, for those who probe the same network on it."""

from fvcore.common.config import CfgNode

from pretrain.model.encoders import Architecture, architecture
from transfer.linear_config import defaults, flat

CLASSES, TRAIN_IMAGES, VAL_IMAGES = 1000, 1_281_167, 50_000  # ImageNet-1k

_V1 = "He et al. 2020, Table 1"
_V2 = "Chen et al. 2020, Table 1"
_PUBLISHED: tuple[tuple[str, float, str, float, str], ...] = (  # architecture, width, method, top-1, source
    ("resnet50", 1, "MoCo v1, 200 epochs", 60.6, _V1),
    ("resnet50", 1, "MoCo v2, 200 epochs", 67.5, _V2),
    ("resnet50", 1, "MoCo v2, 800 epochs", 71.1, _V2),
    ("resnet50", 1, "supervised", 76.5, f"{_V2} (not a linear probe: the whole network)"),
    ("resnext50_32x8d", 1, "MoCo v1, 200 epochs", 63.9, _V1),
    ("resnet50", 2, "MoCo v1, 200 epochs", 65.4, _V1),
    ("resnet50", 4, "MoCo v1, 200 epochs", 68.6, _V1),
)


_PROTOCOL = (
    "INPUT.SIZE", "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_EPOCH", "SOLVER.STEPS", "SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY",
    "CACHE",
)  # fmt: skip


def differences(cfg: CfgNode) -> list[str]:
    """`KEY value (the papers' value)` of each setting that makes a run's figure no match for the published ones.

    A sweep is none: the papers' rate of 30 was found by one.
    """
    keys = _PROTOCOL if cfg.SWEEP else ("SOLVER.BASE_LR", *_PROTOCOL)
    own, papers = flat(cfg), flat(defaults())
    return [f"{key} {_text(own[key])} ({_text(papers[key])})" for key in keys if own[key] != papers[key]]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def published(shape: Architecture, *, classes: int, train: int, val: int) -> list[dict[str, str | float]]:
    """Method, top-1 in percent and source of each number for this network; none where data or network differ."""
    if (classes, train, val) != (CLASSES, TRAIN_IMAGES, VAL_IMAGES):
        return []
    return [
        {"method": method, "top1": top1, "source": source}
        for name, width, method, top1, source in _PUBLISHED
        if architecture(name, width) == shape
    ]
