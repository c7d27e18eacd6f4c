"""Actions that write log lines and fail, with a failure hook, and Sentry where the environment names one."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path

from sidestream import GIVE_UP, Actions, RetryPolicy
from sidestream.executors.python.context import Context
from sidestream.job.observer import JobFailure

actions = Actions()
log = logging.getLogger("shop")
if "SIDESTREAM_LOG_FORMAT" not in os.environ:  # a JSON line begins a line
    print("printed at the start", end="; ")

if dsn := os.environ.get("TEST_SENTRY_DSN"):
    import sentry_sdk

    from sidestream.integrations.sentry import SidestreamIntegration

    sentry_sdk.init(dsn=dsn, integrations=[SidestreamIntegration(every_attempt="TEST_EVERY" in os.environ)])


@actions.action("shop.note")
def note(context: Context) -> None:
    log.info("a line of the job's own")


@actions.action("shop.print")
def print_lines(context: Context) -> None:
    print("printed by a job")
    print("the end of it", end="")


@actions.action("shop.fail", retry=RetryPolicy(max_attempts=2, first_delay=0.01, jitter=0))
def fail(context: Context) -> None:
    raise LookupError("no such order")


@actions.action("shop.give_up", retry=GIVE_UP)
def give_up(context: Context) -> None:
    raise LookupError("gave up")


@actions.action("shop.die")
def die(context: Context) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@actions.action("shop.slow", hard_limit=1, retry=GIVE_UP)
def slow(context: Context) -> None:
    time.sleep(60)


@actions.on_failure
def broken_hook(failure: JobFailure) -> None:
    raise RuntimeError("this hook is broken")


@actions.on_failure
def hook(failure: JobFailure) -> None:
    log.info("hook called")
    print("printed by a hook")
    told = os.environ.get("TEST_HOOK_FILE")
    if told:
        with Path(told).open("a") as file:
            traceback = "traceback" if failure.traceback else "none"
            print(failure.id, failure.action, failure.queue, failure.attempts, traceback, failure.error, file=file)
