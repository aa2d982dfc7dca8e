"""One step: parts that add up to the whole batch, losses that are not finite, and too little memory."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from pretrain.common import distributed
from pretrain.common.errors import UserError
from tests.support import detection_data
from transfer.config.load import load_config
from transfer.data import datasets, train_stream
from transfer.models import build
from transfer.train import run
from transfer.train.run import advice
from transfer.train.step import step

SMALL = [
    "MODEL.INIT", "random", *detection_data.TINY, *detection_data.NARROW,
]  # fmt: skip
COMPILED = ["MODEL.RESNETS.DEPTH", "18", "MODEL.COMPILE"]  # fewer layers take less time to trace


class Fake(nn.Module):
    """A model with one weight, whose loss the test defines."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.weight, self.loss = nn.Parameter(torch.ones(())), loss

    def forward(self, batch: list[Any]) -> dict[str, torch.Tensor]:
        return {"loss_a": self.loss(self.weight, batch)}


def _config(tmp_path: Path, *more: str):
    cfg = load_config("transfer/coco_R50_FPN.yaml", [*SMALL, "OUTPUT_DIR", str(tmp_path), *more])
    return cfg


def _step(cfg, model: nn.Module, batch: list[Any], **options: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with EventStorage():
        step(cfg, model, batch, optimizer, 0, **options)
    return optimizer


def test_two_parts_of_a_batch_give_the_step_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes only, whose losses are means over the same number of samples in each image, and frozen batch norm.

    Which proposals are sampled is taken from chance: the parts would draw others than the whole.
    """
    monkeypatch.setattr(torch, "randperm", lambda count, **_: torch.arange(count))
    data = detection_data.write_coco(tmp_path / "data", images=2)
    frozen = ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "", "MODEL.MASK_ON", "False"]
    gradients, losses, seen = [], [], []
    for parts in ("1", "2"):
        cfg = _config(
            tmp_path / "out", *detection_data.custom(data, data), *frozen, "SOLVER.IMS_PER_BATCH", "4",
            "SOLVER.ACCUMULATE", parts, "DATALOADER.ASPECT_RATIO_GROUPING", "False",
        )  # fmt: skip
        datasets.prepare(cfg)
        torch.manual_seed(0)
        model = build_model(cfg).train()
        batch = next(train_stream.training_batches(cfg, 0))
        sizes = {tuple(image["image"].shape) for image in batch}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with EventStorage():
            values = step(cfg, model, batch, optimizer, 0)
        gradients.append([p.grad for p in model.parameters()])
        losses.append(values)
        seen.append(torch.cat([image["image"].flatten() for image in batch]))
    assert len(sizes) == 1  # otherwise the whole batch would be padded differently from its parts
    assert torch.equal(*seen)
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)
    assert max(float(g.abs().max()) for g in gradients[0]) > 1e-2


def test_what_is_said_about_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = _config(tmp_path, "SOLVER.IMS_PER_BATCH", "16", "SOLVER.ACCUMULATE", "4")
    build.say_parts(cfg, build_model(cfg))
    line = capsys.readouterr().out
    assert "16 images into 4 parts of 4" in line
    assert "batch norm averages over 4 image(s), instead of 16 for the undivided batch" in line
    cfg = _config(tmp_path, "SOLVER.ACCUMULATE", "2", "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "")
    build.say_parts(cfg, build_model(cfg))
    assert "batch norm" not in capsys.readouterr().out


def test_infinite_gradient_of_float16_is_no_error(tmp_path: Path) -> None:
    """The square root has an infinite slope at 0: the step is skipped and the scale is halved."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model = Fake(lambda weight, batch: torch.sqrt(weight - 1))
    _step(_config(tmp_path), model, [0, 1], scaler=scaler)
    assert (model.weight.item(), scaler.get_scale()) == (1.0, 512.0)
    model = Fake(lambda weight, batch: 3 * weight)
    _step(_config(tmp_path), model, [0, 1], scaler=scaler)
    assert (model.weight.item(), scaler.get_scale()) == (-2.0, 512.0)


def test_clipping_sees_unscaled_gradients(tmp_path: Path) -> None:
    clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"]
    cfg = _config(tmp_path, *clip, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "2.0", "SOLVER.WEIGHT_DECAY", "0.0")
    model = Fake(lambda weight, batch: 0.5 * weight)
    optimizer = build.build_optimizer(cfg, model)
    with EventStorage():
        step(cfg, model, [0, 1], optimizer, 0, scaler=torch.amp.GradScaler("cpu"))
    assert model.weight.item() == pytest.approx(1 - cfg.SOLVER.BASE_LR * 0.5)


def test_out_of_memory_names_three_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(weight: torch.Tensor, batch: list[Any]) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    cfg = _config(tmp_path, "SOLVER.IMS_PER_BATCH", "6", "SOLVER.ACCUMULATE", "2")
    with pytest.raises(UserError) as caught, advice(cfg):
        _step(cfg, Fake(fail), [0] * 6)
    for part in ("6 images in 2 part(s)", "SOLVER.ACCUMULATE to 3", "SOLVER.AMP.ENABLED True", "INPUT.MAX_SIZE_TRAIN",
                 "--scale"):  # fmt: skip
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    cfg.MODEL.BACKBONE.NAME = "build_vit_sfp_backbone"  # pads every image to a square of one size
    with pytest.raises(UserError, match=r"CHECKPOINT_BLOCKS True, lower MODEL\.VIT\.IMAGE_SIZE"), advice(cfg):
        fail(torch.zeros(1), [])

    data = detection_data.write_coco(tmp_path / "data", images=2)
    monkeypatch.setattr(build, "build_model", lambda cfg: Fake(fail))
    cfg = _config(tmp_path / "run", *detection_data.custom(data, data))
    with pytest.raises(UserError, match=r"SOLVER\.ACCUMULATE to 2"):
        run.run(cfg)


def test_compiled_backbone_keeps_names_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend captures the graph and runs it unchanged, so no compiler is needed."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **options: compile_module(self, **options, backend="eager")
    )
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    names, features = [], []
    for value in ("False", "True"):
        cfg = _config(tmp_path, *COMPILED, value)
        model, _ = build.build(cfg)
        names.append(list(model.state_dict()))
        with torch.no_grad():
            features.append(model.eval().backbone(images))
    assert names[0] == names[1]
    torch.testing.assert_close(features[0], features[1])


def test_a_compiled_vit_is_traced_for_its_square(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For unknown sizes, tracing two blocks takes minutes."""
    asked = []
    compile_module = nn.Module.compile

    def compiled(self: nn.Module, **options: Any) -> None:
        asked.append(options)
        compile_module(self, **options, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compiled)
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    more = [
        "MODEL.INIT",
        "random",
        "MODEL.DEVICE",
        "cpu",
        "SOLVER.AMP.ENABLED",
        "False",
        *detection_data.NARROW_VIT,
    ]
    features = []
    for value in ("False", "True"):
        given = [*more, "OUTPUT_DIR", str(tmp_path), "MODEL.COMPILE", value]
        model, _ = build.build(load_config("transfer/coco_ViTB_SFP_100ep.yaml", given))
        with torch.no_grad():
            features.append(model.eval().backbone(images))
    assert asked == [{"dynamic": False}]
    torch.testing.assert_close(features[0], features[1])


def test_compiler_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler\nwas found")

    compile_module = nn.Module.compile
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, **options: compile_module(self, **options, backend=broken)
    )
    cfg = _config(tmp_path, *COMPILED, "True")
    model, _ = build.build(cfg)
    with (
        pytest.raises(UserError, match=r"MODEL\.COMPILE True.*no C\+\+ compiler was found.*set it to False"),
        advice(cfg),
    ):
        model.backbone(torch.zeros(1, 3, 64, 64))


def _diverge_together(folder: str) -> None:
    distributed.init_from_env(torch.device("cpu"))
    cfg = load_config("transfer/coco_R50_FPN.yaml", [*SMALL, "OUTPUT_DIR", folder])
    bad = distributed.rank() == 1
    model = nn.parallel.DistributedDataParallel(
        Fake(lambda weight, batch: weight * (float("nan") if bad else 1))
    )
    report: dict[str, Any] = {}
    try:
        _step(cfg, model, [0])
    except UserError as error:
        report = {"error": str(error), "weight": model.module.weight.item()}
    Path(folder, f"{distributed.rank()}.json").write_text(json.dumps(report))


@pytest.mark.slow
def test_two_processes_diverge_together(tmp_path: Path) -> None:
    (tmp_path / "model_last.pth").touch()
    distributed.spawn(_diverge_together, 2, (str(tmp_path),))
    for rank in range(2):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        assert "not finite at iteration 1 (loss_a nan); the last good state is" in report["error"]
        assert "model_last.pth" in report["error"]
        assert report["weight"] == 1.0
