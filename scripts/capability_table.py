"""Print the README's table of capabilities, from the brokers themselves.

``python scripts/capability_table.py`` prints it, ``--write`` puts it between the marks in README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sidestream.broker.memory import MemoryBroker
from sidestream.broker.postgres.broker import PostgresBroker
from sidestream.broker.protocol import Broker, Capability
from sidestream.broker.redis.broker import RedisBroker

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- capabilities: scripts/capability_table.py -->", "<!-- end of capabilities -->"
BROKERS: dict[str, type[Broker]] = {
    "Redis, Valkey": RedisBroker,
    "PostgreSQL (Redis unavailable)": PostgresBroker,
    "memory (tests)": MemoryBroker,
}
MEANINGS = {
    Capability.PRIORITIES: "priorities, aging, queue weights",
    Capability.GROUPS: "fair groups, group weights",
    Capability.LIMITS: "limits of concurrency and rate: global, queue, action, limit key",
    Capability.PAUSES: "pauses: queue, action, group, action of a group",
    Capability.ROUTING: "unknown actions wait for a worker that knows them",
    Capability.DIRECT: "direct jobs",
    Capability.LEASES: "leases: the jobs of a dead worker are taken over",
    Capability.PUBLISHED: "remembers published rows",
    Capability.SHARED: "shared by several processes",
}


def table() -> str:
    """Return the table in Markdown."""
    lines = [
        f"| | {' | '.join(BROKERS)} |",
        f"|---|{'---|' * len(BROKERS)}",
        *(
            f"| {MEANINGS[capability]} | "
            + " | ".join("yes" if capability in broker.capabilities else "" for broker in BROKERS.values())
            + " |"
            for capability in MEANINGS
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it into the README."""
    if sys.argv[1:] != ["--write"]:
        print(table())
        return
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
