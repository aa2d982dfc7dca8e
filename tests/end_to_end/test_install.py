"""tools/install_detectron2.py: the hash decides before anything runs, and each failure is one line."""

import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.scripts import ROOT, run_script

SCRIPT = ROOT / "tools" / "install_detectron2.py"


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
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    arguments = ["install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([*pip, *arguments], check=True, capture_output=True)
    assert (target / "detectron2/model_zoo/configs/Base.yaml").read_text() == "MODEL: {}\n"
    shown = subprocess.run(
        [*pip, "list", "--path", str(target), "--format", "freeze"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert shown.stdout.strip() == "detectron2==0.6"
