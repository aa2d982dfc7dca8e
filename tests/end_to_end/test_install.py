"""Installing: the wheel works from any folder. tools/install_detectron2.py: the hash decides before anything runs."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.checkpoints import moco_file, small_network
from tests.support.scripts import ROOT, run_script

SCRIPT = ROOT / "transfer" / "install_detectron2.py"  # which the script of that name in tools/ runs
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
# Run programs one after the other, which imports the libraries only once.
DRIVER = """
import contextlib, io, json, runpy, sys
results = []
for sys.argv in json.load(sys.stdin):
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code
    results.append([status, out.getvalue(), err.getvalue()])
json.dump(results, sys.stdout)
"""


@pytest.fixture
def installer() -> ModuleType:
    """The script as a module (never `import tools.x`: detectron2 has a package of that name)."""
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let pip see nothing but the returned folder."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def make_sdist(folder: Path, files: dict[str, str]) -> Path:
    source = folder / "pb1-detectron2-0.6"
    for name, content in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(content)
    sdist = folder / "pb1-detectron2-0.6.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(source, source.name)
    return sdist


def test_what_is_here_is_kept() -> None:
    result = run_script("tools/install_detectron2.py")
    assert result.returncode == 0, result.stderr
    assert "kept" in result.stdout
    assert "detectron2 0.6" in result.stdout.splitlines()[-1]


def test_help_has_an_example() -> None:
    assert "python tools/install_detectron2.py" in run_script("tools/install_detectron2.py", "--help").stdout


def test_without_torch_it_says_so() -> None:
    command = [sys.executable, "-I", "-S", str(SCRIPT)]  # -S: the standard library only
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: torch is not installed")
    assert len(result.stderr.splitlines()) == 1


def test_an_old_python_is_refused(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(sys, "argv", ["install_detectron2.py"])
    with pytest.raises(installer.InstallError, match=r"Python 3\.9\.2 is too old"):
        installer.main()


def test_another_hash_runs_nothing(installer: ModuleType, offline: Path, tmp_path: Path) -> None:
    trace = tmp_path / "setup.py-was-run"
    make_sdist(offline, {"setup.py": f"open({str(trace)!r}, 'w')\nraise SystemExit('no')\n", "PKG-INFO": ""})
    target = tmp_path / "download"
    target.mkdir()
    with pytest.raises(installer.InstallError, match="SHA-256 differs"):
        installer.download_sdist(target)
    assert not trace.exists()


def test_no_network_is_one_line(installer: ModuleType, offline: Path, tmp_path: Path) -> None:
    with pytest.raises(installer.InstallError, match="pip download failed") as caught:
        installer.download_sdist(tmp_path)
    assert "\n" not in str(caught.value)
    assert "reachable" in str(caught.value)


def test_wheel_holds_the_package_and_pip_can_remove_it(installer: ModuleType, tmp_path: Path) -> None:
    files = {
        "setup.py": "raise SystemExit('not run')",
        "LICENSE": "Apache",
        "tools/__init__.py": "",
        "detectron2/__init__.py": "__version__ = '0.6'\n",
        "detectron2/model_zoo/configs/Base.yaml": "MODEL: {}\n",
    }
    wheel = installer.build_wheel(make_sdist(tmp_path, files), tmp_path / "detectron2-0.6-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"detectron2", "detectron2-0.6.dist-info"}
    target = tmp_path / "site"
    arguments = ["install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([*PIP, *arguments], check=True, capture_output=True)
    assert (target / "detectron2/model_zoo/configs/Base.yaml").read_text() == "MODEL: {}\n"
    shown = subprocess.run(
        [*PIP, "list", "--path", str(target), "--format", "freeze"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert shown.stdout.strip() == "detectron2==0.6"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as pip installs its wheel, without the libraries."""
    folder = tmp_path_factory.mktemp("install")
    source, target = folder / "source", folder / "site"
    for name in ("pretrain", "transfer", "configs", "tools"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*PIP, *build], check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    install = ["install", "--no-deps", "--no-index", "--no-compile", "--target", str(target), str(wheel)]
    subprocess.run([*PIP, *install], check=True, capture_output=True)
    return target


@pytest.fixture
def elsewhere(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unrelated current folder, in which a file has the name of a package of ours."""
    monkeypatch.setenv("PYTHONPATH", str(site))  # instead of the checkout
    monkeypatch.chdir(tmp_path)
    Path("transfer.py").write_text("raise SystemExit('imported from the current folder')")
    return tmp_path


def run_all(site: Path, commands: list[list[str]]) -> list[tuple[int, str, str]]:
    """Return the exit status and the output of console commands. Fail if one has a traceback."""
    started = [[str(site / "bin" / name), *arguments] for name, *arguments in commands]
    options = [sys.executable, *(["-P"] if sys.version_info >= (3, 11) else []), "-c", DRIVER]
    result = subprocess.run(options, input=json.dumps(started), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [(status, out, err) for status, out, err in json.loads(result.stdout)]


def test_the_wheel_holds_all_that_is_read(site: Path) -> None:
    configs = {path.relative_to(ROOT / "configs"): path for path in (ROOT / "configs").rglob("*.yaml")}
    shipped = {path.relative_to(site / "pretrain/configs"): path for path in site.rglob("configs/*/*.yaml")}
    assert len(configs) > 40 and shipped.keys() == configs.keys()
    assert all(path.read_bytes() == configs[name].read_bytes() for name, path in shipped.items())
    data = [
        path.relative_to(ROOT)
        for package in ("pretrain", "transfer")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    ]
    assert [path for path in data if not (site / path).is_file()] == []


def test_the_wheel_adds_no_other_package(site: Path) -> None:
    """In particular not `tools`: detectron2 installs one of that name."""
    names = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"pretrain", "transfer", "bin"}
    [info] = site.glob("*.dist-info")
    metadata = Distribution.at(info).metadata
    assert metadata["License"] == "Apache-2.0" and [*info.rglob("LICENSE")]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


def test_each_script_has_a_command(site: Path, elsewhere: Path) -> None:
    [info] = site.glob("*.dist-info")
    commands = {point.module.split(".")[-1]: point.name for point in Distribution.at(info).entry_points}
    assert commands.keys() == {path.stem for path in (ROOT / "tools").glob("*.py")}
    listed = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")
    assert all(f"| `tools/{script}.py` | `{name}` |" in listed for script, name in commands.items())
    del commands["convert_to_d2"]  # its --help needs PyTorch, and it is run below
    for name, (status, help_text, errors) in zip(
        commands.values(), run_all(site, [[name, "--help"] for name in commands.values()]), strict=True
    ):
        assert (status, errors) == (0, ""), name
        assert help_text.startswith(f"usage: {name} ") and "tools/" not in help_text
        assert f"\n{name} " in help_text.replace("    ", ""), "no example"


def test_the_commands_work_in_any_folder(site: Path, elsewhere: Path) -> None:
    checkpoint = moco_file(elsewhere / "moco.pth.tar", small_network().state_dict())
    own = elsewhere / "own.yaml"
    own.write_text("_BASE_: transfer/coco_R50_FPN.yaml\nSOLVER:\n  BASE_LR: 0.07\n")
    table = ["moco-reproduce", "--table", "demo_labels", "--root", "data", "--output", "results", "--dry-run"]
    explained, own_explained, unknown, absent, held, planned = run_all(
        site,
        [
            ["moco-train", "--config", "transfer/coco_R50_FPN.yaml", "--explain"],
            ["moco-train", "--config", "own.yaml", "--explain"],
            ["moco-train", "--config", "transfer/coco_R50_FPM.yaml"],
            ["moco-prepare-data", "demo", "--check", "--root", "data"],
            ["moco-convert", "--inspect", str(checkpoint)],
            table,
        ],
    )
    assert explained[0] == 0 and "He et al. 2020, Table 5(a)" in explained[1]
    assert own_explained[0] == 0 and "0.07" in own_explained[1], own_explained[2]
    assert unknown[0] == 2 and "did you mean transfer/coco_R50_FPN.yaml?" in unknown[2]
    assert absent[0] == 2 and "run 'moco-prepare-data demo" in absent[2]
    assert held[0] == 0 and "ResNet-50" in held[1]
    assert planned[0] == 0, planned[2]
    lines = planned[1].splitlines()
    assert lines[0].startswith(f"{len([line for line in lines if line.startswith('[')])} jobs in {elsewhere}")
    assert any(line.startswith("    moco-train --config transfer/demo_R50w50_FPN.yaml ") for line in lines)
    assert "tools/" not in planned[1]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="python -m searches the current folder first")
def test_a_program_starts_others_in_any_folder(site: Path, elsewhere: Path) -> None:
    code = """
import subprocess
from pretrain.installed import START_FOLDER, environment, runnable
command = runnable(["python", "tools/train_net.py", "--help"])
raise SystemExit(subprocess.run(command, cwd=START_FOLDER, env=environment()).returncode)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "moco-train --config transfer/coco_R50_FPN.yaml --num-gpus 8" in result.stdout
