"""The whole demo as `make demo` runs it: photographs -> checkpoint -> weights -> detections -> page."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.scripts import run_script
from transfer.convert.weights_file import read_weights
from transfer.demo import run

pytestmark = pytest.mark.slow


PRETRAIN = ("SOLVER.MAX_EPOCH", "1", "KNN.PERIOD", "1", "KNN.MAX_IMAGES", "60")
FINETUNE = (
    "SOLVER.MAX_ITER", "10", "SOLVER.STEPS", "(6, 8)", "SOLVER.WARMUP_ITERS", "2", "TEST.PRECISE_BN.NUM_ITER", "5",
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Data root and output folder of a quick run, made shorter, on the photographs that need no network."""
    base = tmp_path_factory.mktemp("demo")
    root, output = base / "datasets", base / "demo"
    built = run_script(
        "tools/prepare_data.py", "demo", "--size", "quick", "--source", "fallback", "--root", str(root)
    )
    assert built.returncode == 0, built.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(run.SIZES, "quick", run.Size(PRETRAIN, FINETUNE))
        run.run("quick", root=root, output=output)
        yield root, output


def _results(output: Path, init: str) -> dict:
    return json.loads((output / f"quick/finetune/{init}-seed0/results.json").read_text())


def test_both_inits_differ_only_in_their_weights(folders: tuple[Path, Path]) -> None:
    moco, random = (_results(folders[1], init) for init in ("moco", "random"))
    assert (moco["init"], random["init"]) == ("weights", "random")
    assert random["weights"] is None
    for key in ("seed", "iterations", "versions", "precise_bn"):
        assert moco[key] == random[key]
    configs = [
        (folders[1] / f"quick/finetune/{init}-seed0/config.yaml").read_text().splitlines()
        for init in ("moco", "random")
    ]
    differing = {a.split(":")[0].strip() for a, b in zip(*configs, strict=True) if a != b}
    assert differing == {"INIT", "WEIGHTS", "OUTPUT_DIR"}


def test_detector_got_the_backbone_that_was_proven(folders: tuple[Path, Path]) -> None:
    record = json.loads((folders[1] / "quick/convert.json").read_text())
    assert max(record["record"]["proof"].values()) < 1e-9
    used = _results(folders[1], "moco")["weights"]
    written = read_weights(folders[1] / "quick/moco.pkl")
    assert used["record"]["source_sha256"] == record["record"]["source_sha256"]
    assert used["matched"] == len(written["model"])


def test_page_shows_the_measured_numbers_and_says_what_they_are_worth(folders: tuple[Path, Path]) -> None:
    page = (folders[1] / "report.html").read_text()
    for init in ("moco", "random"):
        for metrics in _results(folders[1], init)["metrics"]["demo_quick_val"].values():
            assert f">{metrics['AP50']:.2f}<" in page
    assert "one seed" in page
    assert "scikit-image" in page  # where the photographs come from


def test_second_call_repeats_nothing(folders: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    root, output = folders
    before = (output / "quick/finetune/moco-seed0/results.json").stat().st_mtime_ns
    run.run("quick", root=root, output=output)
    assert capfd.readouterr().out.count("(done before)") == 5
    assert (output / "quick/finetune/moco-seed0/results.json").stat().st_mtime_ns == before


def test_the_tool_takes_paths_from_anywhere_and_names_a_missing_package(tmp_path: Path) -> None:
    options = ("--root", str(tmp_path / "datasets"), "--output", str(tmp_path / "demo"))
    done = run_script("tools/demo.py", "--size", "quick", *options, "--deb", "none.deb")
    assert done.returncode == 2 and done.stderr == "error: --deb none.deb: no such file\n"
    done = run_script("tools/demo.py", "--mechanism", *options, "--deb", "none.deb")
    assert done.returncode == 2 and done.stderr == "error: --deb none.deb: no such file\n"
