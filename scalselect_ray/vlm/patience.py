"""An end for what may have none: Python code of others, such as a chat template that loops for ever."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_most(seconds: float, raised: Exception) -> Iterator[None]:
    """Raises `raised` in this thread when the block is not done after so many seconds. A single call into C that
    takes longer is waited for."""

    class Interrupted(BaseException):
        """Not an Exception, which the interrupted code may catch."""

    thread, turn, done = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False

    def interrupt() -> None:
        with turn:
            if not done:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(Interrupted))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Interrupted:
        raise raised from None
    finally:
        try:
            with turn:
                done = True
            timer.cancel()
        except Interrupted:  # it came in the last moment: the block was done
            done = True
