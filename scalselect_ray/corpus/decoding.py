"""Encoded images to pixels, with bounds on what one sample may cost.

What a picture costs is told by its bytes before they are decoded (`image_cost`). One that may still take seconds is
decoded in a process of its own, which ends when its processor time is used up."""

import contextlib
import io
import os
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from scalselect_ray.corpus.image_cost import lean
from scalselect_ray.corpus.sample import ImageRef, Reason, SampleRejectedError

MAX_PIXELS = 1 << 27  # 134 million in all the images of a sample: 400 MB once decoded
MAX_SECONDS = 60  # of processor time, for one picture
MAX_MEMORY = 4 << 30  # bytes, for one picture that is decoded apart
_LARGE_SCANNED = 1 << 28  # pixels times scans, which take seconds
_LARGE_BYTES = 1 << 25
Image.init()  # Pillow knows formats by name only once their plugins are loaded
_DEEP = ("AVIF", "JPEG2000")  # their decoders hold a picture several times, in wider numbers
_DEEP_PIXELS = MAX_PIXELS // 4
_APART = ("JPEG2000", "ICO", "QOI")  # what they cost is not told by their bytes: never decoded in this process
_LARGE_DEEP = 1 << 23  # pixels, which take a second
_FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", *_APART)
    if name in Image.OPEN  # of the Pillow that is installed
)
"""What is decoded. MPO is a JPEG; formats that run other programs, or that no first bytes tell, are not here."""


@dataclass(frozen=True, slots=True)
class OpenedImages:
    """The images of one sample, of which the headers are read and nothing is decoded yet."""

    pixels: int  # of all, as often as the sample has them
    _images: Sequence[ImageRef]
    _opened: Mapping[int, tuple[ImageRef, Image.Image, bool]]  # by the identity of the bytes

    def decode(self) -> list[Image.Image]:
        """RGB, first frame, not rotated by EXIF (as trainers and the models' own processors take a PIL image). One that
        the sample has several times is decoded once. Raises SampleRejectedError."""
        decoded: dict[int, Image.Image] = {}
        for key, (image, picture, is_large) in self._opened.items():
            with _told(image), picture:
                decoded[key] = _decoded_apart(image, picture) if is_large else as_rgb(picture)
        return [decoded[id(image.data)] for image in self._images]


def open_images(images: Sequence[ImageRef]) -> OpenedImages:
    """The images of one sample, whose bytes are at hand. Raises SampleRejectedError, also where they have more than
    `MAX_PIXELS` together."""
    opened: dict[int, tuple[ImageRef, Image.Image, bool]] = {}
    pixels = 0
    for image in images:
        assert image.data is not None
        with _told(image):
            if id(image.data) not in opened:
                data, scanned = lean(image.name, image.data)
                found = Image.open(io.BytesIO(data), formats=_FORMATS)
                is_large = scanned > _LARGE_SCANNED or len(data) > _LARGE_BYTES or _is_costly(image, found)
                opened[id(image.data)] = image, found, is_large
            picture = opened[id(image.data)][1]
            pixels += picture.width * picture.height
            if pixels > MAX_PIXELS:
                raise SampleRejectedError(
                    Reason.IMAGE_TOO_LARGE,
                    f"{image.name}: its {picture.width}x{picture.height} pixels bring the sample above {MAX_PIXELS:,}",
                )
    return OpenedImages(pixels, images, opened)


def _is_costly(image: ImageRef, picture: Image.Image) -> bool:
    """Whether a picture of a kind whose cost its bytes do not tell is decoded apart. Raises SampleRejectedError."""
    pixels = picture.width * picture.height
    if picture.format in _DEEP and pixels > _DEEP_PIXELS:
        raise SampleRejectedError(
            Reason.IMAGE_TOO_LARGE,
            f"{image.name}: {picture.width}x{picture.height} pixels of {picture.format} are above {_DEEP_PIXELS:,}",
        )
    return picture.format in _APART or (picture.format in _DEEP and pixels > _LARGE_DEEP)


def is_image(head: bytes) -> bool:
    """Whether bytes begin as a picture of a kind that is decoded, by more than two bytes."""
    accepts = [Image.OPEN[name][1] for name in _FORMATS if name not in ("BMP", "PPM")]
    return any(accept is not None and accept(head) is True for accept in accepts)


def decode(images: Sequence[ImageRef]) -> list[Image.Image]:
    """The images of one sample, whose bytes are at hand, decoded: see `OpenedImages`. Raises SampleRejectedError."""
    return open_images(images).decode()


def as_rgb(picture: Image.Image) -> Image.Image:
    """The picture as RGB, 16-bit grey scaled to 8 bits (Pillow would clip it to white)."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        return picture.convert("I").point(lambda value: value / 256).convert("L").convert("RGB")
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


@contextlib.contextmanager
def _told(image: ImageRef) -> Iterator[None]:
    """What a decoder raises as a reject of its sample."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged metadata is no reason to speak once per picture
        try:
            yield
        except SampleRejectedError:
            raise
        except Image.DecompressionBombError as error:
            raise SampleRejectedError(Reason.IMAGE_TOO_LARGE, f"{image.name}: {error}") from error
        except UnidentifiedImageError as error:
            what = f"starts with {image.data[:12]!r}" if image.data else "is empty"
            known = ", ".join(sorted(_FORMATS))
            raise SampleRejectedError(
                Reason.IMAGE_UNREADABLE, f"{image.name}: not an image ({what}); what is read: {known}"
            ) from error
        except Exception as error:  # decoders raise what they like
            raise SampleRejectedError(
                Reason.IMAGE_UNREADABLE, f"{image.name}: {type(error).__name__}: {error}"
            ) from error


def _decoded_apart(image: ImageRef, picture: Image.Image) -> Image.Image:
    """The picture, decoded in a process that may use `MAX_SECONDS` of processor time."""
    assert image.data is not None
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import _serve; _serve({MAX_SECONDS})"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        input=image.data,
        capture_output=True,
        check=False,
    )
    size = f"{picture.width}x{picture.height} pixels in {len(image.data):,} bytes"
    if done.returncode == -signal.SIGXCPU:
        raise SampleRejectedError(
            Reason.TOO_COSTLY, f"{image.name}: {size} are not decoded within {MAX_SECONDS} seconds of processor time"
        )
    if done.returncode == -signal.SIGKILL:  # how a machine without memory ends a process
        raise MemoryError(f"no memory to decode {size}")
    if done.returncode:
        what = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"signal {-done.returncode}"
        if what.startswith("MemoryError"):
            raise SampleRejectedError(
                Reason.TOO_COSTLY, f"{image.name}: {size} take more than {MAX_MEMORY >> 20:,} MiB to decode"
            )
        raise SampleRejectedError(Reason.IMAGE_UNREADABLE, f"{image.name}: its decoder ended with {what}")
    return Image.frombytes("RGB", picture.size, done.stdout)


def _serve(seconds: int) -> None:
    """Decodes the picture on stdin to bytes of RGB on stdout, in at most these seconds of processor time."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    with contextlib.suppress(FileNotFoundError), open("/proc/self/statm") as file:  # other systems do not tell
        limit = int(file.read().split()[0]) * resource.getpagesize() + MAX_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    data = lean("stdin", sys.stdin.buffer.read()).data
    with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
        sys.stdout.buffer.write(as_rgb(picture).tobytes())
