"""PASCAL VOC's AP of boxes."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import PascalVOCDetectionEvaluator, pascal_voc_evaluation

from transfer.metrics.patches import replaced

Results = dict[str, dict[str, float]] | None


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

        with replaced(pascal_voc_evaluation, "voc_eval", recorded), np.errstate(invalid="ignore"):
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
