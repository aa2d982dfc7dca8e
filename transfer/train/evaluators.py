"""Choose the evaluator of a data set by its type, and name what it measures with.

All numbers come from detectron2 and the libraries it uses; `transfer.metrics` computes no metrics of its own.
"""

import importlib.metadata
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, DatasetEvaluator, DatasetEvaluators

from pretrain.common.errors import UserError
from transfer import d2_compat
from transfer.data.catalog import need
from transfer.data.images import check_labels
from transfer.metrics import coco
from transfer.metrics.cityscapes import CityscapesInstances, CityscapesLabels
from transfer.metrics.lvis import Lvis
from transfer.metrics.sem_seg import sem_seg_evaluator
from transfer.metrics.voc import Voc


def build(cfg: CfgNode, name: str) -> DatasetEvaluator:
    """Return the evaluator of a registered data set. Raise `UserError` if a library that it needs is missing."""
    kind = MetadataCatalog.get(name).get("evaluator_type", "coco")
    if kind == "coco":
        return coco.Coco(cfg, name)
    if kind == "pascal_voc":
        return Voc(name)
    if kind == "lvis":
        need("lvis", name)
        d2_compat.fix_lvis()
        return Lvis(cfg, name)
    if kind in ("cityscapes_instance", "cityscapes_sem_seg"):
        need("cityscapesscripts", name)
        d2_compat.alias_cityscapes()
        return CityscapesInstances(name) if kind == "cityscapes_instance" else CityscapesLabels(name)
    if kind == "sem_seg":
        return sem_seg_evaluator(name, cfg)
    if kind in ("coco_panoptic_seg", "ade20k_panoptic_seg"):
        need("panopticapi", name)
        return _panoptic(cfg, name, things=kind.startswith("coco"))
    raise UserError(f"DATASETS.TEST: {name} needs an evaluator {kind!r}, which is not supported")


def describe(name: str) -> str:
    """Return the name and version of what measures a data set, for the record of a run."""
    kind = MetadataCatalog.get(name).get("evaluator_type", "coco")
    if kind == "coco":
        return _versioned("faster-coco-eval" if coco.faster_class() else "pycocotools")
    if kind == "pascal_voc":
        points = (
            "11-point AP (VOC07)"
            if MetadataCatalog.get(name).year == 2007
            else "AP over all points (VOC10 on)"
        )
        return f"{points}, detectron2's"
    if kind == "lvis":
        return _versioned("lvis")
    if kind.startswith("cityscapes"):
        return _versioned("cityscapesScripts")
    return f"{kind}, detectron2's"


def _panoptic(cfg: CfgNode, name: str, *, things: bool) -> DatasetEvaluators:
    check_labels(MetadataCatalog.get(name).panoptic_root, "*.png")
    parts: list[DatasetEvaluator] = [COCOPanopticEvaluator(name, str(Path(cfg.OUTPUT_DIR) / "evaluation"))]
    if things:
        parts.append(coco.Coco(cfg, name))
    if hasattr(MetadataCatalog.get(name), "sem_seg_root"):
        parts.append(sem_seg_evaluator(name, cfg))
    return DatasetEvaluators(parts)


def _versioned(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"
