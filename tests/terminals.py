"""A terminal for a program that a test starts."""

import os
import pty
import threading

from tests.waiting import DEADLINE


class Terminal:
    """A pseudo-terminal that is read from the start: one that nobody reads is soon full, and holds up who
    writes to it.

    Attributes:
        theirs: File descriptor for the program.
        said: What it has written so far.
    """

    def __init__(self) -> None:
        self._own, self.theirs = pty.openpty()
        self.said = bytearray()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def hand_over(self) -> None:
        """Close the program's side in this process, once the program has it."""
        os.close(self.theirs)

    def close(self) -> bytes:
        """All that was written, once no program has the terminal any more."""
        self._listener.join(DEADLINE)
        assert not self._listener.is_alive(), "a program still has the terminal"
        os.close(self._own)
        return bytes(self.said)

    def _listen(self) -> None:
        while True:
            try:
                chunk = os.read(self._own, 4096)
            except OSError:  # Linux reports the end as an error
                return
            if not chunk:
                return
            self.said.extend(chunk)
