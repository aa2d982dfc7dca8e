"""detectron2's evaluators, chosen by the type of a data set, with the AP or IoU of each class in addition to the means.

All numbers come from detectron2 and the libraries it uses; this module computes no other metrics.
"""

import contextlib
import importlib.metadata
import importlib.util
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
    coco_evaluation,
    pascal_voc_evaluation,
)

from pretrain.common.errors import UserError
from transfer import d2_compat
from transfer.data.catalog import need

Results = dict[str, dict[str, float]] | None


def build(cfg: CfgNode, name: str) -> DatasetEvaluator:
    """Return the evaluator of a registered data set. Raise `UserError` if a library that it needs is missing."""
    kind = MetadataCatalog.get(name).get("evaluator_type", "coco")
    if kind == "coco":
        return Coco(cfg, name)
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
        return _versioned("faster-coco-eval" if _faster_class() else "pycocotools")
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


class Coco(COCOEvaluator):
    """AP of boxes, masks and keypoints, computed by faster-coco-eval if it is installed, otherwise by pycocotools."""

    def __init__(self, cfg: CfgNode, name: str) -> None:
        sigmas = tuple(cfg.TEST.KEYPOINT_OKS_SIGMAS)
        # detectron2 writes the json of a data set that was registered without one to this folder
        folder = None if hasattr(MetadataCatalog.get(name), "json_file") else f"{cfg.OUTPUT_DIR}/evaluation"
        # detectron2's own fast implementation is in detectron2._C
        super().__init__(name, output_dir=folder, use_fast_impl=False, kpt_oks_sigmas=sigmas)
        self.configured = _tasks(cfg)

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> list[str]:
        """Return the tasks; without predictions detectron2 would leave out masks and keypoints."""
        tasks: list[str] = super()._tasks_from_predictions(predictions) if predictions else self.configured
        return tasks

    def _eval_predictions(self, predictions: Any, img_ids: Any = None) -> None:
        faster = _faster_class()
        integers = all(isinstance(key, int) for key in self._coco_api.imgs)
        if faster is None or not integers:  # faster-coco-eval accepts only integers
            super()._eval_predictions(predictions, img_ids)
            return
        with _replaced(coco_evaluation, "COCOeval", faster):
            super()._eval_predictions(predictions, img_ids)


class Voc(PascalVOCDetectionEvaluator):
    """VOC AP: 11-point for VOC2007, area under the curve for VOC2012, as in detectron2 and the papers.

    Classes without any object in the list are left out of the means, whereas detectron2 would count them as 0. In
    VOC's own lists every class occurs.
    """

    def evaluate(self) -> Results:
        """Return the metrics. Collective; None except in the main process."""
        by_class: dict[str, list[float]] = defaultdict(list)
        voc_eval = pascal_voc_evaluation.voc_eval

        def recorded(detections: str, annotations: str, images: str, kind: str, **options: Any) -> Any:
            result = voc_eval(detections, annotations, images, kind, **options)
            by_class[kind].append(float(result[2]) * 100)
            return result

        with _replaced(pascal_voc_evaluation, "voc_eval", recorded), np.errstate(invalid="ignore"):
            if super().evaluate() is None:
                return None
        present = self._present()
        means = np.mean([by_class[kind] for kind in self._class_names if kind in present], axis=0)  # (10,)
        values = {"AP": float(means.mean()), "AP50": float(means[0]), "AP75": float(means[5])}
        for kind in self._class_names:
            values[f"AP-{kind}"] = float(np.mean(by_class[kind])) if kind in present else float("nan")
        return {"bbox": values}

    def _present(self) -> set[str]:
        """Return the classes with an object that is not difficult."""
        names = Path(self._image_set_path).read_text().split()
        objects = (
            o for n in names for o in pascal_voc_evaluation.parse_rec(self._anno_file_template.format(n))
        )
        return {o["name"] for o in objects if not o["difficult"]}


class Lvis(LVISEvaluator):
    """LVIS AP with 300 detections per image, also for rare, common and frequent classes (APr, APc, APf)."""

    def __init__(self, cfg: CfgNode, name: str) -> None:
        super().__init__(name)
        self.configured = _tasks(cfg)

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> tuple[str, ...]:
        tasks = super()._tasks_from_predictions(predictions) if predictions else self.configured
        return tuple(tasks)

    def evaluate(self) -> Results:
        """Return the metrics, with nan where lvis returns -1. Collective; None except in the main process."""
        results = super().evaluate()
        if results is None:
            return None
        undefined = float("nan")
        return {
            task: {key: value if value >= 0 else undefined for key, value in values.items()}
            for task, values in results.items()
        }


class CityscapesInstances(CityscapesInstanceEvaluator):
    """Cityscapes' AP of masks over IoU .50:.95, computed by its own scripts."""

    def evaluate(self) -> Results:
        """Return the metrics. Collective; None except in the main process."""
        from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as script

        # The script would write matches.json to the working folder, and fail at numpy's numbers.
        nothing_written = _replaced(script, "writeDict2JSON", lambda content, file: None)
        with _results_of(script, "evaluateImgLists") as calls, nothing_written:
            results: Results = super().evaluate()
        if results is not None:
            for kind, values in calls[0]["averages"]["classes"].items():
                results["segm"][f"AP-{kind}"] = 100 * float(values["ap"])
        return results


class CityscapesLabels(CityscapesSemSegEvaluator):
    """Cityscapes' IoU of 19 classes, computed by its own scripts. `mIoU` is their IoU."""

    def evaluate(self) -> Results:
        """Return the metrics. Collective; None except in the main process."""
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as script

        with _results_of(script, "evaluateImgLists") as calls:
            results: Results = super().evaluate()
        if results is None:
            return None
        values = {"mIoU": results["sem_seg"]["IoU"], **results["sem_seg"]}
        for kind, value in calls[0]["classScores"].items():
            values[f"IoU-{kind}"] = 100 * float(value)
        return {"sem_seg": values}


def _panoptic(cfg: CfgNode, name: str, *, things: bool) -> DatasetEvaluators:
    parts: list[DatasetEvaluator] = [COCOPanopticEvaluator(name, str(Path(cfg.OUTPUT_DIR) / "evaluation"))]
    if things:
        parts.append(Coco(cfg, name))
    if hasattr(MetadataCatalog.get(name), "sem_seg_root"):
        parts.append(sem_seg_evaluator(name, cfg))
    return DatasetEvaluators(parts)


def _faster_class() -> type | None:
    """Return faster-coco-eval's replacement of pycocotools' `COCOeval`; None if it is not installed."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        return None
    from faster_coco_eval import COCO, COCOeval_faster

    class Faster(COCOeval_faster):
        """Accepts pycocotools' `COCO` objects, and evaluates every category as pycocotools does."""

        def __init__(self, truth: Any, found: Any, kind: str) -> None:
            super().__init__(COCO(truth.dataset), COCO(found.dataset), kind)
            # for keypoints, categories without annotations would be left out, but detectron2 expects all classes
            self.params.catIds = sorted(truth.getCatIds())

    return Faster


def _tasks(cfg: CfgNode) -> list[str]:
    return ["bbox"] + ["segm"] * cfg.MODEL.MASK_ON + ["keypoints"] * cfg.MODEL.KEYPOINT_ON


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Replace a name in a module inside a `with` block, so that detectron2 finds our object there."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


@contextlib.contextmanager
def _results_of(module: Any, name: str) -> Iterator[list[Any]]:
    """Collect what a module's function returns inside a `with` block; detectron2 keeps only a part of it."""
    function, results = getattr(module, name), []

    def recorded(*arguments: Any, **options: Any) -> Any:
        results.append(function(*arguments, **options))
        return results[-1]

    with _replaced(module, name, recorded):
        yield results


def _versioned(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


class MeanIoUEvaluator(SemSegEvaluator):
    """detectron2's evaluator with the same results on v0.6 and main, and without output that is not used.

    `sem_seg`: `mIoU`, `fwIoU`, `mACC`, `pACC`, `IoU-CLASS`, `ACC-CLASS`, in percent, over the whole test set at the
    original image sizes, without pixels with the ignored label. Classes that do not occur in the labels are undefined
    and left out of mIoU. (v0.6 counts them as 0 if they are predicted; in the full sets of VOC and Cityscapes every
    class occurs.)
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._compute_boundary_iou = False  # an option of main: slow, and not used in the paper

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict[str, Any]]:
        """Return nothing: otherwise the masks of all images would be kept in memory and sent between processes."""
        return []

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return the metrics. Collective; None except in the main process."""
        results: dict[str, dict[str, float]] | None = super().evaluate()
        if results is not None:
            values = results["sem_seg"]
            values["mIoU"] = float(np.nanmean([values[f"IoU-{name}"] for name in self._class_names]))
        return results


def sem_seg_evaluator(name: str, cfg: CfgNode) -> MeanIoUEvaluator:
    """Return the evaluator of a data set with labels per pixel. Raise `UserError` if it does not fit `cfg`."""
    evaluator = MeanIoUEvaluator(name)
    head = cfg.MODEL.SEM_SEG_HEAD
    for key, found, needed in (
        ("NUM_CLASSES", head.NUM_CLASSES, evaluator._num_classes),
        ("IGNORE_VALUE", head.IGNORE_VALUE, evaluator._ignore_label),
    ):
        if found != needed:
            raise UserError(f"MODEL.SEM_SEG_HEAD.{key} {found}: {name} has {needed}; set it to {needed}")
    return evaluator
