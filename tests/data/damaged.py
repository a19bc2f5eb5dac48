"""Pictures with something wrong, made cheaply."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path


def bomb(path: Path, width: int, height: int) -> Path:
    """Write a PNG of one bit a pixel that says how large it is, and holds a first megabyte."""
    fields = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", fields), (b"IDAT", zlib.compress(bytes(2**20)))):
        check = struct.pack(">I", zlib.crc32(kind + content))
        data += struct.pack(">I", len(content)) + kind + content + check
    path.write_bytes(data)
    return path


def cut(path: Path, share: float) -> Path:
    """Keep only the first part of a file."""
    path.write_bytes(path.read_bytes()[: int(len(path.read_bytes()) * share)])
    return path
