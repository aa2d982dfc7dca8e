"""The bytes that a step sends, counted in two and four processes, and the formulas and figures of docs/scaling.md."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as td
from torch import nn

from pretrain import config
from pretrain.common import distributed
from pretrain.data.on_device import Pixels
from pretrain.model import build, moco, norm
from pretrain.train.step import train_step
from tests.support.scripts import ROOT

BATCH, SIZE, DIM = 16, 32, 8
SMALL = [
    "MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", "MODEL.DIM", str(DIM), "MOCO.K", "64", "INPUT.SIZE", str(SIZE),
    "SOLVER.IMS_PER_BATCH", str(BATCH), "SOLVER.AMP", "off", "DEVICE", "cpu",
]  # fmt: skip
NORMS = {
    "groups on each process": ["MODEL.BN_GROUP_SIZE", "4"],
    "groups of two processes": ["MODEL.BN_GROUP_SIZE", "8"],  # on four, where a process has 4 images
    "SyncBN": ["MODEL.NORM", "SyncBN"],
}


@contextlib.contextmanager
def counted() -> Iterator[dict[str, list[int]]]:
    """Yield a dict of lists, to which each collective adds the bytes that this process gives to it."""
    spent: dict[str, list[int]] = {"all_reduce": [], "all_gather": []}
    reduce, gather = td.all_reduce, td.all_gather

    def all_reduce(tensor: torch.Tensor, *args: object, **options: object) -> object:
        spent["all_reduce"].append(tensor.nbytes)
        return reduce(tensor, *args, **options)

    def all_gather(
        parts: list[torch.Tensor], tensor: torch.Tensor, *args: object, **options: object
    ) -> object:
        spent["all_gather"].append(tensor.nbytes)
        return gather(parts, tensor, *args, **options)

    td.all_reduce, td.all_gather = all_reduce, all_gather
    try:
        yield spent
    finally:
        td.all_reduce, td.all_gather = reduce, gather


def count_steps(folder: str) -> None:
    """Take a step with each norm, in every process; the last one writes what it gave."""
    torch.set_num_threads(1)
    device, found = torch.device("cpu"), {}
    distributed.init_from_env(device)
    processes = distributed.world_size()
    for name, settings in NORMS.items():
        cfg = config.load("pretrain/moco_v2_R50.yaml", [*SMALL, *settings], processes=processes)
        model, optimizer, _ = build.build(cfg, device, images=64, decide=False)
        views = torch.randint(0, 256, (2, BATCH // processes, SIZE, SIZE, 3), dtype=torch.uint8)
        with counted() as spent:
            train_step(
                model, optimizer, (views[0], views[1]), pixels=Pixels(cfg.INPUT.MEAN, cfg.INPUT.STD),
                order=moco.key_order(cfg, 0), parts=norm.parts(cfg, device),
            )  # fmt: skip
        found[name] = spent
    if distributed.rank() == processes - 1:
        channels = [layer.num_features for layer in batch_norms(model.encoder_q)]
        weights = sum(weight.numel() for weight in model.encoder_q.parameters())
        content = {"spent": found, "channels": channels, "weights": weights}
        Path(folder, f"{processes}.json").write_text(json.dumps(content))


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]


def reduced(weights: int, channels: int, *, dim: int) -> int:
    """Bytes of the one all-reduce: gradients, the loss, two moments of the queries, and the running mean and variance
    of each channel of both encoders, all float32.
    """
    return 4 * (weights + 1 + 2 * dim + 2 * 2 * channels)


def gathered(images: int, *, size: int, dim: int) -> list[int]:
    """Bytes of the two gathers of shuffling BN: this process's key views, uint8, and its keys, float32."""
    return [images * size * size * 3, images * dim * 4]


def synced(channels: list[int]) -> tuple[list[int], list[int]]:
    """Bytes of each gather of SyncBN (sum, deviations and count; both encoders) and of each all-reduce (the queries'
    backward pass).
    """
    return [4 * (2 * each + 1) for each in channels] * 2, [4 * 2 * each for each in channels]


@pytest.mark.parametrize("processes", [2, 4])
def test_a_step_sends_what_the_formulas_say(tmp_path: Path, processes: int) -> None:
    distributed.spawn(count_steps, processes, (str(tmp_path),))
    found = json.loads((tmp_path / f"{processes}.json").read_text())
    channels, local = found["channels"], BATCH // processes
    whole = reduced(found["weights"], sum(channels), dim=DIM)
    views, keys = gathered(local, size=SIZE, dim=DIM)
    statistics, gradients = synced(channels)
    wanted = {
        "groups on each process": ([views, keys], [whole]),
        "groups of two processes": ([views, keys], [whole]) if local >= 8
        else ([views, keys, *statistics], [whole, *gradients]),
        "SyncBN": ([keys, *statistics], [whole, *gradients]),
    }  # fmt: skip
    for name, (gathers, reductions) in wanted.items():
        spent = found["spent"][name]
        assert sorted(spent["all_gather"]) == sorted(gathers), name
        assert sorted(spent["all_reduce"]) == sorted(reductions), name


def page() -> str:
    return (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def number(text: str) -> float:
    return float(re.sub(r"[^\d.]", "", text))


def resnet50() -> tuple[int, list[int]]:
    """Trained weights and the channels of the batch-norm layers of MoCo v2's encoder, which is not filled here."""
    cfg = config.load("pretrain/moco_v2_R50.yaml", ["DEVICE", "cpu"])
    with torch.device("meta"):
        encoder = build.encoder_maker(cfg, norm.norm_layer(cfg, torch.device("cpu")))()
    return sum(weight.numel() for weight in encoder.parameters()), [
        layer.num_features for layer in batch_norms(encoder)
    ]


def test_the_bytes_of_resnet_50_in_the_docs() -> None:
    weights, channels = resnet50()
    assert (
        f"{weights:,} weights" in page() and f"{sum(channels):,} channels in {len(channels)} layers" in page()
    )
    whole = reduced(weights, sum(channels), dim=128)
    views, keys = gathered(32, size=224, dim=128)
    statistics, gradients = synced(channels)
    for sentence in (
        f"{whole / 1e6:.1f} MB", f"{views / 1e6:.2f} MB", f"{keys / 1e3:.1f} kB", f"{sum(statistics) / 1e3:.0f} kB",
        f"{sum(gradients) / 1e3:.0f} kB", f"{4 * 128 * 65536 / 1e6:.1f} MB",
    ):  # fmt: skip
        assert sentence in page(), sentence


def test_the_worked_example_follows_from_the_formulas() -> None:
    """The table of docs/scaling.md: GPUs, images on each, assumed link, then step, images/s, hours and efficiency."""
    weights, channels = resnet50()
    speed = number(re.search(r"ASSUMPTION: A = ([\d,]+) pairs/s", page())[1])  # type: ignore[index]
    rows = re.findall(
        r"^\| (\d+) \| (\d+) \| ([\d–]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$",
        page(),
        re.M,
    )
    assert [row[0] for row in rows] == ["1", "8", "64", "64"]
    for gpus, local, link, *shown in rows:
        w, n = int(gpus), int(local)
        sent = 2 * (w - 1) / w * reduced(weights, sum(channels), dim=128)
        received = (w - 1) * sum(gathered(n, size=224, dim=128))
        step = n / speed + ((sent + received) / (1e9 * float(link)) if w > 1 else 0)
        rate = w * n / step
        wanted = [
            1000 * step, rate, 200 * 1_281_167 / rate / 3600, 100 * rate / (w * speed), rate * 115.4e3 / 1e9,
        ]  # fmt: skip
        for value, text in zip(wanted, shown, strict=True):
            assert number(text) == pytest.approx(value, rel=0.02), (gpus, local, text, value)
