"""One checksum over a whole file of ours, kept inside it where its format has room for a text: in a Parquet footer, a
safetensors header.

A flipped byte anywhere is found, in a length or a name as well as in the data, which a format's own checksums (if it
has any) leave out."""

import zlib

_MARK = b"crc32:"
_DIGITS = 8
BLANK = _MARK.decode() + "0" * _DIGITS
"""What a file holds where its checksum will stand."""


def stamped(data: bytes) -> bytes:
    """`data` with its checksum instead of BLANK."""
    at = data.rindex(_MARK) + len(_MARK)
    return data[:at] + _checksum(data, at) + data[at + _DIGITS :]


def matches(data: bytes) -> bool:
    """Whether `data` is, to the byte, what was stamped."""
    at = data.rfind(_MARK) + len(_MARK)
    return data[at : at + _DIGITS] == _checksum(data, at)


def _checksum(data: bytes, at: int) -> bytes:
    """Of all bytes, with zeros where the checksum itself stands."""
    view = memoryview(data)
    return b"%08x" % zlib.crc32(view[at + _DIGITS :], zlib.crc32(b"0" * _DIGITS, zlib.crc32(view[:at])))
