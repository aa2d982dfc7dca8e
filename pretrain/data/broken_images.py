"""Images that cannot be read: counted over all processes, listed in a file, and too many of them end the run."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from pretrain.common import distributed
from pretrain.common.errors import UserError
from pretrain.common.files import write_text
from pretrain.data.folders import Images, printable

FILE = "broken_images.txt"
REPLACEMENTS = 16  # images tried for one item, the wanted one included
_STRIDE = (
    7919  # or the next number coprime to the image count: neighbours may all sit in the same broken folder
)
_SHOWN = 10  # names on the terminal; the file holds all


def attempts(wanted: int, count: int) -> Iterator[int]:
    """Yield the index of the wanted image, then those to try instead if it cannot be read, always the same.

    They are different images: at most REPLACEMENTS of the `count` there are.
    """
    stride = _STRIDE
    while math.gcd(stride, count or 1) > 1:  # it would come back to the same few images
        stride += 1
    for attempt in range(min(REPLACEMENTS, count)):
        yield (wanted + attempt * stride) % count


class Broken:
    """The unreadable images that a run has met.

    Args:
        files: the images.
        limit: DATA.MAX_BROKEN, the share of them that may be unreadable.
        folder: OUTPUT_DIR, for the list of names.
        going_on: the names that this run has listed before stay in the list, and count, unless they were so many
            that it ended for them: they have been mended, or are met and listed again.
        device: where the processes exchange tensors.
    """

    def __init__(
        self, files: Images, limit: float, *, folder: Path, going_on: bool, device: torch.device | str = "cpu"
    ) -> None:
        self.files, self.limit, self.path, self.device = files, limit, folder / FILE, device
        self.indices: set[int] = set()  # the same in all processes
        self.new: set[int] = set()  # that the others have not heard of
        self.count = 0  # of all sessions, the same in all processes
        self._earlier = (
            _lines(self.path) if going_on else set()
        )  # of sessions before, and not met again so far
        if len(self._earlier) > limit * len(files) or len(self._earlier) >= len(files):
            self._earlier = set()

    def add(self, indices: list[int]) -> None:
        """Note the unreadable images of one batch of this process."""
        self.new.update(set(indices) - self.indices)

    def share(self) -> None:
        """Tell all processes about all that is new. They all call this."""
        mine = torch.tensor(sorted(self.new), dtype=torch.int64, device=self.device)
        most = int(distributed.all_gather_interleaved(mine.new_tensor([len(mine)])).max())
        padded = torch.nn.functional.pad(mine, (0, most - len(mine)), value=-1)
        found = {index for index in distributed.all_gather_interleaved(padded).tolist() if index >= 0}
        if self._earlier:
            self._earlier -= {printable(self.files[index]) for index in found - self.indices}
        self.indices |= found
        self.new.clear()
        earlier = mine.new_tensor([len(self._earlier)])  # not all see the same file while it is written
        self.count = len(self.indices) + int(distributed.all_gather_interleaved(earlier).max())

    @property
    def too_many(self) -> bool:
        """Whether there are more than DATA.MAX_BROKEN allows, or none is readable: as of the last `share`."""
        return self.count > self.limit * len(self.files) or self.count == len(self.files)

    def check(self) -> None:
        """Write the names and raise `UserError`, in all processes, if there are too many."""
        if self.too_many:
            self.write()
            raise UserError(
                f"DATA.MAX_BROKEN {self.limit:g}: {self.count} of {len(self.files)} images could not be read so far, "
                f"{printable(self.files[min(self.indices)])} among them; {self.path} lists them; mend them or raise "
                "the limit"
            )

    def names(self) -> list[str]:
        """One line for each unreadable image, also of those that the run had met before it was stopped."""
        return sorted(self._earlier | {printable(self.files[index]) for index in self.indices})

    def write(self) -> None:
        """Write the names to OUTPUT_DIR/broken_images.txt, from the main process; no file without names.

        Raises `UserError` when that is impossible.
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
        """Lines for the end of a run."""
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
