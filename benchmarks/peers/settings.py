"""The pinned packages of each peer, and the best of the settings that were tried.

What becomes of jobs whose worker is killed was measured apart, on 2026-11-22: four jobs of 5 s (two where two run at a
time), every process of the worker killed with SIGKILL after 2 s, a new worker started at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_REDIS = ("redis==8.1.0", "hiredis==3.5.0")
_UVLOOP = "uvloop==0.23.0"

PACKAGES: dict[str, tuple[str, ...]] = {
    "dramatiq": ("dramatiq==2.2.1", *_REDIS),
    "taskiq": ("taskiq==0.13.0", "taskiq-redis==1.2.4", *_REDIS),
    "celery": ("celery==5.7.0", "kombu==5.7.0", "packaging==25.0", *_REDIS),
    "rq": ("rq==3.0.0", *_REDIS),
    "arq": ("arq==0.28.0", "redis==5.3.1", "hiredis==3.5.0"),
    "huey": ("huey==3.5.4", *_REDIS),
    "saq": (
        "saq[hiredis]==0.26.4",
        "typing_extensions==4.16.0",
        _UVLOOP,
        *_REDIS,
    ),  # it imports it and does not require it
    "streaq": ("streaq==7.2.0", "coredis==6.9.0"),
    "docket": ("pydocket==0.27.0", _UVLOOP, *_REDIS),
}
"""What is installed for a peer, by its name; the first is the peer itself."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run a peer."""

    #: The peer, a key of :data:`PACKAGES`; its application is ``<peer>_app.py``.
    peer: str
    #: "fastest", "survives a crash", both, or what else the row is for.
    kind: str
    #: The settings in words.
    words: str
    #: What becomes of the jobs that run when all of its processes are killed.
    crash: str
    #: The worker's command; ``{number}`` is the process's number.
    command: tuple[str, ...]
    #: How often that command is started.
    copies: int = 1
    #: Its part of the jobs of a drain, so that the slow ones end too.
    share: float = 0.25
    #: Environment of worker and producer.
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the rows call it."""
        return f"{self.peer}, {self.kind}"


_DRAMATIQ = ("dramatiq", "-p", "2", "-t", "2", "--skip-logging", "dramatiq_app")
_TASKIQ = ("taskiq", "worker", "taskiq_app:broker", "--workers", "2", "--no-parse", "--log-level", "WARNING")
_CELERY = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING")
_PREFETCH = {"dramatiq_queue_prefetch": "64"}
_SAFE = {"BENCH_SAFE": "1"}
_RQ = ("python", "rq_app.py", "worker")
_BOTH = "fastest, survives a crash"

SETTINGS = (
    Setting(
        "dramatiq",
        "fastest",
        "-p 2 -t 2, prefetch 64",
        "not run again within 150 s",
        _DRAMATIQ,
        share=0.5,
        variables=_PREFETCH,
    ),
    Setting(
        "dramatiq",
        "survives a crash",
        "the same, heartbeat_timeout 15 s, maintenance_chance 1,000,000",
        "run again after 15 s",
        _DRAMATIQ,
        share=0.5,
        variables=_PREFETCH | _SAFE,
    ),
    Setting(
        "taskiq",
        "fastest",
        "ListQueueBroker, --workers 2 --no-parse",
        "lost: it pops before it runs",
        _TASKIQ,
    ),
    Setting(
        "taskiq",
        "survives a crash",
        "RedisStreamBroker, --workers 2 --no-parse, idle_timeout and lock 10 s",
        "run again once another job comes, not on an idle queue",
        _TASKIQ,
        variables=_SAFE,
    ),
    Setting(
        "celery",
        "fastest",
        "-P threads -c 1 x 2, prefetch 128, acks_late",
        "not run again within 150 s (visibility timeout 1 h)",
        ("celery", "-A", "celery_app", "worker", "-P", "threads", "-c", "1", "-n", "bench{number}@%h", *_CELERY),
        copies=2,
        variables={"BENCH_PREFETCH": "128"},
    ),
    Setting(
        "celery",
        "survives a crash",
        "prefork -c 2, prefetch 64, acks_late, reject_on_worker_lost, visibility_timeout 30 s",
        "run again after 101 s",
        ("celery", "-A", "celery_app", "worker", "-c", "2", *_CELERY),
        variables={"BENCH_PREFETCH": "64"} | _SAFE,
    ),
    Setting(
        "rq",
        "fastest",
        "SimpleWorker x 2, result_ttl 0",
        "not run again within 150 s",
        _RQ,
        copies=2,
        share=0.1,
    ),
    Setting(
        "rq",
        "a fork a job, its default",
        "Worker (a fork a job) x 2, result_ttl 0",
        "not run again within 150 s",
        _RQ,
        copies=2,
        share=0.0125,
        variables=_SAFE,
    ),
    Setting(
        "arq",
        _BOTH,
        "1 process (a second adds nothing), max_jobs 100, poll_delay 10 ms, keep_result 0, job_timeout 20 s",
        "run again after 28 s",
        ("arq", "arq_app.Settings"),
    ),
    Setting(
        "huey",
        "fastest",
        "-k thread -w 2 x 2, results off",
        "lost: it pops before it runs; retries=3 does not change that",
        ("huey_consumer", "huey_app.huey", "-k", "thread", "-w", "2", "-q"),
        copies=2,
        share=0.5,
    ),
    Setting(
        "saq",
        _BOTH,
        "--workers 2, concurrency 20, uvloop, ttl -1, timeout 20 s, heartbeat 6 s, retries 3",
        "run again after 66 to 81 s",
        ("saq", "saq_app.settings", "--workers", "2"),
    ),
    Setting(
        "streaq",
        _BOTH,
        "--workers 2, concurrency 16, ttl 0, idle_timeout 10 s",
        "run again after 11 s",
        ("streaq", "run", "streaq_app:worker", "--workers", "2"),
    ),
    Setting(
        "docket",
        _BOTH,
        "2 processes, concurrency 30, minimum_check_interval 5 ms, execution_ttl 0, redelivery_timeout 10 s, uvloop",
        "run again after 9 s",
        ("python", "docket_app.py", "worker"),
        copies=2,
    ),
)
"""Every way that is measured, in the order of the table."""
