"""Installation and removal: the tables are the engine's, the models are only laid over them."""

from sidestream import install


def pre_init_hook(env):
    """Create the engine's tables before Odoo looks at the models over them."""
    install(env.cr._obj)


def uninstall_hook(env):
    """Remove the tables that no model stands for; Odoo removes the others with their models."""
    # Users went on working since button_uninstall counted. From here on they wait before they enqueue, until the
    # tables are gone or this is given up; who has enqueued and not committed yet is waited for.
    env.cr.execute("LOCK TABLE sidestream_job IN SHARE MODE")
    with env.registry.cursor() as cr:  # the snapshot of this transaction is older than what they committed
        env(cr=cr)["ir.module.module"]._sidestream_check_no_open_jobs()
    for table in (
        "sidestream_job_record",
        "sidestream_control",
        "sidestream_rule",
        "sidestream_worker",
        "sidestream_meta",
    ):
        env.cr.execute(f"DROP TABLE IF EXISTS {table}")  # pylint: disable=sql-injection  # names of our own
