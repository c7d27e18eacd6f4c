"""Order by key: of the jobs with one key, one is the head and may run, the others stand in line by id."""

from __future__ import annotations

from collections import defaultdict

from sidestream.broker.memory.contents import Contents, Job, Key
from sidestream.broker.memory.pools import SortedSet
from sidestream.broker.protocol import Place


class Lines:
    """The heads and the lines behind them."""

    def __init__(self, contents: Contents) -> None:
        """Begin empty."""
        self._contents = contents
        self._heads: dict[Key, Job] = {}
        self._lines: defaultdict[Key, SortedSet] = defaultdict(SortedSet)

    def head(self, job: Job) -> Job | None:
        """Return the head of a job's key."""
        return self._heads.get(job.key) if job.key else None

    def stand(self, job: Job, until_ms: int) -> None:
        """Let a job take its place by id; before a head that does not run, it becomes head. Without a key: at once."""
        head = self.head(job)
        if job.key is None or head is None or head is job:
            self._become_head(job, until_ms)
        elif _turn(job) < _turn(head) and head.place is not Place.LEASED:
            self._contents.unplace(head)
            self._join(head)
            self._become_head(job, until_ms)
        else:
            self._join(job)

    def requeue_keyed(self, job: Job, until_ms: int) -> None:
        """Take a job back from its worker: it stays head unless a smaller id stands in line by now."""
        first = self._first(job.key) if job.key else None
        if job.key and first and _turn(first) < _turn(job) and self.head(job) is job:
            self._join(job)
            self._seat_next(job.key)
        else:
            self.stand(job, until_ms)

    def run_as_head(self, job: Job) -> None:
        """Make a job that runs the head: whoever took its place goes back, unless that one runs too."""
        head = self.head(job)
        if job.key is None or (head and head is not job and head.place is Place.LEASED):
            return
        if head and head is not job:
            self._contents.unplace(head)
            self._join(head)
        self._heads[job.key] = job

    def leave(self, job: Job) -> None:
        """Take a job that ended out of its line; after a head the next one stands up."""
        if job.key and self.head(job) is job:
            self._seat_next(job.key)
        elif job.key:
            self.out_of_line(job)

    def out_of_line(self, job: Job) -> None:
        """Take a job out of its line, if it stands in one."""
        if job.key and (line := self._lines.get(job.key)):
            line.remove(job.reference)
            if not line:
                del self._lines[job.key]

    def _become_head(self, job: Job, until_ms: int) -> None:
        if job.key:
            self._heads[job.key] = job
        self._contents.place_at(job, until_ms)

    def _join(self, job: Job) -> None:
        assert job.key is not None
        job.place, job.pool = Place.BEHIND_KEY, None
        self._lines[job.key].add(job.reference, job.rank)

    def _first(self, key: Key) -> Job | None:
        first = self._lines[key].first()
        return self._contents.jobs[first[1]] if first else None

    def _seat_next(self, key: Key) -> None:
        job = self._first(key)
        if job is None:
            self._heads.pop(key, None)
            self._lines.pop(key, None)
        else:
            self._lines[key].remove(job.reference)
            self._become_head(job, job.due_ms)


def _turn(job: Job) -> tuple[float, bytes]:
    return job.rank, job.reference
