"""A config from YAML and `key=value` overrides, merged by OmegaConf and checked before anything is started; and the
copy of it that is kept with a run."""

import contextlib
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from scalselect_ray.config import ExtractorConfig, JobConfig, in_range, keys
from scalselect_ray.errors import ConfigError, NoAnswerError
from scalselect_ray.io import storage
from scalselect_ray.redaction import cut, hide_environment, redact
from scalselect_ray.source_lists import read_source_list

_REFUSALS = (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError)


def load_config(path: str, overrides: Sequence[str] = ()) -> JobConfig:
    """The config in a YAML file, with `dotted.key=value` overrides. Raises ConfigError that names the key, the value
    and what is expected."""
    try:
        text = storage.read_bytes(storage.absolute(path)).decode()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"{path}: no such config file") from error
    except NoAnswerError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return parse_config(text, overrides, where=path)


def parse_config(text: str, overrides: Sequence[str] = (), where: str = "config") -> JobConfig:
    """As `load_config`, from the text of a YAML file; `where` names it in errors."""
    try:
        loaded = OmegaConf.create(text)
    except (
        yaml.YAMLError,
        OmegaConfBaseException,
        ValueError,
        AssertionError,
    ) as error:  # OmegaConf asserts on a bare number
        raise ConfigError(f"{where}: not valid YAML, or no keys:", *str(error).splitlines()) from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{where}: expected keys such as corpus, extractor, selection and output")
    wrong = [override for override in overrides if not re.match(r"^[\w.\[\]]+=", override)]
    if wrong:
        raise ConfigError(f"'{wrong[0]}': an override is written dotted.key=value, such as selection.budget=0.1")
    try:
        for override in overrides:
            key, _, text = override.partition("=")
            parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
            OmegaConf.update(loaded, key, parsed["value"], force_add=True)  # as in a file: 1e-3 is a number
        if isinstance(named := OmegaConf.select(loaded, "corpus.sources"), str):
            OmegaConf.update(loaded, "corpus.sources", _listed(named))
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(JobConfig), loaded))
    except _REFUSALS as error:
        written = OmegaConf.to_container(loaded, resolve=False)
        raise ConfigError(_as_written(f"{where}: {_refused(error, written)}", loaded)) from None
    except ConfigError as error:
        raise ConfigError(_as_written(f"{where}: {error}", loaded)) from None
    assert isinstance(config, JobConfig)
    for kept, key, value, expected in [*in_range(config), *config.rules()]:
        if not kept:
            raise ConfigError(_as_written(f"{where}: {key} is {_shown(value)}; expected {expected}", loaded))
    for name, content in _environment(loaded).items():
        hide_environment(name, content)
    return replace(_absolute(config), written=_kept(loaded))


def _listed(uri: str) -> Any:
    """The sources of a list that a config names. Raises ConfigError."""
    found = read_source_list(uri)
    if found is None:
        raise ConfigError(
            f"corpus.sources is {_shown(uri)}; expected a list of sources, or the path of LLaMA-Factory's "
            "dataset_info.json or of InternVL's meta JSON"
        )
    return _escaped(found.sources)


def check_extractor(extractor: ExtractorConfig) -> None:
    """Of one that was made in Python, where nothing has looked at its values yet. Raises ConfigError."""
    written = {"extractor": {item.name: getattr(extractor, item.name) for item in fields(extractor)}}
    try:
        OmegaConf.to_object(OmegaConf.merge({"extractor": OmegaConf.structured(ExtractorConfig)}, written))
    except _REFUSALS as error:
        raise ConfigError(f"extractor: {_refused(error, written)}") from error
    for kept, key, value, expected in [*in_range(extractor, "extractor"), *extractor.rules()]:
        if not kept:
            raise ConfigError(f"extractor: {key} is {_shown(value)}; expected {expected}")


def to_yaml(config: JobConfig) -> str:
    """The config for the copy that is kept with a run: interpolations as they were written, all else as it is, without
    the secrets that a URI may carry."""
    return redact(source_of(config))


def source_of(config: JobConfig) -> str:
    """YAML that `parse_config` makes the same config of."""
    try:
        if config.written and parse_config(config.written) == config:
            return config.written
    except ConfigError:
        pass  # the environment is another one now
    values = asdict(config)
    del values["written"]
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(values)))


def _escaped(value: Any) -> Any:
    """Texts as OmegaConf reads them back: what looks like an interpolation is none."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, dict):
        return {name: _escaped(item) for name, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list) else value


def _kept(loaded: DictConfig) -> str:
    """The merged config as YAML. Local paths are absolute where nothing is interpolated."""
    kept: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(JobConfig), loaded), resolve=False)
    for source in kept["corpus"]["sources"]:
        source["paths"] = _settled(source["paths"])
        source["image_root"] = _settled(source["image_root"])
    kept["corpus"]["image_links"] = _settled(kept["corpus"]["image_links"])
    kept["output"] = _settled(kept["output"])
    if os.path.isdir(model := _settled(kept["extractor"]["model"])):
        kept["extractor"]["model"] = model
    return OmegaConf.to_yaml(OmegaConf.create(kept))


def _settled(written: Any) -> Any:
    """A path, or each of a list, as it is kept."""
    if isinstance(written, list):
        return [_settled(path) for path in written]
    is_path = written and not OmegaConf.is_interpolation(OmegaConf.create([written]), 0)
    return storage.absolute(written) if is_path else written


def _environment(loaded: DictConfig) -> dict[str, str]:
    """The variables of the environment that a config names, with their values."""
    names = re.findall(r"oc\.env:\s*([^\s,}]+)", OmegaConf.to_yaml(loaded))
    return {name: os.environ[name] for name in names if name in os.environ}


def _as_written(message: str, loaded: DictConfig) -> str:
    """A message with interpolated values as they were written: they may be secrets."""
    pairs = {value: f"${{oc.env:{name}}}" for name, value in _environment(loaded).items()}
    with contextlib.suppress(OmegaConfBaseException):
        written, resolved = (OmegaConf.to_container(loaded, resolve=resolve) for resolve in (False, True))
        pairs |= dict(_interpolated(written, resolved))
    for value, text in sorted(pairs.items(), key=lambda pair: -len(pair[0])):
        if len(value) > 2:
            message = message.replace(value, text)
    return message


def _interpolated(written: Any, resolved: Any) -> Iterator[tuple[str, str]]:
    """(resolved, as written) of each text in which something is interpolated."""
    if isinstance(written, dict) and isinstance(resolved, dict):
        for name in written:
            yield from _interpolated(written[name], resolved.get(name))
    elif isinstance(written, list) and isinstance(resolved, list):
        for pair in zip(written, resolved, strict=False):
            yield from _interpolated(*pair)
    elif isinstance(written, str) and written != resolved:
        yield str(resolved), written


def _absolute(config: JobConfig) -> JobConfig:
    """Local paths made absolute, so that a kept copy means the same from any folder."""
    sources = [
        replace(
            source,
            paths=[storage.absolute(path) for path in source.paths],
            image_root=storage.absolute(source.image_root) if source.image_root else None,
        )
        for source in config.corpus.sources
    ]
    model = storage.absolute(config.extractor.model)
    return replace(
        config,
        corpus=replace(
            config.corpus, sources=sources, image_links=list(map(storage.absolute, config.corpus.image_links))
        ),
        extractor=replace(config.extractor, model=model) if os.path.isdir(model) else config.extractor,
        output=storage.absolute(config.output),
    )


def _refused(error: Exception, written: Any) -> str:
    """What OmegaConf refuses, in our words where the key is known: its value as it is written, and what is
    expected."""
    full_key = str(getattr(error, "full_key", None) or "")
    if isinstance(error, MissingMandatoryValue):
        return f"{full_key} is missing"
    if isinstance(error, ConfigKeyError):
        return _unknown(full_key)
    pattern = re.sub(r"\[\d+\]", "[]", re.sub(r"(?<=^selection\.per_source\.)[^.]+", "NAME", full_key))
    known = [key for key in keys() if key.name == pattern]
    if not known:  # in a list OmegaConf gives no more than the last name
        known = [key for key in keys() if full_key and key.name.endswith(f"[].{full_key}")]
        full_key = known[0].name if known else full_key
    if not known:
        return f"{full_key or 'the config'}: {str(error).splitlines()[0]}"
    value = _find(written, full_key)
    return f"{full_key} is {_shown(value)}; expected {known[0].expected}"


def _find(written: Any, key: str) -> Any:
    """The value at `a.b[0].c` or `a.b.0.c` in dicts and lists; with `[]` the first one. None where there is none."""
    for step in key.replace("[]", ".0").replace("[", ".").replace("]", "").split("."):
        if isinstance(written, list) and step.isdigit() and int(step) < len(written):
            written = written[int(step)]
        elif isinstance(written, dict):
            written = next((value for name, value in written.items() if str(name) == step), None)
        else:
            return None
    return written


def _shown(value: Any) -> str:
    """A value in a message: as Python writes it, and not too long."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**100 else f"{hex(value)[:40]}..."
    return cut(text, 200)


def _unknown(full_key: str) -> str:
    known = [key.name for key in keys()]
    last = full_key.rpartition(".")[2]
    near = difflib.get_close_matches(full_key, known, n=1, cutoff=0.8) or [
        name
        for close in difflib.get_close_matches(last, [name.rpartition(".")[2] for name in known], n=1)
        for name in known
        if name.rpartition(".")[2] == close
    ]
    return f"unknown key '{full_key}'" + (f"; did you mean '{near[0]}'?" if near else "")
