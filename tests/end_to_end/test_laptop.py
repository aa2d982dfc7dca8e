"""The commands for a laptop, word for word as docs/own_data.md and docs/quickstart.md give them, at a tiny size."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain import config as pretrain_config
from tests.support import detection_data
from tests.support.scripts import ROOT, run_script
from transfer.config.load import read_config

OWN, QUICK = (ROOT / "docs" / name for name in ("own_data.md", "quickstart.md"))
# Only what makes a run short; everything else is as in the documentation.
TINY = {
    "tools/pretrain.py": [
        "SOLVER.MAX_ITER", "2", "INPUT.SIZE", "32", "DATA.NUM_WORKERS", "0", "DEVICE", "cpu",
    ],
    "tools/train_net.py": [
        "SOLVER.MAX_ITER", "2", "INPUT.MIN_SIZE_TRAIN", "96", "INPUT.MIN_SIZE_TEST", "96", "MODEL.DEVICE", "cpu",
        "DATALOADER.NUM_WORKERS", "0", "TEST.PRECISE_BN.NUM_ITER", "1",
    ],
}  # fmt: skip


def _commands(page: Path, title: str) -> list[list[str]]:
    """Return the words of the commands in a section's code blocks."""
    section = page.read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^    (python .*)$", section.replace("\\\n", " "), re.M)
    return [shlex.split(line)[1:] for line in lines]


def _output(words: list[str]) -> list[str]:
    """Return the OUTPUT_DIR that a command would have, relative to where it is started."""
    if words[0] not in TINY or "--eval-only" in words or "OUTPUT_DIR" in words:
        return []
    config = words[words.index("--config") + 1]
    load = pretrain_config.load if words[0] == "tools/pretrain.py" else read_config
    return ["OUTPUT_DIR", load(config).OUTPUT_DIR]


def test_the_quick_start_has_the_same_commands() -> None:
    own = _commands(OWN, "A few hundred photographs and a laptop")
    quick = _commands(QUICK, "A laptop and photographs of your own")
    assert len(quick) == 3 and all(words in own for words in quick)


@pytest.mark.slow
def test_every_command_runs(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "my").mkdir()
    image_folder(32).rename(tmp_path / "my/photos")
    for part, seed in (("train", 0), ("val", 1)):
        annotations, images = detection_data.write_coco(tmp_path / f"made_{part}", images=4, seed=seed)
        annotations.rename(tmp_path / f"{part}.json")
        images.rename(tmp_path / part)

    def here(word: str) -> str:
        is_path = re.match(r"(my|output|train|val|mistakes|mine)\b", word) and not word.startswith("transfer")
        return str(tmp_path / word) if is_path else word

    commands = _commands(OWN, "A few hundred photographs and a laptop")
    assert len(commands) == 8
    for words in commands:
        words += [*_output(words), *TINY.get(words[0], [])]
        done = run_script(*map(here, words))
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        assert words[0] != "tools/pretrain.py" or "kNN is not measured" in done.stdout
    run = tmp_path / "output/transfer/laptop_custom"
    first, again = (json.loads((run / f"{name}.json").read_text()) for name in ("results", "results_eval"))
    assert first["metrics"] == again["metrics"] and first["init"] == "weights"
    assert list((tmp_path / "mistakes").glob("*.jpg"))
    assert json.loads((tmp_path / "output/random/results.json").read_text())["init"] == "random"
