import json

from sidestream import GIVE_UP, RetryPolicy

from odoo import fields, models
from odoo.exceptions import UserError
from odoo.tools.translate import LazyTranslate

from odoo.addons.sidestream import action

_lt = LazyTranslate(__name__)


class TestSidestreamOrder(models.Model):
    """Methods that note with what they ran."""

    _name = "test.sidestream.order"
    _description = "Test Order"

    name = fields.Char(required=True)
    carrier_id = fields.Many2one("test.sidestream.carrier")
    company_id = fields.Many2one("res.company")
    note = fields.Char()
    secret = fields.Char(groups="base.group_system")

    @action
    def remember(self, *args, **kwargs):
        """Note who runs this, and with what."""
        env = self.env
        seen = {
            "uid": env.uid,
            "su": env.su,
            "company": env.company.id,
            "companies": env.companies.ids,
            "lang": env.context.get("lang"),
            "tz": env.context.get("tz"),
            "context": sorted(env.context),
            "args": repr(args),
            "args_su": [one.env.su for one in args if isinstance(one, models.BaseModel)],
            "kwargs": repr(kwargs),
        }
        self.sudo().note = json.dumps(seen)

    @action(run_as="superuser", queue="system", label="As the system")
    def remember_as_superuser(self):
        """Note it, as superuser."""
        self.remember()

    @action(run_as="test_sidestream.service")
    def remember_as_service(self):
        """Note it, as the user with that xml id."""
        self.remember()

    @action(key="carrier:{carrier_id}")
    def ship(self):
        """Have a key of the carrier's id."""
        for order in self:
            order.note = "shipped"

    @action(
        priority=2,
        limit="courier:{carrier_id}",
        unique="book:{id}",
        unique_until="started",
        expires_in=3600,
        retry={ValueError: GIVE_UP},
    )
    def book(self):
        """Count against the carrier's limit, once for each order."""

    def start(self, method, *args):
        """Enqueue one of these actions, as a button does; return the jobs' ids."""
        return getattr(self.enqueue(), method)(*args).ids

    @action(public=True)
    def ship_in_public(self):
        """Be called by a button, too."""
        self.note = "shipped in public"

    @action
    def deliver(self, address, token, **kwargs):
        """Be given what looks like secrets."""

    @action(retry=RetryPolicy(max_attempts=9))
    def pull(self):
        """Have a policy of its own, of which business errors are not part."""

    @action(retry={UserError: RetryPolicy(max_attempts=3)})
    def read_often(self):
        """Try business errors again."""

    @action(key="account:{carrier_id.account}/{{x}}")
    def ship_on_account(self):
        """Have a key of two steps."""

    @action(key=lambda orders: f"names:{'+'.join(orders.mapped('name'))}" if len(orders) < 3 else None)
    def ship_by_function(self):
        """Have a key that a function makes."""

    @action(key="{nothing_like_that}")
    def ship_nowhere(self):
        """Have a key of a field that is not there."""

    @action
    def _private(self):
        self.note = "private"

    def not_declared(self):
        """Never run in the background."""

    @action
    def read_secret(self):
        """Read what only the system administrator may."""
        self.sudo().note = self.secret

    @action
    def fail(self):
        """Write, then fail."""
        self.note = "half"
        self.env.flush_all()
        raise UserError(self.env._("It failed."))

    @action(label=_lt("In your language"))
    def labelled(self):
        """Have a label that is translated."""

    @action(commits="relock")
    def in_parts(self):
        """Commit a part, then fail when there is no carrier."""
        self.note = "first part"
        self.env.cr.commit()  # pylint: disable=invalid-commit  # declared
        if not self.carrier_id:
            raise UserError(self.env._("No carrier."))
        self.note = "both parts"

    @action
    def chain(self, times):
        """Enqueue the next."""
        self.ensure_one()
        self.note = str(times)
        if times > 1:
            self.enqueue().chain(times - 1)

    @action(three_step=True)
    def call_courier(self, answer="ok"):
        """Read; call; write."""
        name = self.name

        def call(key):
            return f"{name} {answer} {key}"

        self.note = yield call

    @action(three_step=True)
    def write_too_early(self):
        """Write in the first step, in vain."""
        self.name = "before"
        yield lambda key: key
        self.note = "after"

    @action(three_step=True)
    def ask_too_late(self):
        """Read in the second step."""
        yield lambda key: self.name

    @action(three_step=True)
    def call_twice(self):
        """Be wrong."""
        yield lambda key: key
        yield lambda key: key

    @action(three_step=True)
    def call_nothing(self):
        """Find that there is nothing to call."""
        if not self:
            yield lambda key: key

    @action
    def finish(self):
        """Be overridden by a method that yields."""

    @action
    def wait(self):
        """Be overridden by one that is asynchronous."""

    @action(three_step=True)
    def call_and_finish(self):
        """Be overridden by one that does not."""
        yield lambda key: key

    @action(three_step=True)
    def call_for_another(self):
        """Be overridden by one that returns this one's steps."""
        self.note = yield lambda key: "called"


class TestSidestreamOrderExtended(models.Model):
    _inherit = "test.sidestream.order"

    def _private(self):
        """Override a declared method without a decorator."""
        result = super()._private()
        self.note += " and more"
        return result

    def finish(self):
        self.note = yield lambda key: key

    async def wait(self):
        self.note = "waited"

    def call_and_finish(self):
        self.note = "finished"
        return True

    def call_for_another(self):
        return super().call_for_another()
