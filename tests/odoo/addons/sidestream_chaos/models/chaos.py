"""Promises and effects in tables without a unique constraint; see tests/odoo/kills.py for what is counted."""

import random
import time

import requests
from odoo import fields, models
from odoo.addons.sidestream import RetryPolicy, action

#: Kills count as failed attempts, which must not make these jobs fail.
PATIENT = RetryPolicy(max_attempts=1000, first_delay=0.05, factor=1.5, max_delay=0.5)


class ChaosPromise(models.Model):
    _name = "chaos.promise"
    _description = "Promise"

    token = fields.Char()
    kind = fields.Char()
    key = fields.Char()
    job = fields.Integer()


class ChaosEffect(models.Model):
    _name = "chaos.effect"
    _description = "Effect"

    token = fields.Char()
    key = fields.Char()
    job = fields.Integer()
    seen = fields.Integer(help="The newest job of the same key whose effect was visible.")


class ChaosSubject(models.Model):
    _name = "chaos.subject"
    _description = "Subject"

    name = fields.Char()
    touched = fields.Integer()

    def produce(self, count, seed, courier):
        """Enqueue jobs of every kind, note each in the same transaction, and return how many."""
        self = self.sudo()  # nobody has rights on these tables
        chance = random.Random(seed)
        kinds = ("plain", "keyed", "ship", "failing", "parts", "follow")
        for number in range(count):
            kind = chance.choice(kinds)
            token = f"{seed}-{number}"
            key = f"key:{chance.randrange(8)}" if kind == "keyed" else None
            subject = self.create({"name": token})
            enqueuer = subject.enqueue(key=key) if key else subject.enqueue()
            if kind == "ship":
                job = enqueuer.ship(token, courier)
            elif kind == "parts":
                job = enqueuer.parts(token)
            else:
                job = enqueuer.effect(token, key, kind)
            self.env["chaos.promise"].create({"token": token, "kind": kind, "key": key, "job": job.id})
        return count

    def roll_back(self, seed):
        """Enqueue a job that must never run, and raise an error."""
        self.sudo().create({"name": seed}).enqueue().effect(f"ghost-{seed}", None, "plain")
        self.env.cr.flush()
        raise RuntimeError("planned rollback")

    def _enter(self, token, key):
        job = self.env.context["sidestream_job_id"]
        effects = self.env["chaos.effect"]
        seen = max(effects.search([("key", "=", key)]).mapped("job"), default=0) if key else 0
        effects.create({"token": token, "key": key, "job": job, "seen": seen})

    @action(retry=PATIENT, run_as="superuser")
    def effect(self, token, key, kind):
        """Write the effect before failing, so that a premature commit is visible."""
        self._enter(token, key)
        self.touched += 1
        time.sleep(0.01)
        if kind == "failing" and self.env.context["sidestream_attempt"] == 1:
            self.env.cr.flush()
            raise RuntimeError("planned failure")
        if kind == "follow":
            follower = f"{token}.1"
            job = self.enqueue().effect(follower, None, "plain")
            self.env["chaos.promise"].create({"token": follower, "kind": "plain", "job": job.id})

    @action(retry=PATIENT, run_as="superuser", three_step=True)
    def ship(self, token, courier):
        """Call the courier between two transactions."""
        self.ensure_one()

        def call(key):
            answer = requests.post(
                f"{courier}/shipments", json={"order": token}, headers={"Idempotency-Key": key}, timeout=10
            )
            answer.raise_for_status()
            return answer.json()

        answer = yield call
        self.name = answer["reference"]
        self._enter(token, None)

    @action(retry=PATIENT, run_as="superuser", commits="relock")
    def parts(self, token):
        """Commit once, then write the effect in the last part."""
        self.touched += 1
        self.env.cr.commit()  # pylint: disable=invalid-commit  # declared: commits="relock"
        self._enter(token, None)
