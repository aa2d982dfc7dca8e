"""Unreadable images: they are counted over all processes and listed in a file, and too many of them end the run."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from pretrain.common import distributed
from pretrain.common.errors import UserError, printable
from pretrain.common.files import write_text
from pretrain.data.folders import Images

FILE = "broken_images.txt"
REPLACEMENTS = 16  # images tried for one item, including the wanted one
# Or the next number coprime to the image count. Not 1, since neighbours may all be in the same broken folder.
_STRIDE = 7919
_SHOWN = 10  # names on the terminal; the file holds all


def attempts(wanted: int, count: int) -> Iterator[int]:
    """Yield the index of the wanted image, then those to try if it cannot be read; the sequence is deterministic.

    The indices are all different: at most REPLACEMENTS out of `count`.
    """
    stride = _STRIDE
    while math.gcd(stride, count or 1) > 1:  # or the sequence would repeat after a few images
        stride += 1
    for attempt in range(min(REPLACEMENTS, count)):
        yield (wanted + attempt * stride) % count


class Broken:
    """The unreadable images that a run has found.

    Args:
        files: the images.
        limit: DATA.MAX_BROKEN, the share of them that may be unreadable.
        folder: OUTPUT_DIR, for the list of names.
        resumed: whether the run is resumed. The names that it listed before then stay in the list and count, unless
            they exceeded the limit and ended the run: such images are fixed by now, or will be found again.
        device: the device of the tensors that the processes exchange.
    """

    def __init__(
        self, files: Images, limit: float, *, folder: Path, resumed: bool, device: torch.device | str = "cpu"
    ) -> None:
        self.files, self.limit, self.path, self.device = files, limit, folder / FILE, device
        self.indices: set[int] = set()  # the same in all processes
        self.new: set[int] = set()  # not yet known to the other processes
        self.count = 0  # over all sessions of the run, the same in all processes
        # Names from earlier sessions of the run, without those found again in this session
        self._earlier = _lines(self.path) if resumed else set()
        if len(self._earlier) > limit * len(files) or len(self._earlier) >= len(files):
            self._earlier = set()

    def add(self, indices: list[int]) -> None:
        """Record the unreadable images of one batch of this process."""
        self.new.update(set(indices) - self.indices)

    def share(self) -> None:
        """Exchange new indices between all processes, which must all call this."""
        mine = torch.tensor(sorted(self.new), dtype=torch.int64, device=self.device)
        most = int(distributed.all_gather_interleaved(mine.new_tensor([len(mine)])).max())
        padded = torch.nn.functional.pad(mine, (0, most - len(mine)), value=-1)
        found = {index for index in distributed.all_gather_interleaved(padded).tolist() if index >= 0}
        if self._earlier:
            self._earlier -= {printable(self.files[index]) for index in found - self.indices}
        self.indices |= found
        self.new.clear()
        earlier = mine.new_tensor([len(self._earlier)])  # processes may read the file while it is written
        self.count = len(self.indices) + int(distributed.all_gather_interleaved(earlier).max())

    @property
    def too_many(self) -> bool:
        """Whether there are more than DATA.MAX_BROKEN allows, or no readable image is left, as of the last `share`."""
        return self.count > self.limit * len(self.files) or self.count == len(self.files)

    def check(self) -> None:
        """Write the names and raise `UserError`, in all processes, if there are too many unreadable images."""
        if self.too_many:
            self.write()
            raise UserError(
                f"DATA.MAX_BROKEN {self.limit:g}: {self.count} of {len(self.files)} images could not be read so far, "
                f"{printable(self.files[min(self.indices)])} among them; {self.path} lists them; repair them or raise "
                "the limit"
            )

    def names(self) -> list[str]:
        """Return the name of each unreadable image, including those found before the run was stopped and resumed."""
        return sorted(self._earlier | {printable(self.files[index]) for index in self.indices})

    def write(self) -> None:
        """Write the names to OUTPUT_DIR/broken_images.txt from the main process; without names, remove the file.

        Raises `UserError` if the file cannot be written.
        """
        if not distributed.is_main():
            return
        names = self.names()
        if not names:
            self.path.unlink(missing_ok=True)
        elif set(names) != _lines(self.path):
            text = "".join(f"{name}\n" for name in names)
            write_text(self.path, text)

    def report(self) -> list[str]:
        """Return lines to print at the end of a run."""
        names = self.names()
        if not names:
            return []
        lines = [
            f"{len(names)} unreadable image(s) were replaced by others; {self.path} lists them:",
            *names[:_SHOWN],
        ]
        return lines + ([f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])


def _lines(path: Path) -> set[str]:
    if not os.path.isfile(path):
        return set()
    return set(path.read_text(encoding="utf-8", errors="replace").splitlines())
