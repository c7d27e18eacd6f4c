"""Check the ledger: two tables, two files, and from Sidestream only which jobs failed."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.chaos import ledger


@dataclass
class Verdict:
    """Counts, and the tokens behind them."""

    promised: int = 0
    #: Promised, no effect, and not failed either.
    lost: list[str] = field(default_factory=list)
    #: More than one effect.
    doubled: list[str] = field(default_factory=list)
    #: An effect without a promise.
    ghosts: list[str] = field(default_factory=list)
    #: An effect before, or blind to, the one of the job before it with the same key.
    reordered: list[str] = field(default_factory=list)
    #: Accepted direct jobs that never ran.
    direct_lost: list[str] = field(default_factory=list)
    #: Direct jobs accepted.
    direct: int = 0
    #: Second and later runs of direct jobs without a database: allowed, counted.
    direct_repeats: int = 0
    #: Jobs that chance killed as often as a poison job is: failed, with the reason; counted apart.
    failed: int = 0

    @property
    def violations(self) -> dict[str, list[str]]:
        """Return what must be empty and is not."""
        names = ("lost", "doubled", "ghosts", "reordered", "direct_lost")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    def __str__(self) -> str:
        parts = [f"{self.promised} promised, {self.direct} direct, {self.failed} failed by chance"]
        parts += [f"{len(tokens)} {name}: {', '.join(tokens[:5])}" for name, tokens in self.violations.items()]
        return "; ".join(parts)


_MISSING = """
SELECT count(*) FROM promised p WHERE NOT EXISTS (SELECT FROM ledger l WHERE l.token = p.token)
AND NOT EXISTS (SELECT FROM sidestream_job j WHERE j.id = p.job_id AND j.state = 'failed')
"""


def check(connection: psycopg.Connection[Any], folder: Path, failed_direct: Collection[str] = ()) -> Verdict:
    """Return what the ledger proves at this moment; ``failed_direct`` are the uuids (hex) that the broker failed."""
    # Effects first: traffic may go on, and what is promised and done in between must not look like a ghost.
    effects = _rows(connection, "SELECT token, job_id, key, seen, uuid FROM ledger ORDER BY at")
    plain_runs = Counter(token for (token,) in ledger.lines(folder / ledger.PLAIN))
    promised = _rows(connection, "SELECT token, job_id, key FROM promised ORDER BY job_id")
    failed = {job_id for (job_id,) in _rows(connection, "SELECT id FROM sidestream_job WHERE state = 'failed'")}
    intents, accepted = _direct_notes(folder)
    counts = Counter(token for token, *_ in effects)
    wanted = {token: job_id for token, job_id, _ in promised}

    verdict = Verdict(
        promised=len(wanted), direct=len(accepted), failed=len(failed & set(wanted.values())) + len(failed_direct)
    )
    verdict.lost = [token for token, job_id in wanted.items() if not counts[token] and job_id not in failed]
    verdict.doubled = [token for token, count in counts.items() if count > 1]
    verdict.ghosts = [token for token in counts if token not in wanted and token not in intents]
    verdict.ghosts += [token for token in plain_runs if token not in intents]
    verdict.reordered = list(_reordered(effects))
    ran = counts.keys() | plain_runs.keys()
    verdict.direct_lost = [token for token, uuid in accepted.items() if token not in ran and uuid not in failed_direct]
    verdict.direct_repeats = sum(count - 1 for count in plain_runs.values())
    return verdict


def wait_until_settled(
    connection: psycopg.Connection[Any], folder: Path, patience: float, failed_direct: Callable[[], Collection[str]]
) -> Verdict:
    """Wait until nothing is lost as far as can be seen, at most ``patience`` seconds; return the last verdict."""
    deadline = time.monotonic() + patience
    while True:
        late = time.monotonic() > deadline
        [(missing,)] = _rows(connection, _MISSING)
        if not missing or late:
            verdict = check(connection, folder, failed_direct())
            if late or not (verdict.lost or verdict.direct_lost):
                return verdict
        time.sleep(0.05)


def _reordered(effects: Iterable[tuple[Any, ...]]) -> Iterable[str]:
    """Yield each effect that came before a smaller id of its key, or whose snapshot missed its predecessor's effect."""
    last: dict[str, int] = defaultdict(int)
    for token, job_id, key, seen, _ in effects:
        if key is None:
            continue
        if job_id < last[key] or (seen or 0) != last[key]:
            yield token
        last[key] = max(last[key], job_id)


def _direct_notes(folder: Path) -> tuple[set[str], dict[str, str]]:
    """Return the tokens that were meant, and those that were accepted with their uuids."""
    noted = ledger.lines(folder / ledger.ACCEPTED)
    return {words[1] for words in noted}, {words[1]: words[2] for words in noted if words[0] == "accepted"}


def _rows(connection: psycopg.Connection[Any], query: str) -> list[tuple[Any, ...]]:
    rows = connection.execute(query).fetchall()
    connection.commit()
    return rows
