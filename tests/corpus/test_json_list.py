"""The elements of a JSON list, found by brackets and strings alone, against the parser of the standard library."""

import itertools
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalselect_ray.corpus.formats import Broken, Cutting, UnreadableFileError
from scalselect_ray.corpus.formats.json_list import Elements, JsonList, border_of
from scalselect_ray.io import storage

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
MARKS = st.text('"\\[]{},: é\u2028', max_size=6)
VALUES = st.recursive(
    SCALARS | MARKS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(MARKS, inner, max_size=4),
    max_leaves=20,
)


def elements(content: bytes, edges: list[int]) -> list[bytes]:
    """The elements of a list whose bytes come in pieces that end at `edges`."""
    found, scanner = [], Elements()
    for start, stop in itertools.pairwise(sorted({0, *(min(edge, len(content)) for edge in edges), len(content)})):
        found += list(scanner.feed(content[start:stop]))
    assert not scanner.listed
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


ROWS = [
    {
        "id": str(number),
        "image": "images/a.jpg",
        "conversations": [
            {"from": "human", "value": f"<image>\nWhat {number}? {{x}} [y],"},
            {"from": "gpt", "value": 'A "cat".\\'},
        ],
    }
    for number in range(40)
]


def read(tmp_path: Path, content: bytes) -> list[object]:
    """The rows of a file, in ranges of seven."""
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    file = storage.stat(str(path))
    form = JsonList()
    found: list[object] = []
    for range_, rows in form.read(file, list(form.scan(file, Cutting(7, 1 << 20)))):
        assert len(rows) == range_.stop_row - range_.first_row
        found += rows
    return found


@pytest.mark.parametrize("indent", [None, 1], ids=["one line", "indented"])
@pytest.mark.parametrize(
    ("taken", "given"),
    [
        ('"}]},', '"}],},'),  # a comma too many, inside of the row
        ('"}]},', '"}]},,'),  # and between rows
        ('"}]},', '"}]}'),  # none between rows
        ('"}]},', '"}},'),  # a bracket that is not closed
        ('"}]},', '"}],'),  # a row that is not closed
        ('"}]},', '"}]}},'),  # closed twice
        ('"}]},', '"}]]},'),
        ('"}]},', '"}]}],'),  # the list, in the midst of it
        ('"}]},', '"}]}][') ,  # two lists joined
        ('"image": ', '"image: '),  # a quote that is missing
        ('"image": ', '"image"": '),  # and one too many
        ('"images/a.jpg"', '"images/a".jpg"'),
        ('"images/a.jpg"', 'images/a.jpg'),
        ('"images/a.jpg"', '"images/a\\.jpg"'),  # no escape of JSON
        ('"images/a.jpg"', ''),
        ('"images/a.jpg"', '"images/a.jpg\n"'),
        ('"from": "human"', '"from": "human}, {"'),
        ('"}]},', '"}]}"'),  # a quote in the place of the comma between rows
        ('"}]},', '"}]},"'),
        ('{"from"', '"from"'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("damaged", [0, 20, 38])
def test_a_broken_row_takes_no_other_along(tmp_path, indent, taken, given, damaged):
    """Compared with the rows before they were damaged; a row with a bracket in the wrong place may fall in two."""
    pieces = [json.dumps(row) if indent is None else json.dumps(row, indent=indent) for row in ROWS]
    texts = ["".join(piece.split("\n")) if indent is None else piece for piece in pieces]
    whole = "[" + ", ".join(f"\0{number}\0{text}" for number, text in enumerate(texts)) + "]"
    mark, following = whole.index(f"\0{damaged}\0"), whole.index(f"\0{damaged + 1}\0")
    row = whole[mark:following]
    if indent is not None:  # the same damage, whatever blanks there are
        row = re.sub(r"\s+", " ", row).replace("} ] }", "}]}").replace('" }', '"}').replace("{ ", "{")
    assert taken in row
    broken = row[::-1].replace(taken[::-1], given[::-1], 1)[::-1]
    content = re.sub(r"\0\d+\0", "", whole[:mark] + broken + whole[following:])
    found = read(tmp_path, content.encode())
    others = [row for row in ROWS if row["id"] != str(damaged)]
    assert [row for row in found if row in others] == others
    assert len(ROWS) - 1 <= len(found) <= len(ROWS) + 2
    assert sum(isinstance(row, Broken) for row in found) <= 3


def test_what_follows_a_broken_row_comes_out_long_before_the_end(tmp_path):
    """Nothing is held back until then: a list may have any size."""
    rows = [json.dumps(row).encode() for row in ROWS * 50]
    rows[3] = rows[3].replace(b"}]}", b"}]")
    content = b"[" + b", ".join(rows)
    (tmp_path / "rows.json").write_bytes(content)
    elements, found = Elements(border_of(storage.stat(str(tmp_path / "rows.json")))), []
    for start in range(0, len(content), 1 << 14):
        found += elements.feed(content[start : start + (1 << 14)])
        assert len(content[: start + (1 << 14)]) - found[-1][1] < 1 << 14
    assert len(found) >= len(rows) - 1


def test_objects_inside_of_rows_that_begin_as_rows_do_are_no_rows(tmp_path):
    rows = [{"id": number, "boxes": [{"id": 1}, {"id": 2}, {"id": 3}]} for number in range(30)]
    assert read(tmp_path, json.dumps(rows).encode()) == rows


def test_lists_joined_to_one_file_are_read_one_after_the_other(tmp_path):
    content = json.dumps(ROWS[:4]).encode() + b"\n" + json.dumps(ROWS[4:], indent=1).encode() + b"\n[]\n"
    assert read(tmp_path, content) == ROWS


def test_what_follows_a_list_and_is_no_row_is_told(tmp_path):
    found = read(tmp_path, json.dumps(ROWS).encode() + b"\n<html>gone</html>")
    assert found[:-1] == ROWS
    assert isinstance(found[-1], Broken)


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.99])
def test_a_list_that_breaks_off_says_after_which_row_and_how_much_is_lost(tmp_path, kept):
    content = json.dumps(ROWS).encode()
    path = tmp_path / "rows.json"
    path.write_bytes(content[: int(kept * len(content))])
    file = storage.stat(str(path))
    found = []
    with pytest.raises(UnreadableFileError) as caught:
        found.extend(JsonList().scan(file, Cutting(1, 1 << 20)))
    assert f"breaks off after row {len(found) - 1}" in str(caught.value)
    assert caught.value.lost_bytes == file.size - content.index(f'{{"id": "{len(found)}"'.encode())


@given(st.integers(0, 39), st.sampled_from('"{}[],\\:'), st.booleans(), st.integers(0, 10**6), st.none() | st.just(2))
def test_any_wrong_byte_costs_its_own_row_at_most(tmp_path_factory, row, character, is_more, at, indent):
    content = json.dumps(ROWS, indent=indent)
    starts = [match.start() for match in re.finditer(r'\{\s*"id"', content)] + [len(content) - 3 * (indent is not None)]
    place = starts[row] + 1 + at % (starts[row + 1] - starts[row] - 4)
    damaged = content[:place] + character + content[place + (not is_more) :]
    if row == len(ROWS) - 1:
        damaged = damaged.rstrip("]\n ") + "]"  # the last row has nothing after it that could be lost
    try:
        found = read(tmp_path_factory.mktemp("damaged"), damaged.encode())
    except UnreadableFileError:
        assert row == len(ROWS) - 1
        return
    others = [other for other in ROWS if other["id"] != str(row)]
    assert [item for item in found if item in others] == others
