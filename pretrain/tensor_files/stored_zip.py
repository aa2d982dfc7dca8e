"""A reader for uncompressed zip files, as PyTorch writes them, whose memory use is bounded by the file size."""

import struct
import zlib
from pathlib import Path
from typing import IO

from pretrain.common.errors import UserError

MAX_ENTRIES = 200_000
_END = struct.Struct("<4s4H2IH")  # signature, disk, disk, here, entries, size, offset, comment
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_FULL = 0xFFFFFFFF


class StoredZip:
    """The members of a zip file.

    Raises:
        UserError: members are compressed, encrypted or overlapping, there are too many, or the file is damaged.
    """

    def __init__(self, path: Path, file: IO[bytes], size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.members: dict[str, tuple[int, int, int]] = {}  # name -> offset of its header, size, CRC
        entries, length, offset = self._directory()
        if entries > MAX_ENTRIES or length > 1024 * MAX_ENTRIES or entries * _ENTRY.size > length:
            raise UserError(f"{path}: is a zip file of {entries} parts: damaged or hostile")
        self._parse(self._at(offset, length), entries)
        total = sum(size for _, size, _ in self.members.values())
        if total > size:
            raise UserError(f"{path}: its parts overlap, which PyTorch never writes; refused")

    def read(self, name: str) -> bytearray:
        """Return a member's bytes, checked against their CRC."""
        if name not in self.members:
            raise self._damaged(f"it has no part {name[-40:]!r}")
        offset, size, crc = self.members[name]
        header = _LOCAL.unpack(self._at(offset, _LOCAL.size))
        if header[0] != b"PK\x03\x04":
            raise self._damaged("it has a part without a header")
        start = offset + _LOCAL.size + header[-2] + header[-1]
        data = self._at(start, size)
        if zlib.crc32(data) != crc:
            raise self._damaged(f"the checksum of part {name[-40:]!r} is wrong")
        return data

    def _directory(self) -> tuple[int, int, int]:
        """Return the number of entries, and the size and offset of their list."""
        place = self.size - _END.size
        end = _END.unpack(self._at(place, _END.size))
        if end[0] != b"PK\x05\x06":
            raise self._damaged("it has no list of parts at its end")
        entries, length, offset = end[4:7]
        if entries == 0xFFFF or _FULL in (length, offset):
            locator = _LOCATOR.unpack(self._at(place - _LOCATOR.size, _LOCATOR.size))
            end = _END_64.unpack(self._at(locator[2], _END_64.size))
            if locator[0] != b"PK\x06\x07" or end[0] != b"PK\x06\x06":
                raise self._damaged("it has no list of parts at its end")
            entries, length, offset = end[7:10]
        return entries, length, offset

    def _parse(self, data: bytearray, entries: int) -> None:
        position = 0
        for _ in range(entries):
            fields = _ENTRY.unpack_from(data, position)
            if fields[0] != b"PK\x01\x02":
                raise self._damaged("its list of parts is incomplete")
            flags, method, crc, packed, size = fields[3], fields[4], *fields[7:10]
            names, extras, comments, offset = *fields[10:13], fields[16]
            position += _ENTRY.size
            name = data[position : position + names].decode("utf-8", "replace")
            extra = bytes(data[position + names : position + names + extras])
            position += names + extras + comments
            if _FULL in (packed, size, offset):
                size, packed, offset = _wide(extra, size, packed, offset)
            if method or packed != size or flags & 1:
                raise UserError(
                    f"{self.path}: its parts are compressed or encrypted, which PyTorch never writes; refused"
                )
            if name in self.members:
                raise self._damaged(f"it has two parts {name[-40:]!r}")
            self.members[name] = (offset, size, crc)

    def _at(self, offset: int, size: int) -> bytearray:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self._damaged("it has a part beyond its end")
        data = bytearray(size)
        self.file.seek(offset)
        if self.file.readinto(data) != size:  # type: ignore[attr-defined]
            raise self._damaged("it became shorter while it was read")
        return data

    def _damaged(self, what: str) -> UserError:
        return UserError(f"{self.path}: not a readable PyTorch checkpoint (truncated?): {what}")


def _wide(extra: bytes, *narrow: int) -> list[int]:
    """Return size, packed size and offset; values of 4 GB and more come from the zip64 field, in this order."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            wide = list(struct.unpack_from(f"<{length // 8}Q", extra, position + 4))
            return [wide.pop(0) if value == _FULL and wide else value for value in narrow]
        position += 4 + length
    return list(narrow)
