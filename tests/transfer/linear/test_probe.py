"""The linear probe: features are compared with torchvision, training with a hand-written loop, runs with runs."""

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torchvision.transforms import v2

from pretrain.common import distributed
from pretrain.common.configs import merge
from pretrain.common.errors import UserError
from pretrain.data import class_folders
from pretrain.data.decode import centre_view
from pretrain.data.folders import ImageFiles
from pretrain.data.loader import Batches
from pretrain.model.encoders import architecture
from pretrain.tensor_files import checkpoint
from tests.support.checkpoints import moco_file, plain_file, small_network, torchvision_network
from tests.support.scripts import ROOT, kill_script, run_script, start_script
from transfer.convert import convert
from transfer.convert.preprocessing import MSRA
from transfer.convert.tensor_names import detectron2_name
from transfer.linear import backbone as linear_backbone
from transfer.linear import command as linear_command
from transfer.linear import config as linear_config
from transfer.linear import crops as linear_crops
from transfer.linear import loop
from transfer.linear import rank as linear_rank
from transfer.linear import results as linear_results
from transfer.linear import run as linear_run
from transfer.linear.classifiers import Classifiers
from transfer.linear.features import Fixed
from transfer.linear.knn import knn_accuracy
from transfer.linear.state import save

MakeFolder = Callable[..., Path]
CPU = torch.device("cpu")
SMALL = [
    "INPUT.SIZE", "32", "DATA.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.1",
    "SOLVER.MAX_EPOCH", "3", "SOLVER.STEPS", "[2]", "DEVICE", "cpu",
]  # fmt: skip


class Task:
    """Class folders and a checkpoint, with methods that run the probe on them."""

    def __init__(self, make: MakeFolder, folder: Path) -> None:
        self.folder = folder
        self.train = make(10, classes=("a", "b"), seed=1)
        self.val = make(4, classes=("a", "b"), seed=2)
        network = small_network("resnet18").state_dict()
        self.weights = str(moco_file(folder / "moco.pth.tar", network))

    def overrides(self, output: str, *more: str) -> list[str]:
        data = ["DATA.TRAIN", str(self.train), "DATA.VAL", str(self.val)]
        return [*SMALL, *data, "OUTPUT_DIR", str(self.folder / output), *more]

    def config(self, output: str, *more: str) -> Any:
        return linear_config.load("linear/imagenet.yaml", self.overrides(output, *more))

    def run(self, output: str, *more: str, weights: str = "", **options: Any) -> dict[str, Any]:
        linear_run.run(self.config(output, *more), weights or self.weights, **options)
        name = "knn.json" if options.get("knn") else "results.json"
        return json.loads((self.folder / output / name).read_text())

    def state(self, output: str) -> dict[str, Any]:
        return checkpoint.load(self.folder / output / "linear_last.pth")

    def command(self, output: str, *more: str) -> list[str]:
        return ["tools/linear_eval.py", "--weights", self.weights, *self.overrides(output, *more)]


@pytest.fixture
def task(image_folder: MakeFolder, tmp_path: Path) -> Task:
    return Task(image_folder, tmp_path)


def solver(**changes: Any) -> Any:
    cfg = linear_config.defaults().SOLVER
    cfg.update(changes)
    return cfg


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    pairs = zip(a["layers"], b["layers"], strict=True)
    momenta = zip(a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True)
    return all(torch.equal(x[name], y[name]) for x, y in pairs for name in x) and all(
        torch.equal(x["momentum_buffer"], y["momentum_buffer"]) for x, y in momenta
    )


# --- RankMe: which checkpoint, without labels


def test_checkpoints_are_ordered_by_the_rank_of_their_features(
    task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against the singular values of the features. No class folders are needed, and no test images."""
    collapsed = small_network("resnet18").state_dict()
    for name in collapsed:
        if name.startswith("layer4") and name.endswith(("bn2.weight", "downsample.1.weight")):
            collapsed[name].zero_()  # res5 is then the same for every image
    bad = str(moco_file(task.folder / "collapsed.pth.tar", collapsed))
    flat = task.folder / "flat"
    flat.mkdir()
    for n, path in enumerate(sorted(task.train.rglob("*.jpg"))):
        shutil.copy(path, flat / f"{n}.jpg")
    (flat / "broken.jpg").write_bytes(b"no image")
    cfg = linear_config.load(
        "linear/imagenet.yaml", [*SMALL, "DATA.TRAIN", str(flat), "OUTPUT_DIR", str(task.folder / "rank")],
        folders=("DATA.TRAIN",),
    )  # fmt: skip
    best, worst = linear_rank.run(cfg, [bad, task.weights])
    assert (best["weights"], worst["weights"]) == (task.weights, bad) and worst["rankme"] == pytest.approx(
        1, abs=0.01
    )
    extract = linear_backbone.Extractor(linear_backbone.load(task.weights, cfg), CPU)
    views = [centre_view(path.read_bytes(), 32) for path in sorted(flat.glob("[0-9]*.jpg"))]
    singular = np.linalg.svd(extract(torch.from_numpy(np.stack(views))).numpy(), compute_uv=False)
    shares = singular / singular.sum()
    assert best["rankme"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-3)
    assert best["images"] == len(views) == 20 and best["largest"] == 20
    assert f"best: {task.weights}" in capsys.readouterr().out
    assert [each["rankme"] for each in json.loads((task.folder / "rank/rankme.json").read_text())["checkpoints"]] == [
        best["rankme"], worst["rankme"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --weights FILE, or --rank FILE FILE"),
        (["--rank", "a.pth", "--weights", "b.pth"], "--rank and --weights: give one of them"),
        (["--rank", "a.pth", "--knn"], "--rank and --knn: give one of them"),
    ],
)
def test_what_to_measure_must_be_clear(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["linear_eval.py", *words])
    with pytest.raises(UserError, match=message):
        linear_command.main("")


# --- features and views


def test_features_are_torchvisions(tmp_path: Path) -> None:
    """They equal the average pool of torchvision's network after torchvision's normalisation."""
    network = torchvision_network("resnet18").eval()
    path = plain_file(tmp_path / "weights.pth", network.state_dict())
    backbone = linear_backbone.load(str(path), linear_config.defaults())
    images = torch.randint(0, 256, (3, 64, 96, 3), dtype=torch.uint8)
    ours = linear_backbone.Extractor(backbone, CPU)(images)
    network.fc = torch.nn.Identity()
    batch = v2.functional.to_dtype(images.permute(0, 3, 1, 2), torch.float32, scale=True)
    with torch.no_grad():
        theirs = network(v2.functional.normalize(batch, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert ours.shape == (3, 512) and (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_a_converted_file_gives_the_same_features_as_its_source(tmp_path: Path) -> None:
    path = moco_file(tmp_path / "moco.pth.tar", small_network().state_dict())
    convert.convert(path, tmp_path / "moco.pkl")
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    features = [
        linear_backbone.Extractor(linear_backbone.load(str(file), linear_config.defaults()), CPU)(images)
        for file in (path, tmp_path / "moco.pkl")
    ]
    assert torch.equal(*features)


def test_recorded_preprocessing_is_used(tmp_path: Path) -> None:
    """The features for a Caffe record (BGR, 0..255) equal those of a forward pass written by hand."""
    backbone = linear_backbone.load("random", linear_config.defaults())
    caffe = linear_backbone.Backbone(backbone.network, backbone.architecture, MSRA, "", "", "")
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    bgr = images.permute(0, 3, 1, 2).flip(1).float() - torch.tensor(MSRA.mean).view(3, 1, 1)
    expected = backbone.network.features(bgr)["res5"].mean((2, 3))
    actual = linear_backbone.Extractor(caffe, CPU)(images)
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_random_crops_are_distributed_as_torchvisions(tmp_path: Path) -> None:
    """Compare areas, aspect ratios and flips of many crops of an image whose colours encode the coordinates."""
    x, y = np.meshgrid(np.linspace(0, 255, 400), np.linspace(0, 255, 300))
    Image.fromarray(np.stack([x, y, x], 2).astype(np.uint8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    ours, theirs = [], []
    torch.manual_seed(0)
    for n in range(1500):
        view = linear_crops.random_crop(data, 32, counters=(0, n, 0)).astype(float)
        width, height = (
            abs(view[16, -1, 0] - view[16, 0, 0]) / 255,
            abs(view[-1, 16, 1] - view[0, 16, 1]) / 255,
        )
        ours.append([width * height, width / height, view[16, 0, 0] > view[16, -1, 0]])
        _, _, h, w = torchvision.transforms.RandomResizedCrop.get_params(
            torch.empty(3, 300, 400), (0.08, 1.0), (3 / 4, 4 / 3)
        )
        w, h = w / 400 * 31 / 32, h / 300 * 31 / 32  # between the centres of the outer pixels
        theirs.append([w * h, w / h])
    a, b = np.array(ours), np.array(theirs)
    for column in range(2):
        quantiles = [np.quantile(part[:, column], [0.1, 0.3, 0.5, 0.7, 0.9]) for part in (a, b)]
        assert np.abs(quantiles[0] - quantiles[1]).max() < 0.05, quantiles
    assert a[:, 2].mean() == pytest.approx(0.5, abs=0.05)


def test_unreadable_training_images_are_replaced_with_their_class(task: Task) -> None:
    for name in ("0000", "0003"):
        (task.train / "a" / f"{name}.jpg").write_bytes(b"no image")
    (task.train / "a" / "0003.jpg").unlink()
    (task.train / "a" / "0003.jpg").symlink_to(task.train / "nowhere.jpg")
    images = class_folders.LabelledImages(str(task.train), key="DATA.TRAIN")
    crops = linear_crops.RandomCrops(images, size=32, seed=0)
    crop = crops[0, 0]
    other = 7919 % 20
    assert crop.broken == [0] and crop.label == images.labels[other]
    assert np.array_equal(crop.pixels, crops[0, other].pixels)
    with pytest.raises(UserError, match=r"DATA\.MAX_BROKEN 0\.01: . of 20 images could not be read"):
        task.run("views", "SOLVER.IMS_PER_BATCH", "4")
    assert task.state("views")["iteration"] in (
        1,
        2,
        3,
    )  # of 5 per epoch: the run ends at once, with its state saved
    with pytest.raises(UserError, match=r"DATA\.MAX_BROKEN 0\.01: 2 of 20 images could not be read"):
        task.run("cached", "CACHE", "True")
    assert task.run("allowed", "CACHE", "True", "DATA.MAX_BROKEN", "0.5")["data"]["train"]["unreadable"] == 2
    (task.val / "a" / "0000.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"DATA\.VAL .*: 1 images cannot be read, the first is .*0000\.jpg"):
        task.run("val")


# --- the classifiers


def test_two_steps_by_hand() -> None:
    """Compare with softmax regression with momentum and explicit gradients, (softmax - one-hot) x^T / N."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(2, 6, 4)), rng.integers(0, 3, (2, 6))
    ours = Classifiers(4, 3, rates=[30.0], solver=solver(STEPS=[1]), seed=0, device=CPU)
    w, b = ours.layers[0].weight.detach().double().numpy().copy(), np.zeros(3)
    assert np.allclose(ours.layers[0].bias.detach(), 0) and w.std() == pytest.approx(0.01, rel=0.5)
    vw, vb = np.zeros_like(w), np.zeros_like(b)
    for n, rate in enumerate(
        (30.0, 3.0)
    ):  # the second step is in epoch 1, where the rate is multiplied by 0.1
        scores = x[n] @ w.T + b
        p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        loss = -np.log(p[range(6), labels[n]]).mean()
        p[range(6), labels[n]] -= 1
        vw, vb = 0.9 * vw + p.T @ x[n] / 6, 0.9 * vb + p.mean(0)
        w, b = w - rate * vw, b - rate * vb
        measured = ours.step(torch.tensor(x[n]).float(), torch.tensor(labels[n]), epoch=n)
        assert measured.item() == pytest.approx(loss, rel=1e-4)
    assert np.allclose(ours.layers[0].weight.detach(), w, rtol=1e-4, atol=1e-4)
    assert np.allclose(ours.layers[0].bias.detach(), b, rtol=1e-4, atol=1e-4)


def test_factors_of_the_papers_schedule() -> None:
    classifiers = Classifiers(2, 2, rates=[30.0], solver=solver(), seed=0, device=CPU)
    factors = [classifiers.factor(epoch) for epoch in range(100)]
    assert factors == pytest.approx([1.0] * 60 + [0.1] * 20 + [0.01] * 20)


def test_factors_of_moco_v3s_schedule() -> None:
    """Against PyTorch's scheduler, and the cosines of 0, 60, 90 and 120 degrees: at 0, 1/3, 1/2 and 2/3 of the run."""
    cosine = solver(SCHEDULE="cosine", MAX_EPOCH=90)
    classifiers = Classifiers(4, 3, rates=[1.0], solver=cosine, seed=0, device=CPU)
    assert [classifiers.factor(epoch) for epoch in (0, 30, 45, 60)] == pytest.approx([1, 0.75, 0.5, 0.25])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 90)
    for epoch in range(90):
        assert classifiers.factor(epoch) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_the_protocol_of_moco_v3() -> None:
    """The values of main_lincls.py and CONFIG.md in facebookresearch/moco-v3: rates are 0.1 and 3 for 256 images."""
    for network, rate in (("R50", 0.1), ("ViT", 3)):
        cfg = linear_config.load(f"linear/imagenet_moco_v3_{network}.yaml", folders=())
        assert pytest.approx(rate) == 256 * cfg.SOLVER.BASE_LR / cfg.SOLVER.IMS_PER_BATCH
        values = [
            cfg.SOLVER[key] for key in ("IMS_PER_BATCH", "MAX_EPOCH", "SCHEDULE", "MOMENTUM", "WEIGHT_DECAY")
        ]
        assert values == [1024, 90, "cosine", 0.9, 0] and cfg.INPUT.SIZE == 224 and not cfg.CACHE
        assert "SOLVER.SCHEDULE cosine (step)" in linear_results.differences(cfg)


def test_separable_features_are_separated() -> None:
    torch.manual_seed(0)
    labels = torch.arange(60) % 6
    features = torch.eye(6)[labels] + 0.05 * torch.randn(60, 6)
    classifiers = Classifiers(6, 6, rates=[1.0, 1e-9], solver=solver(), seed=0, device=CPU)
    for _ in range(100):
        losses = classifiers.step(features, labels, epoch=0)
    assert losses[0] < 0.1 and losses[1] == pytest.approx(math.log(6), abs=0.02)
    trained, untrained = classifiers.accuracy(features.numpy(), labels.numpy())
    assert trained == (100, 100) and untrained[0] < 60


def test_accuracy_by_hand() -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(2500, 5)).astype(np.float32), rng.integers(0, 9, 2500)
    classifiers = Classifiers(5, 9, rates=[1.0], solver=solver(), seed=0, device=CPU)
    scores = features @ classifiers.layers[0].weight.detach().numpy().T
    ranks = (scores > scores[range(2500), labels][:, None]).sum(1)
    expected = 100 * (ranks < 1).mean(), 100 * (ranks < 5).mean()
    assert classifiers.accuracy(features, labels) == [pytest.approx(expected)]


def test_knn_by_hand() -> None:
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(40, 4)).astype(np.float32), rng.normal(size=(300, 4)).astype(np.float32)
    labels, answers = rng.integers(0, 3, 40), rng.integers(0, 3, 300)
    readable = np.setdiff1d(np.arange(40), [3, 7])
    train = Fixed(bank, labels, readable, [3, 7])
    val = Fixed(queries, answers, np.arange(300), [])
    right = 0
    for query, answer in zip(queries, answers, strict=True):
        cosines = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        nearest = sorted(readable, key=lambda n: -cosines[n])[:5]
        votes = [sum(np.exp(cosines[n] / 0.5) for n in nearest if labels[n] == c) for c in range(3)]
        right += int(np.argmax(votes) == answer)
    assert knn_accuracy(train, val, k=5, temperature=0.5, device=CPU) == pytest.approx(100 * right / 300)


# --- whole runs


def test_what_a_run_leaves(task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    results = task.run("run")
    output = task.folder / "run"
    names = ["config.yaml", "features", "linear_last.pth", "metrics.json", "results.json"]
    assert sorted(path.name for path in output.iterdir()) == names
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert [(line["iteration"], line["epoch"]) for line in lines] == [(2, 1), (4, 2), (6, 3)]
    assert [line["lr"] for line in lines] == pytest.approx([0.1, 0.1, 0.01])
    assert {key: results[key] for key in ("top1", "top5", "loss")} == {
        key: lines[-1][key] for key in ("top1", "top5", "loss")
    }
    assert results["views"] == "random crops" and not results["chosen_on_val"] and not results["published"]
    assert results["data"]["train"]["images"] == 20 and results["weights"]["network"].startswith("moco, ")
    assert list(results["versions"]) == [
        "moco-detection-transfer", "python", "torch", "torchvision", "numpy", "opencv",
    ]  # fmt: skip
    assert list(results["hardware"]) == ["machine", "gpu", "processes", "threads"]
    assert "published: no numbers for this network and data" in capsys.readouterr().out


def test_cached_training_equals_a_loop_by_hand(task: Task) -> None:
    """The loop trains one classifier in plain PyTorch on centre crops, in the order given by (seed, epoch)."""
    task.run("run", "CACHE", "True")
    cfg = task.config("run", "CACHE", "True")
    images = class_folders.LabelledImages(str(task.train), key="DATA.TRAIN")
    assert images.labels.tolist() == 10 * [0] + 10 * [1]
    extract = linear_backbone.Extractor(linear_backbone.load(task.weights, cfg), CPU)
    views = [centre_view(images.files.read(n), 32) for n in range(20)]
    features, labels = extract(torch.from_numpy(np.stack(views))), torch.from_numpy(images.labels)
    start = Classifiers(64, 2, rates=[0.1], solver=cfg.SOLVER, seed=0, device=CPU).layers[0]
    weight = start.weight.detach().clone().requires_grad_()
    bias = start.bias.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([weight, bias], lr=0.1, momentum=0.9)
    for epoch, lr in enumerate((0.1, 0.1, 0.01)):
        optimizer.param_groups[0]["lr"] = lr
        order = list(Batches(20, cfg, start=2 * epoch, stop=2 * epoch + 2))
        assert len({index for batch in order for _, index in batch}) == 16
        for batch in order:
            rows = [index for _, index in batch]
            optimizer.zero_grad()
            F.cross_entropy(features[rows] @ weight.T + bias, labels[rows]).backward()
            optimizer.step()
    layer = task.state("run")["layers"][0]
    assert torch.allclose(layer["weight"], weight, rtol=1e-4, atol=1e-5)
    assert torch.allclose(layer["bias"], bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cache", ["True", "False"])
def test_a_sweeps_classifiers_equal_runs_of_their_own(task: Task, cache: str) -> None:
    results = task.run("sweep", "SWEEP", "[0.01, 1.0]", "CACHE", cache)
    swept = task.state("sweep")
    for n, rate in enumerate(("0.01", "1.0")):
        alone = task.run(f"alone{n}", "SOLVER.BASE_LR", rate, "CACHE", cache)
        layer = task.state(f"alone{n}")["layers"][0]
        assert all(torch.equal(swept["layers"][n][name], layer[name]) for name in layer)
        assert alone["rates"] == [results["rates"][n]]
    assert results["chosen_on_val"] and results["top1"] == max(row["top1"] for row in results["rates"])


def test_features_are_computed_once(task: Task, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second run reuses them, but not with other weights, another size, one more image or a damaged file."""
    seen: list[int] = []
    call = linear_backbone.Extractor.__call__

    def counting(self: Any, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return call(self, images)

    monkeypatch.setattr(linear_backbone.Extractor, "__call__", counting)

    def images_computed(*more: str, **options: Any) -> int:
        seen.clear()
        results.append(task.run("run", *more, knn=True, **options)["knn"]["top1"])
        return sum(seen)

    results: list[float] = []
    assert images_computed() == 28
    assert images_computed() == 0 and results[0] == results[1]
    other = small_network("resnet18").state_dict()
    other["layer1.0.conv1.weight"] += 0.1
    assert images_computed(weights=str(moco_file(tmp_path / "other.pth", other))) == 28
    assert images_computed("INPUT.SIZE", "40") == 28
    assert images_computed() == 0
    files = sorted((task.folder / "run" / "features").glob("*.npy"))
    for path in files:
        path.write_bytes(path.read_bytes()[:200])
    assert images_computed() == 28
    Image.new("RGB", (40, 40)).save(task.val / "b" / "new.png")
    assert images_computed() == 9


def test_features_of_images_that_were_mended_or_changed(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file becomes readable with the same size and time; a picture changes and its file keeps its size."""
    path, read = str(task.val / "b" / "0002.jpg"), ImageFiles.read

    def refuse(self: ImageFiles, index: int) -> bytes:
        if self[index] == path:
            raise PermissionError
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(ImageFiles, "read", refuse)
        for _ in range(2):
            with pytest.raises(UserError, match=r"1 images cannot be read, the first is .*b/0002\.jpg"):
                task.run("run", knn=True)
    task.run("run", knn=True)

    picture, raw = Image.open(task.train / "a" / "0001.jpg"), task.train / "a" / "raw.bmp"
    found = []
    for pixels in (picture, picture.rotate(180)):
        pixels.save(raw)  # the file size does not depend on the content
        task.run("run", knn=True)
        newest = max(
            (task.folder / "run" / "features").glob("*.npy"), key=lambda file: file.stat().st_mtime_ns
        )
        found.append(np.load(newest))
    assert len(found[0]) == len(found[1]) == 21 and not np.array_equal(*found)


def test_leftovers_of_a_kill_are_removed(task: Task) -> None:
    """Features of ImageNet take 10 GB."""
    output = task.folder / "run"
    (output / "features").mkdir(parents=True)
    for name in (".linear_last.pth.a1", ".metrics.json.b_", "features/.0123.npy.c", "features/.0123.json.d"):
        (output / name).touch()
    stay = [output / ".mine.txt", output / "features" / ".mine.npy"]
    for path in stay:
        path.touch()
    task.run("run", knn=True)
    assert sorted(output.rglob(".*")) == sorted(stay)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_resume_is_bit_equal(
    task: Task, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    """A signal in the second epoch ends the run with its exit status; the resumed run ends like an undisturbed one."""
    whole = task.run("whole", "SWEEP", "[0.01, 1.0]")
    step = Classifiers.step
    count = []

    def signalling(self: Classifiers, *arguments: Any, **more: Any) -> torch.Tensor:
        count.append(1)
        if len(count) == 3:
            os.kill(os.getpid(), number)
        return step(self, *arguments, **more)

    monkeypatch.setattr(Classifiers, "step", signalling)
    with pytest.raises(SystemExit) as stopped:
        task.run("parts", "SWEEP", "[0.01, 1.0]")
    assert stopped.value.code == status and task.state("parts")["iteration"] == 3
    with pytest.raises(UserError, match="add --resume"):
        task.run("parts", "SWEEP", "[0.01, 1.0]")
    parts = task.run("parts", "SWEEP", "[0.01, 1.0]", resume=True)
    assert equal(task.state("whole"), task.state("parts"))
    assert parts["rates"] == whole["rates"]
    metrics = [(task.folder / name / "metrics.json").read_text() for name in ("whole", "parts")]
    assert metrics[0] == metrics[1]
    # Resuming a finished run repeats its result.
    assert task.run("parts", "SWEEP", "[0.01, 1.0]", resume=True)["rates"] == whole["rates"]


def test_from_an_older_state(
    task: Task, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It becomes the last state, the former one is kept, and the end is that of an undisturbed run."""
    whole, last, backup = task.run("run"), task.folder / "run" / "linear_last.pth", task.folder / "backup"
    monkeypatch.setattr(
        loop, "save", lambda state, cfg: save(state, cfg) or os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(SystemExit):
        task.run("older")
    os.replace(task.folder / "older" / "linear_last.pth", backup)
    monkeypatch.setattr(loop, "save", lambda state, cfg: None)
    newer = last.read_bytes()
    capsys.readouterr()
    task.run("run", resume=backup)
    printed = capsys.readouterr().out
    assert (
        f"resuming from {backup}, iteration " in printed and "kept as linear_last.1.pth; lines of" in printed
    )
    assert last.read_bytes() == backup.read_bytes()
    assert (task.folder / "run" / "linear_last.1.pth").read_bytes() == newer
    monkeypatch.undo()
    assert task.run("run", resume=True)["rates"] == whole["rates"]


def test_a_resumed_run_may_not_change_its_meaning(task: Task, tmp_path: Path) -> None:
    task.run("run")
    with pytest.raises(UserError, match=r"--resume: SOLVER\.MAX_EPOCH is 4 and was 3"):
        task.run("run", "SOLVER.MAX_EPOCH", "4", resume=True)
    other = moco_file(tmp_path / "other.pth", small_network("resnet18", 0.25).state_dict())
    with pytest.raises(UserError, match="--resume: --weights is not what"):
        task.run("run", weights=str(other), resume=True)
    Image.new("RGB", (40, 40)).save(task.train / "b" / "new.png")
    with pytest.raises(UserError, match=r"--resume: DATA\.TRAIN is not what"):
        task.run("run", resume=True)
    last = task.folder / "run" / "linear_last.pth"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"linear_last\.pth: not a readable PyTorch checkpoint"):
        task.run("run", resume=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_equal(task: Task) -> None:
    """A run with loader workers is killed at a random moment, twice, and resumed from the command line."""
    more = ["SOLVER.MAX_EPOCH", "40", "SOLVER.STEPS", "[20,30]", "DATA.NUM_WORKERS", "1"]
    assert run_script(*task.command("whole", *more)).returncode == 0
    moments = np.random.default_rng(0)
    for _ in range(2):
        before = len(_lines(task.folder / "parts"))
        process = start_script([*task.command("parts", *more), "--resume"], os.devnull, os.devnull)
        deadline = time.monotonic() + 300
        while len(_lines(task.folder / "parts")) < before + 3 and process.exitcode is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        kill_script(process)
    done = run_script(*task.command("parts", *more), "--resume")
    assert done.returncode == 0, done.stderr
    assert equal(task.state("whole"), task.state("parts"))
    assert _lines(task.folder / "whole") == _lines(task.folder / "parts")


def _lines(output: Path) -> list[str]:
    path = output / "metrics.json"
    return path.read_text().splitlines() if path.is_file() else []


def two_processes(weights: str, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    distributed.init_from_env(CPU)
    cfg = linear_config.load("linear/imagenet.yaml", overrides, processes=2)
    for knn in (False, True):
        linear_run.run(cfg, weights, knn=knn)


def test_two_processes_equal_one(task: Task) -> None:
    """Compare features, weights and accuracies; the 9 test images do not divide evenly into two."""
    Image.new("RGB", (40, 40), "red").save(task.val / "b" / "new.png")
    one, near = task.run("one"), task.run("one", "KNN.K", "5", knn=True)
    distributed.spawn(two_processes, 2, (task.weights, task.overrides("two", "KNN.K", "5")))
    two, knn = (json.loads((task.folder / "two" / name).read_text()) for name in ("results.json", "knn.json"))
    for name, value in task.state("one")["layers"][0].items():
        assert torch.allclose(value, task.state("two")["layers"][0][name], rtol=1e-4, atol=1e-6), name
    assert (one["top1"], one["top5"], near["knn"]["top1"]) == (two["top1"], two["top5"], knn["knn"]["top1"])
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    files = [sorted((task.folder / name / "features").glob("*.npy")) for name in ("one", "two")]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    for a, b in zip(*files, strict=True):
        assert np.allclose(np.load(a), np.load(b), rtol=1e-5, atol=1e-6)


# --- comparison with the papers, and wrong input


def test_published_numbers() -> None:
    sizes = {"classes": 1000, "train": 1_281_167, "val": 50_000}

    def numbers(name: str, width: float, **changes: int) -> list[Any]:
        found = linear_results.published(architecture(name, width), **{**sizes, **changes})
        return [row["top1"] for row in found]

    assert numbers("resnet50", 1.0) == [60.6, 67.5, 71.1, 76.5]
    assert numbers("resnext50_32x8d", 1.0) == [63.9]
    assert numbers("resnet50", 2.0) == [65.4] and numbers("resnet50", 4.0) == [68.6]
    assert not numbers("resnet18", 1.0) and not numbers("resnet50", 1.0, train=1_281_166)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], []),
        (["SEED", "3", "DATA.NUM_WORKERS", "0", "KNN.K", "5", "OUTPUT_DIR", "x"], []),
        (["SWEEP", "[1, 30]", "SOLVER.BASE_LR", "0.1"], []),
        (["SOLVER.BASE_LR", "0.1"], ["SOLVER.BASE_LR 0.1 (30)"]),
        (["CACHE", "True"], ["CACHE True (False)"]),
        (["INPUT.SIZE", "160"], ["INPUT.SIZE 160 (224)"]),
        (["SOLVER.IMS_PER_BATCH", "512"], ["SOLVER.IMS_PER_BATCH 512 (256)"]),
        (["SOLVER.MOMENTUM", "0", "SOLVER.WEIGHT_DECAY", "1e-4"],
         ["SOLVER.MOMENTUM 0 (0.9)", "SOLVER.WEIGHT_DECAY 0.0001 (0)"]),
        (["SOLVER.MAX_EPOCH", "10", "SOLVER.STEPS", "[6, 8]"],
         ["SOLVER.MAX_EPOCH 10 (100)", "SOLVER.STEPS [6, 8] ([60, 80])"]),
    ],
)  # fmt: skip
def test_settings_that_are_not_the_papers(changes: list[str], expected: list[str]) -> None:
    cfg = linear_config.defaults()
    merge(cfg, ROOT / "configs/linear/imagenet.yaml", changes)
    assert linear_results.differences(cfg) == expected


def test_published_numbers_only_beside_the_papers_protocol(
    task: Task, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pretend that the papers probed this network on these images: first with their protocol, then with the run's."""
    row = {"method": "MoCo", "top1": 60.6, "source": "a paper"}
    monkeypatch.setattr(linear_results, "published", lambda *_, **__: [row])
    assert not task.run("run", knn=True)["published"] and "60.6" not in capsys.readouterr().out
    assert not task.run("run", "CACHE", "True")["published"]
    output = capsys.readouterr().out
    assert (
        "60.6" not in output
        and "not comparable because of SOLVER.BASE_LR 0.1 (30), INPUT.SIZE 32 (224)" in output
    )
    monkeypatch.setattr(linear_results, "defaults", lambda: task.config("run"))
    assert task.run("own")["published"] == [row]
    assert "published: MoCo: 60.6 (a paper)" in capsys.readouterr().out


def test_the_config_is_the_papers() -> None:
    cfg = linear_config.defaults()
    before = cfg.clone()
    merge(cfg, ROOT / "configs/linear/imagenet.yaml", [])
    cfg.OUTPUT_DIR = before.OUTPUT_DIR
    assert cfg == before
    values = [cfg.SOLVER[key] for key in ("BASE_LR", "IMS_PER_BATCH", "MAX_EPOCH", "STEPS", "WEIGHT_DECAY")]
    assert values == [30, 256, 100, [60, 80], 0]
    merge(linear_config.defaults(), ROOT / "configs/linear/demo.yaml", [])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["DATA.TRAIN", "nowhere"], r"DATA\.TRAIN: no such folder: nowhere"),
        (["SOLVER.BASE_LR", "0"], r"SOLVER\.BASE_LR 0\.0: must be positive"),
        (["SOLVER.IMS_PER_BATCH", "32"], r"SOLVER\.IMS_PER_BATCH 32 is more than the 20 images"),
        (["SWEEP", "[1, -1]"], r"SWEEP \[1, -1\]: must be positive numbers"),
        (["SWEEP", "[1, 1.0]"], "lists a learning rate twice"),
        (["INPUT.SIZE", "16"], r"INPUT\.SIZE 16: must be 32 or more"),
        (["SOLVER.SCHEDULE", "linear"], r"SOLVER\.SCHEDULE linear: choose step or cosine"),
        (["SOLVER.GAMMA", "0.1"], r"unknown config key SOLVER\.GAMMA"),
    ],
)
def test_wrong_settings(task: Task, overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        task.run("run", *overrides)
    assert not (task.folder / "run").exists()


def test_a_batch_that_does_not_divide(task: Task) -> None:
    with pytest.raises(UserError, match=r"IMS_PER_BATCH 8 does not divide evenly into 3 processes: use 6"):
        linear_config.load("linear/imagenet.yaml", task.overrides("run"), processes=3)


def test_wrong_folders(task: Task, image_folder: MakeFolder) -> None:
    flat, three, one = (
        image_folder(9),
        image_folder(2, classes=("a", "b", "c")),
        image_folder(9, classes=("a",)),
    )
    cases = [
        (flat, task.val, "0000.jpg is not in a class folder"),
        (
            task.train,
            three,
            "1 of the 3 class folders of DATA.VAL .* are missing, such as c; both need the same class folders",
        ),
        (three, task.val, "1 of the 3 class folders of DATA.TRAIN .* are missing, such as c"),
        (one, one, "holds only one class folder, a; two or more are needed"),
    ]
    for train, val, expected in cases:
        with pytest.raises(UserError, match=expected):
            task.run("run", "DATA.TRAIN", str(train), "DATA.VAL", str(val))
    assert not (task.folder / "run").exists()


def test_the_same_images_to_train_and_to_test_on(task: Task, tmp_path: Path) -> None:
    """One folder given twice, a link and a copy are refused; other images with equal names and sizes are not."""
    for name in ("copy", "other"):
        shutil.copytree(task.train, tmp_path / name)
    (tmp_path / "link").symlink_to(task.train)
    for val in (task.train, tmp_path / "link", tmp_path / "copy"):
        for knn in (False, True):
            with pytest.raises(UserError, match=r"DATA\.VAL .*: the same images as DATA\.TRAIN "):
                task.run("run", "DATA.VAL", str(val), knn=knn)
    assert not (task.folder / "run").exists()
    last = tmp_path / "other" / "b" / "0009.jpg"
    content = bytearray(last.read_bytes())
    content[17] ^= 1  # the density in the header: pixels do not change
    last.write_bytes(content)
    assert "knn" in task.run("run", "DATA.VAL", str(tmp_path / "other"), knn=True)


@pytest.mark.parametrize("knn", [False, True])
def test_an_output_folder_that_cannot_be(task: Task, knn: bool) -> None:
    (task.folder / "file").write_text("")
    for output in (str(task.folder / "file"), str(task.folder / "file" / "below"), "/proc/foo", "x" * 300):
        cfg = task.config("unused", "OUTPUT_DIR", output)
        with pytest.raises(
            UserError, match=f"^OUTPUT_DIR {output}: cannot be written: .*; name another folder$"
        ):
            linear_run.run(cfg, task.weights, knn=knn)


def test_wrong_weights(task: Task, tmp_path: Path) -> None:
    state = small_network("resnet18").state_dict()
    partial = {name: tensor for name, tensor in state.items() if name != "layer4.1.bn2.weight"}
    trunk = {n: t for n, t in state.items() if not n.startswith("fc.") and "num_batches" not in n}
    faster = {f"backbone.bottom_up.{detectron2_name(n)}": t for n, t in trunk.items()}
    faster |= {
        "proposal_generator.rpn_head.conv.weight": torch.zeros(4, 4),
        "backbone.fpn_output2.bias": torch.zeros(4),
    }
    vit = {"cls_token": torch.zeros(1, 1, 8), "blocks.0.attn.qkv.weight": torch.zeros(24, 8)}
    detector = {
        f"backbone.body.{name}": tensor for name, tensor in state.items() if not name.startswith("fc.")
    }
    detector["rpn.head.conv.weight"] = torch.zeros(4, 4)
    cases = [
        (partial, "without tensor layer4.1.bn2.weight"),
        (vit, "tensor blocks.0.norm1.weight is missing"),
        ({"fc.weight": torch.zeros(2, 2)}, "only a head"),
        (detector, "holds a complete detector"),
        ({"model": faster, "iteration": 3}, r"holds a complete detector \(.*proposal_generator\)"),
        ({**state, "conv1.weight": state["conv1.weight"] * torch.nan}, "NaN or infinity"),
    ]
    for contents, expected in cases:
        path = plain_file(tmp_path / "wrong.pth", contents)
        with pytest.raises(UserError, match=expected):
            task.run("run", weights=str(path))
    for weights, expected in ((tmp_path / "none.pth", "none.pth: no such"), (tmp_path, str(tmp_path))):
        with pytest.raises(UserError, match=expected):
            task.run("run", weights=str(weights))
    assert not (task.folder / "run").exists()


def test_a_rate_at_which_all_diverge(task: Task) -> None:
    with pytest.raises(UserError, match=r"use a smaller SOLVER\.BASE_LR"):
        task.run("run", "SOLVER.BASE_LR", "1e38")


def test_a_rate_at_which_one_diverges(task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    """Training continues, and the best rate is one of the others. A rate that is only too high causes a note."""
    results = task.run("run", "SWEEP", "[1e38, 0.01]")
    assert results["rates"][0]["loss"] is None and results["lr"] == 0.01 and results["loss"] > 0
    assert "diverged" in capsys.readouterr().out
    task.run("high", "SOLVER.BASE_LR", "1000")
    assert "too high for features of this size; try --sweep 1,10,100\n" in capsys.readouterr().out


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    accuracies = [(12.5, 50.0), (7.125, 100.0)]
    linear_results.table([0.01, 1e38], [0.25, math.nan], accuracies, classes=10)
    words = [line.split() for line in capsys.readouterr().out.splitlines()[:3]]
    assert words == [
        ["learning", "rate", "train", "loss", "top-1", "%", "top-5", "%"],
        ["0.01", "0.2500", "12.50", "50.00", "<-", "best"],
        ["1e+38", "diverged", "7.12", "100.00"],
    ]


@pytest.mark.parametrize(
    ("rates", "losses", "expected"),
    [
        ([30.0], [9.0], "try --sweep 0.03,0.3,3"),
        ([0.01, 0.1, 1.0, 10.0], [9.0] * 4, "try --sweep 1e-05,0.0001,0.001"),
        ([10.0, 0.1], [9.0, 0.1], "try --sweep 0.01,1"),
        ([10.0, 0.01, 0.1, 1.0], [9.0, 0.1, 0.1, 0.1], "smaller rates were tried and were not better"),
    ],
)
def test_rates_that_were_tried_are_not_advised(
    rates: list[float], losses: list[float], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In each case the first rate has the highest accuracy."""
    accuracies = [(90.0 - n, 100.0) for n in range(len(rates))]
    linear_results.table(rates, losses, accuracies, classes=10)
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"features of this size; {expected}")


def test_steps_after_the_last_epoch_are_noted(task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    for epochs, steps, late, advised in (
        (1, "[1]", "[1]", "[]"),
        (2, "[60, 80]", "[60, 80]", "[1, 1]"),
        (3, "[1, 3]", "[3]", "[2, 2]"),
    ):
        task.run(f"late{epochs}", "SOLVER.MAX_EPOCH", str(epochs), "SOLVER.STEPS", steps)
        printed = capsys.readouterr().out
        assert f"STEPS {late} are not reached in {epochs} epochs: " in printed
        assert f"the papers' [60, 80] of 100 would scale to {advised}" in printed
        task.run(f"early{epochs}", "SOLVER.MAX_EPOCH", str(epochs), "SOLVER.STEPS", advised)
        assert "not reached" not in capsys.readouterr().out


def test_the_command(task: Task) -> None:
    """--sweep works with random weights, and a mistake is reported in one line."""
    command = task.command("run", "MODEL.ARCH", "resnet18")
    command[2] = "random"
    done = run_script(*command, "--sweep", "0.001,0.1")
    assert done.returncode == 0, done.stderr
    assert (
        "weights: random: ResNet-18, random resnet18" in done.stdout and "chosen on DATA.VAL" in done.stdout
    )
    wrong = run_script(*command[:2], str(task.folder / "none.pth"), *command[3:-2], "OUTPUT_DIR", "x")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and wrong.stderr.startswith("error: ")
