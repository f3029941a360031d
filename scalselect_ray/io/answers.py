"""Calls of a store that may never answer: each has a limit, and a wait that is long is said."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from threading import Thread
from typing import Any, TypeVar

import fsspec

T = TypeVar("T")
ONE_S = 60.0  # of a call about one object
MANY_S = 600.0  # of one that lists, or moves an object of any size
SAID_S = 10.0  # a wait of so many seconds is said
_TRIES = 5  # that clients make of their own

Tell = Callable[[str], None]
_tells: list[Tell] = []


@contextmanager
def waits_told(tell: Tell) -> Iterator[None]:
    """In the block `tell` gets a line for each wait of this process that is long."""
    _tells.append(tell)
    try:
        yield
    finally:
        _tells.remove(tell)


def answered(uri: str, call: Callable[[], T], many: bool = False) -> T:
    """`call()` in a thread of its own, which is left alone after `ONE_S` seconds, or `MANY_S`. Raises TimeoutError, or
    what the call raises."""
    limit = max(MANY_S if many else ONE_S, _TRIES * _wanted(uri.partition("://")[0]))
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=work, daemon=True, name=f"call of {uri.partition('://')[0]}").start()
    waited = min(SAID_S, limit)
    wait([outcome], waited)
    if not outcome.done():
        for tell in _tells:
            tell(f"waiting for {uri} for {waited:g} s")
        wait([outcome], limit - waited)
    if not outcome.done():
        raise TimeoutError(f"no answer for {limit:g} s")
    return outcome.result()


def client_options(scheme: str) -> dict[str, Any]:
    """What the client of a store is told, so that its own tries do not multiply: what a user has set, in the
    configuration of fsspec or in the environment, stays."""
    if scheme != "s3" or {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"}.intersection(os.environ):
        return {}
    set_by_user = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"total_max_attempts": 2}, **set_by_user}}


def _wanted(scheme: str) -> float:
    """Seconds of all time-outs that a user has set for the client of a scheme."""
    settings = fsspec.config.conf.get(scheme, {})
    inner = [value for value in settings.values() if isinstance(value, dict)]
    return sum(
        value
        for known in (settings, *inner)
        for name, value in known.items()
        if "timeout" in name and isinstance(value, int | float)
    )
