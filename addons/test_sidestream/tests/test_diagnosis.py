from datetime import UTC, datetime
from unittest.mock import patch
from uuid import UUID

from sidestream.admin.diagnosis import Code, Diagnosis
from sidestream.job.reason import Reason, ReasonCode

from odoo.tools.translate import code_translations

from odoo.addons.sidestream.messages import diagnosis_message

from .common import JobCase

NOON = {"at": datetime(2030, 2, 1, 12, tzinfo=UTC)}
NOT_PAUSED = {"queue": None, "action": None, "group": None, "by": None, "note": None}
CASES = (
    (Code.DONE, NOON, "Done on 02/01/2030 12:00:00 PM"),
    (Code.FAILED, NOON | {"error": "UserError: Boom"}, "Failed on 02/01/2030 12:00:00 PM. Last error: Boom"),
    (
        Code.CANCELLED,
        NOON | {"reason": Reason(ReasonCode.DUPLICATE, {"of": 3})},
        "Cancelled on 02/01/2030 12:00:00 PM. It duplicates job 3",
    ),
    (Code.CANCELLED, NOON | {"reason": None}, "Cancelled on 02/01/2030 12:00:00 PM"),
    (Code.CANCELLING, {}, "Its cancellation was requested. A worker carries it out within seconds"),
    (Code.EXPIRING, NOON, "It had to start by 02/01/2030 12:00:00 PM, so it is about to be cancelled"),
    (Code.RUNNING, NOON | {"worker": "w1"}, "Running on worker w1 since 02/01/2030 12:00:00 PM"),
    (Code.HELD, {}, "Running, or its database session has not ended"),
    (
        Code.RETRYING,
        NOON | {"failures": 2, "error": None},
        "Retries on 02/01/2030 12:00:00 PM. Failed attempts: 2",
    ),
    (
        Code.SNOOZED,
        NOON | {"reason": Reason(ReasonCode.SNOOZED, {"seconds": 60, "message": "no stock, token=hunter2"})},
        "It asked to run again on 02/01/2030 12:00:00 PM. no stock, token=***",
    ),
    (Code.SCHEDULED, NOON, "Scheduled for 02/01/2030 12:00:00 PM"),
    (
        Code.PAUSED,
        NOT_PAUSED | NOON | {"queue": "mail", "by": "Ann", "note": "move"},
        'The queue "mail" is paused since 02/01/2030 12:00:00 PM. Set by Ann. Note: move',
    ),
    (Code.PAUSED, NOT_PAUSED | NOON | {"action": "a.b"}, 'The action "a.b" is paused since 02/01/2030 12:00:00 PM'),
    (Code.PAUSED, NOT_PAUSED | NOON | {"group": "g"}, 'The group "g" is paused since 02/01/2030 12:00:00 PM'),
    (
        Code.PAUSED,
        NOT_PAUSED | NOON | {"action": "a.b", "group": "g"},
        'The action "a.b" of the group "g" is paused since 02/01/2030 12:00:00 PM',
    ),
    (
        Code.BEHIND_JOB,
        {"id": 3, "action": "a.b", "key": "k"},
        'Job 3 (a.b) has the same ordering key "k" and must end first',
    ),
    (Code.SUSPECT, {}, "Its worker died repeatedly while it ran, so it waits until a worker can run it alone"),
    (Code.NO_BROKER, {}, "It is ready. Redis does not answer, so a worker finds it within seconds"),
    (Code.UNSERVED, {"queue": "mail"}, 'No running worker serves the queue "mail"'),
    (Code.LEASED, {"worker": "w1"}, "Worker w1 runs it or is about to"),
    (
        Code.LIMITED,
        {"scope": "key", "name": "courier:7", "concurrency": 5, "holders": [1, UUID(int=1), None], "more": 2},
        (
            'The concurrency limit is reached: limit key "courier:7". At most 5 jobs at the same time. Held by job 1, '
            "direct job 00000000-0000-0000-0000-000000000001, a job of another release, and 2 more"
        ),
    ),
    (
        Code.LIMITED,
        {"scope": "global", "name": "", "concurrency": None, "holders": [], "more": 0},
        "The concurrency limit is reached: all jobs",
    ),
    (
        Code.RATE_LIMITED,
        NOON | {"scope": "action", "name": "a.b", "rate": 0.5},
        'The rate limit is reached until 02/01/2030 12:00:00 PM: action "a.b". At most 0.5 starts per second',
    ),
    (Code.LIMIT_ZERO, {"scope": "queue", "name": "mail"}, 'The limit is 0, so nothing starts: queue "mail"'),
    (
        Code.UNPAUSING,
        {"scope": "queue"},
        "A pause of its queue, action or group ended. It continues within seconds",
    ),
    (
        Code.UNROUTED,
        {"action": "a.b"},
        "No running worker knows its action: install its module, or restart the workers",
    ),
    (
        Code.BEHIND_KEY,
        {"holders": [3], "more": 0, "key": "k"},
        'An earlier job with the same ordering key "k" must end first. Held by job 3',
    ),
    (
        Code.READY,
        {"rank": 3, "queue": "mail", "busy": (2, 2), "error": "Boom"},
        (
            'Waits for a free worker. Jobs of its priority before it in the queue "mail": 3. '
            "Busy child processes: 2 of 2. Last error: Boom"
        ),
    ),
    (Code.DUE, {"busy": None, "error": None}, "Waits for a free worker"),
    (
        Code.DELAYED,
        NOON | {"reason": Reason(ReasonCode.STOPPING)},
        "Its worker released it until 02/01/2030 12:00:00 PM. Its worker restarts",
    ),
    (Code.DELAYED, {"at": None, "reason": None}, "Its worker released it"),
    (Code.UNPUBLISHED, {}, "It is not published to Redis yet. This happens within seconds"),
    (Code.LOST, {}, "Redis lost it, or it ends this moment"),
)


class TestDiagnosis(JobCase):
    """What "Why Is It Waiting?" answers."""

    def test_every_code_has_a_text(self):
        self.assertEqual({code for code, _params, _text in CASES}, set(Code))
        env = self.env(context={"lang": "en_US", "tz": "UTC"})
        for code, params, text in CASES:
            with self.subTest(code=code, params=params):
                self.assertEqual(diagnosis_message(env, Diagnosis(code, params)), text)

    def test_people_read_it_in_their_language_time_zone_and_formats(self):
        self.env["res.lang"]._activate_lang("fr_FR")
        words = {
            "The rate limit is reached until %(at)s: %(limit)s": "Débit atteint jusqu'au %(at)s : %(limit)s",
            'queue "%s"': "file « %s »",
            "At most %s starts per second": "Au plus %s départs par seconde",
            "Held by %s": "Occupé par %s",
            "job %s": "la tâche %s",
        }
        params = NOON | {"scope": "queue", "name": "mail", "rate": 0.5, "holders": [1, 2], "more": 0}
        env = self.env(context={"lang": "fr_FR", "tz": "Europe/Paris"})
        with patch.dict(code_translations.python_translations, {("sidestream", "fr_FR"): words}):
            self.assertEqual(
                diagnosis_message(env, Diagnosis(Code.RATE_LIMITED, params)),
                "Débit atteint jusqu'au 01/02/2030 13:00:00 : file « mail ». Au plus 0,5 départs par seconde. "
                "Occupé par la tâche 1 et la tâche 2",
            )
