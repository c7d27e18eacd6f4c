import inspect
import re
from datetime import UTC, datetime, timedelta

from sidestream import declared, running_jobs

from odoo import api, models
from odoo.fields import Domain
from odoo.tools import SQL

from ..action import labels

NAMED = 3
"""How many records of a job are named in a list."""
EXCEPTION = re.compile(r"[A-Z][a-z0-9]*[A-Z][A-Za-z0-9]*")
"""How an exception's name looks (UserError, OSError), which is for developers; "Address: ..." is somebody's text."""
# A skip scan: one look into the index a model, however many links there are.
DISTINCT_MODELS = """
    WITH RECURSIVE found (model) AS (
        (SELECT model FROM sidestream_job_record ORDER BY model LIMIT 1)
        UNION ALL
        SELECT (SELECT r.model FROM sidestream_job_record r WHERE r.model > found.model ORDER BY r.model LIMIT 1)
        FROM found WHERE found.model IS NOT NULL)
    SELECT model FROM found WHERE model IS NOT NULL"""
DISTINCT_ACTIONS = """
    WITH RECURSIVE found (action) AS (
        (SELECT action FROM sidestream_job ORDER BY action LIMIT 1)
        UNION ALL
        SELECT (SELECT j.action FROM sidestream_job j WHERE j.action > found.action ORDER BY j.action LIMIT 1)
        FROM found WHERE found.action IS NOT NULL)
    SELECT action FROM found WHERE action IS NOT NULL"""
EARLY = timedelta(seconds=1)
"""How long before its time a job may begin, because clocks differ."""


def _method(action):
    return action.rpartition(".")[2]


def _on_replica(cr):
    """Whether a cursor that only reads is at a replica (``db_replica_host``), and not at the server itself."""
    if not cr.readonly:
        return False
    cr.execute("SELECT pg_is_in_recovery()")
    return cr.fetchone()[0]


class SidestreamJobTold(models.Model):
    """What people are told of a job: its name, what it is about, how it is."""

    _inherit = "sidestream.job"  # pylint: disable=consider-merging-classes-inherited  # a file has one duty

    @api.depends("action")
    @api.depends_context("lang")
    def _compute_display_name(self):
        for job in self:
            job.display_name = self.env._("%(name)s (job %(id)s)", name=job.name, id=job.id)

    @api.depends("action")
    @api.depends_context("lang")
    def _compute_name(self):
        for job in self:
            model, _, method = (job.action or "").rpartition(".")
            action = declared(type(self.env[model]), method) if model in self.env else None
            words = method.strip("_").replace("_", " ")
            job.name = (action and self._in_language(action.label)) or words[:1].upper() + words[1:]

    def _in_language(self, label):
        return label if label is None or isinstance(label, str) else self.env._(label)

    def _search_name(self, operator, value):
        """Find the actions with such a name first: they are few, and the jobs of each are found by an index."""
        if operator == "in":
            return self._of_actions(lambda action: any(self._is_named(action, name) for name in value))
        if operator not in ("ilike", "=ilike", "like", "=like") or not isinstance(value, str):
            return NotImplemented
        wanted = value.strip("%").casefold()
        words = wanted.replace(" ", "_")
        return self._of_actions(
            lambda action: (
                words in action.casefold()
                or any(wanted in self._in_language(text).casefold() for text in labels.get(_method(action), ()))
            )
        )

    def _is_named(self, action, name):
        """Whether the jobs of ``action`` have exactly this name; every job has one."""
        if not isinstance(name, str):
            return False
        method, words = _method(action), name[:1].lower() + name[1:].replace(" ", "_")
        if name in map(self._in_language, labels.get(method, ())):
            return True
        return words not in labels and method in (words, f"_{words}")

    def _of_actions(self, wanted):
        """Return the domain of the jobs whose actions are ``wanted``."""
        self.env.cr.execute(DISTINCT_ACTIONS)
        return Domain("action", "in", [action for (action,) in self.env.cr.fetchall() if wanted(action)])

    def _running(self):
        """Return {id: since when} of those that run; of one that began a moment ago no time is noted yet."""
        open_ = [job.id for job in self if job.state == "pending"]
        if not open_ or not _on_replica(self.env.cr):
            return self._running_by(self.env.cr, open_)
        with self.env.registry.cursor() as cr:  # a replica knows nothing of the locks that running jobs hold
            return self._running_by(cr, open_)

    @api.model
    def _running_by(self, cr, open_):
        running = running_jobs(cr._obj, open_)
        if not running:
            return {}
        cr.execute(
            "SELECT DISTINCT ON (job_id) job_id, event, at FROM sidestream_attempt WHERE job_id = ANY(%s) "
            "ORDER BY job_id, id DESC",
            [list(running)],
        )
        since = {job_id: at for job_id, event, at in cr.fetchall() if event == "started"}
        return {job_id: since.get(job_id) for job_id in running}

    @api.depends("state", "run_at", "attempts", "forgiven", "reason", "error")
    @api.depends_context("lang")
    def _compute_status(self):
        """Say how long from now or since when, and no time of day: the other columns show the browser's."""
        now = datetime.now(UTC).replace(tzinfo=None)
        running = self._running()
        for job in self:
            error = job._what_went_wrong() if job.attempts > job.forgiven else None
            if job.state != "pending":
                job.status = {"failed": job._what_went_wrong(), "cancelled": job._in_words(job.reason)}.get(job.state)
            elif job.id in running:
                since = running[job.id]
                took = since and self._spelled(now - since)
                job.status = self.env._("Running for %s", took) if took else self.env._("Running")
            elif job._is_early():
                wait = self._spelled(job.run_at - now)
                job.status = (
                    self.env._("Retries in %(wait)s: %(error)s", wait=wait, error=error)
                    if error
                    else self.env._("Starts in %s", wait)
                )
            else:
                waiting = self.env._("Waiting; last error: %s", error) if error else self.env._("Waiting")
                job.status = job._in_words(job.reason) or waiting

    def _is_early(self):
        """Whether its time has not come."""
        return bool(self.run_at) and self.run_at > datetime.now(UTC).replace(tzinfo=None) + EARLY

    def _parameter_names(self):
        """Return the names of what the job's positional arguments are given to, its records first."""
        model, _, method = (self.action or "").rpartition(".")
        function = getattr(type(self.env[model]), method, None) if model in self.env else None
        return list(inspect.signature(function).parameters) if callable(function) else []

    def _what_went_wrong(self):
        return self._without_kind(self.error or "")

    @api.model
    def _without_kind(self, error):
        """Return an error as the user's own dialog would have shown it, without the exception's name."""
        kind, colon, text = error.partition(": ")
        return text if colon and EXCEPTION.fullmatch(kind) else kind + colon + text

    def _in_words(self, reason):
        """Return why the engine handed a job back, or ended it, for people who do not know its words."""
        code, colon, rest = (reason or "").partition(":")
        rest = rest.strip()
        words = {
            "locked": lambda: self.env._("Somebody edits it, or it runs elsewhere"),
            "blocked": lambda: self.env._("Waits behind an earlier job with the same order key"),
            "conflict": lambda: self.env._("Others changed the same records at the same time; it is tried again"),
            "stopping": lambda: self.env._("Its worker restarts"),
            "paused": lambda: self.env._("Waits until modules are installed, upgraded or removed"),
            "parked": lambda: self.env._("No worker knows its action: install its module again, or restart the worker"),
            "lost": lambda: self.env._("The database did not answer; it is tried again"),
            "expired": lambda: self.env._("It had expired before it could start"),
        }
        if code in words and (colon or not rest):
            return words[code]()
        first, _, number = (reason or "").rpartition(" ")
        if first == "duplicate of":
            return self.env._("The same as job %s", number)
        if first == "replaced by":
            return self.env._("Replaced by job %s", number)
        return reason or False

    @api.depends("created_at", "ended_at")
    @api.depends_context("lang")
    def _compute_duration(self):
        for job in self:
            job.duration = self._spelled(job.ended_at - job.created_at) if job.ended_at and job.created_at else False

    def _spelled(self, span):
        seconds = max(0.0, span.total_seconds())
        if seconds < 60:
            return self.env._("%s s", f"{seconds:.{0 if seconds >= 10 else 1}f}")
        minutes = int(seconds // 60)
        if minutes < 60:
            return self.env._("%(minutes)s min %(seconds)s s", minutes=minutes, seconds=int(seconds % 60))
        if minutes < 24 * 60:
            return self.env._("%(hours)s h %(minutes)s min", hours=minutes // 60, minutes=minutes % 60)
        return self.env._("%(days)s d %(hours)s h", days=minutes // 1440, hours=minutes // 60 % 24)

    @api.depends_context("lang", "allowed_company_ids")
    def _compute_records(self):
        links = self._links()
        wanted = {}
        for found in links.values():
            for model, (first, _count) in found.items():
                wanted.setdefault(model, set()).update(first)
        names = {model: self._readable_names(model, sorted(ids)) for model, ids in wanted.items()}
        for job in self:
            shown = []
            for model, (first, count) in links.get(job.id, {}).items():
                shown += [names[model][one] for one in first if one in names[model]]
                if count > NAMED:
                    shown.append(self.env._("and %s more", count - NAMED))
            job.records = ", ".join(shown)

    def _search_records(self, operator, value):
        """Find the jobs of the records with such a name, among the models that have jobs and that the user may read."""
        if operator not in ("in", "ilike", "like", "=ilike", "=like"):
            return NotImplemented
        values = value if operator == "in" else [value]
        names = [one for one in values if isinstance(one, str)]
        links = []
        self.env.cr.execute(DISTINCT_MODELS)
        for (model,) in self.env.cr.fetchall() if names else ():
            if model in self.env and self.env[model].has_access("read"):
                query = self._everywhere(model)._search(
                    Domain("display_name", operator, names if operator == "in" else value)
                )
                linked = SQL(
                    "SELECT job_id FROM sidestream_job_record WHERE model = %s AND record_id IN %s",
                    model,
                    query.subselect(),
                )
                # Where there is none, PostgreSQL would look for them at every job.
                self.env.cr.execute(SQL("SELECT EXISTS (%s)", linked))
                if self.env.cr.fetchone()[0]:
                    links.append(linked)
        found = []
        if links:
            found.append(SQL("EXISTS (SELECT FROM (%s) link WHERE link.job_id = ", SQL(" UNION ALL ").join(links)))
        if False in values:
            found.append(SQL("NOT EXISTS (SELECT FROM sidestream_job_record link WHERE link.job_id = "))

        def to_sql(jobs, alias, query):
            # EXISTS and NOT EXISTS become joins, whether Odoo negates them or not; a NOT IN of many links never ends.
            conditions = [SQL("%s%s)", one, SQL.identifier(alias, "id")) for one in found]
            return SQL("(%s)", SQL(" OR ").join(conditions)) if len(conditions) > 1 else conditions[0]

        return Domain.custom(to_sql=to_sql) if found else Domain.FALSE

    @api.model
    def _readable_names(self, model, ids):
        """Return the names of those records that are still there and that the user may read."""
        if model not in self.env or not self.env[model].has_access("read"):
            return {}
        found = self._everywhere(model).browse(ids).exists()._filtered_access("read")
        return {record.id: record.display_name for record in found}

    @api.model
    def _everywhere(self, model):
        """Return the model in all companies of the user: a list of jobs is not narrowed to those that are selected."""
        companies = dict.fromkeys([*self.env.companies.ids, *self.env.user._get_company_ids()])
        return self.env[model].with_context(allowed_company_ids=list(companies))

    def _links(self):
        """Return for each job {model: (the first ids, how many)}."""
        if not self.ids:
            return {}
        self.env.cr.execute(
            "SELECT job_id, model, (array_agg(record_id ORDER BY record_id))[:%s], count(*) FROM sidestream_job_record "
            "WHERE job_id = ANY(%s) GROUP BY job_id, model",
            [NAMED, self.ids],
        )
        found = {}
        for job_id, model, first, count in self.env.cr.fetchall():
            found.setdefault(job_id, {})[model] = (first, count)
        return found
