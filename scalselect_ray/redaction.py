"""What may be told: texts without the secrets that a URI can carry.

It is applied where a text leaves the program: by the console, by the text of an error, by the writers of JSON and of
the report. Whoever makes a message need not think of it, unless it is cut: half a secret is not known as one."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

_USERINFO = re.compile(
    r"(?<=://)(?<!abfs://)(?<!abfss://)(?<!wasb://)(?<!wasbs://)(?:[^/@\s:]+:(?!\d+/)[^\s\"']*|[^/@\s]+)@"
)
_SIGNED = re.compile(
    r"(?i)(?<=[?&])([^=&\s]*(?:sig|token|credential|key|secret|passw|pwd|auth)[^=&\s]*)"
    r"=([^&\s\"']*[^&\s\"':;,.)])"
)


_SECRET_NAME = re.compile(r"(?i)sig|token|credential|key|secret|passw|pwd|auth")
_hidden: set[str] = set()  # in this process


def hide_environment(name: str, value: str) -> None:
    """From here on `redact` leaves out the value of an environment variable whose name is that of a secret. One of
    fewer than 6 characters is too short to be told from other texts, and the path of a file or folder that is there
    (`GOOGLE_APPLICATION_CREDENTIALS`, `TOKENIZED_DATA`) is none."""
    if _SECRET_NAME.search(name) and len(value) >= 6 and not (os.path.isabs(value) and os.path.exists(value)):
        _hidden.add(value)


def redact(text: str, uri: str = "") -> str:
    """`text` without secrets: those that URIs carry, and values of the environment that a config has asked for by the
    name of a secret. Those of `uri` are found in any place."""
    for secret in sorted(_hidden, key=len, reverse=True):
        text = text.replace(secret, "***")
    return redact_uri(text, uri)


def redact_uri(text: str, uri: str = "") -> str:
    """`text` without the secrets a URI can carry: userinfo and the query of a signed URL. The same in every process.

    A password may hold a slash (keys of S3 do), so `user:` up to the last `@` is taken for userinfo, unless it is a
    port. Bytes of a file name that are no UTF-8 come out as escapes, which any table and terminal takes."""
    text = text if text.isascii() else text.encode(errors="backslashreplace").decode()
    userinfo = [found[:-1] for found in _USERINFO.findall(uri)]
    pieces = [
        piece for found in userinfo for piece in re.split("[:/]", found) if len(piece) > 2
    ]  # a client may have cut it anywhere
    for secret in [*userinfo, *pieces, *(value for _, value in _SIGNED.findall(uri))]:
        text = text.replace(secret, "***")
    return _SIGNED.sub(r"\1=***", _USERINFO.sub("***@", text))


def cut(text: str, length: int) -> str:
    """The first `length` characters of `text`, without secrets."""
    text = redact(text)
    return text if len(text) <= length else f"{text[:length]}..."


def redacted(value: Any) -> Any:
    """The same of each text in dicts and lists, names included."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redacted(name): redacted(item) for name, item in value.items()}
    return [redacted(item) for item in value] if isinstance(value, list | tuple) else value


def to_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that may be told."""
    return json.dumps(redacted(value), indent=indent)
