"""Learn Sidestream in twelve lessons, one concept each. Read them from top to bottom; other tests cover edge cases.

``shop.jobs`` enqueues, ``shop.work()`` runs every job that is due in this process and returns the outcomes, and
``shop.stock()`` shows the effects in the shop's own table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sidestream import Context, RetryPolicy
from sidestream.errors import UnsupportedOption
from sidestream.job.outcome import Done, Fail, Release, Retry

if TYPE_CHECKING:
    from tests.fundamentals.conftest import Shop


def count(context: Context, product: str, amount: int) -> None:
    """The action of most lessons: record an amount of a product in the shop's own table."""
    context.cursor.execute("INSERT INTO stock VALUES (%s, %s)", (product, amount))


def test_a_job_runs_in_the_background_and_commits_its_effect_with_done(shop: Shop) -> None:
    """Lesson 1: declare an action, enqueue a job, and let a worker run it.

    The effect and the state "done" are in one transaction, so you never see one without the other.
    """
    shop.actions.action("count")(count)

    with shop.jobs.transaction(shop.connection) as tx:
        job = tx.enqueue("count", ("chair", 4))

    assert shop.row(job).state == "pending"
    assert shop.work() == [Done()]
    assert shop.row(job).state == "done"
    assert shop.stock() == [("chair", 4)]


def test_a_job_of_a_rolled_back_transaction_never_runs(shop: Shop) -> None:
    """Lesson 2: a job belongs to the transaction in which you enqueue it."""
    shop.actions.action("count")(count)

    def order() -> None:
        with shop.jobs.transaction(shop.connection) as tx:
            tx.enqueue("count", ("chair", 4))
            raise ValueError("the customer left")

    with pytest.raises(ValueError, match="the customer left"):
        order()

    assert shop.work() == []
    assert shop.stock() == []


def test_a_failed_attempt_is_rolled_back_and_retried(shop: Shop) -> None:
    """Lesson 3: an exception rolls the attempt back, and the retry policy decides when the job runs again."""

    @shop.actions.action("count", retry=RetryPolicy(max_attempts=2, first_delay=0, jitter=0))
    def fails_once(context: Context, product: str, amount: int) -> None:
        count(context, product, amount)
        if context.attempt == 1:
            raise ValueError("the scanner fell down")

    with shop.jobs.transaction(shop.connection) as tx:
        job = tx.enqueue("count", ("chair", 4))

    first, second = shop.work()
    assert isinstance(first, Retry)
    assert first.error == "ValueError: the scanner fell down"
    assert second == Done()
    assert shop.stock() == [("chair", 4)]
    assert shop.row(job).attempts == 1


def test_a_job_without_further_attempts_fails_and_keeps_its_error(shop: Shop) -> None:
    """Lesson 4: after the last attempt, the job is failed, and its row keeps the error."""

    @shop.actions.action("count", retry=RetryPolicy(max_attempts=1))
    def fails(context: Context) -> None:
        raise ValueError("no such product")

    with shop.jobs.transaction(shop.connection) as tx:
        job = tx.enqueue("count")

    assert [type(outcome) for outcome in shop.work()] == [Fail]
    assert (shop.row(job).state, shop.row(job).error) == ("failed", "ValueError: no such product")


def test_jobs_with_the_same_key_run_in_the_order_of_their_ids(shop: Shop) -> None:
    """Lesson 5: an ordering key makes jobs run one after another, in the order in which you enqueue them."""
    shop.actions.action("count")(count)

    with shop.jobs.transaction(shop.connection) as tx:
        for amount in range(5):
            tx.enqueue("count", ("chair", amount), key="chair")

    shop.work()
    assert [amount for _, amount in shop.stock()] == [0, 1, 2, 3, 4]


def test_a_failing_job_blocks_only_its_own_key(shop: Shop) -> None:
    """Lesson 6: while a job waits for its retry, later jobs with the same key wait too; other keys go on."""
    shop.actions.action("count")(count)

    @shop.actions.action("fails", retry=RetryPolicy(first_delay=3600))
    def fails(context: Context) -> None:
        raise ValueError("later")

    with shop.jobs.transaction(shop.connection) as tx:
        tx.enqueue("fails", key="chair")
        tx.enqueue("count", ("chair", 1), key="chair")
        tx.enqueue("count", ("table", 2), key="table")

    shop.work()
    assert shop.stock() == [("table", 2)]


def test_a_follow_up_exists_if_and_only_if_its_parent_is_done(shop: Shop) -> None:
    """Lesson 7: an action enqueues follow-up jobs in its own transaction."""
    shop.actions.action("count")(count)

    @shop.actions.action("inventory")
    def inventory(context: Context) -> None:
        for product in ("chair", "table"):
            context.enqueue("count", (product, 1))

    with shop.jobs.transaction(shop.connection) as tx:
        tx.enqueue("inventory")

    assert shop.work() == [Done(), Done(), Done()]
    assert shop.stock() == [("chair", 1), ("table", 1)]


def test_an_action_may_not_commit(shop: Shop) -> None:
    """Lesson 8: Sidestream commits for you, because the effect and "done" must be committed together."""

    @shop.actions.action("count", retry=RetryPolicy(max_attempts=1))
    def commits(context: Context) -> None:
        count(context, "chair", 1)
        context.connection.commit()

    with shop.jobs.transaction(shop.connection) as tx:
        tx.enqueue("count")

    [outcome] = shop.work()
    assert isinstance(outcome, Fail)
    assert outcome.error.startswith("CommitRefused: The action 'count' tried to commit")
    assert shop.stock() == []


def test_a_three_step_action_calls_outside_any_transaction(shop: Shop) -> None:
    """Lesson 9: a slow external call runs between two transactions and receives an idempotency key.

    The key is the same on every attempt, so that the remote service can recognize a repeated call.
    """
    calls: list[dict[str, Any]] = []

    def read(context: Context, order: int) -> dict[str, Any]:
        return {"order": order, "key": context.idempotency_key("ship")}

    def call(context: Context, request: dict[str, Any]) -> str:
        calls.append(request)
        return "T-1"

    def write(context: Context, request: dict[str, Any], answer: str) -> None:
        count(context, answer, request["order"])

    shop.actions.three_step("ship", read=read, call=call, write=write)
    with shop.jobs.transaction(shop.connection) as tx:
        job = tx.enqueue("ship", (7,))

    assert shop.work() == [Done()]
    assert shop.stock() == [("T-1", 7)]
    assert calls[0]["key"].endswith(f":{job}:ship")


def test_a_job_with_an_unknown_action_is_unrouted_and_not_lost(shop: Shop) -> None:
    """Lesson 10: a job whose action no worker knows waits, for example for the next release."""
    with shop.jobs.transaction(shop.connection) as tx:
        job = tx.enqueue("from.the.next.release")

    [outcome] = shop.work()
    assert isinstance(outcome, Release)
    assert outcome.reason.code == "unrouted"
    assert shop.row(job).state == "pending"


def test_a_direct_job_needs_no_transaction_and_is_repeated_safely_by_its_id(shop: Shop) -> None:
    """Lesson 11: a direct job goes to the broker without a row; repeat the call with the same id if in doubt."""
    shop.actions.action("count")(count)

    uuid = shop.jobs.enqueue_direct("count", ("chair", 1))
    assert shop.jobs.enqueue_direct("count", ("chair", 1), id=uuid) == uuid

    assert shop.work() == [Done()]
    assert shop.stock() == [("chair", 1)]


def test_an_unknown_option_is_refused(shop: Shop) -> None:
    """Lesson 12: an unknown option raises an error, so that a typing mistake is never ignored."""
    with pytest.raises(UnsupportedOption, match="cron"), shop.jobs.transaction(shop.connection) as tx:
        tx.enqueue("count", ("chair", 1), cron="* * * * *")  # type: ignore[call-arg]
