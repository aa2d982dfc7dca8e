"""The length of a run from the number of images, and what of it the user may set."""

from pathlib import Path

import pytest

from pretrain.common.configs import digest_text
from pretrain.common.errors import UserError
from tests.support.scripts import ROOT
from transfer import results
from transfer.config import length
from transfer.config.load import load_config, read_config
from transfer.config.scale import rescale
from transfer.reproduce.plan.recipe_changes import changes

RANDOM = ["MODEL.INIT", "random"]
BY_IMAGES = ("transfer/custom_R50_FPN.yaml", "transfer/laptop_custom.yaml")


def _solver(config: str, images: int, *overrides: str) -> tuple[int, tuple[int, ...], int]:
    cfg = load_config(config, [*RANDOM, *overrides])
    length.follow_images(cfg, images)
    return cfg.SOLVER.MAX_ITER, tuple(cfg.SOLVER.STEPS), cfg.SOLVER.WARMUP_ITERS


def test_the_rule() -> None:
    """29 epochs, at least 500 iterations, drops at 3/4 and 11/12, by hand."""
    assert _solver(BY_IMAGES[0], 5011) == (9083, (6812, 8326), 100)
    assert _solver(BY_IMAGES[1], 300) == (2175, (1631, 1994), 100)
    assert _solver(BY_IMAGES[1], 20) == (500, (375, 458), 50)
    assert _solver(BY_IMAGES[1], 300, "SOLVER.EPOCHS", "58")[0] == 4350


@pytest.mark.parametrize("config", BY_IMAGES)
def test_what_the_user_sets_is_used(config: str, tmp_path: Path) -> None:
    assert _solver(config, 300, "SOLVER.MAX_ITER", "1200")[:2] == (1200, (900, 1100))
    assert _solver(config, 300, "SOLVER.MAX_ITER", "1200", "SOLVER.STEPS", "40")[:2] == (1200, (40,))
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"_BASE_: {ROOT}/configs/{config}\nSOLVER: {{MAX_ITER: 600}}\n")
    assert _solver(str(mine), 300)[:2] == (600, (450, 550))
    with pytest.raises(UserError, match=r"SOLVER\.STEPS \(40,\): SOLVER\.EPOCHS 29 sets them too"):
        load_config(config, [*RANDOM, "SOLVER.STEPS", "40"])


def test_other_configs_keep_their_length() -> None:
    assert _solver("transfer/coco_R50_FPN.yaml", 300)[:2] == (90000, (60000, 80000))


def test_epochs_that_are_stated_later_replace_iterations(tmp_path: Path) -> None:
    """A paper's config states MAX_ITER; on the command line, or in a file based on it, EPOCHS counts more."""
    assert _solver("transfer/coco_R50_FPN.yaml", 5011, "SOLVER.EPOCHS", "29")[:2] == (9083, (6812, 8326))
    mine = tmp_path / "mine.yaml"
    mine.write_text("_BASE_: transfer/coco_R50_FPN.yaml\nSOLVER: {EPOCHS: 29.0}\n")
    assert _solver(str(mine), 5011)[0] == 9083
    assert _solver(str(mine), 5011, "SOLVER.MAX_ITER", "300", "SOLVER.STEPS", "100")[:2] == (300, (100,))
    with pytest.raises(UserError, match=r"SOLVER\.EPOCHS and SOLVER\.MAX_ITER: give one of them"):
        load_config(str(mine), [*RANDOM, "SOLVER.MAX_ITER", "300", "SOLVER.EPOCHS", "3"])


def test_fewer_gpus_train_as_many_epochs() -> None:
    cfg, sentence = rescale(load_config(BY_IMAGES[0], RANDOM), 1)
    assert "still 29 epochs" in sentence and "90000" not in sentence
    length.follow_images(cfg, 5011)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (2, 72660)


def test_the_digest_is_that_of_before_the_keys() -> None:
    """Results and states of earlier versions keep theirs: the younger keys are not in the digested text."""
    cfg = load_config("transfer/coco_R50_FPN.yaml", RANDOM)
    found = results.config_digest(cfg)
    for key in ("SAVE_MINUTES", "EPOCHS"):
        cfg.SOLVER[key] = 3.0
        assert results.config_digest(cfg) == found
        del cfg.SOLVER[key]
        assert results.config_digest(cfg) == found
        assert key not in digest_text(cfg)
    cfg.SOLVER.MAX_ITER += 1
    assert results.config_digest(cfg) != found


def test_each_config_has_a_folder_of_its_own(tmp_path: Path) -> None:
    names = [path.stem for path in (ROOT / "configs/transfer").glob("*.yaml")]
    assert {read_config(f"transfer/{name}.yaml").OUTPUT_DIR for name in names} == {
        f"output/transfer/{name}" for name in names
    }
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"_BASE_: {ROOT}/configs/transfer/coco_R50_FPN.yaml\n")
    assert read_config(str(mine)).OUTPUT_DIR == "output/mine"
    assert read_config(str(mine), ["OUTPUT_DIR", "here"]).OUTPUT_DIR == "here"


def test_a_run_of_before_the_keys_is_not_another_recipe() -> None:
    """Its settings lack them; a key that is there and differs is named as ever."""
    name = "transfer/coco_R50_FPN.yaml"
    settings = load_config(name, RANDOM)
    del settings.SOLVER["EPOCHS"], settings.SOLVER["SAVE_MINUTES"]
    assert changes(name, settings) == ()
    settings.SOLVER.BASE_LR = 0.5
    assert changes(name, settings) == ("SOLVER.BASE_LR is 0.5, in the recipe 0.02",)


def test_sections_that_a_run_does_not_use_are_not_digested() -> None:
    """MODEL.VIT and INPUT.LSJ are younger than many results; they count where the backbone is a ViT and LSJ is on."""
    name = "transfer/coco_R50_FPN.yaml"
    cfg, vit = load_config(name, RANDOM), load_config("transfer/coco_ViTT_SFP_640.yaml", RANDOM)
    found, of_vit = results.config_digest(cfg), results.config_digest(vit)
    cfg.MODEL.VIT.WIDTH = vit.MODEL.VIT.WIDTH = 48
    assert results.config_digest(cfg) == found and results.config_digest(vit) != of_vit
    vit.MODEL.VIT.WIDTH, vit.INPUT.LSJ.SIZE = 192, 320
    assert results.config_digest(vit) != of_vit
    del cfg.MODEL["VIT"], cfg.INPUT["LSJ"]
    assert results.config_digest(cfg) == found
    assert changes(name, cfg) == ()
