"""No secret leaves, no code of others runs, nothing of ours is a pickle."""

import io
import json
import os
import shutil
import traceback
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tenacity
import torch
from conftest import GOLDEN, write_config

from scalselect_ray import cli, errors, redaction
from scalselect_ray.cli import main
from scalselect_ray.config_files import parse_config, to_yaml
from scalselect_ray.console import Console
from scalselect_ray.corpus import shard_name
from scalselect_ray.corpus.sample import plain
from scalselect_ray.errors import ScalSelectError
from scalselect_ray.io import storage
from scalselect_ray.redaction import redact, to_json
from scalselect_ray.report import page
from scalselect_ray.store.features import FeatureStore
from scalselect_ray.store.layout import Output

CORPUS, MODEL = GOLDEN / "llava", GOLDEN / "llava" / "model"
ROWS = json.loads((CORPUS / "samples.json").read_text())
SECRETS = ("hunter2", "KEYID", "S3CR/ET", "s1gnature")
URIS = [
    "s3://KEYID:S3CR/ET@bucket/x",
    "https://user:hunter2@127.0.0.1:9/x?X-Amz-Signature=s1gnature&X-Amz-Credential=KEYID",
    "nosuch://KEYID:hunter2@bucket/x",
]


def refused(config: Path, capsys, *overrides: str) -> str:
    """What a run that must end with exit code 2 says."""
    assert main(["run", str(config), *overrides]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err.replace("\n", " ")


def golden_config(folder: Path, model: Path = MODEL, **source: object) -> Path:
    return write_config(folder, [{"name": "golden", "paths": [str(CORPUS / "samples.json")], **source}], model)


@pytest.fixture
def no_patience(monkeypatch):
    monkeypatch.setattr(storage, "_PATIENCE", storage._PATIENCE.copy(wait=tenacity.wait_none()))


@pytest.mark.usefixtures("no_patience", "s3")
@pytest.mark.parametrize("uri", URIS, ids=["s3", "https", "unknown"])
@pytest.mark.parametrize("key", ["corpus.sources.0.paths", "extractor.model", "output"])
def test_a_secret_in_a_uri_that_fails_is_not_told(key, uri, tmp_path, capsys):
    value = f'["{uri}"]' if key.endswith("paths") else uri
    said = refused(golden_config(tmp_path), capsys, f"{key}={value}")
    assert [secret for secret in SECRETS if secret in said] == [], said
    assert "***@" in said


@pytest.mark.usefixtures("cluster")
def test_a_secret_in_an_image_root_that_fails_on_a_worker_is_not_told(tmp_path, capsys):
    said = refused(golden_config(tmp_path, image_root="nosuch://KEYID:S3CR/ET@bucket/images"), capsys)
    assert [secret for secret in SECRETS if secret in said] == [], said
    assert "***@" in said
    for path in (tmp_path / "output").rglob("*"):
        assert not path.is_file() or not any(secret.encode() in path.read_bytes() for secret in SECRETS)


@pytest.mark.usefixtures("cluster")
def test_what_a_run_leaves_holds_no_secret_and_no_pickle(tmp_path, s3):
    """A corpus that is read by a URI with a password: the run succeeds, and none of its objects has the password."""
    s3.clear()
    rows = [{**row, "images": [{"path": row["images"][0]}]} for row in ROWS if len(row["images"]) == 1]
    for row in rows:
        storage.write(
            f"s3://bucket/secrets/{row['images'][0]['path']}", (CORPUS / row["images"][0]["path"]).read_bytes()
        )
    storage.write("s3://bucket/secrets/rows.jsonl", "\n".join(map(json.dumps, [*rows, 7])).encode())
    root = os.environ["AWS_ENDPOINT_URL"].replace("://", "://user:hunter2@") + "/bucket/secrets"
    sources = [{"name": "web", "paths": [f"{root}/rows.jsonl"], "image_root": root}]
    assert main(["run", str(write_config(tmp_path, sources, MODEL)), "rejects.max_fraction=0.5"]) == 0
    files = [path for path in (tmp_path / "output").rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        data = path.read_bytes()
        assert kind(data) in {"parquet", "json", "yaml", "safetensors", "html"}, path
        text = data.decode("latin-1")
        if kind(data) == "parquet":
            table = pq.read_table(io.BytesIO(data))
            text += str(table.to_pylist()) + str(table.schema)
        assert "hunter2" not in text, path
    (run,) = (tmp_path / "output" / "runs").iterdir()
    assert "***@" in (run / "config.yaml").read_text()
    assert set(pq.read_table(run / "manifest")["shard"].to_pylist()) == {shard_name(f"{root}/rows.jsonl")}


def kind(data: bytes) -> str:
    """What a file is, by its content."""
    if data[:4] == data[-4:] == b"PAR1":
        return "parquet"
    if data[:1] == b"{":
        return "json" if json.loads(data) is not None else ""
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return "safetensors"
    if data.lower().startswith(b"<!doctype html"):
        return "html"
    return "yaml" if data.startswith(b"corpus:") else "unknown"


SECRET_URI = "https://KEYID:S3CR/ET@host/x?X-Amz-Signature=s1gnature&auth=hunter2&part=1"
ERRORS = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, ScalSelectError)]


def printed(show):
    stream = io.StringIO()
    show(Console(stream))
    return stream.getvalue()


def trace_of(error):
    try:
        raise error
    except ScalSelectError:
        return traceback.format_exc()


def an_error(kind):
    if kind is errors.CorpusChangedError:
        return kind([SECRET_URI])
    return kind(SECRET_URI, "broken") if kind is errors.DamagedObjectError else kind(f"{SECRET_URI}: no 'S3CR'")


def described():
    store = FeatureStore(Output("memory://described"), "0" * 16)
    store.describe({"model": SECRET_URI})
    return storage.read_bytes("memory://described/features/" + "0" * 16 + "/extractor.json").decode()


CONFIG = f"""
corpus: {{sources: [{{name: a, paths: [x]}}]}}
extractor: {{model: m}}
selection: {{budget: 1}}
output: '{SECRET_URI}'
"""
SINKS = {
    "note": lambda: printed(lambda console: console.note(SECRET_URI)),
    "warning": lambda: printed(lambda console: console.warn(f"of {SECRET_URI}: nothing")),
    "error": lambda: printed(lambda console: console.error(SECRET_URI)),
    "table": lambda: printed(lambda console: console.table(["a"], [[SECRET_URI]])),
    "facts": lambda: printed(lambda console: console.facts({"output": SECRET_URI})),
    "JSON": lambda: to_json({"a": [SECRET_URI, {"b": SECRET_URI}], SECRET_URI: 1}),
    "the kept config": lambda: to_yaml(parse_config(CONFIG)),
    "what describes an extractor": described,
    "the message of a reject": lambda: plain(f"{SECRET_URI}: nothing"),
    "a page": lambda: page._environment.from_string("<p>{{ text }}</p>").render(text=SECRET_URI),
    "the name of a shard": lambda: shard_name(SECRET_URI),
    **{f"str of {kind.__name__}": lambda kind=kind: str(an_error(kind)) for kind in ERRORS},
    **{f"repr of {kind.__name__}": lambda kind=kind: repr(an_error(kind)) for kind in ERRORS},
    **{f"trace of {kind.__name__}": lambda kind=kind: trace_of(an_error(kind)) for kind in ERRORS},
}


@pytest.mark.parametrize("sink", SINKS)
def test_no_way_out_tells_a_secret(sink):
    told = "".join(SINKS[sink]().split("\n"))
    assert "***@host/x" in told
    assert [secret for secret in (*SECRETS, "S3CR", "ET@") if secret in told] == []


def raise_key_error(*_):
    raise KeyError(SECRET_URI)


def test_a_trace_of_something_unforeseen_tells_no_secret(monkeypatch, capsys):
    monkeypatch.setattr(cli, "load_config", raise_key_error)
    assert main(["run", "config.yaml"]) == 1
    said = capsys.readouterr().err
    assert "KeyError" in said
    assert [secret for secret in SECRETS if secret in said] == []


@pytest.mark.parametrize(
    ("text", "uri", "expected"),
    [
        ("s3://KEY:SEC/RET@bucket/x", "", "s3://***@bucket/x"),
        ("https://token@host/x", "", "https://***@host/x"),
        ("https://host:9000/a@b.json", "", "https://host:9000/a@b.json"),
        (
            "https://h/a?AWSAccessKeyId=K&Signature=S&Expires=1",
            "",
            "https://h/a?AWSAccessKeyId=***&Signature=***&Expires=1",
        ),
        ("https://h/a?sv=1&sig=abc%3D", "", "https://h/a?sv=1&sig=***"),
        ('Invalid bucket name "KEY:SECRET@bucket"', "s3://KEY:SECRET@bucket/x", 'Invalid bucket name "***@bucket"'),
        ('Invalid bucket name "KEY:SEC"', "s3://KEY:SEC/RET@bucket/x", 'Invalid bucket name "***:***"'),
        ("no such key: x?sig=abc and abc", "https://h/x?sig=abc", "no such key: x?sig=*** and ***"),
    ],
)
def test_redacted_is_what_a_uri_can_carry(text, uri, expected):
    assert redact(text, uri) == expected


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"]
)
@pytest.mark.parametrize("known", [True, False], ids=["of a known type", "of an unknown type"])
def test_a_checkpoint_that_brings_code_is_refused_and_its_code_not_run(name, known, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asks on the terminal"))
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    path = model / name
    described = json.loads(path.read_text()) if path.exists() else {}
    names = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor")
    described["auto_map"] = {key: "evil.Evil" for key in names} | {"AutoTokenizer": ["evil.Evil", None]}
    if not known and name == "config.json":
        described["model_type"] = "evil"
    path.write_text(json.dumps(described))
    said = refused(golden_config(tmp_path, model), capsys)
    assert name in said
    assert "Code from a checkpoint is never run, and there is no option for it" in said
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_a_pickle_are_refused(tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    (model / "model.safetensors").unlink()
    torch.save({}, model / "pytorch_model.bin")
    said = refused(golden_config(tmp_path, model), capsys)
    assert "pytorch_model.bin is there" in said
    assert "safetensors" in said


@pytest.mark.parametrize(
    "index",
    [
        '{"weight_map": {"a": "../../outside.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": "pytorch_model.bin"}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": []}',
        "[]",
        "{",
        '{"weight_map": 7}',
    ],
)
def test_a_model_index_cannot_lead_outside_its_folder(index, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    (model / "model.safetensors.index.json").write_text(index)
    assert "safetensors" in refused(golden_config(tmp_path, model), capsys)


@pytest.mark.parametrize(
    "text", ["[]", "3", "{", "", '{"model_type": 3}', '{"model_type": "llava", "text_config": 7}', "\xff"]
)
def test_a_broken_model_config_is_said_plainly(text, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    (model / "config.json").write_text(text, encoding="latin-1")
    assert "config.json" in refused(golden_config(tmp_path, model), capsys)


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_a_config_with_a_secret_in_a_path_is_refused_before_anything_else(verb, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(redaction, "_hidden", set())
    monkeypatch.setenv("STORE_SECRET", "hunter2hunter2")
    path = "s3://nowhere/${oc.env:STORE_SECRET}/x.json"
    config = {"corpus": {"sources": [{"name": "s", "paths": [path]}]}, "extractor": {"model": "none/none"}}
    config["selection"] = {"budget": 1}
    (tmp_path / "config.yaml").write_text(json.dumps({**config, "output": str(tmp_path / "output")}))
    assert main([verb, str(tmp_path / "config.yaml")]) == 2
    said = capsys.readouterr().err
    assert "corpus.sources.0.paths" in said
    assert "hunter2" not in said
    assert not (tmp_path / "output").exists()
