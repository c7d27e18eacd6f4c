"""Pick the next jobs: lanes by weight, their flows in turn, oldest first (decision 0006)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from sidestream.broker.memory.contents import Contents, Job
from sidestream.broker.memory.parking import BATCH, Parking
from sidestream.broker.memory.pools import Flow, Pool
from sidestream.broker.protocol import Place


class Serving:
    """Takes the next jobs from lanes."""

    def __init__(self, contents: Contents, parking: Parking) -> None:
        """Work on ``contents``; jobs that may not run go to ``parking``."""
        self._contents, self._parking = contents, parking
        self._now = 0.0  # virtual time of the lane that was served last
        self._turns: defaultdict[str, float] = defaultdict(float)
        #: The ms at which a lane that was full at the last pick admits jobs again; 0: unknown.
        self.opens_ms = 0

    def pick(self, lanes: Sequence[str], free: int, prefetch: int, known: frozenset[bytes] | None) -> list[Job]:
        """Take up to ``free`` jobs, then up to ``prefetch`` more until one has a key or a limit."""
        picked: list[Job] = []
        parked = self.opens_ms = 0
        open_lanes = [lane for lane in lanes if self._served(lane)]
        while open_lanes and len(picked) < free + prefetch and parked < BATCH:
            lane = (
                min(open_lanes, key=lambda one: max(self._turns[one], self._now)) if open_lanes[1:] else open_lanes[0]
            )
            pool = self._contents.ready[lane]
            flow = self._flow_in(lane, pool)
            if flow is None:
                open_lanes.remove(lane)
                continue
            first = pool.flows[flow].first()
            assert first is not None, "a scheduled flow has a job"
            job = self._contents.jobs[first[1]]
            self._contents.unplace(job)
            if len(picked) >= free and job.key:
                self._contents.place_at(job, 0)
                break
            reason = self._parking.reason(job, known)
            if len(picked) >= free and self._parking.counted(job, reason):
                self._contents.place_at(job, 0)
                break
            if reason is None:
                self._parking.admit(job)
                self._charge(lane, pool, flow, several=len(open_lanes) > 1)
                picked.append(job)
            elif reason.pool:
                self._parking.park(job, reason)
                parked += 1
            else:  # the limit of the database or of the queue is full
                self._contents.place_at(job, 0)
                self._opens(reason.until_ms)
                open_lanes.remove(lane)
        if parked >= BATCH:
            self._opens(self._contents.now() + 1)
        return picked

    def _served(self, lane: str) -> bool:
        rules = self._contents.rules.get(lane[:16])
        return rules is not None and lane[17:] not in rules.queues

    def _flow_in(self, lane: str, pool: Pool) -> Flow | None:
        """Return the flow that a lane serves next; flows of paused groups leave the schedule."""
        rules = self._contents.rules[lane[:16]]
        while (flow := pool.next_flow(self._contents.now() - rules.aging_ms)) and flow[1:] in rules.groups:
            pool.schedule.remove(flow)
        return flow

    def _charge(self, lane: str, pool: Pool, flow: Flow, *, several: bool) -> None:
        rules = self._contents.rules[lane[:16]]
        if flow in pool.schedule:
            pool.charge(flow, 1, rules.group_weights.get(flow[1:], 1))
        if several:
            self._now = max(self._turns[lane], self._now)
            self._turns[lane] = round(self._now + 1 / rules.rules.queue_weights.get(lane[17:], 1), 6)

    def _opens(self, at_ms: int) -> None:
        if at_ms:
            self.opens_ms = min(self.opens_ms or at_ms, at_ms)

    def promote(self, lane: str) -> list[Job]:
        """Remove and return up to 100 due delayed jobs of a lane, lower priority numbers first."""
        found: list[Job] = []
        for priority in range(10):
            delayed = self._contents.delayed[lane, priority]
            for reference in delayed.up_to(self._contents.now(), BATCH - len(found)):
                job = self._contents.jobs[reference]
                self._contents.unplace(job)
                assert job.place is Place.NOWHERE
                found.append(job)
        return sorted(found, key=lambda job: job.key is None)  # jobs that may replace a head come first
