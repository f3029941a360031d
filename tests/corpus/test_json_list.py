"""The elements of a JSON list, found by brackets and strings alone, against the parser of the standard library."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalselect_ray.corpus.formats import UnreadableFileError
from scalselect_ray.corpus.formats.json_list import _Elements

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
MARKS = st.text('"\\[]{},: é\u2028', max_size=6)
VALUES = st.recursive(
    SCALARS | MARKS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(MARKS, inner, max_size=4),
    max_leaves=20,
)


def elements(content: bytes, edges: list[int]) -> list[bytes]:
    """The elements of a list whose bytes come in pieces that end at `edges`."""
    found, scanner = [], _Elements()
    for start, stop in itertools.pairwise(sorted({0, *(min(edge, len(content)) for edge in edges), len(content)})):
        found += list(scanner.feed(content[start:stop]))
    assert scanner.closed
    return [content[start:stop] for start, stop in found]


@given(
    st.lists(VALUES, max_size=6),
    st.lists(st.integers(0, 400), max_size=30),
    st.sampled_from([None, 0, 1]),
    st.booleans(),
    st.sampled_from([b"", b"\xef\xbb\xbf", b" \n"]),
)
def test_elements_are_those_of_the_parser_however_the_bytes_come(values, edges, indent, is_ascii, before):
    text = json.dumps(values, indent=indent, ensure_ascii=is_ascii)
    content = before + text.encode("utf-8", "surrogatepass") + b"\n \n"
    found = elements(content, [edge for edge in edges if edge > len(before)])
    assert [json.loads(element.decode("utf-8", "surrogatepass")) for element in found] == values
    assert all(element == element.strip() for element in found)


@pytest.mark.parametrize("depth", [1, 4, 5, 6, 7, 50, 3000])
def test_elements_of_any_depth(depth):
    content = b"[" + b",".join([b'{"a":' * depth + b'"]}"' + b"}" * depth] * 3) + b"]"
    assert elements(content, [5, 90]) == [b'{"a":' * depth + b'"]}"' + b"}" * depth] * 3


@pytest.mark.parametrize(
    ("content", "whole", "words"),
    [
        (b"[1, 2 3]", 2, "after row 1, at byte 6: expected ',' or ']'"),
        (b"[1, , 3]", 1, "in row 1, at byte 4: found ',' where a row should begin"),
        (b"[{}, }]", 1, "in row 1"),
        (b'["a" "b"]', 1, "after row 0"),
        (b'{"a": 1}', 0, "not a JSON list"),
    ],
)
def test_where_a_list_cannot_go_on_is_said(content, whole, words):
    found = []
    with pytest.raises(UnreadableFileError, match=words):
        found.extend(_Elements().feed(content))
    assert len(found) == whole
