"""Images of samples: where they may lie, and how their bytes are fetched."""

import base64
import binascii
import contextlib
import errno
import functools
import hashlib
import io
import os
import posixpath
import re
import stat
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from PIL import Image

from scalselect_ray.corpus.conversation import ImageResolver
from scalselect_ray.corpus.decoding import as_rgb, decode, is_image
from scalselect_ray.corpus.fields import image_in
from scalselect_ray.corpus.sample import ImageRef, Reason, SampleRejectedError
from scalselect_ray.errors import CorpusError, NoPermissionError, StorageError
from scalselect_ray.io import storage
from scalselect_ray.redaction import cut

MAX_BYTES = 1 << 28  # of an image file, and of all of a sample that are fetched; more is not read
_MAX_PATH = 1024  # what object stores take
_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)  # of what can never be a file
_HEAD, _LEAST = 64, 40  # characters of base64 that are looked at first; an image has more
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+={0,2}\s*")
_BLANKS = re.compile(r"\s+")
_NO_PATH = re.compile("[\0\ud800-\udfff]")


def resolver(image_root: str | None, image_links: Sequence[str] = ()) -> ImageResolver:
    """What turns an image field of a row to a reference. Paths are joined to `image_root`, and nothing outside it is
    ever read; without one no path is read at all. Links in it, and in no path of a row, may lead to `image_links`. One
    resolver follows the links of a folder once."""
    real_folder = functools.lru_cache(maxsize=1024)(os.path.realpath)
    folders: tuple[str, ...] = ()
    if image_root is not None and storage.is_local(image_root):
        folders = tuple(real_folder(folder) for folder in (image_root, *filter(storage.is_local, image_links)))

    def resolve(field: object) -> ImageRef:
        name: object = "bytes"
        if isinstance(field, Mapping):
            keys, name = list(field), image_in({**field, "bytes": None})
            field = name if field.get("bytes") is None else field["bytes"]
            if isinstance(field, str) and field is not name and from_base64(field) is None:
                raise SampleRejectedError(
                    Reason.IMAGE_UNREADABLE, "the bytes of an image are a text, and no base64 of a known image"
                )
            if field is None:
                raise SampleRejectedError(
                    Reason.IMAGE_UNREADABLE, f"an image must have bytes, path or url, found {str(keys)[:200]}"
                )
        if isinstance(field, (bytes, bytearray, memoryview)):
            return ImageRef(name if isinstance(name, str) else "bytes", data=bytes(field))
        if isinstance(field, Image.Image):  # a row that was never in a file
            sink = io.BytesIO()
            as_rgb(field).save(sink, "PPM")
            return ImageRef("PIL image", data=sink.getvalue())
        if not isinstance(field, str):
            raise SampleRejectedError(
                Reason.IMAGE_UNREADABLE, f"an image must be a path, bytes or a struct, found {type(field).__name__}"
            )
        if field.startswith("data:"):
            try:
                return ImageRef("data URI", data=_decoded(field.partition(",")[2]))
            except (binascii.Error, ValueError) as error:
                raise SampleRejectedError(Reason.IMAGE_UNREADABLE, f"the data URI is not base64: {error}") from error
        if (data := from_base64(field)) is not None:
            return ImageRef("base64", data=data)
        path = urllib.parse.unquote(field.removeprefix("file://")) if field.startswith("file:///") else field
        if _NO_PATH.search(path):
            raise SampleRejectedError(Reason.IMAGE_REFUSED, f"{path[:60]!a} is no path")
        if image_root is None:
            raise SampleRejectedError(
                Reason.IMAGE_REFUSED, f"{cut(field, 200)}: a path, and no image root to find it below"
            )
        return ImageRef(field, uri=_inside(image_root, path, folders, real_folder), folders=folders)

    return resolve


def from_base64(text: str) -> bytes | None:
    """The image that a bare text of base64 is; None where it is none. It is told by its first bytes: no path begins
    like this and has no dot."""
    head = _BLANKS.sub("", text[:_HEAD])
    if len(head) < _LEAST or not _BASE64.fullmatch(text):
        return None
    with contextlib.suppress(binascii.Error, ValueError):
        if is_image(_decoded(head[: len(head) // 4 * 4])):
            return _decoded(text)
    return None


def _decoded(text: str) -> bytes:
    """Base64, also in lines, without the padding at its end, or of the kind for URLs."""
    packed = _BLANKS.sub("", text).rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)


def fetched_images(images: Sequence[ImageRef]) -> list[ImageRef]:
    """The images of one sample with their bytes at hand, still encoded. One that the sample has several times is
    fetched once; what is fetched has at most `MAX_BYTES` together. Raises SampleRejectedError; CorpusError when an
    image may not be read at all; StorageError."""
    data: dict[str, bytes] = {}
    left = MAX_BYTES
    for image in images:
        if image.uri is not None and image.uri not in data:
            data[image.uri] = _fetch(image, left)
            left -= len(data[image.uri])
    return [image if image.uri is None else replace(image, data=data[image.uri]) for image in images]


def images_digest(encoded: Iterable[bytes]) -> str:
    """What tells whether the images of a sample are still the same: the first 32 hexadecimal digits of SHA-256 over the
    SHA-256 digests of their encoded bytes, in order."""
    digests: dict[bytes, bytes] = {}  # a sample may have one image hundreds of times
    whole = hashlib.sha256()
    for data in encoded:
        if data not in digests:
            digests[data] = hashlib.sha256(data).digest()
        whole.update(digests[data])
    return whole.hexdigest()[:32]


def load_images(images: Sequence[ImageRef]) -> list[Image.Image]:
    """The images of one sample, fetched and decoded. Raises as `fetched_images` and `decode` do."""
    return decode(fetched_images(images))


def load_image(image: ImageRef) -> Image.Image:
    """One image, as `load_images`."""
    return load_images([image])[0]


def _inside(root: str, path: str, folders: Sequence[str], real_folder: Callable[[str], str]) -> str:
    """Where the image at `path` lies. `folders`: the real paths where it may be, of which the root's own is the
    first."""
    if len(path) > _MAX_PATH:
        raise SampleRejectedError(Reason.IMAGE_REFUSED, _too_long(path))
    if "::" in path or (root.startswith("http") and "%2e" in path.lower()):
        raise SampleRejectedError(Reason.IMAGE_REFUSED, f"{path}: a path that a store could take for another")
    if "://" in path:
        uri = path
    elif storage.is_local(root):
        uri = os.path.normpath(os.path.join(root, path))
    else:
        folder, slashes, rest = root.partition("://")
        uri = f"{folder}{slashes}{posixpath.normpath(posixpath.join(rest, path))}"
    if posixpath.normpath(uri) != uri.replace("://", ":/") or not uri.startswith(root.rstrip("/") + "/"):
        rule = "; a URL is never fetched, and no option allows it" if "://" in path else ""
        raise SampleRejectedError(Reason.IMAGE_REFUSED, f"{path} is outside the image root {root}{rule}")
    if not storage.is_local(root):
        if len(uri.partition("://")[2].partition("/")[2].encode(errors="replace")) > _MAX_PATH:
            raise SampleRejectedError(Reason.IMAGE_REFUSED, _too_long(path))  # no store has such a key
        return uri
    folder, name = os.path.split(uri)
    real = os.path.realpath(uri) if os.path.islink(uri) else os.path.join(real_folder(folder), name)
    if not any(real.startswith(folder.rstrip("/") + "/") for folder in folders):
        link = link_on(root, uri)
        allowed = f", which has {', '.join(folders[1:])}" if folders[1:] else ""
        raise SampleRejectedError(
            Reason.IMAGE_REFUSED,
            f"{path} leads outside the image root {root} by the link {link} to {os.path.realpath(link)}: links are "
            f"followed to the folders of corpus.image_links{allowed}",
        )
    return uri


def link_on(root: str, path: str) -> str:
    """The first link on the way from a folder of this machine to a path below it; the path itself where there is
    none."""
    parts = path[len(root.rstrip("/")) + 1 :].split("/")
    steps = ("/".join([root.rstrip("/"), *parts[: count + 1]]) for count in range(len(parts)))
    return next((step for step in steps if os.path.islink(step)), path)


def _too_long(path: str) -> str:
    return f"{path[:60]}...: a path of {len(path):,} characters"


def _fetch(image: ImageRef, left: int) -> bytes:
    """Its bytes: at most `MAX_BYTES`, and at most what is `left` for the images of its sample."""
    assert image.uri is not None
    if storage.is_local(image.uri):
        with contextlib.suppress(OSError):  # what is not there is told below
            status = os.stat(image.uri)
            if not stat.S_ISREG(status.st_mode):
                raise SampleRejectedError(Reason.IMAGE_MISSING, f"{image.name}: no file")
            if status.st_size > left:
                raise _too_many_bytes(image, f"{status.st_size:,}", left)
    try:
        if image.folders:
            data = storage.read_inside(image.uri, left + 1, image.folders)
        else:
            data = storage.read_start(image.uri, left + 1)
        if len(data) > left:
            raise _too_many_bytes(image, f"more than {left:,}", left)
        return data
    except storage.OutsideError as error:
        raise SampleRejectedError(Reason.IMAGE_REFUSED, f"{image.name} is outside the image root: {error}") from error
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise SampleRejectedError(
            Reason.IMAGE_MISSING, f"{image.name}: no such image below the image root: there is no {image.uri}"
        ) from error
    except NoPermissionError as error:
        raise CorpusError(
            f"no permission to read the image {image.uri}; the image root must be readable (a store that may not be "
            "listed answers like this for a missing image as well)"
        ) from error
    except StorageError as error:
        if getattr(error.__cause__, "errno", None) in _NO_NAME:
            raise SampleRejectedError(Reason.IMAGE_MISSING, f"{image.name}: {error}") from error
        raise  # the store's trouble, not the sample's: a reject would stay when the trouble is over


def _too_many_bytes(image: ImageRef, size: str, left: int) -> SampleRejectedError:
    if left == MAX_BYTES:
        return SampleRejectedError(
            Reason.IMAGE_TOO_LARGE, f"{image.name}: it has {size} bytes, above the limit of {MAX_BYTES:,}"
        )
    return SampleRejectedError(
        Reason.TOO_COSTLY,
        f"{image.name}: it has {size} bytes, and the images before it {MAX_BYTES - left:,}: the sample is "
        f"above the limit of {MAX_BYTES:,}",
    )
