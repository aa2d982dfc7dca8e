"""What `tools/predict.py` does: read images ahead of the detector, and write its results."""

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pretrain import __version__
from pretrain.common.console import say
from pretrain.common.errors import UserError, printable
from pretrain.common.files import write_json
from pretrain.common.pool import Progress
from transfer.detector_files import FINAL
from transfer.predict import coco_results, inputs
from transfer.predict.inputs import Source
from transfer.predict.pictures import Pictures
from transfer.predict.predictor import Detections, Predictor

_READERS = 4  # threads that decode images
_SHOWN = 20  # images that could not be read

Read = tuple[int, Source, np.ndarray | UserError]


def run(args: argparse.Namespace) -> int:
    """Predict all images and write the files. Return the exit status: 0, or 1 if some images could not be read.

    Raises:
        UserError: a mistake in the flags, the run or the images; neither --json nor --results has been written then.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; use --device cpu or auto")
    ids: dict[str, Any] = {}
    if args.images_json:
        sources, ids = inputs.listed(args.images_json, args.inputs[0])
    else:
        sources = inputs.find(args.inputs)
    predictor = Predictor(
        args.run, weights=args.weights, device=args.device, threshold=args.threshold, batch=args.batch,
        train_json=args.train_json,
    )  # fmt: skip
    if note := inputs.id_note(ids, predictor.categories):
        say(note)
    images, results, broken = _predict(predictor, sources, args.pictures)
    if not images:
        raise UserError(f"none of the {len(sources)} images can be read, the first: {broken[0]}")
    if args.results:
        write_json(args.results, results, indent=None)
        say(f"wrote {args.results}")
    if args.json:
        content = coco_results.whole_file(images, predictor.categories, results, _info(args))
        write_json(args.json, content, indent=None)
        say(f"wrote {args.json}")
    if args.pictures:
        say(f"wrote {len(images)} pictures to {args.pictures}")
    say(f"{len(results)} detections with a score above {args.threshold:g} in {len(images)} images")
    return _report(broken, len(sources))


def _predict(
    predictor: Predictor, sources: Sequence[Source], folder: Path | None
) -> tuple[list[dict[str, Any]], list[coco_results.Result], list[str]]:
    """Return COCO's `images` and results, and a line for each image that cannot be read. Draw into `folder`."""
    pictures = Pictures(folder, predictor.names, count=len(sources)) if folder else None
    predicted: list[Source] = []
    sizes: list[tuple[int, int]] = []
    results: list[coco_results.Result] = []
    broken: list[str] = []
    with Progress(len(sources)) as progress:
        for part in _batches(predictor, sources):
            good = [(n, source, pixels) for n, source, pixels in part if isinstance(pixels, np.ndarray)]
            broken += [printable(str(error)) for _, _, error in part if isinstance(error, UserError)]
            found = _detect(predictor, [pixels for _, _, pixels in good])
            for (number, source, pixels), each in zip(good, found, strict=True):
                predicted.append(source)
                sizes.append(each.size)
                results += coco_results.results(each, source.entry["id"], predictor.category_ids)
                if pictures:
                    channels = predictor.cfg.INPUT.FORMAT
                    pictures.write(number, source.path, pixels, each, channels=channels)
            progress.advance(len(part))
    if note := inputs.size_note(predicted, sizes):
        say(note)
    images = [{**s.entry, "width": w, "height": h} for s, (h, w) in zip(predicted, sizes, strict=True)]
    return images, results, broken


def _batches(predictor: Predictor, sources: Sequence[Source]) -> Iterator[list[Read]]:
    """Yield batches of images with their numbers, from 1; threads read the next ones meanwhile."""

    def read(source: Source) -> np.ndarray | UserError:
        try:
            return predictor.read(source.path)
        except UserError as error:
            return error

    numbered = list(enumerate(sources, start=1))
    parts = [numbered[i : i + predictor.batch] for i in range(0, len(numbered), predictor.batch)]
    with ThreadPoolExecutor(_READERS) as threads:

        def start(part: list[tuple[int, Source]]) -> list[tuple[int, Source, Future[np.ndarray | UserError]]]:
            return [(number, source, threads.submit(read, source)) for number, source in part]

        following = start(parts[0])
        for part in [*parts[1:], []]:
            current, following = following, start(part)
            yield [(number, source, future.result()) for number, source, future in current]


def _detect(predictor: Predictor, pixels: list[np.ndarray]) -> list[Detections]:
    try:
        return predictor.detect(pixels)
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"the GPU has too little memory for --batch {predictor.batch}: use a smaller one, or --device cpu"
        ) from None


def _info(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the detections depend on."""
    return {
        "description": f"predictions of moco-detection-transfer {__version__}",
        "run": str(args.run),
        "weights": str(args.weights or FINAL),
        "threshold": args.threshold,
    }


def _report(broken: list[str], total: int) -> int:
    """Print the images that could not be read; return the exit status."""
    if not broken:
        return 0
    for line in broken[:_SHOWN]:
        say(line)
    if len(broken) > _SHOWN:
        say(f"... and {len(broken) - _SHOWN} more")
    say(f"{len(broken)} of {total} images could not be read; the others were predicted")
    return 1
