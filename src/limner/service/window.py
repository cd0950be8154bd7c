"""How many jobs a worker claims: as many as its engine draws at once, and a few that wait for free places.

The engine knows its capacity only for requests that it has planned, as it depends on their sizes and models.
So the window grows as long as the engine begins all that is claimed, and shrinks to what it draws where jobs
wait in it from step to step.
"""

FIRST, MOST = 4, 256  # jobs, before and after it is known what the engine takes


class ClaimWindow:
    """The number of jobs that are claimed and not drawn yet.

    Attributes:
        size: That number, at most.
    """

    def __init__(self) -> None:
        self.size = FIRST

    def room(self, begun: int, waiting: int, *, settled: bool) -> int:
        """Number of jobs to claim now; not above 0 for none.

        Args:
            begun: Number of claimed jobs whose images have begun.
            waiting: Number of claimed jobs that have not.
            settled: Whether the engine has made steps since it was given the last job, so that what waits
                waits for a place.
        """
        if waiting == 0 and begun >= self.size:
            self.size = min(max(2 * FIRST, self.size + self.size // 2), MOST)
        elif settled and waiting > ahead(begun):
            self.size = max(FIRST, begun + ahead(begun))
        return self.size - begun - waiting


def ahead(begun: int) -> int:
    """Number of jobs that wait in the engine, so that places that become free are taken at the next step."""
    return max(2, begun // 4)
