"""Configs."""

import json
import os
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from scalselect_ray.config import keys
from scalselect_ray.config_files import load_config, parse_config, source_of, to_yaml
from scalselect_ray.errors import ConfigError
from scalselect_ray.redaction import redact

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
        ("reduce.fan_in=1", r"reduce\.fan_in is 1; expected an integer from 2"),
        ("corpus.sources=[]", "at least one source"),
        ("corpus.sources=[{name: a, paths: [x]}, {name: a, paths: [y]}]", "names that differ"),
        ("corpus.sources=[{name: a, paths: x.json}]", r"paths is 'x\.json'; expected a list with at least one path"),
        ("corpus.sources=[{name: a, paths: ['']}]", r"corpus\.sources\.0\.paths is \[''\]; expected a list"),
        ("corpus.sources=[{name: '', paths: [x]}]", r"corpus\.sources\.0\.name is ''; expected a name"),
        ("corpus.slice_rows=0", r"expected an integer from 1 to 10\^12 \(rows\)"),
        ("corpus.slice_bytes=1.5", r"corpus\.slice_bytes is 1\.5; expected an integer"),
        ("extractor.model=", "a hub id"),
        ("extractor={model: m, min_pixels: 9, max_pixels: 8}", r"min_pixels is 9; expected no more than max_pixels, 8"),
        ("extractor.max_length=0", r"\(tokens\), or null"),
        ("workers={min_extractors: 3, max_extractors: 2}", r"max_extractors is 2; expected min_extractors, 3, or more"),
        ("selection.per_source={b: {share: 1}}", r"per_source is 'b'; expected the name of a source \(a\)"),
        ("selection.per_source={a: {share: 0.1, cap: 0.2}}", "one or the other"),
        (
            "selection.per_source={a: {floor: 0.3, cap: 0.2}}",
            r"a\.floor is 0\.3; expected no more than the cap of 0\.2",
        ),
        ("selection={budget: [0.1, 0.2], per_source: {a: {cap: 1}}}", "one budget with selection.per_source"),
        ("subspace.standardize=maybe", r"subspace\.standardize is 'maybe'; expected true or false"),
    ],
)
def test_a_mistake_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(GOOD, [change])


@pytest.mark.parametrize(
    "budget", ["0", "1", "0.16", "3", "1.0", "3.0", "[0.1, 0.2]", "[1, 0.5, 7]", "1000000000000", "1e-3"]
)
def test_a_budget_is_kept_as_it_is_given(budget):
    selection = parse_config(GOOD, [f"selection.budget={budget}"]).selection
    given = json.loads(budget)
    assert repr(selection.budget) == repr(given)
    assert selection.budgets == (given if isinstance(given, list) else [given])


HUGE = "1" * 400
NO_NUMBERS = [
    "true",
    "'x'",
    "'3'",
    "null",
    "{a: 1}",
    "[1]",
    HUGE,
    f"-{HUGE}",
    "9" * 5000,
    ".nan",
    ".inf",
    "-.inf",
    "-1",
]


@pytest.mark.parametrize("value", [*NO_NUMBERS[:5], *NO_NUMBERS[6:], "1.5", "[]", "[[1]]", "[true]", f"[0.1, {HUGE}]"])
def test_a_budget_is_a_fraction_or_a_count_or_a_list_of_these(value):
    with pytest.raises(ConfigError, match=r"selection\.budget|not valid YAML|the config: ") as raised:
        parse_config(GOOD, [f"selection.budget={value}"])
    assert len(str(raised.value)) < 500


NUMBERS = [key for key in keys() if key.item.type in (int, float, int | None, float | None) and "NAME" not in key.name]


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: key.name)
@pytest.mark.parametrize("value", ["true", "[1]", HUGE, ".nan", "-1"])
def test_no_number_of_a_config_is_out_of_bounds(key, value):
    named = key.name.replace("[]", "[0]")  # the first source's
    with pytest.raises(ConfigError, match=key.name.replace("[].", ".+").replace(".", r"\.", 1) + "|int too large"):
        parse_config(GOOD, [f"{named}={value}"])


@pytest.mark.parametrize("value", ["-1", ".nan", "1.5", "0.00001", ".inf", "1001"])
def test_gpus_that_ray_cannot_give_are_refused(value):
    with pytest.raises(ConfigError, match=r"workers\.gpus_per_extractor is .*; expected 0, a share from 0\.0001 to 1"):
        parse_config(GOOD, [f"workers.gpus_per_extractor={value}"])


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
    settings = parse_config(GOOD).extractor.feature_settings()
    assert "batch_tokens" not in settings
    assert {"dtype", "tokens", "attention_threshold", "max_pixels", "max_length"} <= set(settings)


def test_the_settings_that_a_feature_hangs_on_are_these():
    """The identity of stored features is made of them: another dict means that all are extracted again."""
    assert parse_config(GOOD).extractor.feature_settings() == {
        "dtype": "bfloat16",
        "attention_threshold": 0.9,
        "tokens": "reference",
        "max_length": None,
        "min_pixels": None,
        "max_pixels": None,
    }


def test_the_kept_copy_has_interpolations_as_they_were_written(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    monkeypatch.setenv("PART", "7")
    overrides = [
        "output=s3://bucket/${oc.env:AWS_SECRET_ACCESS_KEY}/out",
        "corpus.sources=[{name: 'a${oc.env:PART}', paths: [x.json, '${oc.env:PART}.json'], image_root: images}]",
        "corpus.slice_rows=${oc.env:PART}",
    ]
    config = parse_config(GOOD, overrides)
    kept = to_yaml(config)
    assert "hunter2" not in kept
    assert parse_config(kept) == config
    written = yaml.safe_load(kept)
    assert written["output"] == "s3://bucket/${oc.env:AWS_SECRET_ACCESS_KEY}/out"
    assert written["corpus"]["slice_rows"] == "${oc.env:PART}"
    assert written["corpus"]["sources"] == [
        {
            "name": "a${oc.env:PART}",
            "paths": [str(tmp_path / "x.json"), "${oc.env:PART}.json"],
            "image_root": str(tmp_path / "images"),
            "columns": {},
            "limit": None,
            "filter": None,
        }
    ]
    assert redact(f"no {config.output}") == "no s3://bucket/***/out"


@pytest.mark.parametrize("text", [r"a\${x}", r"\${oc.env:HOME}", r"a\\\${x}/b", "$", "a{b}", r"back\slash", "a:b"])
def test_an_escape_comes_back_the_same_from_the_kept_copy(text):
    sources = [{"name": text, "paths": [f"/d/{text}", f"s3://b/{text}"]}]
    config = parse_config(GOOD, [f"corpus={json.dumps({'sources': sources})}", f"output={json.dumps('/o/' + text)}"])
    assert parse_config(to_yaml(config)) == config
    assert parse_config(to_yaml(parse_config(to_yaml(config)))) == config


@given(st.text(st.sampled_from("\\${}a: .'"), min_size=1, max_size=12))
@settings(deadline=None, max_examples=50)
def test_any_config_made_in_python_comes_back_the_same(text):
    config = parse_config(GOOD)
    made = replace(config, extractor=replace(config.extractor, model=f"m{text}"), output=f"/o/x{text}y")
    again = parse_config(source_of(made))
    assert again.extractor.model == made.extractor.model
    assert again.output == os.path.abspath(made.output)


@pytest.mark.parametrize(
    "change",
    [
        "selection.budget=${oc.env:AWS_SECRET_ACCESS_KEY}",
        "corpus.slice_rows=${oc.env:AWS_SECRET_ACCESS_KEY}",
        "corpus.slice_rows=${oc.decode:${oc.env:AWS_SECRET_ACCESS_KEY}}",
        "extractor.dtype=${oc.env:AWS_SECRET_ACCESS_KEY}",
        "subspace.standardize=${oc.env:AWS_SECRET_ACCESS_KEY}",
        "corpus.sources=[{name: a, paths: '${oc.env:AWS_SECRET_ACCESS_KEY}'}]",
        "corpus.sources=[{name: a, paths: [x]}, {name: b, image_root: ['${oc.env:AWS_SECRET_ACCESS_KEY}']}]",
        "corpus.sources=[{name: '${oc.env:AWS_SECRET_ACCESS_KEY}', paths: [x]}, "
        "{name: '${oc.env:AWS_SECRET_ACCESS_KEY}', paths: [y]}]",
        "selection={budget: 1, per_source: {x: {share: '${oc.env:AWS_SECRET_ACCESS_KEY}'}}}",
        "corpus={sources: [{name: '${oc.env:AWS_SECRET_ACCESS_KEY}', paths: [x]}], slice_rows: 0}",
        "selection.per_source={b: {share: 1}}",
    ],
)
def test_an_error_shows_what_was_written_and_not_what_it_stands_for(change, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    good = GOOD.replace("name: a", "name: '${oc.env:AWS_SECRET_ACCESS_KEY}'")
    with pytest.raises(ConfigError) as raised:
        parse_config(good, [change])
    assert "hunter2" not in "".join(traceback.format_exception(raised.value))
