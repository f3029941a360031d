"""What a config refuses, and the value beside it that it takes: each refusal names the key."""

import re

import pytest

from scalselect_ray.config_files import parse_config
from scalselect_ray.errors import ConfigError

GOOD = """
corpus: {sources: [{name: a, paths: [x.json]}, {name: b, paths: [y.json]}]}
extractor: {model: m}
selection: {budget: 0.16}
output: out
"""
FRACTION = (["0", "1", "0.5"], ["-0.1", "1.1", ".nan", ".inf"])
SHARE = (["0.001", "1"], ["0", "-0.5", "1.01", ".nan"])
COUNT = (["1", "1000000"], ["0", "-1"])
AMOUNT = (["0", "0.5", "1", "2", "100000"], ["-1", "-0.1", "1.5", ".nan", ".inf"])
BOUNDS = {  # key: what it takes, what it refuses
    "corpus.slice_rows": COUNT,
    "corpus.slice_bytes": COUNT,
    "corpus.sources.0.columns": (["{}", "{messages: talk, role_tag: who}"], ["{turns: talk}", "{messages: ''}"]),
    "corpus.sources.0.limit": (["null", *COUNT[0]], COUNT[1]),
    "corpus.sources.0.filter": (
        ["null", "a > 1", "\"a in ('x', 'y') and not b is null\""],
        ["''", "a = 1", "f(a)", "a > 1 and"],
    ),
    "extractor.attention_threshold": SHARE,
    "extractor.batch_tokens": COUNT,
    "extractor.max_length": (["null", *COUNT[0]], COUNT[1]),
    "extractor.min_pixels": (["null", *COUNT[0]], COUNT[1]),
    "extractor.max_pixels": (["null", *COUNT[0]], COUNT[1]),
    "extractor.dtype": (["bfloat16", "float16", "float32"], ["float64", "null"]),
    "extractor.tokens": (["reference", "strict"], ["all"]),
    "extractor.model": (["m", "a/b"], ["''"]),
    "subspace.energy": SHARE,
    "selection.budget": ([*AMOUNT[0], "[0.1, 0.2, 30]"], [*AMOUNT[1], "true", "some", "[]", "[0.1, -1]", "[[0.1]]"]),
    "selection.text_only_share": (["null", *FRACTION[0]], FRACTION[1]),
    "selection.text_only": (["drop", "keep"], ["hold"]),
    "selection.per_source.a.share": AMOUNT,
    "selection.per_source.a.floor": AMOUNT,
    "selection.per_source.a.cap": AMOUNT,
    "rejects.max_fraction": FRACTION,
    "workers.min_extractors": COUNT,
    "workers.max_extractors": (["null", *COUNT[0]], COUNT[1]),
    "workers.cpus_per_extractor": COUNT,
    "reduce.fan_in": (["2", "64"], ["1", "0", "-2"]),
    "reduce.leaf_rows": COUNT,
    "output": (["out"], ["''"]),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, (good, _) in BOUNDS.items() for value in good])
def test_a_value_within_the_bounds_is_taken(key, value):
    parse_config(GOOD, [f"{key}={value}"])


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, (_, bad) in BOUNDS.items() for value in bad])
def test_a_value_beyond_the_bounds_is_refused_by_its_key(key, value):
    with pytest.raises(ConfigError, match=re.escape(key)):
        parse_config(GOOD, [f"{key}={value}"])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["corpus.sources=[]"], "corpus.sources"),
        (["corpus.sources.1.name=a"], "corpus.sources"),
        (["corpus.sources.1.name=''"], "corpus.sources"),
        (["corpus.sources.1.paths=[]"], "corpus.sources"),
        (["workers.min_extractors=3", "workers.max_extractors=2"], "workers.max_extractors"),
        (["selection.per_source={c: {cap: 3}}"], "selection.per_source"),
        (["selection.per_source={a: {share: 0.5, floor: 0.1}}"], "selection.per_source.a"),
        (["selection.per_source={a: {share: 0.5, cap: 0.6}}"], "selection.per_source.a"),
        (["selection.per_source={a: {floor: 0.5, cap: 0.4}}"], "selection.per_source.a"),
        (["selection.per_source={a: {floor: 50, cap: 40}}"], "selection.per_source.a"),
        (["selection.per_source={a: {floor: 0.6}, b: {share: 0.5}}"], "selection.per_source"),
        (["selection.per_source={a: {cap: 3}}", "selection.budget=[10, 20]"], "selection.budget"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, key):
    with pytest.raises(ConfigError, match=re.escape(key)):
        parse_config(GOOD, changes)


@pytest.mark.parametrize(
    "changes",
    [
        ["workers.min_extractors=3", "workers.max_extractors=3"],
        ["selection.per_source={a: {floor: 0.4, cap: 0.4}}"],
        ["selection.per_source={a: {floor: 0.5, cap: 3}}"],  # a fraction and a count: which is more hangs on the budget
        ["selection.per_source={a: {floor: 3, cap: 0.5}}"],  # a fraction and a count: which is more hangs on the budget
        ["selection.per_source={a: {floor: 0.5}, b: {share: 0.5}}"],
        ["selection.per_source={a: {floor: 500}, b: {share: 0.9}}"],
        ["selection.budget=[10, 20]"],
    ],
)
def test_what_goes_together_is_taken(changes):
    parse_config(GOOD, changes)
