"""The demo's set as a user sees it: built (from the fallback), finished after a kill, checked, refused."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from pretrain.common.errors import UserError
from tests.support.scripts import kill_script, run_script, start_script
from transfer.data import on_disk
from transfer.prepare.demo import cutouts, demo_set, photo_list
from transfer.prepare.demo.recipe import PHOTO_CLASSES, RECIPES

TOOL = "tools/prepare_data.py"


def prepare(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_script(TOOL, *map(str, arguments))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    root = tmp_path_factory.mktemp("built")
    done = prepare("demo", "--root", root, "--size", "quick", "--source", "fallback", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "scikit-image" in done.stdout and "cannot show" in done.stdout
    return root / "demo_quick"


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "demo_quick"))


def test_the_set_is_as_described(built: Path) -> None:
    state = json.loads((built / "demo.json").read_text())
    assert state["source"] == "fallback photographs" and state["complete"] and state["seed"] == 0
    recipe = RECIPES["quick"]
    assert len(list((built / "pretrain").rglob("*.jpg"))) == recipe.pretrain
    for split, count in (("train", recipe.train), ("val", recipe.val)):
        content = json.loads((built / "annotations" / f"instances_{split}.json").read_text())
        assert len(content["images"]) == len(list((built / split).glob("*.jpg"))) == count
        assert [c["id"] for c in content["categories"]] == [1, 2, 3, 4, 5, 6]
        assert cv2.imread(str(built / split / content["images"][0]["file_name"])).shape == (240, 320, 3)
    classes = [{p.name for p in (built / "knn" / split).iterdir()} for split in ("train", "val")]
    assert classes[0] == classes[1] == set(state["classes"])
    assert "astronaut.png" in (built / "CREDITS.txt").read_text()
    assert not list(built.rglob("*.tmp")) and not (built / ".work").exists()


def test_a_second_call_changes_nothing(copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    done = prepare("demo", "--root", copy.parent, "--size", "quick")
    assert done.returncode == 0 and "already complete" in done.stdout
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*")}


def test_one_process_makes_the_same_as_two_and_good_images_are_kept(built: Path, copy: Path) -> None:
    first = copy / "train" / "000000.jpg"
    kept = first.stat().st_mtime_ns
    for path in sorted(copy.rglob("*.jpg"))[::2]:
        if path != first:
            path.unlink()
    (copy / "val" / "000001.jpg").write_bytes((built / "val" / "000001.jpg").read_bytes()[:5000])
    done = prepare("demo", "--root", copy.parent, "--size", "quick", "--source", "fallback", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == kept
    assert contents(copy) == contents(built)


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_is_finished_by_the_next(
    built: Path, tmp_path: Path, kill: signal.Signals
) -> None:
    command = ["demo", "--root", tmp_path, "--size", "quick", "--source", "fallback", "--workers", 2]
    folder, log = tmp_path / "demo_quick", tmp_path / "log"
    process = start_script([TOOL, *map(str, command)], os.devnull, log)
    try:
        while process.exitcode is None and len(list(folder.glob("train/*.jpg"))) < 20:
            time.sleep(0.01)
        os.kill(process.pid, kill)
        process.join(60)
        with contextlib.suppress(ProcessLookupError):
            for _ in range(300):  # within a second its workers notice that it is gone
                os.killpg(process.pid, 0)
                time.sleep(0.01)
    finally:
        kill_script(process)
    assert process.exitcode == (130 if kill == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in log.read_text()
    assert prepare("demo", "--root", tmp_path, "--size", "quick", "--check").returncode == 2
    for path in folder.rglob("*.jpg"):
        assert path.read_bytes() == (built / path.relative_to(folder)).read_bytes()
    assert prepare(*command).returncode == 0
    assert contents(folder) == contents(built)


def test_check_passes_and_names_the_first_wrong_file(copy: Path) -> None:
    def check() -> str:
        done = prepare("demo", "--root", copy.parent, "--size", "quick", "--check")
        assert done.returncode == (2 if done.stderr else 0) and done.stderr.count("\n") <= 1
        return done.stderr

    assert check() == ""
    cut = copy / "knn" / "val" / "disc" / "000000.jpg"
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    assert str(cut) in check()
    cut.unlink()
    assert f"{cut} is missing" in check()
    cut.write_bytes(whole)
    stray = copy / "pretrain" / "object" / "stray.jpg"
    stray.write_bytes(whole)
    assert str(stray) in check()
    stray.unlink()
    shutil.copy(cut, copy / "val" / "000007.jpg")
    assert "000007.jpg is 128x128, not 320x240" in check()
    annotations = copy / "annotations" / "instances_val.json"
    annotations.write_text(annotations.read_text().replace('"area"', '"aera"', 1))
    assert str(annotations) in check()


def test_another_seed_replaces_the_set(copy: Path, built: Path) -> None:
    done = prepare("demo", "--root", copy.parent, "--size", "quick", "--source", "fallback", "--seed", 1)
    assert done.returncode == 0 and "building it again" in done.stdout
    assert contents(copy).keys() == contents(built).keys()
    assert (copy / "train/000000.jpg").read_bytes() != (built / "train/000000.jpg").read_bytes()


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "demo_quick" / "train").mkdir(parents=True)
    (tmp_path / "demo_quick" / "train" / "mine.jpg").write_bytes(b"mine")
    done = prepare("demo", "--root", tmp_path, "--size", "quick", "--source", "fallback")
    assert done.returncode == 2 and "is not a demo set" in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "demo_quick" / "train" / "mine.jpg").read_bytes() == b"mine"


def test_falls_back_in_plain_words_when_packages_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(*_: object) -> list[str]:
        raise UserError("no network")

    monkeypatch.setattr(photo_list, "fill_cache", no_network)
    monkeypatch.setattr("transfer.prepare.demo.build.build_images", lambda *_: 0)
    monkeypatch.setattr(demo_set, "_finish", lambda *_: None)
    demo_set.build_demo(tmp_path, size="quick")
    assert "no Debian packages: no network" in capsys.readouterr().out
    assert json.loads((tmp_path / "demo_quick" / "demo.json").read_text())["missing"] == [
        "Debian packages: no network"
    ]
    with pytest.raises(UserError, match="no network"):
        demo_set.build_demo(tmp_path, size="standard", source="packages")


def test_the_cheap_check_before_training(copy: Path) -> None:
    assert "in place" in on_disk.check_demo(copy)
    (copy / "val" / "000003.jpg").unlink()
    with pytest.raises(UserError, match=r"val holds 31 of 32 images.*--size quick"):
        on_disk.check_demo(copy)


@pytest.fixture(scope="module")
def painted_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write every listed file as a small picture with a unique colour."""
    cache = tmp_path_factory.mktemp("cache")
    listed = photo_list.load_listing()
    for number, photo in enumerate(listed.photos + listed.cutouts):
        pixels = np.zeros((12, 24, 4), np.uint8)
        if photo.how == "white ground":
            pixels[:] = 255
        pixels[2:-2, 4:-4] = (number % 256, number // 256, 77, 255)
        if photo.kind in ("ground", "scene"):
            pixels = np.full((12, 24, 3), (number % 256, number // 256, 77), np.uint8)
        target = cache / photo.cached
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return cache


def test_val_shows_no_source_that_training_uses(painted_cache: Path) -> None:
    found = cutouts.load_sources(painted_cache, PHOTO_CLASSES)

    def colours(images: list[np.ndarray]) -> set[bytes]:
        return {image[image.shape[0] // 2, image.shape[1] // 4, :3].tobytes() for image in images}

    def of(split: str) -> list[np.ndarray]:
        return [c.pixels for group in found.cutouts[split].values() for c in group] + found.grounds[split]

    val, train = colours(of("val")), colours(of("train") + [c.pixels for c in found.extra] + found.scenes)
    assert len(val) == sum(map(len, found.cutouts["val"].values())) + len(found.grounds["val"]) > 60
    assert not val & train
    assert all(group for split in found.cutouts.values() for group in split.values())


def test_too_few_files_are_refused(painted_cache: Path, tmp_path: Path) -> None:
    cutouts.demand_enough(painted_cache, PHOTO_CLASSES)
    with pytest.raises(UserError, match="too few cut-outs of animal"):
        cutouts.demand_enough(tmp_path, PHOTO_CLASSES)


def test_the_val_share_is_a_fixed_choice() -> None:
    names = [f"{n}.png" for n in range(40)]
    assert cutouts.val_names(names, 0.25) == cutouts.val_names(names[::-1], 0.25)
    assert len(cutouts.val_names(names, 0.25)) == 10
    assert len(cutouts.val_names(["a", "b"], 0.1)) == 1 and not cutouts.val_names(["a"], 0.9)
