"""Where a corpus lies, against where something is written."""

import os

from scalselect_ray.corpus.planning import Corpus, CorpusSettings
from scalselect_ray.errors import ConfigError, CorpusError, OutputError, StorageError
from scalselect_ray.io import storage
from scalselect_ray.io.listing import matches, parsed
from scalselect_ray.redaction import redact, redact_uri


def check_told(corpus: CorpusSettings) -> None:
    """That no name or path of a source holds a secret of the environment outside the places that URIs have for secrets:
    tables, records and exports tell samples and pictures by them. Raises ConfigError."""
    for number, source in enumerate(corpus.sources):
        for key, text in (("name", source.name), *(("paths", path) for path in source.paths)):
            _check_told(f"corpus.sources.{number}.{key}", text)
        _check_told(f"corpus.sources.{number}.image_root", source.image_root or "")
    for folder in corpus.image_links:
        _check_told("corpus.image_links", folder)


def _check_told(key: str, text: str) -> None:
    if redact(text) != redact_uri(text):
        raise ConfigError(
            f"{key} is {text}: *** is the value of an environment variable that is called like a secret, and tables, "
            "records and exports tell samples by their names and paths, so it would stand in all of them. Give a "
            "secret "
            "by the variables, profiles or roles that the store's client reads, or as user:password@ or a signed query "
            "of the URI; a value that is no secret by a variable of another name"
        )


def check_apart(output: str, corpus: CorpusSettings) -> None:
    """That an output folder lies outside the corpus, and the corpus outside of it: else the next run would read as
    samples what this one has written. Raises OutputError, CorpusError."""
    for source in corpus.sources:
        for path in map(storage.absolute, source.paths):
            try:
                covered, fronts = covers(path, output), [front for front, _ in parsed(path)]
            except StorageError as error:
                raise CorpusError(f"source '{source.name}': {path} cannot be listed: {error}") from error
            if covered:
                where = f"{output} lies below {path}, a path of the corpus"
            elif any(storage.is_below(front, output) for front in fronts):
                where = f"{path}, a path of the corpus, lies in the output folder {output}"
            else:
                continue
            raise OutputError(
                f"{where} (source '{source.name}'): the next run would read as samples what this one writes. Choose an "
                "output outside the corpus"
            )


def check_links(output: str, corpus: Corpus) -> None:
    """That no link in the corpus leads to an output folder, or to what it lies in. Raises OutputError."""
    for folder in corpus.linked:
        if storage.is_below(output, folder) or storage.is_below(folder, output):
            raise OutputError(
                f"{output} lies where a link of the corpus leads, {folder}: the next run would read as samples what "
                "this one writes. Choose an output outside the corpus, or remove the link"
            )


def covers(path: str, folder: str) -> bool:
    """Whether a path of the corpus, a pattern or a name, would name files below `folder`. Links of this machine are
    followed where the path names them."""
    return any(
        _covers(front, names, folder) if names else storage.is_below(folder, front)
        for front, patterns in parsed(path)
        for names in (patterns or [()])
    )


def _covers(front: str, names: tuple[str, ...], folder: str) -> bool:
    if storage.is_below(front, folder):
        return True
    if not storage.is_below(folder, front):
        return False
    inside = _real(folder)[len(_real(front)) :].strip("/").split("/")
    for index, name in enumerate(names):
        if name == "**" or index == len(inside):
            return True
        if not matches(name, inside[index]):
            return False
    return names[-1] == inside[len(names) - 1]  # a pattern names what lies beside the folder, or above it


def _real(uri: str) -> str:
    return os.path.realpath(uri) if storage.is_local(uri) else uri
