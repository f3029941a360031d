"""Which files a path of a corpus stands for: a name, a folder or a pattern. One rule for disks and for stores.

A folder stands for every file below it. In a pattern `*`, `?` and `[...]` match within one name, `**` any number of
folders, `{a,b}` and `{000..099}` each text that they list. A name that is there is no pattern, whatever signs but `*`
it has. Links are followed, and a file that is reached in several ways is there once. Folders whose names begin with `.`
or `_`, and files whose names begin with `.`, are left out unless the pattern's name begins so too."""

import fnmatch
import functools
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from braceexpand import braceexpand

from scalselect_ray.errors import ConfigError
from scalselect_ray.io import storage
from scalselect_ray.io.storage import FileInfo

_SIGNS = re.compile(r"[*?\[{]")
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_MOST = 1 << 20  # names that the braces of one path may stand for
_BELOW = ("**", "*")  # what a folder stands for
_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,11}$")

Names = tuple[str, ...]  # of a pattern, below a folder


@dataclass
class Listing:
    """What a path stands for."""

    files: list[FileInfo] = field(default_factory=list)  # sorted by URI
    passed_over: Counter[str] = field(default_factory=Counter)  # what matched and was left out, by what it is
    unmatched: list[str] = field(default_factory=list)  # the path, or what its braces stand for, where nothing is
    linked: list[str] = field(default_factory=list)  # the folders of this machine that links led to


def expand(path: str, wanted: Callable[[str], bool] = lambda name: True) -> Listing:
    """The files that an absolute `path` stands for. Those that are not named outright are passed over unless `wanted`
    says yes to their names. Raises ConfigError for a pattern that is none, NoPermissionError, StorageError."""
    found = Listing()
    for front, patterns in parsed(path):
        here = storage.is_local(front)
        start = front if here else storage.filesystem(front)[1]
        if not patterns:
            patterns = [_BELOW]
            entry = _here(start) if here else _there(front)
            if entry is None:
                found.unmatched.append(front)
                continue
            if not entry.is_folder:
                found.files += storage.file_infos(front, [entry.item])
                continue
        storage.knock(front)
        walk = _Walk(wanted, found.passed_over)
        if here:
            walk.go(start, os.path.realpath(start), patterns, _children_here)
        elif any("**" in names for names in patterns):
            walk.go(_tree(front), start, patterns, _children_in)
        else:
            walk.go(start, start, patterns, functools.partial(_children_there, front))
        found.files += storage.file_infos(front, walk.files())
        found.linked += walk.linked
        for number in sorted(walk.unmatched):
            found.unmatched.append(front if patterns[number] == _BELOW else storage.join(front, *patterns[number]))
    found.files = sorted({file.uri: file for file in found.files}.values(), key=lambda file: file.uri)
    return found


def parsed(path: str) -> list[tuple[str, list[Names]]]:
    """An absolute path as folders and the patterns below each; a path that is no pattern as itself, and no patterns.

    Raises ConfigError, StorageError."""
    parts = path.split("/")
    root = 1 if storage.is_local(path) else 3  # parts that no pattern can stand in: the bucket of a store is one more
    for number, part in enumerate(parts):
        if _SIGNS.search(part) and ("*" in part or not storage.exists("/".join(parts[: number + 1]))):
            break
    else:
        return [(path, [])]
    if number < root:
        names = _without_braces(path)
        if names == [path]:
            raise ConfigError(f"{path}: a pattern cannot stand in the name of a bucket")
        return [front for name in names for front in parsed(name)]
    patterns = [tuple(filter(None, text.split("/"))) for text in _without_braces("/".join(parts[number:]))]
    patterns = [names if names[-1:] != ("**",) else (*names, "*") for names in patterns]
    for name in (name for pattern in patterns for name in pattern):
        if "**" in name and name != "**":
            raise ConfigError(
                f"{path}: '**' stands for folders and must be alone between two slashes, as in '**/*.json'"
            )
    return [("/".join(parts[:number]) or "/", patterns)]


def matches(pattern: str, name: str) -> bool:
    """Whether one name of a pattern stands for `name`: itself, or by its signs. Hidden names are as others here."""
    return pattern == name or _compiled(pattern).match(name) is not None


def _without_braces(text: str) -> list[str]:
    sizes = [abs(int(stop) - int(start)) for start, stop in _RANGE.findall(text)]
    try:
        names = list(islice(braceexpand(text, escape=False), _MOST + 1)) if sum(sizes) < _MOST else []
    except ValueError:  # one is not closed: a sign like others
        return [text]
    if not 0 < len(names) <= _MOST:
        raise ConfigError(f"{text}: its braces stand for more than {_MOST:,} names")
    return list(dict.fromkeys(names))


@functools.lru_cache(maxsize=1 << 12)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


class _Entry(NamedTuple):
    """What lies in a folder."""

    name: str
    is_folder: bool
    item: Any  # of a folder what its children are listed by; of a file its path here, or what the store says of it
    is_link: bool = False


class _State(NamedTuple):
    """What is left of a pattern at a folder."""

    number: int  # of the pattern
    names: Names


class _Found(NamedTuple):
    item: Any  # of an `_Entry`
    real: str  # where it truly lies
    by_link: bool


Children = Callable[[Any], Iterable[_Entry]]


class _States:
    """What is left of the patterns at one folder, by what the next name may be."""

    def __init__(self, states: Iterable[_State]) -> None:
        self._plain: dict[str, list[_State]] = {}
        self._signs: list[_State] = []
        for state in states:
            self._add(state)
            while state.names[0] == "**":  # it may also stand for no folder
                state = state._replace(names=state.names[1:])
                self._add(state)

    def _add(self, state: _State) -> None:
        if _SIGNS.search(state.names[0]):
            self._signs.append(state)
        else:
            self._plain.setdefault(state.names[0], []).append(state)

    def of(self, name: str, is_hidden: bool) -> Iterator[_State]:
        """Those that stand for `name`; a hidden one only where they begin as it does."""
        yield from self._plain.get(name, ())
        for state in self._signs:
            if not (is_hidden and state.names[0][0] != name[0]) and matches(state.names[0], name):
                yield state

    def files(self, name: str, is_hidden: bool) -> list[_State]:
        return [state for state in self.of(name, is_hidden) if len(state.names) == 1]

    def folders(self, name: str, is_hidden: bool) -> frozenset[_State]:
        """What of them is left below a folder: all of it where a plain name names it."""
        left = set()
        for state in self.of(name, is_hidden):
            if state.names[0] == "**":
                left.add(state)
            elif len(state.names) > 1:
                left.add(state._replace(names=state.names[1:]))
            elif state.names[0] == name:
                left.add(state._replace(names=_BELOW))
        return frozenset(left)


class _Walk:
    """Goes from a folder down as far as patterns lead. What links lead to is looked at when all else is known."""

    def __init__(self, wanted: Callable[[str], bool], passed_over: Counter[str]) -> None:
        self._wanted, self._passed_over = wanted, passed_over
        self._found: list[_Found] = []
        self.linked: list[str] = []
        self.unmatched: set[int] = set()  # the numbers of the patterns for which nothing was found

    def go(self, start: Any, real: str, patterns: Sequence[Names], children: Children) -> None:
        """`real` is where `start` truly lies."""
        states = frozenset(_State(number, names) for number, names in enumerate(patterns))
        self.unmatched = {state.number for state in states}
        ahead, links = [(start, real, states, False)], deque[tuple[Any, str, frozenset[_State], bool]]()
        seen: set[tuple[str, frozenset[_State]]] = set()
        while ahead or links:
            folder, real, states, by_link = ahead.pop() if ahead else links.popleft()
            if (real, states) in seen:  # by another way, or in a circle
                continue
            seen.add((real, states))
            here = _States(states)
            for entry in children(folder):
                below = f"{real}/{entry.name}"
                if not entry.is_folder:
                    self._take(entry, below, here, by_link)
                elif left := self._enter(entry.name, here):
                    if entry.is_link:
                        below = os.path.realpath(entry.item)
                        self.linked.append(below)
                    (links if entry.is_link else ahead).append((entry.item, below, left, by_link or entry.is_link))

    def files(self) -> list[Any]:
        """What was found, each file once: by its own name if it has one here."""
        first: dict[str, _Found] = {}
        for found in sorted(self._found, key=lambda found: found.by_link):
            if first.setdefault(found.real, found) is not found:
                self._passed_over["link to what is read already"] += 1
        return [found.item for found in first.values()]

    def _enter(self, name: str, here: _States) -> frozenset[_State]:
        is_hidden = name[0] in "._"
        left = here.folders(name, is_hidden)
        if is_hidden and not left and here.folders(name, False):
            self._passed_over[f"hidden folder {name}"] += 1
        elif not left and here.files(name, is_hidden):
            self._passed_over[f"folder {name}"] += 1
        return left

    def _take(self, entry: _Entry, real: str, here: _States, by_link: bool) -> None:
        is_hidden = entry.name.startswith(".")
        states = here.files(entry.name, is_hidden)
        if not states:
            if is_hidden and here.files(entry.name, False):
                self._passed_over["hidden file"] += 1
            return
        if not (any(state.names[0] == entry.name for state in states) or self._wanted(entry.name)):
            self._passed_over[kind_of(entry.name)] += 1
            return
        if entry.is_link:
            real = os.path.realpath(entry.item)
            if not os.path.exists(real):
                self._passed_over["link to nothing"] += 1
                return
        self.unmatched.difference_update(state.number for state in states)
        self._found.append(_Found(entry.item, real, by_link or entry.is_link))


def kind_of(name: str) -> str:
    """What a file is, by its name alone: its suffix in small letters."""
    found = _SUFFIX.search(name)
    return found[0].lower() if found else "without a suffix"


def _here(path: str) -> _Entry | None:
    """A path of this machine; None where nothing is."""
    if not os.path.exists(path):
        return None
    return _Entry(os.path.basename(path), os.path.isdir(path), path)


def _there(uri: str) -> _Entry | None:
    """An object or a folder of a store; None where nothing is."""
    fs, path = storage.filesystem(uri)
    fs.invalidate_cache()
    try:
        info = storage.patiently(uri, lambda: fs.info(path))
    except FileNotFoundError:
        return None
    return _Entry(path.rpartition("/")[2], info["type"] == "directory", info)


def _children_here(folder: str) -> list[_Entry]:
    def listed() -> list[_Entry]:
        with os.scandir(folder) as entries:
            return [_Entry(entry.name, entry.is_dir(), entry.path, entry.is_symlink()) for entry in entries]

    try:
        return storage.patiently(folder, listed)
    except (FileNotFoundError, NotADirectoryError):  # gone meanwhile
        return []


def _children_there(root: str, folder: str) -> list[_Entry]:
    """`folder` is a path of the store in which `root` lies."""
    fs = storage.filesystem(root)[0]
    try:
        found = storage.patiently(root, lambda: fs.ls(folder, detail=True), many=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    entries = []
    for info in found:
        name = info["name"].rstrip("/")
        if name != folder.rstrip("/"):  # a marker of the folder itself, as some tools leave it
            is_folder = info["type"] == "directory"
            entries.append(_Entry(name.rpartition("/")[2], is_folder, name if is_folder else info))
    return entries


def _tree(uri: str) -> dict[str, Any]:
    """All that lies below a folder of a store, in as few requests as it allows: folders as dictionaries, and of each
    file what the store says of it."""
    fs, path = storage.filesystem(uri)
    below = path.rstrip("/") + "/" if path else ""
    tree: dict[str, Any] = {}
    try:
        found = storage.patiently(uri, lambda: fs.find(path, detail=True), many=True)
    except (FileNotFoundError, NotADirectoryError):
        return tree
    for name, info in found.items():
        *folders, last = name.removeprefix(below).split("/")
        if not name.startswith(below) or not last or info["type"] == "directory":
            continue
        at = tree
        for folder in folders:
            at = at.setdefault(folder + "/", {})
        at[last] = info
    return tree


def _children_in(tree: dict[str, Any]) -> list[_Entry]:
    return [_Entry(name.rstrip("/"), name.endswith("/"), item) for name, item in tree.items()]
