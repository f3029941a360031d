"""What we read of a Parquet footer, against pyarrow."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalselect_ray.corpus.formats.parquet import _footer
from scalselect_ray.corpus.formats.parquet_footer import columns_of

ROWS = [
    {
        "id": n,
        "caption": f"{n % 3}",
        "images": [{"bytes": bytes(n), "path": None}] * (n % 4),
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x" * n}]}],
        "scores": {"a": 1.5, "b": [True, None]},
    }
    for n in range(300)
]


def written(**options) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(ROWS).replace_schema_metadata({"note": "x" * 100})
    pq.write_table(table, sink, **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"row_group_size": 7},
        {"use_dictionary": False, "compression": "none"},
        {"use_dictionary": ["caption"], "compression": "zstd", "write_statistics": False},
        {"data_page_version": "2.0", "write_page_index": True, "write_page_checksum": True},
        {"sorting_columns": [pq.SortingColumn(0)], "version": "1.0"},
    ],
)
def test_columns_are_those_that_pyarrow_sees(options):
    data = written(**options)
    metadata = pq.read_metadata(pa.BufferReader(data))
    expected = []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        expected.append(
            tuple(
                (
                    column.path_in_schema,
                    column.physical_type == "BYTE_ARRAY",
                    column.num_values,
                    column.total_uncompressed_size,
                    column.total_compressed_size,
                    column.data_page_offset,
                    column.dictionary_page_offset,
                )
                for column in columns
            )
        )
    found = columns_of(_footer(io.BytesIO(data)))
    assert tuple(tuple(chunk[:7] for chunk in group) for group in found) == tuple(expected)
    for number, group in enumerate(found):
        for place, chunk in enumerate(group):
            known = metadata.row_group(number).column(place).statistics
            if chunk.is_bytes and known is not None and known.has_min_max:
                assert chunk.least == (known.min.encode() if isinstance(known.min, str) else known.min)
            elif chunk.is_bytes:
                assert chunk.least is None


FOOTER = _footer(io.BytesIO(written(row_group_size=100)))


@given(st.lists(st.tuples(st.integers(0, len(FOOTER) - 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=5))
def test_a_damaged_footer_is_read_or_refused(changes):
    data = bytearray(FOOTER)
    for at, change in changes:
        data[at : at + len(change)] = change
    try:
        groups = columns_of(bytes(data))
    except ValueError:  # and nothing else
        return
    assert sum(map(len, groups)) <= len(data)
