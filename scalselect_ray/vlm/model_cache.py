"""Checkpoints of buckets on this machine: each file is fetched once, and used again only while it is what was fetched.

They lie in a folder of the user's own below the temporary folder, which nobody else can enter: what others could write
there would be taken for the model."""

import functools
import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path

from scalselect_ray.errors import ModelError
from scalselect_ray.io import storage


def folder_of(name: str) -> Path:
    """The folder of one version of a checkpoint, by a name for it of any length. Raises ModelError where the cache is
    not the user's own."""
    user = os.getuid()
    root = Path(tempfile.gettempdir(), f"scalselect-models-{user}")
    try:
        root.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise ModelError(f"{root}: no folder can be made for fetched models: {error}; set TMPDIR to another") from error
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o077:
        raise ModelError(
            f"{root}: expected a folder of user {user} that nobody else can enter (mode 700), found "
            f"{'a folder' if stat.S_ISDIR(found.st_mode) else 'something else'} of user {found.st_uid} with mode "
            f"{stat.S_IMODE(found.st_mode):o}. Others may have put a model there: remove it, or set TMPDIR to another "
            "folder"
        )
    return root / hashlib.sha256(name.encode()).hexdigest()[:32]


def is_kept(path: Path) -> bool:
    """Whether the file is there, to the byte, as it was when `keep` was called."""
    return _noted(_note(path)) == _state(path)


def keep(path: Path) -> None:
    """Writes down what a file holds that was fetched."""
    storage.write(str(_note(path)), json.dumps(_state(path)).encode())


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}.fetched")


def _noted(note: Path) -> object:
    try:
        return json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None


def _state(path: Path) -> dict[str, object]:
    """The size and digest of a file; of none when it is not there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return {}
    digest = _digest(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return {"size": status.st_size, "sha256": digest}


@functools.lru_cache(maxsize=256)
def _digest(path: Path, *state: int) -> str:
    """SHA-256 of a file in a state: weights are gigabytes, and a process looks at them several times."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
