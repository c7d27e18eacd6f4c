"""The actions of the chaos run and of the kill tests.

Every action of a row writes its effect first and fails, crashes or sleeps afterwards, so that whatever commits too
much or too early shows in the ledger.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from sidestream.errors import StoreUnavailable
from sidestream.executors.python.actions import Actions
from sidestream.executors.python.context import Context
from sidestream.job.retry import RetryPolicy
from tests.chaos import ledger

#: Kills count as attempts too: none of these jobs may die of them by the number of attempts.
PATIENT = RetryPolicy(max_attempts=1000, first_delay=0.05, factor=1.5, max_delay=0.5)

SPANS = "spans.txt"
"""Lines ``start|end TOKEN LIMIT-KEY PID SECONDS`` (CLOCK_MONOTONIC): when an action of the sharing run was at work."""

actions = Actions()


def folder() -> Path:
    """Return the folder that the harness shares with its workers."""
    return Path(os.environ["CHAOS_FOLDER"])


def tell(*words: object) -> None:
    """Send one line to the harness; nothing is lost: the datagram waits in its socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as harness:
        harness.sendto(" ".join(map(str, words)).encode(), str(folder() / "events"))


@actions.action("chaos.effect", retry=PATIENT)
def effect(context: Context, token: str, key: str | None, plan: dict[str, Any]) -> None:
    """Write one effect, then do what ``plan`` says: sleep, fail, crash, release, follow."""
    ledger.enter(context.cursor, token, job_id=context.job_id, uuid=context.uuid, key=key, attempt=context.attempt)
    misbehave(context, plan)
    for number in range(plan.get("follow", 0)):
        follower = f"{token}.{number}"
        job_id = context.enqueue("chaos.effect", (follower, None, {}))
        ledger.promise(context.cursor, follower, job_id, None)


@actions.action("chaos.parts", retry=PATIENT, commits="relock")
def parts(context: Context, token: str, plan: dict[str, Any]) -> None:
    """Commit once in between; the effect belongs to the last part."""
    context.cursor.execute("SELECT 1")
    context.commit()
    ledger.enter(context.cursor, token, job_id=context.job_id, uuid=context.uuid, key=None, attempt=context.attempt)
    misbehave(context, plan)


def _read(context: Context, token: str, plan: dict[str, Any]) -> dict[str, Any]:
    context.cursor.execute("SELECT 1")
    return {"token": token, "plan": plan}


def _call(context: Context, request: dict[str, Any]) -> str:
    time.sleep(request["plan"].get("sleep", 0.0))
    return context.idempotency_key("courier")


def _write(context: Context, request: dict[str, Any], answer: str) -> None:
    ledger.enter(
        context.cursor, request["token"], job_id=context.job_id, uuid=context.uuid, key=None, attempt=context.attempt
    )


actions.three_step("chaos.steps", read=_read, call=_call, write=_write, retry=PATIENT)


@actions.action("chaos.direct", retry=PATIENT)
def direct(context: Context, token: str, plan: dict[str, Any]) -> None:
    """A direct job with a database: its inbox row makes the effect happen once."""
    ledger.enter(context.cursor, token, job_id=None, uuid=context.uuid, key=None, attempt=context.attempt)
    misbehave(context, plan)


@actions.action("chaos.plain", retry=PATIENT, database=False)
def plain(context: Context, token: str, plan: dict[str, Any]) -> None:
    """A direct job without a database: at least once."""
    misbehave(context, plan)
    ledger.note(folder() / ledger.PLAIN, token)


def misbehave(context: Context, plan: dict[str, Any]) -> None:
    """Do what ``plan`` says, on the first attempt only where it would never end otherwise."""
    if plan.get("sleep"):
        time.sleep(plan["sleep"])
    if context.attempt == 1 and plan.get("crash"):
        os.kill(os.getpid(), signal.SIGKILL)
    if context.attempt == 1 and plan.get("fail"):
        raise RuntimeError("planned failure")
    if plan.get("release") and random.random() < 0.5:
        # A release charges no attempt, so only chance ends this one.
        raise StoreUnavailable("planned loss of the store")


@actions.action("share.work", retry=PATIENT)
def share(context: Context, token: str, key: str | None = None, slot: str = "-", seconds: float = 0.0) -> None:
    """Write one effect, and note when it began and ended: what ran at the same time is counted from outside."""
    spans = folder() / SPANS
    ledger.note(spans, f"start {token} {slot} {os.getpid()} {time.monotonic()}")
    ledger.enter(context.cursor, token, job_id=context.job_id, uuid=context.uuid, key=key, attempt=context.attempt)
    if seconds:
        time.sleep(seconds)
    ledger.note(spans, f"end {token} {slot} {os.getpid()} {time.monotonic()}")


# What the kill tests draw their kills inside of. Each tells the harness that it started, then hangs on its first start.


@actions.action("kill.sql", retry=PATIENT)
def in_sql(context: Context, token: str) -> None:
    """Hang inside a statement of the server."""
    if _started(context, token):
        context.cursor.execute("SELECT pg_sleep(600)")


@actions.action("kill.http", retry=PATIENT)
def in_http(context: Context, token: str, url: str) -> None:
    """Hang inside a call to a server that does not answer."""
    if _started(context, token):
        urllib.request.urlopen(url, timeout=600).read()


@actions.action("kill.subprocess", retry=PATIENT)
def in_subprocess(context: Context, token: str) -> None:
    """Hang inside a child program, which has to die as well."""
    if _started(context, token):
        program = subprocess.Popen(["sleep", "600"])
        tell("program", token, program.pid)
        program.wait()


@actions.action("kill.sleep", retry=PATIENT)
def in_sleep(context: Context, token: str, seconds: float) -> None:
    """Run for ``seconds`` on every start."""
    _started(context, token)
    time.sleep(seconds)
    tell("ended", token, os.getpid(), time.monotonic())


@actions.action("kill.outside", retry=PATIENT, database=False)
def outside(context: Context, token: str, seconds: float) -> None:
    """Run without a database: no row's lock keeps a second start away, only the lease does."""
    tell("start", token, os.getpid(), time.monotonic(), context.attempt)
    time.sleep(seconds)
    tell("ended", token, os.getpid(), time.monotonic())


@actions.action("kill.hold", retry=PATIENT)
def hold(context: Context, token: str) -> None:
    """Run until the harness lets go: until a file of that name is there."""
    _started(context, token)
    while not (folder() / token).exists():
        time.sleep(0.02)


@actions.action("kill.own", retry=PATIENT)
def poison_child(context: Context, token: str) -> None:
    """Kill its own process on every start."""
    _started(context, token)
    os.kill(os.getpid(), signal.SIGKILL)


@actions.action("kill.host", retry=PATIENT)
def poison_host(context: Context, token: str, after: float = 0.0) -> None:
    """Kill the supervisor, and so everything, ``after`` seconds from every start."""
    _started(context, token)
    time.sleep(after)
    zygote = os.getppid()
    supervisor = int(Path(f"/proc/{zygote}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    time.sleep(600)  # until the end reaches us


def _started(context: Context, token: str) -> bool:
    """Write the effect, tell the harness, and return whether this is the first start."""
    ledger.enter(context.cursor, token, job_id=context.job_id, uuid=context.uuid, key=None, attempt=context.attempt)
    tell("start", token, os.getpid(), time.monotonic(), context.attempt)
    return context.attempt == 1
