"""The demo: photographs -> MoCo -> detectron2 weights -> Mask R-CNN from two initialisations -> an HTML page."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pretrain import config as pretrain_config
from pretrain.common.configs import ROOT, digest_text
from pretrain.common.console import duration, say
from pretrain.common.errors import UserError
from pretrain.common.files import write_json, write_text
from pretrain.common.run_folder import held
from transfer.config.load import load_config
from transfer.data.on_disk import check_demo
from transfer.demo import demo_page, mechanism_page, stages
from transfer.demo.stages import Stage
from transfer.report.html import render
from transfer.results import environment

# The code that the result of each stage depends on. Code that only presents results (report, demo, reproduce) does not
# count.
PRETRAIN_CODE = (ROOT / "pretrain", ROOT / "tools/pretrain.py")
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
    """A size of the demo. Both initialisations are fine-tuned with the same schedule.

    Attributes:
        pretrain: overrides of `pretrain/demo_R50w25.yaml`.
        finetune: overrides of `transfer/demo_R50w25_FPN.yaml`.
        seeds: seeds of the fine-tuning runs of each initialisation.
    """

    pretrain: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)


SIZES = {
    # For CI: every stage runs, but the networks learn nothing.
    "quick": Size(
        pretrain=("SOLVER.MAX_EPOCH", "3", "KNN.PERIOD", "3", "KNN.MAX_IMAGES", "200"),
        finetune=("SOLVER.MAX_ITER", "60", "SOLVER.STEPS", "(40, 54)", "SOLVER.WARMUP_ITERS", "10"),
    ),
    "standard": Size(),
    "full": Size(
        pretrain=("SOLVER.MAX_EPOCH", "40"),
        finetune=("SOLVER.MAX_ITER", "5400", "SOLVER.STEPS", "(4320, 5130)"),
        seeds=(0, 1, 2),
    ),
}

# Figure A.1 (batch norm) and Section 4.1 (momentum). The first run is also the one with m = 0.99.
MECHANISM = {
    "shuffle_bn": (),
    "no_shuffle": ("MOCO.SHUFFLE", "False"),
    "sync_bn": ("MODEL.NORM", "SyncBN"),
    "m_0": ("MOCO.M", "0.0"),
    "m_0.9": ("MOCO.M", "0.9"),
    "m_0.999": ("MOCO.M", "0.999"),
}


def run(size: str, *, root: Path, output: Path, debs: tuple[Path, ...] = ()) -> None:
    """Run the demo and write `output/report.html`. Stages that are already done are skipped.

    Args:
        size: one of `SIZES`.
        root: folder of the data sets.
        output: folder of the results.
        debs: Debian packages downloaded elsewhere, for a machine without apt.
    """
    with held(output / size, "--output"):
        _run(size, root=root, output=output, debs=debs)


def _run(size: str, *, root: Path, output: Path, debs: tuple[Path, ...]) -> None:
    start = time.perf_counter()
    plan, folder, data = SIZES[size], output / size, root / f"demo_{size}"
    done = stages.run([_data_stage(size, root, debs)], folder / "stages")
    pretrain = _pretrain_stage(
        "pretrain", "pretrain/demo_R50w25.yaml", folder / "pretrain", data, plan.pretrain
    )
    done += stages.run([pretrain], folder / "stages")
    weights, record = folder / "moco.pkl", folder / "convert.json"
    command = ("tools/convert_to_d2.py", str(pretrain.output), str(weights), "--record", str(record))
    inputs = (*TRANSFER_CODE, ROOT / "tools/convert_to_d2.py", pretrain.output)
    done += stages.run([Stage("convert", command, record, inputs, _versions())], folder / "stages")
    for seed in plan.seeds:
        pair = [
            _finetune_stage("moco", seed, folder, root, (*plan.finetune, "MODEL.WEIGHTS", str(weights))),
            _finetune_stage("random", seed, folder, root, (*plan.finetune, "MODEL.INIT", "random")),
        ]
        done += stages.run(pair, folder / "stages")
    write_json(folder / "demo.json", {"size": size, "data": str(data), "seeds": list(plan.seeds)})
    write_demo(folder, done, output / "report.html")
    say(f"report: {output / 'report.html'}   ({duration(time.perf_counter() - start)} in total)")


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


def _finetune_stage(init: str, seed: int, folder: Path, root: Path, overrides: tuple[str, ...]) -> Stage:
    name = f"{init}-seed{seed}"
    config, data = "transfer/demo_R50w25_FPN.yaml", f"demo_{folder.name}"
    overrides = (
        *overrides, "SEED", str(seed), "DATASETS.ROOT", str(root), "DATASETS.TRAIN", f"{data}_train",
        "DATASETS.TEST", f"{data}_val", "OUTPUT_DIR", str(folder / "finetune" / name),
    )  # fmt: skip
    cfg = load_config(config, overrides)
    weights = (Path(cfg.MODEL.WEIGHTS),) if cfg.MODEL.WEIGHTS else ()
    return Stage(
        name,
        ("tools/train_net.py", "--config", config, *overrides),
        folder / "finetune" / name / "results.json",
        (*TRANSFER_CODE, ROOT / "tools/train_net.py", root / data / "demo.json", *weights),
        digest_text(cfg) + _versions(),
        resumable=True,
    )


def write_demo(folder: Path, stages: Sequence[dict[str, Any]], output: Path) -> None:
    """Write the demo's page.

    Args:
        folder: results of one demo run: `demo.json`, `pretrain/`, `convert.json`, `finetune/INIT-seedN/`.
        stages: `name`, `command`, `seconds` and `cached` of each stage, in order.
        output: the HTML file. It links to `mechanism.html` in the same folder if that file exists.
    Raises:
        UserError: a file that the page needs is missing or unreadable.
    """
    other = output.with_name("mechanism.html")
    context = demo_page.context(folder) | {"mechanism": other.name if other.exists() else None}
    _write("report.html", context, stages=stages, output=output)


def write_mechanism(folder: Path, stages: Sequence[dict[str, Any]], output: Path) -> None:
    """Write the page about batch norm and momentum, in the same way as `write_demo`.

    Args:
        folder: contains a folder for each setting, with `metrics.json` and `config.yaml`.
    """
    other = output.with_name("report.html")
    context = mechanism_page.context(folder) | {"report": other.name if other.exists() else None}
    _write("mechanism.html", context, stages=stages, output=output)


def _write(template: str, context: dict[str, Any], *, stages: Sequence[dict[str, Any]], output: Path) -> None:
    total = sum(stage["seconds"] for stage in stages)
    text = render(template, {**context, "stages": stages, "total": total})
    write_text(output, text, errors="replace")  # a file name may not be valid text
