"""What a safetensors file says of itself, without its tensors."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MAX_HEADER = 100_000_000  # bytes, as the format has it


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of a file by name (dtype, shape, data_offsets), its metadata, and where the data of the tensors
    begins."""

    tensors: dict[str, dict[str, Any]]
    metadata: dict[str, str]
    begin: int

    def place(self, name: str) -> tuple[int, int]:
        """The bytes [start, stop) of a tensor in the file. Raises ValueError."""
        try:
            start, stop = map(int, self.tensors[name]["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"its header has no place for '{name}'") from error
        if not 0 <= start <= stop:
            raise ValueError(f"its header has '{name}' at {start} to {stop}")
        return self.begin + start, self.begin + stop


def read_header(read: Callable[[int, int], bytes]) -> Header:
    """The header of a file, of which `read(start, stop)` gives bytes. Raises ValueError when it is no safetensors
    file."""
    length = int.from_bytes(read(0, 8), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"its header claims {length:,} bytes")
    header = json.loads(read(8, 8 + length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata = header.pop("__metadata__", None) or {}
    if not all(isinstance(item, dict) for item in (metadata, *header.values())):
        raise ValueError("its header does not describe tensors")
    return Header(header, metadata, 8 + length)


def header_of(data: bytes) -> Header:
    """The header of a file that is in memory. Raises ValueError."""
    return read_header(lambda start, stop: data[start:stop])
