"""Compare the brokers for many steps: python -m tests.model.run --steps 200000 --seed 1."""

from __future__ import annotations

import argparse
import sys
import time
from random import Random, SystemRandom

from tests.model.pair import STEPS, Difference, Pair
from tests.support.servers import RedisServer, find_redis7

EPISODE = 1000
"""Steps from one pair of empty brokers to the next."""


def episode(server: RedisServer, seed: str, steps: int, *, thorough: bool = False) -> None:
    """Take ``steps`` steps that ``seed`` decides, comparing all places after each if ``thorough``."""
    random = Random(seed)
    pair = Pair(server, random, thorough=thorough)
    try:
        for name in random.choices(list(STEPS), list(STEPS.values()), k=steps):
            pair.step(name)
    finally:
        pair.close()


def main() -> int:
    """Run as the options say; 1 after a difference."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=20_000)
    options.add_argument("--seed", type=int, default=SystemRandom().randrange(10**6))
    options.add_argument("--server", choices=["valkey", "redis7"], default="valkey")
    options.add_argument("--thorough", action="store_true", help="compare every place after every step")
    asked = options.parse_args()
    print(f"seed {asked.seed}, {asked.steps} steps, {asked.server}", flush=True)
    began, taken = time.monotonic(), 0
    with RedisServer(binary=find_redis7() if asked.server == "redis7" else "valkey") as server:
        while taken < asked.steps:
            steps = min(EPISODE, asked.steps - taken)
            try:
                episode(server, f"{asked.seed}/{taken}", steps, thorough=asked.thorough)
            except Difference as found:
                print(f"{found}\nA difference with seed {asked.seed} in the episode that began at step {taken}.")
                return 1
            taken += steps
            if taken % 20_000 == 0:
                print(f"{taken} steps, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{taken} steps without a difference (seed {asked.seed}), {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
