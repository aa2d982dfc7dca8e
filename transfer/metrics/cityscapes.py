"""Cityscapes' AP of masks and IoU of labels, computed by its own scripts."""

from detectron2.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator

from transfer.data.images import check_labels
from transfer.metrics.patches import replaced, results_of

Results = dict[str, dict[str, float]] | None


class CityscapesInstances(CityscapesInstanceEvaluator):
    """Cityscapes' AP of masks over IoU .50:.95, computed by its own scripts."""

    def __init__(self, name: str) -> None:
        """Raise `UserError` if an annotation is not an image."""
        super().__init__(name)
        check_labels(self._metadata.gt_dir, "*/*_gtFine_instanceIds.png")

    def evaluate(self) -> Results:
        """Return the metrics. Collective; None except in the main process."""
        from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as script

        # The script would write matches.json to the working folder, and fail at numpy's numbers.
        nothing_written = replaced(script, "writeDict2JSON", lambda content, file: None)
        with results_of(script, "evaluateImgLists") as calls, nothing_written:
            results: Results = super().evaluate()
        if results is not None:
            for kind, values in calls[0]["averages"]["classes"].items():
                results["segm"][f"AP-{kind}"] = 100 * float(values["ap"])
        return results


class CityscapesLabels(CityscapesSemSegEvaluator):
    """Cityscapes' IoU of 19 classes, computed by its own scripts. `mIoU` is their IoU."""

    def __init__(self, name: str) -> None:
        """Raise `UserError` if an annotation is not an image."""
        super().__init__(name)
        check_labels(self._metadata.gt_dir, "*/*_gtFine_*Ids.png")

    def evaluate(self) -> Results:
        """Return the metrics. Collective; None except in the main process."""
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as script

        with results_of(script, "evaluateImgLists") as calls:
            results: Results = super().evaluate()
        if results is None:
            return None
        values = {"mIoU": results["sem_seg"]["IoU"], **results["sem_seg"]}
        for kind, value in calls[0]["classScores"].items():
            values[f"IoU-{kind}"] = 100 * float(value)
        return {"sem_seg": values}
