"""Fine-tuning end to end on small sets: weights rules, exact resume, results, and the mistakes users make."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from pretrain.common.errors import UserError
from tests.support import detection_data
from tests.support.scripts import run_script
from transfer.config.load import load_config
from transfer.data import datasets, train_stream
from transfer.models import build
from transfer.train import run
from transfer.train.step import step

SMALL = [
    *detection_data.TINY, *detection_data.NARROW, "SOLVER.MAX_ITER", "4", "SOLVER.STEPS",
    "(3,)", "SOLVER.CHECKPOINT_PERIOD", "2",
]  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    train = detection_data.write_coco(tmp_path / "train", images=6)
    test = detection_data.write_coco(tmp_path / "test", images=3, seed=1)
    return [*SMALL, *detection_data.custom(train, test)]


def _load(tiny: list[str], output: Path, *overrides: str):
    return load_config(
        "transfer/coco_R50_FPN.yaml", ["MODEL.INIT", "random", *tiny, "OUTPUT_DIR", str(output), *overrides]
    )


def _model(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def test_eval_only_tests_the_very_weights_and_spares_the_run(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def note_weights(cfg, model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"custom_test": {"bbox": {"AP": 1.0, "AP75": None}}}

    monkeypatch.setattr(run.evaluation, "evaluate", note_weights)
    output = tmp_path / "a"
    run.run(_load(tiny, output))
    said = capsys.readouterr().out
    assert (
        "6 images to train on in custom_train; images to test on: 3 in custom_test; 2 class(es): cup, key"
        in said
    )
    assert "4 iterations of 2 images, 1.3 epochs; SGD, learning rate 0.02; results in " in said
    assert said.index("Mask R-CNN, R50-FPN, ") < said.index("iteration 1/4  loss ")
    text = (output / "results.json").read_text()
    record = json.loads(text)
    assert record["metrics"] == {"custom_test": {"bbox": {"AP": 1.0, "AP75": None}}}
    assert (record["init"], record["iterations"], record["seed"]) == ("random", 4, 0)
    assert [(output / picture).is_file() for picture in record["pictures"]] == [True, True]

    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth"), "OUTPUT_DIR", str(output)]
    capsys.readouterr()
    run.run(load_config("transfer/coco_R50_FPN.yaml", [*tiny, *weights]), eval_only=True)
    assert "custom_test      AP    AP75\nbbox           1.00       -\n" in capsys.readouterr().out
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])  # PreciseBN's statistics too
    assert (output / "results.json").read_text() == text
    assert json.loads((output / "results_eval.json").read_text())["weights"]["path"].endswith(
        "model_final.pth"
    )


def test_finished_run_is_neither_repeated_nor_overwritten(
    tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.run(_load(tiny, tmp_path / "a"))
    with pytest.raises(UserError, match="finished run"):
        run.run(_load(tiny, tmp_path / "a"))
    run.run(_load(tiny, tmp_path / "a"), resume=True)
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_cannot_be(tiny, tmp_path: Path, resume: bool) -> None:
    with pytest.raises(UserError, match="cannot be written: File name too long"):
        run.run(_load(tiny, tmp_path / ("x" * 300)), resume=resume)


def test_weights_survive_a_failed_evaluation(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cfg, model):
        raise UserError("a test image is broken")

    monkeypatch.setattr(run.evaluation, "evaluate", fail)
    with pytest.raises(UserError):
        run.run(_load(tiny, tmp_path / "a"))
    assert _model(tmp_path / "a")


def test_divergence_is_one_line_whoever_notices_it(tiny, tmp_path: Path) -> None:
    """A loss that is not finite is ours to see; proposals that are not finite make detectron2 raise first."""
    warm = ["SOLVER.BASE_LR", "1e12", "SOLVER.WARMUP_ITERS", "0"]
    with pytest.raises(UserError, match=r"not finite at iteration [2-4] .*lower SOLVER\.BASE_LR"):
        run.run(_load(tiny, tmp_path / "a", *warm))
    assert not (tmp_path / "a/model_final.pth").exists()


def test_broken_test_image_is_one_line(tiny, tmp_path: Path) -> None:
    broken = tmp_path / "test/images/002.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match=r"002\.png: not a readable image"):
        run.run(_load(tiny, tmp_path / "a"))


def test_boxes_stay_exact_under_bf16(tiny, tmp_path: Path) -> None:
    cfg = _load(tiny, tmp_path / "x", "SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cpu")
    datasets.prepare(cfg)
    model = build_model(cfg).train()
    build.pool_in_float32(model)
    kinds = []
    for module in model.modules():
        if type(module).__name__ == "ROIAlign":
            module.register_forward_hook(lambda _, inputs, __: kinds.append(inputs[0].dtype))
    batch = next(train_stream.training_batches(cfg, 0))
    with EventStorage():
        losses = step(cfg, model, batch, build.build_optimizer(cfg, model), 0)
    assert set(kinds) == {torch.float32}
    assert all(torch.isfinite(value) for value in losses.values())


def test_non_finite_loss_stops_before_the_weights_change(tiny, tmp_path: Path) -> None:
    cfg = _load(tiny, tmp_path / "x")
    datasets.prepare(cfg)
    model = build_model(cfg).train()
    optimizer = build.build_optimizer(cfg, model)
    batch = next(train_stream.training_batches(cfg, 0))
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[0] = float("nan")
    before = {name: value.clone() for name, value in model.named_parameters()}
    with (
        EventStorage(),
        pytest.raises(
            UserError, match=r"not finite at iteration 8 .*loss_cls.*no state was saved yet.*BASE_LR"
        ),
    ):
        step(cfg, model, batch, optimizer, 7)
    assert all(torch.equal(before[n], p) or n.endswith("cls_score.bias") for n, p in model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["voc_R50_C4_24k", "voc_mask_R50_FPN"])
def test_voc_configs_train_at_full_width_on_the_true_layout(name: str, tmp_path: Path) -> None:
    root = tmp_path / "datasets"
    detection_data.write_voc(root, images=2)
    if name == "voc_mask_R50_FPN":
        annotations, images = detection_data.write_coco(tmp_path / "masks", images=3, classes=CLASS_NAMES)
        for image in images.iterdir():
            image.rename(root / "VOC2012/JPEGImages" / image.name)
        (root / "VOC2012/annotations_masks").mkdir()
        for split in ("train_aug", "val"):
            (root / f"VOC2012/annotations_masks/instances_{split}.json").write_text(annotations.read_text())
    done = run_script(
        "tools/train_net.py", "--config", f"transfer/{name}.yaml", "MODEL.INIT", "random", "DATASETS.ROOT", str(root),
        "OUTPUT_DIR", str(tmp_path / "out"), *detection_data.TINY, "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()",
        "TEST.PRECISE_BN.NUM_ITER", "1", "TEST.PICTURES", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "iteration 1/1" in done.stdout
    tasks = next(iter(json.loads((tmp_path / "out/results.json").read_text())["metrics"].values()))
    assert set(tasks) == ({"bbox"} if "C4" in name else {"bbox", "segm"})


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["MODEL.WEIGHTS", "missing.pkl"], ["missing.pkl"]),
        (["MODEL.INIT", "random", "--eval-only"], ["--eval-only", "MODEL.WEIGHTS"]),
        (["MODEL.INIT", "random", "--num-gpus", "0"], ["--num-gpus 0", "1 or more"]),
        (["MODEL.INIT", "random", "--num-gpus", "3"], ["SOLVER.IMS_PER_BATCH 2", "--num-gpus 2"]),
        (["MODEL.INIT", "random", "DATASETS.TEST_JSON", "gone.json"], ["DATASETS.TEST_JSON", "gone.json"]),
    ],
)
def test_mistakes_on_the_command_line(tiny, tmp_path: Path, arguments: list[str], parts: list[str]) -> None:
    output = tmp_path / "out"
    done = run_script(
        "tools/train_net.py",
        "--config",
        "transfer/coco_R50_FPN.yaml",
        *tiny,
        *arguments,
        "OUTPUT_DIR",
        str(output),
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")
    for part in parts:
        assert part in done.stderr
    assert not output.exists()


def test_a_vit_trains(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's ViT with two blocks and large-scale jitter: each weight moves, relative positions from zero."""
    monkeypatch.setattr(run.evaluation, "evaluate", lambda cfg, model: {"custom_test": {"bbox": {"AP": 1.0}}})
    vit = [
        "MODEL.VIT.DEPTH",
        "2",
        "MODEL.VIT.GLOBAL_BLOCKS",
        "(1,)",
        "MODEL.VIT.WIDTH",
        "48",
        "MODEL.VIT.WINDOW",
        "4",
    ]
    jitter = ["INPUT.LSJ.ENABLED", "True", "INPUT.LSJ.SIZE", "96", "INPUT.LSJ.SCALES", "(0.8, 1.5)"]
    sides = ["MODEL.VIT.IMAGE_SIZE", "96", "INPUT.MAX_SIZE_TRAIN", "96", "INPUT.MAX_SIZE_TEST", "96"]
    overrides = ["MODEL.INIT", "random", *tiny, *vit, *jitter, *sides, "OUTPUT_DIR", str(tmp_path / "a")]
    cfg = load_config("transfer/demo_ViT_SFP.yaml", overrides)
    torch.manual_seed(cfg.SEED)
    before = build_model(cfg).state_dict()
    run.run(cfg)
    after = _model(tmp_path / "a")
    net = [name for name in after if name.startswith("backbone.")]
    assert len(net) > 40 and not [name for name in net if torch.equal(before[name], after[name])]
    assert (tmp_path / "a" / "results.json").exists()
