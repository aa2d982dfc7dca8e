"""Contact sheets of the training data as the model sees them, and of the mistakes of a trained model."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.modeling import build_model

from pretrain.common import distributed
from pretrain.common.console import say
from pretrain.common.errors import UserError
from transfer.data import datasets, train_stream
from transfer.data.images import read as read_image
from transfer.data.mapper import build_mapper
from transfer.models import init_weights
from transfer.visualize import contact_sheet, drawing, instances, mistakes
from transfer.visualize.contact_sheet import Section
from transfer.visualize.mistakes import Mistake


def show_data(cfg: CfgNode, folder: Path, *, count: int, raw: bool) -> list[Path]:
    """Write a contact sheet of training images with their annotations.

    Args:
        cfg: from `transfer.config.load.load_config`.
        count: number of images.
        raw: show the images as they are on disk, spread over the set. Otherwise they are shown as the model sees
            them: the first images of the training stream, resized, cropped and flipped.
    Returns:
        The files written.
    Raises:
        UserError: the data set is missing or invalid.
    """
    cfg = cfg.clone()
    datasets.prepare(cfg)
    name = cfg.DATASETS.TRAIN[0]
    names = ", ".join(cfg.DATASETS.TRAIN)
    section = Section("Training images", "", "image")
    if raw:
        records = datasets.training_records(cfg)
        section.about = f"{count} of {len(records)} images as they are on disk, spread evenly over {names}."
        section.pictures = [_raw(record, name) for record in drawing.spread(records, count)]
    else:
        cfg.DATALOADER.NUM_WORKERS = 0
        batches = train_stream.training_batches(cfg, 0)
        seen = list(islice((item for batch in batches for item in batch), count))
        section.about = f"The first {len(seen)} images of the training stream of {names}, after augmentation."
        section.pictures = [_augmented(item, name, cfg.INPUT.FORMAT) for item in seen]
    return contact_sheet.write(folder, f"Data: {names}", _kinds(name), [section])


def _raw(record: dict[str, Any], name: str) -> tuple[np.ndarray, str]:
    image = read_image(record["file_name"], "RGB")
    shown = instances.of_record(record)
    picture = drawing.draw_objects(image, shown, name)
    if "sem_seg_file_name" in record:
        picture = drawing.side_by_side(picture, drawing.draw_labels(image, drawing.label_file(record), name))
    return picture, _data_caption(record["file_name"], image, shown, name)


def _augmented(item: dict[str, Any], name: str, channels: str) -> tuple[np.ndarray, str]:
    image = np.ascontiguousarray(convert_image_to_rgb(item["image"].permute(1, 2, 0), channels))
    shown = instances.of_training(item["instances"]) if "instances" in item else instances.of_record({})
    picture = drawing.draw_objects(image, shown, name)
    if "sem_seg" in item:
        picture = drawing.side_by_side(picture, drawing.draw_labels(image, item["sem_seg"].numpy(), name))
    return picture, _data_caption(item["file_name"], image, shown, name)


def _data_caption(path: str, image: np.ndarray, shown: instances.Objects, name: str) -> str:
    counts = Counter(_names(name)[kind] for kind in shown.classes.tolist())
    listed = ", ".join(f"{count} {kind}" for kind, count in counts.most_common()) or "no objects"
    return f"{Path(path).name}, {image.shape[1]} x {image.shape[0]} pixels: {listed}"


def _names(name: str) -> list[str]:
    metadata = MetadataCatalog.get(name)
    return list(metadata.get("thing_classes", ()) or metadata.get("stuff_classes", ()))


def _kinds(name: str) -> str:
    names = _names(name)
    return f"{len(names)} classes: {', '.join(names[:30])}{', ...' if len(names) > 30 else ''}"


@dataclass
class _Findings:
    """The mistakes in a test set: wrong detections and missed objects, or whole images with per-pixel labels."""

    false_positives: list[Mistake] = field(default_factory=list)
    misses: list[Mistake] = field(default_factory=list)
    labelled: list[Mistake] = field(default_factory=list)


@torch.no_grad()
def show_predictions(cfg: CfgNode, folder: Path, *, count: int, images: int) -> list[Path]:
    """Write a contact sheet of ground truth next to predictions on the first test set, worst mistakes first.

    Args:
        cfg: from `transfer.config.load.load_config`, with the weights of a fine-tuned model in MODEL.WEIGHTS.
        count: number of pictures in each section.
        images: number of test images to examine, spread over the set.
    Returns:
        The files written.
    Raises:
        UserError: the data set or the weights are missing or invalid.
    """
    cfg = cfg.clone()
    datasets.prepare(cfg, train=False)
    name = cfg.DATASETS.TEST[0]
    records = drawing.spread(DatasetCatalog.get(name), images)
    if not any(record.get("annotations") or "sem_seg_file_name" in record for record in records):
        raise UserError(
            f"DATASETS.TEST {name}: it has no annotations to compare predictions with; give an annotated set"
        )
    path = init_weights.local_path(cfg.MODEL.WEIGHTS)
    cfg.MODEL.DEVICE = distributed.pick_device(cfg.MODEL.DEVICE).type
    model = build_model(cfg)
    init_weights.load_detector(model, path)
    model.eval()
    mapper = build_mapper(cfg, is_train=False)
    threshold = cfg.TEST.PICTURE_SCORE

    def predict(image: int) -> dict[str, Any]:
        output: dict[str, Any] = model([mapper(records[image])])[0]
        return output

    def draw(found: list[Mistake]) -> list[tuple[np.ndarray, str]]:
        # The images are predicted again, because the masks of a whole set do not fit into memory.
        worst = mistakes.worst_first(found)[:count]
        return [_picture(m, records[m.image], predict(m.image), name, threshold) for m in worst]

    sections = _sections(_examine(records, predict, name, score=threshold), draw, threshold)
    sample = [Mistake(i, None, 0.0, "") for i in drawing.spread(list(range(len(records))), count)]
    sections.append(Section("A sample", "Images spread evenly over the test set.", "sample", draw(sample)))
    about = f"{path}: {len(records)} images of {name}. Annotations are on the left, predictions on the right."
    return contact_sheet.write(folder, f"Predictions: {name}", about, sections)


def _examine(
    records: list[dict[str, Any]], predict: Callable[[int], dict[str, Any]], name: str, *, score: float
) -> _Findings:
    findings, names = _Findings(), _names(name)
    for image, record in enumerate(records):
        output = predict(image)
        found = instances.of_output(output)
        labels = drawing.label_file(record)
        if "proposals" in output:
            raise UserError(
                "MODEL.META_ARCHITECTURE: a model that predicts only proposals has no classes, so its mistakes cannot "
                "be shown; use a detector"
            )
        if found is not None:
            truth = instances.of_record(record)
            matched = mistakes.match(truth, found)
            findings.false_positives += mistakes.false_positives(image, truth, found, matched, names)
            findings.misses += mistakes.misses(image, truth, found, matched, names, score=score)
        elif labels is not None:
            predicted = output["sem_seg"].argmax(dim=0).cpu().numpy()
            findings.labelled.append(mistakes.labelling(image, labels, predicted, names))
        if (image + 1) % 50 == 0:
            say(f"examined {image + 1} of {len(records)} images")
    return findings


def _sections(
    findings: _Findings, draw: Callable[[list[Mistake]], list[tuple[np.ndarray, str]]], threshold: float
) -> list[Section]:
    if findings.labelled:
        about = "Sorted by mean IoU over the classes that are annotated or predicted in an image."
        return [Section("Worst images first", about, "image", draw(findings.labelled))]
    wrong = (
        f"{len(findings.false_positives)} in total, highest scores first, one of each image before the second of any. "
        "A detection is right if its box overlaps an object of its class with an IoU of at least 0.5 and no detection "
        "with a higher score matches that object."
    )
    missed = (
        f"{len(findings.misses)} in total: objects that no detection with a score of {threshold:g} or more matches. "
        "Large objects without any detection come first, one of each image before the second of any."
    )
    return [
        Section("Wrong detections", wrong, "false_positive", draw(findings.false_positives)),
        Section("Missed objects", missed, "miss", draw(findings.misses)),
    ]


def _picture(
    mistake: Mistake, record: dict[str, Any], output: dict[str, Any], name: str, threshold: float
) -> tuple[np.ndarray, str]:
    picture = drawing.beside_truth(record, output, name, score=threshold)
    if mistake.box is not None:
        picture = drawing.highlight(
            picture, mistake.box, record["width"], mistake.label, annotated=mistake.annotated
        )
    file = Path(record["file_name"]).name
    return picture, f"{mistake.caption} ({file})" if mistake.caption else file
