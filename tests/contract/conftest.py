"""Run each contract test on every broker, except the tests that a broker is excused from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite(
    "tests.support.broker_contract",
    *(
        f"tests.support.broker_contract_{part}"
        for part in ("edited", "leases", "limits", "order", "pauses", "traps", "waiting")
    ),
)

from sidestream.job.rules import Rules  # noqa: E402  # after the rewrite is registered
from tests.contract.benches import MemoryBench, PostgresBench, RedisBench, started  # noqa: E402  # after the rewrite is registered
from tests.support.broker_contract_edited import EditedCases  # noqa: E402  # after the rewrite is registered
from tests.support.servers import RedisServer, ServerFailed, find_redis7  # noqa: E402

_ROWS = "it reads the rows themselves and stores no references"
_LOCKS = "row and key locks, taken by the acquire statement, decide between workers"
_LEASES = "a lock ends with its session, so there is nothing to reclaim"
_RULES = "it reads the rules from their table"
_DIRECT = "it does not support direct jobs"
EXCUSED = {
    "postgres": {
        "test_two_workers_share_without_overlap": _LOCKS,
        "test_a_reader_gets_no_more_than_it_has_children": _LOCKS,
        "test_a_running_head_is_not_changed": _LOCKS,
        "test_a_scheduled_job_does_not_block_its_key_until_it_is_due": _LOCKS,
        "test_publishing_twice_is_publishing_once": _ROWS,
        "test_a_discarded_head_frees_its_key": _ROWS,
        "test_a_head_is_discarded_without_knowing_its_lane": _ROWS,
        "test_every_place_is_reported": _ROWS,
        "test_settling_twice": _ROWS,
        **dict.fromkeys((name for name in vars(EditedCases) if name.startswith("test_")), _ROWS),
        "test_a_waiting_job_is_given_another_priority": _ROWS,
        "test_aged_priorities_take_turns": "of all aged jobs, the one that has been ready longest goes first",
        "test_resuming_returns_all_jobs_in_batches": "its query skips paused jobs, so no job has to return",
        "test_one_process_pauses_and_another_resumes": _RULES,
        "test_nothing_of_a_database_is_claimed_before_its_rules": _RULES,
        "test_a_pause_survives_a_new_generation": _RULES,
        "test_every_call_is_refused_before_a_generation_begins": _ROWS,
        "test_synced_databases": _ROWS,
        "test_published_bits": _ROWS,
        "test_an_emptied_broker_reports_a_stale_generation": _ROWS,
        "test_reasserting_what_runs": _ROWS,
        "test_one_key_with_very_many_jobs_is_cheap": "its query reads all earlier jobs of the key",
        "test_many_jobs_due_at_once_are_promoted_in_batches": "it promotes no jobs, and its clock is the real one",
        "test_blocked_by_a_job_that_waits_here": "its query skips blocked rows; it queries again a moment later",
        "test_blocked_by_a_job_unknown_here_waits_and_gives_way_when_it_comes": "it knows every row",
        "test_an_expired_lease_is_reclaimed_and_its_old_token_is_invalid": _LEASES,
        "test_a_renewed_lease_is_not_taken": _LEASES,
        "test_a_lease_expires_although_the_clock_was_set_back": _LEASES,
        "test_a_round_of_reclaims_reaches_every_late_delivery": _LEASES,
        "test_after_a_gap_owners_have_time_to_renew": _LEASES,
        "test_only_these_lanes_are_reclaimed": _LEASES,
        "test_a_reclaimed_job_goes_back_to_its_place": _LEASES,
        "test_the_payload_is_delivered": _DIRECT,
        "test_the_payload_is_delivered_to_a_waiting_reader": _DIRECT,
        "test_attempts_and_crashes_are_counted": _DIRECT,
        "test_a_failed_job_is_not_claimed_again": _DIRECT,
        "test_keys_of_direct_jobs": _DIRECT,
        "test_one_behind_its_key_is_explained_and_discarded": _DIRECT,
    },
}


@pytest.fixture(scope="session")
def valkey() -> Iterator[RedisServer]:
    yield from started("valkey")


@pytest.fixture(scope="session")
def redis7() -> Iterator[RedisServer]:
    try:
        find_redis7()
    except ServerFailed as error:
        pytest.skip(str(error))
    yield from started("redis7")


@pytest.fixture(params=["memory", "valkey", "redis7", "postgres"])
def empty_bench(request: pytest.FixtureRequest) -> Iterator[MemoryBench]:
    kind: str = request.param
    reason = EXCUSED.get(kind, {}).get(request.node.originalname)
    if reason:
        pytest.skip(f"The {kind} broker is excused: {reason}.")
    bench: MemoryBench
    if kind == "memory":
        bench = MemoryBench()
    elif kind == "postgres":
        bench = PostgresBench(request.getfixturevalue("database"))
    else:
        # The embedded server is tested with 100,000 jobs; for Redis 7, fewer show the same.
        bench = RedisBench(request.getfixturevalue(kind), 100_000 if kind == "valkey" else MemoryBench.many)
    needs = getattr(request.cls, "needs", None)
    if needs and needs not in bench.broker.capabilities:
        bench.close()
        pytest.skip(f"The {kind} broker does not support {needs.value!r}.")
    yield bench
    bench.close()


@pytest.fixture
def bench(empty_bench: MemoryBench) -> MemoryBench:
    empty_bench.broker.begin_generation()
    empty_bench.broker.configure(empty_bench.database, Rules())
    return empty_bench
