"""Filters on rows: what they keep is what pyarrow keeps, and nothing but the grammar is taken."""

import datetime
import decimal

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalselect_ray.filters import FilterError, parse_filter

COLUMNS = {
    "n": (pa.float64(), st.none() | st.sampled_from([0.0, 0.5, 1.0, -2.0, float("nan")])),
    "t": (pa.string(), st.none() | st.sampled_from(["", "a", "B", "é"])),
    "b": (pa.bool_(), st.none() | st.booleans()),
}
ROWS = st.lists(st.fixed_dictionaries({name: values for name, (_, values) in COLUMNS.items()}), max_size=12)
SIGNS = {"==": "__eq__", "!=": "__ne__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}


def both(text: str, expression: pc.Expression) -> tuple[str, pc.Expression]:
    return text, expression


def compared(column: str, constants: st.SearchStrategy) -> st.SearchStrategy:
    return st.builds(
        lambda sign, value: both(
            f"{column} {sign} {value!r}", getattr(pc.field(column), SIGNS[sign])(pc.scalar(value))
        ),
        st.sampled_from(sorted(SIGNS)),
        constants,
    )


LEAVES = st.one_of(
    compared("n", st.sampled_from([0, 1, -2, 0.5])),
    compared("t", st.sampled_from(["", "a", "B"])),
    st.sampled_from(
        [
            both("b", pc.field("b")),
            both("n is null", pc.field("n").is_null()),
            both("t is not NULL", pc.field("t").is_valid()),
            both("field('t').is_null()", pc.field("t").is_null()),
            both("t in ('a', 'é')", (pc.field("t") == "a") | (pc.field("t") == "é")),
            both("n.isin([0, 1.0])", (pc.field("n") == 0.0) | (pc.field("n") == 1.0)),
            both("-2 < n <= 0.5", (pc.field("n") > -2) & (pc.field("n") <= 0.5)),
        ]
    ),
)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda one, other: both(f"({one[0]}) and ({other[0]})", one[1] & other[1]), inner, inner),
        st.builds(lambda one, other: both(f"({one[0]}) | ({other[0]})", one[1] | other[1]), inner, inner),
    ),
    max_leaves=5,
)


def kept_by_pyarrow(rows: list, expression: pc.Expression) -> list[int]:
    table = pa.Table.from_pylist(rows, pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()]))
    return table.append_column("at", pa.array(range(len(rows)), pa.int64())).filter(expression)["at"].to_pylist()


@given(ROWS, FILTERS)
def test_a_filter_keeps_what_pyarrow_keeps(rows, made):
    text, expression = made
    kept = parse_filter(text)
    assert [at for at, row in enumerate(rows) if kept.keeps(row)] == kept_by_pyarrow(rows, expression)


@given(ROWS, LEAVES)
def test_not_turns_true_and_false_round_and_leaves_what_is_neither(rows, made):
    text, expression = made
    kept = parse_filter(f"not ({text})")
    assert [at for at, row in enumerate(rows) if kept.keeps(row)] == kept_by_pyarrow(rows, ~expression)


KEPT = {
    "lang == 'en'": [{"lang": "en"}],
    "field('a b') == 1": [{"a b": 1}],
    "meta.score >= 2": [{"meta": {"score": 2}}, {"meta.score": 2}],
    "pc.field('meta', 'score') < 3": [{"meta": {"score": 2}}],
    "width > height": [{"width": 2, "height": 1.5}],
    "day >= '2024-05'": [{"day": datetime.date(2024, 5, 1)}, {"day": datetime.datetime(2024, 6, 1)}],
    "price < 2": [{"price": decimal.Decimal("1.5")}],
    "~(a == 'x') & (b > 1)": [{"a": "y", "b": 2}],
    "good": [{"good": True}],
    "a is null": [{}, {"a": None}, [], "a row that is no object"],
}
LEFT_OUT = {
    "lang == 'en'": [{"lang": None}, {}, {"lang": "de"}, {"lang": ["en"]}, []],
    "lang != 'en'": [{"lang": None}, {}, {"lang": 3}],
    "lang not in ('en', 'de')": [{}, {"lang": "en"}],
    "n == 1": [{"n": "1"}, {"n": True}],
    "good": [{"good": 1}, {"good": "yes"}, {}],
    "meta.score >= 2": [{"meta": None}, {"meta": 3}, {"meta": {}}],
    "not (good and n > 1)": [{"n": 3}],
}


@pytest.mark.parametrize("text", sorted({*KEPT, *LEFT_OUT}))
def test_rows_of_any_kind(text):
    kept = parse_filter(text)
    assert all(kept.keeps(row) for row in KEPT.get(text, []))
    assert not any(kept.keeps(row) for row in LEFT_OUT.get(text, []))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "syntax"),
        ("a = 1", "character 3"),
        ("a > 1 AND b", "character 7"),
        ("__import__('os').system('true')", "no column and no constant"),
        ("a == open('x')", "open"),
        ("a == [1 for b in c]", "1 for b"),
        ("a == null", "a is null"),
        ("'x' == 'y'", "both constants"),
        ("'x'", "where a comparison is expected"),
        ("lang in ('en', de)", "quotes"),
        ("lang in 'en'", "list of constants"),
        ("a == 1 & b == 2", "1 & b"),
        ("a is 5", "null alone"),
        ("a == b'x'", "b'x'"),
        ("not " * 500 + "a", "nested"),
        ("(" * 500, "parentheses"),
        ("a" * 5000, "5,000 characters"),
        ("a\0", "null bytes"),
    ],
)
def test_what_is_no_filter_says_why(text, says):
    with pytest.raises(FilterError) as error:
        parse_filter(text)
    assert says in str(error.value)


@given(st.text() | st.text(alphabet="ab.'\"()[]<>=!&|~ ,0andorin", max_size=40))
def test_any_text_is_a_filter_or_is_none(text):
    try:
        kept = parse_filter(text)
    except FilterError:
        return
    assert kept.keeps({"a": 1}) in (True, False)
    assert parse_filter(kept.identity).identity == kept.identity


def test_the_identity_is_that_of_what_is_said():
    texts = ['a=="x"and b in (1,2)', "(a == 'x') and (b in {2, 1})", "a == 'x' and b in [1, 2]"]
    assert len({parse_filter(text).identity for text in texts}) == 1
    others = ["a == 'x' or b in (1, 2)", "a == 'x' and b in (1, 3)", "a == 'x' and b not in (1, 2)", "a == 'x'"]
    assert len({parse_filter(text).identity for text in [texts[0], *others]}) == 5


def test_columns_that_no_row_has_and_constants_of_another_kind():
    kept = parse_filter("score > 0.5 and meta.lang in ('en',) and gone is null")
    rows = [{"score": "0.7", "meta": None}, {"score": None, "meta": {"lang": "de"}}]
    assert kept.names == ["score", "meta.lang", "gone"]
    assert kept.unknown(rows) == ["gone"]
    assert list(kept.mismatches(rows)) == ["score is compared as a number, and holds a text ('0.7')"]
    assert list(kept.mismatches([*rows, {"score": 1}])) == []
    assert [name for name in ("score", "meta", "lang", "gone", "x") if kept.is_read(name)] == ["score", "meta", "gone"]
