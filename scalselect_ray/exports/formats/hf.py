"""Parquet that `datasets` reads with its Image feature, in the layout of TRL: typed messages, a list of images."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from scalselect_ray.corpus import Turn
from scalselect_ray.exports.base import ExportRow, Finish, Format, Images, PartReport, Usage

_GROUP_ROWS, _GROUP_BYTES = 100, 64 << 20  # of a row group, the unit in which such files are read
_TEXT: dict[str, Any] = {"dtype": "string", "_type": "Value"}
_FEATURES = {
    "messages": [{"role": _TEXT, "content": [{"type": _TEXT, "text": _TEXT}]}],
    "images": [{"_type": "Image"}],
    "id": _TEXT,
    "source": _TEXT,
    "rank": {"dtype": "int64", "_type": "Value"},
    "score": {"dtype": "float64", "_type": "Value"},
    "original": _TEXT,
}
_CONTENT = pa.struct([("type", pa.string()), ("text", pa.string())])
_SCHEMA = pa.schema(
    [
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(_CONTENT))]))),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("id", pa.string()),
        ("source", pa.string()),
        ("rank", pa.int64()),
        ("score", pa.float64()),
        ("original", pa.string()),  # the row as it stands in its file, as JSON; images that are bytes are null
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


class HuggingFace(Format):
    about = "Hugging Face datasets, TRL: Parquet with images"
    keeps = "any row"
    modes = (Images.REFERENCE, Images.COPY)
    embeds = True
    part_rows = 5000

    def part_name(self, number: int, parts: int) -> str:
        return f"data/train-{number:05d}-of-{parts:05d}.parquet"

    def write(self, items: Iterator[ExportRow], report: PartReport, stream: BinaryIO) -> int:
        count = size = 0
        group: list[dict[str, Any]] = []
        with pq.ParquetWriter(stream, _SCHEMA, compression="zstd", write_page_checksum=True) as writer:

            def write_group() -> None:
                writer.write_table(pa.Table.from_pylist(group, _SCHEMA))
                group.clear()

            for item in report.each(items, _item):
                group.append(item)
                count += 1
                size += sum(len(image["bytes"] or b"") for image in item["images"])
                if len(group) == _GROUP_ROWS or size >= _GROUP_BYTES:
                    write_group()
                    size = 0
            if group or not count:
                write_group()
        return count

    def finish(self, finish: Finish) -> Usage:
        return Usage(
            [f'datasets.load_dataset("parquet", data_files="{finish.target}/data/*.parquet", split="train")'],
            smaller='split="train[:N]"',
        )


def _item(row: ExportRow, report: PartReport) -> dict[str, Any]:
    report.leave_behind(row.fields.no_json)
    return {
        "messages": [{"role": turn.role, "content": _content(turn)} for turn in row.turns],
        "images": [
            {"bytes": image.data, "path": image.name if image.data is not None else image.uri} for image in row.images
        ],
        "id": None if row.id is None else str(row.id),
        "source": row.source,
        "rank": row.rank,
        "score": row.score,
        "original": json.dumps(row.fields.record),
    }


def _content(turn: Turn) -> list[dict[str, str | None]]:
    return [
        {"type": "text", "text": piece} if isinstance(piece, str) else {"type": "image", "text": None}
        for piece in turn.content
    ]
