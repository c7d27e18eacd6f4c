"""A stand-alone Odoo process that executes JSON lines: as the user, or as a bare loop.

It is Odoo as ``odoo shell`` has it: its own registry, no worker, no queue. Everything is measured with the clocks of
this process and handed back; nothing here waits for a job.
"""

import json
import sys
import time
from functools import partial

import odoo.api
import odoo.init  # first: it makes the package
import odoo.tools
import redis
from odoo.modules.registry import Registry
from odoo.service.server import load_server_wide_modules

from sidestream.store import acquire, outcomes

PARKED = "parked"
"""A queue that no worker serves: its rows are for the bare loop, or only for the measure of enqueueing."""
LATER = 7 * 24 * 3600
USER = "base.user_admin"
STREAM = "bench:bare"
"""Of the bare path; its consumer group has the same name."""
BLOCK_MS = 10_000


class Process:
    """The registry and what can be asked of it."""

    def __init__(self, config, database):
        odoo.tools.config.parse_config(["-c", config, "-d", database, "--no-http"], setup_logging=True)
        load_server_wide_modules()
        self.registry = Registry(database)
        self.cr = self.registry.cursor()
        user = odoo.api.Environment(self.cr, odoo.SUPERUSER_ID, {}).ref(USER)
        self.uid = user.id
        # What the web client sends with every call.
        self.context = {"lang": "en_US", "tz": "Europe/Brussels", "allowed_company_ids": user.company_ids.ids}
        self.cr.commit()

    def env(self):
        """Return the user's environment, in a fresh transaction."""
        return odoo.api.Environment(self.cr, self.uid, self.context)

    def make(self, light, heavy):
        """Create the records that jobs are about; return their ids."""
        env = self.env()
        found = (
            env["bench.job"].create([{} for _ in range(light)]).ids,
            env["res.partner"].create([{"name": f"Bench {number}"} for number in range(heavy)]).ids,
        )
        self.cr.commit()
        return found

    def enqueue(self, side, model, method, ids, *, parked=False, keep=True):
        """Enqueue a job a record in one transaction. Seconds of the calls and of the commit, and the jobs' ids."""
        self.cr.commit()  # a fresh snapshot, taken before the clock runs
        records = self.env()[model].browse(ids)
        records.env.user.lang  # noqa: B018  # an enqueuing user has been read already
        began = time.perf_counter()
        jobs = self._call(side, records, method, parked)
        records.env.flush_all()
        called = time.perf_counter()
        self.cr.commit() if keep else self.cr.rollback()
        return called - began, time.perf_counter() - called, jobs

    def one_by_one(self, side, model, method, ids):
        """Enqueue in one transaction, a call a record; milliseconds of each call. Nothing of it is kept."""
        self.cr.commit()
        records = self.env()[model].browse(ids)
        took = []
        for record in records:
            began = time.perf_counter()
            self._call(side, record, method, parked=True)
            record.env.flush_all()
            took.append((time.perf_counter() - began) * 1000)
        self.cr.rollback()
        return took

    def paced(self, side, model, method, ids, pause, redis_url):
        """Enqueue and commit one job after another.

        Returns when each was called, when PostgreSQL had its commit, and when the commit returned to the caller.
        """
        called, committed, returned = [], [], []
        stream = redis.Redis.from_url(redis_url)
        for id_ in ids:
            time.sleep(pause)  # the pace of the measurement, not a wait for anything
            record = self.env()[model].browse(id_)
            record.env.user.lang  # noqa: B018
            # Hooks run in their order: this one before the one that publishes.
            self.cr.postcommit.add(lambda: committed.append(time.time()))
            called.append(time.time())
            if side == "bare":
                self.cr.execute("INSERT INTO bench_bare (id) VALUES (%s)", [id_])
                self.cr.postcommit.add(partial(stream.xadd, STREAM, {"id": id_}))
            else:
                self._call(side, record, method, parked=False)
            self.cr.commit()
            returned.append(time.time())
        return called, committed, returned

    def begin_bare_path(self):
        """Make the empty table of the bare path."""
        self.cr.commit()
        self.cr.execute("DROP TABLE IF EXISTS bench_bare")
        self.cr.execute("CREATE TABLE bench_bare (id integer PRIMARY KEY)")
        self.cr.commit()

    def receive(self, size, redis_url):
        """Be the other end of the bare path: block on the stream, lock the row; when that was, ``size`` times."""
        stream = redis.Redis.from_url(redis_url)
        self.cr.commit()
        times = []
        while len(times) < size:
            found = stream.xreadgroup(STREAM, "one", {STREAM: ">"}, count=1, block=BLOCK_MS)
            if not found:
                raise TimeoutError(f"Only {len(times)} of {size} entries came.")
            [[_, [[entry, fields]]]] = found
            self.cr.execute("SELECT id FROM bench_bare WHERE id = %s FOR UPDATE", [int(fields[b"id"])])
            times.append(time.time())
            self.cr.commit()
            stream.xack(STREAM, STREAM, entry)
        return times

    def loop(self, model, method, pairs):
        """Do each (job, record): the store's own acquire statement, run-as environment, method, done, commit."""
        cr = self.cr
        cr.commit()
        raw = cr._obj  # noqa: SLF001  # psycopg2's cursor, as the executor has it
        for job, record in pairs:
            acquired = acquire.acquire_job(raw, job)
            context = json.loads(acquired.context)
            context.pop("company", None)  # the addon's own; it stands among the allowed ones too
            env = odoo.api.Environment(cr, acquired.user_id, context)
            getattr(env[model].browse(record), method)()
            env.flush_all()
            outcomes.finish(raw, job)
            cr.commit()

    @staticmethod
    def _call(side, records, method, parked):
        if side == "ours":
            options = {"queue": PARKED} if parked else {}
            return getattr(records.enqueue(split=1, **options), method)().ids
        options = {"eta": LATER} if parked else {}
        for record in records:
            getattr(record.with_delay(**options), method)()
        return None


def main():
    """Answer line by line until the input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever Odoo prints is no answer
    process = Process(*sys.argv[1:])
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(process, order.pop("do"))(**order)), file=answers, flush=True)


if __name__ == "__main__":
    main()
