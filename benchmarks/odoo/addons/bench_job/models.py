"""The three jobs. Every side runs the same methods, so every side stamps the same ledger in the same first line."""

import os
import time
from pathlib import Path

from odoo import fields, models
from odoo.addons.sidestream import action
from stamps import Stamps

_stamps = Stamps(Path(os.environ["BENCH_STAMPS"]))


class BenchJob(models.Model):
    _name = "bench.job"
    _description = "Record of a benchmark"

    value = fields.Integer()

    @action
    def noop(self):
        """Note that it ran."""
        _stamps.hit(self.id, time.time())

    @action
    def touch(self):
        """Write one column of a light model."""
        at = time.time()
        self.write({"value": int(at * 1000) % 1_000_000_000})
        _stamps.hit(self.id, at)


class ResPartner(models.Model):
    _inherit = "res.partner"

    @action
    def bench_write(self):
        """Write one column of the heaviest model that every Odoo has."""
        at = time.time()
        self.write({"function": f"clerk {at}"})
        _stamps.hit(self.id, at)
