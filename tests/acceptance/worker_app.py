"""Actions that the worker's acceptance tests enqueue."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from sidestream import GIVE_UP, Actions, Context, RetryPolicy, Snooze

actions = Actions()
AT_ONCE = RetryPolicy(max_attempts=2, first_delay=0, jitter=0)


def _note(context: Context, what: str) -> None:
    context.cursor.execute(
        "INSERT INTO effect (job_id, uuid, attempt, pid, what) VALUES (%s, %s, %s, %s, %s)",
        (context.job_id, context.uuid, context.attempt, os.getpid(), what),
    )


@actions.action("note")
def note(context: Context, what: str = "noted") -> None:
    _note(context, what)


@actions.action("fail", retry=AT_ONCE)
def fail(context: Context) -> None:
    _note(context, "never seen")
    raise ValueError("no stock")


@actions.action("wait")
def wait(context: Context, seconds: float) -> None:
    _note(context, "waited")
    time.sleep(seconds)


@actions.action("until")
def until(context: Context, file: str) -> None:
    """Run until ``file`` is there."""
    _note(context, "waited")
    while not Path(file).exists():
        time.sleep(0.02)


@actions.action("enter")
def enter(context: Context, folder: str) -> None:
    """Show in ``folder`` that this job runs, and run until it is let go there."""
    _note(context, "entered")
    Path(folder, f"in-{context.job_id}").touch()
    while not Path(folder, f"go-{context.job_id}").exists():
        time.sleep(0.02)


@actions.action("until.fails.once", retry=AT_ONCE)
def until_fails_once(context: Context, file: str) -> None:
    """Run until ``file`` is there, and fail the first time."""
    while not Path(file).exists():
        time.sleep(0.02)
    if context.attempt == 1:
        raise ValueError("no stock")
    _note(context, "second attempt")


@actions.action("soft", soft_limit=0.2, retry=RetryPolicy(max_attempts=1))
def soft(context: Context) -> None:
    time.sleep(30)


@actions.action("hard", hard_limit=3, retry=RetryPolicy(max_attempts=1))
def hard(context: Context, file: str) -> None:
    child = subprocess.Popen(["sleep", "60"])
    Path(file).write_text(str(child.pid))
    child.wait()


@actions.action("commits")
def commits(context: Context) -> None:
    _note(context, "never seen")
    context.connection.commit()


@actions.action("commits.sql", retry=AT_ONCE)
def commits_in_sql(context: Context) -> None:
    context.cursor.execute("COMMIT")
    context.cursor.execute("BEGIN")
    _note(context, "never seen")


@actions.action("relock", commits="relock")
def relock(context: Context) -> None:
    for part in range(3):
        _note(context, f"part {part}")
        context.commit()
    _note(context, "end")


@actions.action("relock.heedless", commits="relock")
def relock_heedless(context: Context, file: str) -> None:
    """Go on, whatever a commit raises."""
    _note(context, "first")
    while not Path(file).exists():
        time.sleep(0.02)
    for part in range(2):
        with contextlib.suppress(Exception):
            context.commit()
        _note(context, f"later {part}")


def _read(context: Context, number: int) -> dict[str, Any]:
    return {"number": number, "key": context.idempotency_key("ship")}


def _call(context: Context, request: dict[str, Any]) -> dict[str, Any]:
    assert context.job_id is not None
    return {"tracking": f"T{request['number']}"}


def _write(context: Context, request: dict[str, Any], answer: dict[str, Any]) -> None:
    _note(context, f"{request['key'].split(':')[-1]} {answer['tracking']}")


actions.three_step("ship", read=_read, call=_call, write=_write)


def _read_slow(context: Context, folder: str) -> str:
    return folder


def _call_slow(context: Context, folder: str) -> str:
    """Note each call in ``folder``, and answer once it is let go there."""
    with Path(folder, "calls").open("a") as calls:
        calls.write("called\n")
    while not Path(folder, "go").exists():
        time.sleep(0.02)
    return "answered"


def _write_slow(context: Context, folder: str, answer: str) -> None:
    _note(context, answer)


actions.three_step("ship.slow", read=_read_slow, call=_call_slow, write=_write_slow)


@actions.action("parent")
def parent(context: Context) -> None:
    context.enqueue("note", ("from the parent",))


@actions.action("fan.out")
def fan_out(context: Context, jobs: int, queue: str) -> None:
    for _ in range(jobs):
        context.enqueue("nothing", queue=queue)


@actions.action("nothing")
def nothing(context: Context) -> None:
    """Do nothing: a follow-up job that is only counted."""


@actions.action("garble")
def garble(context: Context) -> None:
    """Write into the socket of the worker what no child ever says."""
    _note(context, "never seen")
    for number in range(3, 64):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as end:
            if end.family == socket.AF_UNIX and end.type == socket.SOCK_SEQPACKET:
                end.send(b"\xc1 nobody can read this")
    time.sleep(60)


@actions.action("parent.fails", retry=RetryPolicy(max_attempts=1))
def failing_parent(context: Context) -> None:
    context.enqueue("note", ("a ghost",))
    raise RuntimeError("no")


@actions.action("die")
def die(context: Context) -> None:
    os._exit(7)


@actions.action("broken.cursor", retry=RetryPolicy(max_attempts=1))
def broken_cursor(context: Context) -> None:
    try:
        context.cursor.execute("SELECT 1/0")
    except Exception:
        return


class Busy(Exception):
    """What a courier's client raises when it is to be left alone for a while."""

    retry_after = 0.3


@actions.action("picky", retry=RetryPolicy(first_delay=3600, by_exception={Busy: RetryPolicy(), KeyError: GIVE_UP}))
def picky(context: Context, wanted: str) -> None:
    """Fail as requested; "busy" fails the first time only."""
    if wanted == "busy" and context.attempt == 1:
        raise Busy("too many requests")
    if wanted == "key":
        raise KeyError(wanted)
    _note(context, f"{wanted} at attempt {context.attempt}")


@actions.action("snooze.for.ever", retry=RetryPolicy(max_snoozes=2))
def snooze_for_ever(context: Context) -> None:
    raise Snooze(0.1, "the courier is closed")


@actions.action("snooze")
def snooze(context: Context, file: str) -> None:
    """Put itself off until ``file`` is there."""
    _note(context, "snoozed")
    if not Path(file).exists():
        raise Snooze(0.1, "the courier is closed")


@actions.action("statement")
def statement(context: Context) -> None:
    """Be inside a statement for a long time."""
    context.cursor.execute("SELECT pg_sleep(600) /* statement under test */")


@actions.action("courier", key="order:{order}", limit="courier:{carrier}", group="g{carrier}", priority=1)
def courier(context: Context, order: int, carrier: int) -> None:
    _note(context, f"order {order} by {carrier}")


@actions.action("kills.its.worker")
def kills_its_worker(context: Context, file: str) -> None:
    """Note the start in ``file``, then kill the worker that runs this job: its zygote's parent."""
    with Path(file).open("a") as starts:
        starts.write("started\n")
    psutil.Process().parents()[1].kill()
    time.sleep(60)


@actions.action("terminates.its.session")
def terminates_its_session(context: Context, file: str) -> None:
    """Note the start in ``file``, then end the PostgreSQL session of this very job."""
    with Path(file).open("a") as starts:
        starts.write("started\n")
    context.cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    context.cursor.execute("SELECT 1")


@actions.action("shows.its.session")
def shows_its_session(context: Context, file: str, seconds: float) -> None:
    """Note in ``file`` which PostgreSQL process serves this job, and be in its transaction for a while."""
    _note(context, str(context.cursor.execute("SHOW work_mem").fetchone()))
    with Path(file).open("a") as starts:
        starts.write(f"{context.connection.info.backend_pid}\n")
    time.sleep(seconds)
    context.cursor.execute("SELECT 1")
