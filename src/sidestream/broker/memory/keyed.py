"""Order jobs by key: the head of a key may run, the others wait behind it by id."""

from __future__ import annotations

from collections import defaultdict

from sidestream.broker.memory.contents import Contents, Job, Key
from sidestream.broker.memory.pools import SortedSet
from sidestream.broker.protocol import Place


class KeyedJobs:
    """The heads of keys and the jobs behind them."""

    def __init__(self, contents: Contents) -> None:
        """Begin empty."""
        self._contents = contents
        self._heads: dict[Key, Job] = {}
        self._behind: defaultdict[Key, SortedSet] = defaultdict(SortedSet)

    def head(self, job: Job) -> Job | None:
        """Return the head of a job's key."""
        return self._heads.get(job.key) if job.key else None

    def enqueue(self, job: Job, until_ms: int) -> None:
        """Place a job by its id: it replaces a head with a greater id that is not leased."""
        head = self.head(job)
        if job.key is None or head is None or head is job:
            self._become_head(job, until_ms)
        elif _rank(job) < _rank(head) and head.place is not Place.LEASED:
            self._contents.unplace(head)
            self._enqueue_behind(head)
            self._become_head(job, until_ms)
        else:
            self._enqueue_behind(job)

    def requeue(self, job: Job, until_ms: int) -> None:
        """Place a released job, which stays the head unless a job with a smaller id is behind it."""
        first = self._first_behind(job.key) if job.key else None
        if job.key and first and _rank(first) < _rank(job) and self.head(job) is job:
            self._enqueue_behind(job)
            self._promote_head(job.key)
        else:
            self.enqueue(job, until_ms)

    def run_as_head(self, job: Job) -> None:
        """Make a running job the head again, unless the job that replaced it runs too."""
        head = self.head(job)
        if job.key is None or (head and head is not job and head.place is Place.LEASED):
            return
        if head and head is not job:
            self._contents.unplace(head)
            self._enqueue_behind(head)
        self._heads[job.key] = job

    def pass_on(self, job: Job) -> None:
        """Remove a job that ended from its key; after a head, the next job becomes the head."""
        if job.key and self.head(job) is job:
            self._promote_head(job.key)
        elif job.key:
            self.remove_behind(job)

    def remove_behind(self, job: Job) -> None:
        """Remove a job from behind its key, if it is there."""
        if job.key and (behind := self._behind.get(job.key)):
            behind.remove(job.reference)
            if not behind:
                del self._behind[job.key]

    def _become_head(self, job: Job, until_ms: int) -> None:
        if job.key:
            self._heads[job.key] = job
        self._contents.place_at(job, until_ms)

    def _enqueue_behind(self, job: Job) -> None:
        assert job.key is not None
        job.place, job.pool = Place.BEHIND_KEY, None
        self._behind[job.key].add(job.reference, job.rank)

    def _first_behind(self, key: Key) -> Job | None:
        first = self._behind[key].first()
        return self._contents.jobs[first[1]] if first else None

    def _promote_head(self, key: Key) -> None:
        job = self._first_behind(key)
        if job is None:
            self._heads.pop(key, None)
            self._behind.pop(key, None)
        else:
            self._behind[key].remove(job.reference)
            self._become_head(job, job.due_ms)


def _rank(job: Job) -> tuple[float, bytes]:
    return job.rank, job.reference
