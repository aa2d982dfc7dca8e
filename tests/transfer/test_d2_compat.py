"""Tests of each fix in transfer/d2_compat.py, by calling the detectron2 function that it affects."""

import logging
import os
import pickle
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build,
    build_detection_train_loader,
)
from detectron2.data import transforms as T
from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.layers import get_norm
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils import comm
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from pretrain.common.errors import UserError
from tests.support.scripts import ROOT, kill_script, start_script
from transfer import d2_compat

IS_MAIN = hasattr(comm, "create_local_process_group")
HAS_C = d2_compat.describe()["has_C"]
SIZE = 40  # pixels, both sides of the test image
BOX = [8, 8, 32, 32]  # x0, y0, x1, y1 of its only object


def record(folder: Path) -> dict[str, Any]:
    """Write an image with one square object, and return its record in detectron2's format."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 200
    Image.fromarray(pixels).save(folder / "one.png")
    x0, y0, x1, y1 = BOX
    annotation = {
        "bbox": BOX,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 1,
        "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
    }
    size = {"height": SIZE, "width": SIZE}
    return {"file_name": str(folder / "one.png"), "image_id": 1, **size, "annotations": [annotation]}


def perfect_prediction() -> Instances:
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    mask[:, BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    boxes = Boxes(torch.tensor([BOX], dtype=torch.float32))
    scores, classes = torch.tensor([0.9]), torch.tensor([1])
    return Instances((SIZE, SIZE), pred_boxes=boxes, scores=scores, pred_classes=classes, pred_masks=mask)


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    """Register a data set of two classes that holds the one image."""
    name = f"compat_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: [record(tmp_path)])
    MetadataCatalog.get(name).set(thing_classes=["disc", "square"])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def environment_with(**more: str) -> dict[str, str]:
    """Return the environment with this project on PYTHONPATH, after a detectron2 that PYTHONPATH names."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    return {**os.environ, "PYTHONPATH": path, **more}


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in a fresh interpreter."""
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=environment_with(), capture_output=True, text=True, check=False, timeout=300
    )


# Pillow


def test_extent_transform_interpolates_by_default() -> None:  # its default is Image.LINEAR in v0.6
    ramp = np.tile(np.arange(0, 80, 10, dtype=np.uint8)[None, :, None], (8, 1, 3))
    enlarged = T.ExtentTransform((0, 0, 8, 8), (16, 16)).apply_image(ramp)
    assert enlarged.shape == (16, 16, 3)
    assert list(enlarged[8, 2:6, 0]) == [7, 12, 17, 22]  # nearest would repeat 10, 10, 20, 20


def test_resize_is_pillows_bilinear() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((45, 30), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(T.ResizeTransform(20, 30, 30, 45).apply_image(pixels), expected)


# the compiled part


@pytest.mark.skipif(HAS_C or IS_MAIN, reason="only where d2_compat replaces detectron2._C")
def test_compiled_operators_name_the_remedy() -> None:
    from detectron2.structures import RotatedBoxes
    from detectron2.structures.rotated_boxes import pairwise_iou

    boxes = RotatedBoxes(torch.tensor([[5.0, 5.0, 4.0, 2.0, 30.0]]))
    with pytest.raises(AttributeError, match=r"box_iou_rotated needs .*install_detectron2\.py --from git"):
        pairwise_iou(boxes, boxes)


def test_coco_evaluation_needs_no_compiled_part(dataset: str, tmp_path: Path) -> None:
    evaluator = COCOEvaluator(
        dataset, ("bbox", "segm"), False, output_dir=str(tmp_path / "out"), use_fast_impl=False
    )
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": perfect_prediction()}])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)


# numpy's removed aliases


def test_class_histogram_is_printed(dataset: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="detectron2"):
        build.get_detection_dataset_dicts([dataset])
    table = next(message for message in caplog.messages if "#instances" in message)
    row = next(line for line in table.splitlines() if "square" in line)
    cells = [cell.strip() for cell in row.strip().strip("|").split("|")]
    assert cells[:4] == ["disc", "0", "square", "1"]


def test_polygons_become_masks() -> None:
    masks = PolygonMasks([[np.array([0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 0.0, 4.0])]])
    assert masks.nonempty().tolist() == [True]
    crop = masks.crop_and_resize(torch.tensor([[0.0, 0.0, 8.0, 8.0]]), 8)  # 1 x 8 x 8 bool
    assert crop.sum().item() == 16
    assert crop[0, :4, :4].all()


def voc_tree(folder: Path) -> Path:
    """Write a VOC 2007 folder that holds the image twice, with class `square`; VOC counts pixels from 1."""
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets/Main/test.txt").write_text("000001\n000002\n")
    root = ET.Element("annotation")
    size = ET.SubElement(root, "size")
    for name in ("width", "height"):
        ET.SubElement(size, name).text = str(SIZE)
    square = ET.SubElement(root, "object")
    for name, value in {"name": "square", "pose": "x", "truncated": "0", "difficult": "0"}.items():
        ET.SubElement(square, name).text = value
    box = ET.SubElement(square, "bndbox")
    for name, value in zip(("xmin", "ymin", "xmax", "ymax"), (9, 9, 32, 32), strict=True):
        ET.SubElement(box, name).text = str(value)
    for stem in ("000001", "000002"):
        ET.ElementTree(root).write(folder / f"Annotations/{stem}.xml")
    return folder


def test_voc_is_read_and_evaluated(tmp_path: Path) -> None:
    folder = voc_tree(tmp_path / "VOC2007")
    classes = ["disc", "square"]
    dicts = load_voc_instances(str(folder), "test", classes)
    assert [d["image_id"] for d in dicts] == ["000001", "000002"]
    assert dicts[0]["annotations"][0]["bbox"] == BOX
    name = f"compat_voc_{tmp_path.name}"
    MetadataCatalog.get(name).set(dirname=str(folder), split="test", year=2007, thing_classes=classes)
    evaluator = PascalVOCDetectionEvaluator(name)
    evaluator.reset()
    for entry in dicts:
        evaluator.process([{"image_id": entry["image_id"]}], [{"instances": perfect_prediction()}])
    evaluator._class_names = ["square"]  # `disc` has no object, so its AP would be 0 / 0
    evaluator._predictions = {0: evaluator._predictions[1]}
    assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(100)
    MetadataCatalog.remove(name)


# loaders, solver, norm, checkpoints and pictures, which training uses


def test_train_loader_yields_mapped_images(dataset: str) -> None:
    mapper = DatasetMapper(
        True, augmentations=[T.ResizeShortestEdge(80)], image_format="RGB", use_instance_mask=True
    )
    dicts = build.get_detection_dataset_dicts([dataset])
    loader = build_detection_train_loader(dicts, mapper=mapper, total_batch_size=2, num_workers=0)
    batch = next(iter(loader))
    assert [tuple(item["image"].shape) for item in batch] == [(3, 80, 80)] * 2
    instances = batch[0]["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[2.0 * side for side in BOX]]
    assert float(instances.gt_masks.area()) == pytest.approx(48 * 48)


def test_solver_warms_up_and_steps() -> None:
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.WARMUP_ITERS = 2
    cfg.SOLVER.WARMUP_FACTOR = 0.5
    cfg.SOLVER.MAX_ITER = 6
    cfg.SOLVER.STEPS = (4,)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    model = torch.nn.Linear(2, 1)
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.05, 0.075, 0.1, 0.1, 0.01, 0.01])


def test_sync_bn_trains_on_a_cpu() -> None:
    norm = get_norm("SyncBN", 4)
    output = norm(torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1)
    assert output.mean().item() == pytest.approx(0, abs=1e-5)
    assert output.var(unbiased=False).item() == pytest.approx(1, abs=1e-3)


def test_checkpointer_returns_what_it_saved(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("last", iteration=7)
    other = torch.nn.Linear(3, 2)
    second = torch.optim.SGD(other.parameters(), lr=0.5, momentum=0.9)
    rest = DetectionCheckpointer(other, str(tmp_path), optimizer=second).load(str(tmp_path / "last.pth"))
    assert rest["iteration"] == 7
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert second.param_groups[0]["lr"] == 0.1


class _Trap:
    """Unpickling this would create the file that it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_checkpointer_runs_no_code_from_a_file(tmp_path: Path) -> None:
    torch.save({"model": {}, "trap": _Trap(tmp_path / "sprung")}, tmp_path / "bad.pth")
    with pytest.raises(pickle.UnpicklingError):
        DetectionCheckpointer(torch.nn.Linear(1, 1)).load(str(tmp_path / "bad.pth"))
    assert not (tmp_path / "sprung").exists()


def test_visualizer_draws_truth_and_prediction(dataset: str, tmp_path: Path) -> None:
    metadata = MetadataCatalog.get(dataset)
    blank = np.zeros((SIZE, SIZE, 3), np.uint8)
    np.random.seed(0)  # it draws the colours at random, and one of them is black
    truth = Visualizer(blank, metadata).draw_dataset_dict(record(tmp_path)).get_image()
    found = Visualizer(blank, metadata).draw_instance_predictions(perfect_prediction()).get_image()
    for picture in (truth, found):
        assert picture.shape == (SIZE, SIZE, 3)
        assert picture[SIZE // 2, SIZE // 2].any()  # inside the object: coloured


def test_model_zoo_finds_its_configs_without_pkg_resources() -> None:
    code = """
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "pkg_resources" else real(name, *rest)
from transfer import d2_compat
import sys
assert not hasattr(sys.modules["pkg_resources"], "working_set"), "expected our replacement"
from detectron2 import model_zoo
try:
    print(model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"))
except RuntimeError as error:
    print(error)
"""
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    # A plain checkout of main keeps its configs elsewhere until it is installed; nothing here uses them.
    assert result.stdout.strip().endswith(("mask_rcnn_R_50_FPN_1x.yaml", "not available in Model Zoo!"))


def test_starts_without_warnings() -> None:
    code = """
from transfer import d2_compat
import torch
from detectron2 import model_zoo
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
anchors = DefaultAnchorGenerator(sizes=[[32]], aspect_ratios=[[1.0]], strides=[16])([torch.zeros(1, 1, 2, 3)])
print(anchors[0].tensor.shape[0])
"""
    result = run_python("-c", code)
    assert result.stdout.strip() == "6"
    assert "Warning" not in result.stderr


def test_loader_workers_that_are_not_forked(tmp_path: Path) -> None:
    script = tmp_path / "load.py"
    script.write_text("""
if __name__ == "__main__":  # the workers import this file, which does not import d2_compat then, as with our tools
    from transfer import d2_compat
    from detectron2.data import transforms
    from torch.utils.data import DataLoader
    items = [transforms.ResizeTransform(1, 1, 2, 2)]
    loader = DataLoader(items, batch_size=None, num_workers=1, multiprocessing_context="forkserver")
    print([item.new_h for item in loader])
""")
    result = run_python(str(script))
    assert result.stdout.strip() == "[2]", result.stderr


# several processes

TWO_PROCESSES = """
import os
import torch
import torch.distributed as dist
from transfer import d2_compat
from detectron2.utils import comm
dist.init_process_group("gloo")
d2_compat.set_local_process_group()
d2_compat.set_local_process_group()
rank = dist.get_rank()
local_size = int(os.environ["LOCAL_WORLD_SIZE"])
assert (comm.get_local_rank(), comm.get_local_size()) == (rank % local_size, local_size)
model = torch.nn.Linear(1, 1, bias=False)
torch.nn.init.zeros_(model.weight)
wrapped = d2_compat.distribute(model)
wrapped(torch.full((1, 1), float(rank + 1))).sum().backward()
assert model.weight.grad.item() == 1.5, "the mean of 1 and 2"
print("done")
"""


@pytest.mark.parametrize("machines", [1, 2])
def test_local_rank_and_ddp_on_cpus(machines: int, tmp_path: Path) -> None:
    local_size = 2 // machines
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    port = 20000 + os.getpid() % 20000 + machines
    workers = []
    for rank in range(2):
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": str(rank % local_size),
            "LOCAL_WORLD_SIZE": str(local_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        log = tmp_path / str(rank)
        workers.append(start_script([str(script)], log, log, environment=environment_with(**environment)))
    for worker in workers:
        worker.join(300)
        kill_script(worker)
    outputs = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    assert all("done" in output for output in outputs), outputs


# which detectron2


def test_describe_says_what_is_installed() -> None:
    about = d2_compat.describe()
    assert about["version"]
    if HAS_C:
        assert about["origin"] == "official build"
    elif IS_MAIN:
        assert Path(about["origin"]).is_dir()
    assert about["has_C"] is HAS_C


@pytest.mark.skipif(not IS_MAIN, reason="only with detectron2's main branch")
def test_main_branch_is_left_as_it_is() -> None:
    code = "import numpy, sys; from transfer import d2_compat; from detectron2 import layers, evaluation\n"
    code += "print('int' in vars(numpy), type(sys.modules.get('detectron2._C')).__name__)"
    words = run_python("-c", code).stdout.split()
    assert words[0] == "False"
    assert words[1] != "_MissingExtension"


def test_missing_detectron2_names_the_installer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(UserError, match=r"not installed: run `python tools/install_detectron2\.py"):
        d2_compat.require()


def test_missing_library_is_named() -> None:
    code = """
import sys
sys.modules["fvcore"] = None
from pretrain.common.errors import run_tool
def main():
    import transfer, detectron2
run_tool(main)
"""
    result = run_python("-c", code)
    assert result.returncode == 2
    assert (
        result.stderr.startswith("error: detectron2 cannot be imported (") and "make setup" in result.stderr
    )
    assert result.stderr.count("\n") == 1
