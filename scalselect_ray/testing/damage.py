"""Small files of every corpus format, small pictures of every kind, and random damage to them.

Half of the time the damage is to what is inside a gzip, a tar header or a PNG chunk, with the checksum made right
again, so that it is not found at the door.
"""

import base64
import bz2
import gzip
import io
import json
import lzma
import random
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from scalselect_ray.config import CorpusConfig, SourceConfig
from scalselect_ray.corpus import (
    ImageRef,
    Reject,
    SampleRejectedError,
    list_files,
    load_image,
    load_images,
    plan_file,
    read_slices,
    reading_units,
)

ROWS = [
    {
        "id": f"é{n}",
        "images": [{"path": f"{n}.png"}],
        "conversations": [{"from": "human", "value": f'[{{"<image>{n}'}, {"from": "gpt", "value": "\\] ✓"}],
    }
    for n in range(12)
]
_SLICE_ROWS = 5
_GREEDY = (
    b"\xff" * 8,
    b"\x00" * 8,
    b"\x80" + b"\x00" * 7,
    b"\x7f" + b"\xff" * 7,
    b"9" * 12,
    b'"',
    b"[",
    b"]",
    b"{",
    b"\n",
    b",",
    b"\\",
)


def pictures() -> dict[str, bytes]:
    """A small picture of every kind, by name."""
    colours = Image.fromarray((np.arange(24 * 16 * 3).reshape(16, 24, 3) % 256).astype(np.uint8))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "a.jpg": ("RGB", "JPEG", {}),
        "cmyk.jpg": ("CMYK", "JPEG", {}),
        "progressive.jpg": (
            "RGB",
            "JPEG",
            {"progressive": True, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
        ),
        "a.png": ("RGB", "PNG", {}),
        "palette.png": ("P", "PNG", {"transparency": 0}),
        "grey16.png": ("I;16", "PNG", {}),
        "a.gif": ("P", "GIF", {"save_all": True, "append_images": [colours.rotate(180).convert("P")]}),
        "a.webp": ("RGB", "WEBP", {}),
        "a.bmp": ("RGB", "BMP", {}),
        "a.tif": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        "a.ppm": ("RGB", "PPM", {}),
        "a.avif": ("RGB", "AVIF", {}),
    }
    made = {}
    for name, (mode, form, options) in kinds.items():
        sink = io.BytesIO()
        grey = Image.fromarray(np.arange(24 * 16, dtype=np.uint16).reshape(16, 24) * 170)
        (grey if mode == "I;16" else colours.convert(mode)).save(sink, form, **options)
        made[name] = sink.getvalue()
    return made


def corpora() -> dict[str, bytes]:
    """A small file of every format, by name."""
    picture = pictures()["a.png"]
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    inline = [{**row, "images": ["data:image/png;base64," + base64.b64encode(picture).decode()]} for row in ROWS]
    structs = [{**row, "images": [{"bytes": picture, "path": "a.png"}]} for row in ROWS]
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(structs), parquet, row_group_size=4)
    plain = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(structs), plain, row_group_size=7, compression="none", use_dictionary=False)
    table = pa.Table.from_pylist(structs)
    stream, packed = io.BytesIO(), io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    with pa.ipc.new_file(packed, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table, max_chunksize=7)
    return {
        "stream.arrow": stream.getvalue(),
        "packed.feather": packed.getvalue(),
        "object.json": json.dumps({"version": 1, "data": ROWS, "more": [1]}, indent=1).encode(),
        "packed.jsonl.zst": pa.Codec("zstd").compress(lines, asbytes=True),
        "packed.jsonl.bz2": bz2.compress(lines),
        "shard.tar.xz": lzma.compress(_tar(picture)),
        "list.json": json.dumps(ROWS, indent=1, ensure_ascii=False).encode(),
        "lines.jsonl": lines,
        "joined.jsonl": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
        "list.json.gz": gzip.compress(json.dumps(ROWS).encode(), mtime=0),
        "layouts.jsonl": "".join(json.dumps(row) + "\n" for row in _layouts(picture)).encode(),
        "inline.jsonl": "".join(json.dumps(row) + "\n" for row in inline).encode(),
        "packed.jsonl.gz": gzip.compress(lines, mtime=0),
        "snappy.parquet": parquet.getvalue(),
        "plain.parquet": plain.getvalue(),
        "shard.tar": _tar(picture),
        "shard.tar.gz": gzip.compress(_tar(picture), mtime=0),
    }


def _layouts(picture: bytes) -> list[dict[str, Any]]:
    """Rows of many layouts."""
    asked, answered, image = "What is <image>?", "A cat.", base64.b64encode(picture).decode()
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]
    typed = [{"type": "image", "source": {"type": "base64", "data": image}}, {"type": "text", "text": "What?"}]
    return [
        {"image": image, "system": "Be brief.", "conversations": turns},
        {"images": [image], "prompt": [{"role": "user", "content": asked}], "completion": answered},
        {"images": [{"bytes": image}], "history": [["Hi", "Hello"]], "query": asked, "response": answered},
        {"image": image, "instruction": "What is", "input": "<image>?", "output": answered},
        {"image": image, "conversations": json.dumps(turns)},
        {"image": image, "texts": {"user": [asked], "assistant": [answered]}},
        {"messages": [{"role": "user", "content": typed}, {"role": "assistant", "content": answered}]},
        {
            "image": {"<image>": image},
            "messages": [{"role": "user", "content": asked}, {"role": "bot", "content": "!"}],
        },
    ]


def mutated(name: str, content: bytes, dice: random.Random) -> bytes:
    """`content` with one to four random changes."""
    inner = dice.random() < 0.5
    if inner and name.endswith(".gz"):
        return gzip.compress(mutated(name.removesuffix(".gz"), gzip.decompress(content), dice), mtime=0)
    data = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        if not data:
            break
        if inner and name.endswith(".tar"):
            _change_header(data, dice)
            continue
        start = dice.randrange(len(data))
        stop = min(len(data), start + dice.choice((1, 2, 8, 64, len(data))))
        change = dice.randrange(7)
        if change <= 1:
            data[start] = dice.randrange(256)
        elif change == 2:
            del data[start:stop]
        elif change == 3:
            data[start:start] = data[start:stop]
        elif change == 4:
            data[start:start] = bytes(dice.randrange(256) for _ in range(dice.choice((1, 4, 100))))
        else:
            greedy = dice.choice(_GREEDY)
            data[start : start + len(greedy)] = greedy
    return _sealed_png(bytes(data)) if inner and name.endswith(".png") else bytes(data)


def file_outcome(folder: Path, name: str, content: bytes) -> str:
    """Plans and reads a file as a run does. Raises what is a finding."""
    (folder / name).write_bytes(content)
    source = SourceConfig(name="fuzz", paths=[str(folder / name)])
    planned = plan_file(list_files(CorpusConfig(sources=[source], slice_rows=_SLICE_ROWS))[0])
    rows = [row for unit in reading_units(planned) for _, some in read_slices(unit) for row in some]
    assert [row.row for row in rows] == list(range(sum(part.rows for part in planned))), (
        "scan and read count differently"
    )
    for row in rows:
        if isinstance(row, Reject):
            assert len(row.message) <= 1000
            row.message.encode()
        elif row.images[0].data is not None:
            picture_outcome(row.images[0].data)
    if planned and planned[-1].problem:
        return "rows, then unreadable" if len(rows) > 1 else "unreadable"
    return "rows and rejects" if any(isinstance(row, Reject) for row in rows) else "rows"


def picture_outcome(content: bytes) -> str:
    """Decodes a picture as a run does. Raises what is a finding."""
    try:
        (picture,) = load_images([ImageRef("x", data=content)])
    except SampleRejectedError as error:
        return error.reason
    assert picture.mode == "RGB"
    assert picture.tobytes() == load_image(ImageRef("x", data=content)).tobytes(), "the same bytes give other pixels"
    return "decoded"


def _tar(picture: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, row in enumerate(ROWS):
            name = "folder" * 20 * (number == 7) + f"{number:03d}"
            for member, data in ((f"{name}.png", picture), (f"{name}.json", json.dumps(row).encode())):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def _change_header(data: bytearray, dice: random.Random) -> None:
    """Writes nonsense to a field of one tar header, and makes its checksum right."""
    headers = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return
    at = dice.choice(headers)
    start, stop = dice.choice(
        ((0, 100), (124, 136), (124, 136), (124, 136), (156, 157), (156, 157), (157, 257), (345, 500), (482, 495))
    )
    size = stop - start
    data[at + start : at + stop] = dice.choice(
        (
            bytes(dice.choice(b"01234567DKLNSVgx/. \0\xff\x80") for _ in range(size)),
            (b"%0*o\0" % (size - 1, dice.choice((0, 1, 511, 512, 513, 1 << 20, 10 << 30))))[-size:],
            b"\xff" * size,
            (b"\x80" + bytes(size))[:size],
        )
    )
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


def _sealed_png(data: bytes) -> bytes:
    """The chunks of a PNG with their checksums made right, as far as it has any."""
    sealed, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunk = data[at + 4 : at + 8 + min(length, len(data))]
        sealed += data[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + length
    return bytes(sealed)
