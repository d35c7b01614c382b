"""A PNG file of grey pixels, with nothing but zlib.

Format: https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


def grey_png(width: int, height: int, pixels: bytes) -> bytes:
    """A file of `width` x `height` pixels of one byte each, row by row, 0 black and 255 white."""
    assert len(pixels) == width * height > 0
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = (b"\0" + pixels[at : at + width] for at in range(0, len(pixels), width))
    data = zlib.compress(b"".join(rows), 9)
    return b"".join([_SIGNATURE, _chunk(b"IHDR", head), _chunk(b"IDAT", data), _chunk(b"IEND")])


def _chunk(kind: bytes, data: bytes = b"") -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
