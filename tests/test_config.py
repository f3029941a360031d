"""Configs."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from scalselect_ray.config import feature_settings, load_config, parse_config, to_yaml
from scalselect_ray.errors import ConfigError

GOOD = """
corpus: {sources: [{name: a, paths: [x.json]}]}
extractor: {model: m}
selection: {budget: 0.16}
output: out
"""


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "conf").glob("*.yaml")), ids=lambda path: path.name
)
def test_configs_that_people_copy_are_valid(path):
    load_config(str(path))


def test_overrides_reach_any_depth():
    config = parse_config(
        GOOD, ["subspace.energy=0.5", "corpus.sources.0.paths=[/a/y.json,z.json]", "selection.budget=100"]
    )
    assert (config.subspace.energy, config.corpus.sources[0].paths, config.selection.budget) == (
        0.5,
        ["/a/y.json", str(Path.cwd() / "z.json")],
        100,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("extractor.attention_threshold=0", "extractor.attention_threshold is 0.0"),
        ("extractor.dtype=float8", "extractor.dtype"),
        ("extractor.attention_treshold=0.5", r"did you mean 'extractor\.attention_threshold'"),
        ("selection.budget=-1", r"selection\.budget is -1"),
        ("rejects.max_fraction=lots", r"rejects\.max_fraction"),
        ("output=", "output"),
        ("output", "dotted.key=value"),
        ("reduce.fan_in=1", "2 or more"),
        ("corpus.sources=[]", "at least one source"),
    ],
)
def test_a_mistake_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(GOOD, [change])


def test_shares_that_no_budget_can_hold_are_said_before_any_work():
    two = "corpus.sources=[{name: a, paths: [x]}, {name: b, paths: [x]}]"
    parse_config(GOOD, [two, "selection.per_source={a: {share: 0.6}, b: {floor: 0.4}}"])
    with pytest.raises(ConfigError, match="together at most 1"):
        parse_config(GOOD, [two, "selection.per_source={a: {share: 0.7}, b: {floor: 0.4}}"])


def test_missing_keys_are_named():
    for key in ("output", "model", "budget"):
        text = "\n".join(line for line in GOOD.splitlines() if key not in line)
        with pytest.raises(ConfigError, match=key):
            parse_config(text)


TREES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.dictionaries(st.sampled_from(["corpus", "sources", "output", "extractor", "x"]), inner)
        | st.lists(inner, max_size=2)
    ),
    max_leaves=8,
)


@pytest.mark.filterwarnings(
    "ignore:extend=lambda inner"
)  # it does use its argument; Hypothesis now and then thinks it does not
@settings(deadline=None)
@given(st.text(max_size=80) | TREES.map(yaml.safe_dump))
def test_any_text_is_a_clear_error(text):
    with pytest.raises(ConfigError, match=r"^config: "):
        parse_config(text)


def test_the_kept_copy_loads_again_without_secrets():
    config = parse_config(GOOD, ["output=s3://key:secret@bucket/out"])
    text = to_yaml(config)
    assert "secret" not in text
    assert parse_config(text).extractor == config.extractor


def test_what_bounds_memory_is_no_part_of_a_feature():
    settings = feature_settings(parse_config(GOOD).extractor)
    assert "batch_tokens" not in settings
    assert {"dtype", "tokens", "attention_threshold", "max_pixels", "max_length"} <= set(settings)
