"""Contestants: separate processes that execute one command at a time.

Contestants take turns while each keeps its weights in memory, and none is affected by the allocator, threads
or settings of another.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self


class Unavailable(Exception):
    """A contestant that cannot run on this machine, with the reason."""


class Contestant:
    """A process with an object whose methods can be called from this process.

        with Contestant(partial(Limner, folder)) as limner:
            seconds = limner.ask("seconds", "unet")

    Args:
        make: Makes the object in the process: a function or class of a module, or a `partial` of one.

    Raises:
        Unavailable: On entering, if `make` raises it.
        RuntimeError: anything else that is raised there.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._make))
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()  # which ends the process, if it is waiting
        self._process.join(5)
        self._process.terminate()
        self._process.join()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object and return its result."""
        self._connection.send((method, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, value = self._connection.recv()
        except EOFError:
            self._process.join(5)
            code = self._process.exitcode
            raise RuntimeError(
                f"a contestant died with exit code {code}; -9 tells of lacking memory"
            ) from None
        if kind == "unavailable":
            raise Unavailable(value)
        if kind == "failed":
            raise RuntimeError(f"a contestant failed:\n{value}")
        return value


def _serve(connection: Connection, make: Callable[[], Any]) -> None:
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error")
    try:
        it = make()
        connection.send(("done", None))
        while True:
            method, arguments = connection.recv()
            connection.send(("done", getattr(it, method)(*arguments)))
    except EOFError:  # nobody asks any more
        return
    except Unavailable as error:
        connection.send(("unavailable", str(error)))
    except Exception:
        connection.send(("failed", traceback.format_exc()))
