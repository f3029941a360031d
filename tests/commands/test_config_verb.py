"""What `scalselect config` prints, and the schema that editors use."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from scalselect_ray.cli import main
from scalselect_ray.commands.config import json_schema
from scalselect_ray.config_files import parse_config
from scalselect_ray.errors import ConfigError

SHIPPED = sorted((Path(__file__).parents[2] / "conf").glob("*.yaml"))
GOOD = """
corpus: {sources: [{name: a, paths: [x.json]}]}
extractor: {model: m}
selection: {budget: 0.16, per_source: {a: {cap: 0.5}}}
output: out
"""


def complaints(config):
    return [error.message for error in Draft202012Validator(json_schema()).iter_errors(config)]


def changed(key, value):
    config = yaml.safe_load(GOOD)
    *sections, last = key.split(".")
    inner = config
    for section in sections:
        inner = inner[int(section)] if isinstance(inner, list) else inner.setdefault(section, {})
    inner[last] = value
    return config


def test_the_schema_is_one():
    Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_configs_that_people_copy_follow_it(path):
    assert complaints(yaml.safe_load(path.read_text())) == []


CHANGES = [
    ("selection.budget", value)
    for value in (0, 1, 2, 0.5, 7.0, [0.1, 7], 1.5, -1, True, "x", None, [], [[1]], [True], 10**12, 10**400)
]
CHANGES += [("corpus.slice_rows", value) for value in (0, 1, 1.5, True, "x", None, 10**12 + 1)]
CHANGES += [("extractor.dtype", value) for value in ("float16", "float8", None)]
CHANGES += [("extractor.max_length", value) for value in (None, 1, 0, "x")]
CHANGES += [("extractor.attention_threshold", value) for value in (0, 1, 0.5, 1.1, None)]
CHANGES += [("workers.gpus_per_extractor", value) for value in (None, 0, 0.5, 1, 2, 1.5, -1, 0.00001, 1001)]
CHANGES += [("subspace.standardize", value) for value in (True, False, "maybe", [])]
CHANGES += [("selection.per_source.a.cap", value) for value in (None, 0.5, 5, 1.5, -1, "x")]
CHANGES += [("corpus.sources.0.paths", value) for value in (["y"], [], "y", 3)]
CHANGES += [("corpus.sources.0.name", value) for value in ("b", "")]
CHANGES += [("corpus.sources", []), ("selection.budgett", 1), ("output", ""), ("output", None), ("other", 1)]


@pytest.mark.parametrize(("key", "value"), CHANGES, ids=lambda part: str(part)[:20])
def test_the_schema_refuses_what_a_run_refuses(key, value):
    config = changed(key, value)
    if "per_source" not in key:
        del config["selection"]["per_source"]  # no rule between keys, which a schema cannot say
    try:
        parse_config(json.dumps(config))
    except ConfigError:
        assert complaints(config)
    else:
        assert complaints(config) == []


@settings(deadline=None, max_examples=50)
@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 20), st.floats(0, 3)))
def test_a_number_is_a_budget_for_both_or_for_neither(number):
    try:
        parse_config(GOOD, [f"selection={json.dumps({'budget': number})}"])
    except ConfigError:
        assert complaints(changed("selection.budget", number))
    else:
        assert complaints(changed("selection.budget", number)) == []


@pytest.mark.parametrize("key", ["output", "extractor", "selection", "corpus"])
def test_the_schema_misses_what_must_be_given(key):
    config = yaml.safe_load(GOOD)
    del config[key]
    assert complaints(config) == [f"'{key}' is a required property"]


def test_a_value_may_come_from_the_environment():
    assert complaints(changed("corpus.slice_rows", "${oc.env:ROWS}")) == []


def test_the_verb_lists_every_key_with_its_range(capsys):
    assert main(["config", "--json"]) == 0
    said = capsys.readouterr()
    assert "corpus.slice_rows: an integer from 1 to 10^12 (rows); default 256" in said.err
    assert "    Maximum rows of a slice." in said.err
    listed = {key["key"]: key for key in json.loads(said.out)}
    assert listed["corpus.sources[].name"] == {
        "key": "corpus.sources[].name",
        "expected": "a name",
        "text": "Part of a sample's identity, and differs from all others.",
    }
    assert listed["selection.per_source.NAME.share"]["default"] is None
    assert all(key["text"].endswith(".") and key["expected"] for key in listed.values())


def test_the_verb_prints_the_schema(capsys):
    assert main(["config", "--json-schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()
