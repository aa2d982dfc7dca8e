"""All measurements on one GPU: the cells in their order, one JSON and one table."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.benchmark import pretraining
from pretrain.benchmark.pretraining import Extent
from pretrain.benchmark.step import write_pictures
from pretrain.common import distributed
from pretrain.common.console import say
from pretrain.common.errors import UserError, label
from pretrain.common.files import write_json, write_text
from pretrain.data.folders import find_images
from transfer.benchmark import evaluation, finetuning, report
from transfer.benchmark.schedule import Cell
from transfer.benchmark.schedule import run as run_cells

FPN, C4 = "transfer/coco_R50_FPN.yaml", "transfer/voc_R50_C4_24k.yaml"
_AMP = ("bf16", "fp32")
_BATCHES = ((64, 128, 256), (4, 8, 16))  # of the recipe, and of the tiny network
_BLOCK = 2.0  # seconds, approximately
# Guesses of a cell's seconds on a GPU, by kind.
_SECONDS = {
    "pre-training": 100.0,
    "compiled": 180.0,
    "fine-tuning": 60.0,
    "large fine-tuning": 120.0,
    "evaluation": 90.0,
}


def run(output: Path, *, device: str, minutes: float, rounds: int, images: str = "") -> None:
    """Measure, and write `output` and the table next to it after each cell.

    Args:
        output: a .json file.
        device: cuda; cpu only tries everything with tiny networks.
        minutes: the time for all cells; `schedule.run` says which are dropped.
        rounds: number of blocks of each figure.
        images: folder of photographs for pre-training; empty: synthetic pictures.
    Raises:
        UserError: there is no image in `images`, or `output` cannot be written.
    """
    place = distributed.pick_device(device)
    tiny = device == "cpu"
    largest = max(_BATCHES[tiny])
    if images and (count := len(find_images([images], key="--images"))) < largest:
        raise UserError(
            f"--images {label(images)}: it holds {count} image(s): name a folder of {largest} or more"
        )
    head = report.head(place, images=images, minutes=minutes, rounds=rounds, tiny=tiny)

    def write(rows: list[dict[str, Any]]) -> None:
        content = {**head, "rows": rows}
        write_json(output, content)
        write_text(output.with_suffix(".md"), report.markdown(content))

    write([])
    with tempfile.TemporaryDirectory() as folder:
        pictures = images or write_pictures(Path(folder) / "images", 64 if tiny else pretraining.IMAGES)
        planned = cells(device, folder=Path(folder), images=pictures, rounds=rounds, tiny=tiny)
        rows = run_cells(planned, seconds=60 * minutes, device=place, done=write)
    say()
    say(report.markdown({**head, "rows": rows}))
    say(f"wrote {output} and {output.with_suffix('.md')}")


def cells(device: str, *, folder: Path, images: str, rounds: int, tiny: bool) -> list[Cell]:
    """Return all cells, the most important ones first.

    That is: the recipe's batch of pre-training in both precisions, fine-tuning with two images in a step as on each of
    the paper's eight GPUs, evaluation, smaller batches, fine-tuning with the whole batch, and what is compiled.
    """
    small, middle, large = _BATCHES[tiny]
    whole = 3 if tiny else 16

    def extent(deadline: float) -> Extent:
        return Extent(rounds, 0.01 if tiny else _BLOCK, deadline)

    def cell(table: str, name: str, kind: str, measure: Callable[[Extent], dict[str, Any]]) -> Cell:
        return Cell(table, name, kind, 0.0 if tiny else _SECONDS[kind], lambda end: measure(extent(end)))

    def pretrain(batch: int, precision: str, *, compiled: bool = False) -> Cell:
        case = pretraining.Case(batch, precision, compiled)
        measure = partial(pretraining.measure, case, images=images, device=device, tiny=tiny)
        return cell("pre-training", str(case), "compiled" if compiled else "pre-training", measure)

    def finetune(config: str, batch: int, *, half: bool = False) -> Cell:
        case = finetuning.Case(config, batch, half)
        measure = partial(finetuning.measure, case, folder=folder, device=device, tiny=tiny)
        return cell("fine-tuning", str(case), "fine-tuning" if batch == 2 else "large fine-tuning", measure)

    count = 20 if tiny else 1000
    planned = [
        pretrain(large, "bf16"),
        pretrain(large, "fp32"),
        finetune(FPN, 2),
        finetune(C4, 2),
        cell("evaluation", f"{count} images", "evaluation", partial(evaluation.measure, images=count)),
        *(pretrain(batch, precision) for batch in (middle, small) for precision in _AMP),
    ]
    if tiny:  # no float16, and minutes for each network that is compiled
        return planned
    return [
        *planned,
        *(finetune(config, 2, half=True) for config in (FPN, C4)),
        *(finetune(config, whole) for config in (FPN, C4)),
        *(
            pretrain(batch, precision, compiled=True)
            for batch in (large, middle, small)
            for precision in _AMP
        ),
        *(finetune(config, whole, half=True) for config in (FPN, C4)),
    ]
