"""How many pixels the threads of one process hold decoded while they prepare samples."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PixelBudget:
    """Threads take pixels from it before they decode pictures, and wait while others hold too many: a picture of 12
    megapixels takes hundreds of MB on its way to the model's size, and eight of them at once are gigabytes."""

    def __init__(self, pixels: int) -> None:
        self._pixels, self._held = pixels, 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Holds so many pixels while the block runs. More than there are in all are given to one who is alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + pixels <= self._pixels)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()
