"""Remove the engine's tables, which the models only show."""


def uninstall_hook(env):
    """Remove the tables without a model; Odoo removes the others with their models."""
    # Users continued to work since button_uninstall counted. This waits for uncommitted jobs, and from here on users
    # wait before they enqueue until the uninstallation commits or rolls back.
    env.cr.execute("LOCK TABLE sidestream_job IN SHARE MODE")
    with env.registry.cursor() as cr:  # this transaction's snapshot is older than their commits
        env(cr=cr)["ir.module.module"]._sidestream_check_no_pending_jobs()
    for table in (
        "sidestream_job_record",
        "sidestream_control",
        "sidestream_rule",
        "sidestream_worker",
        "sidestream_meta",
    ):
        env.cr.execute(f"DROP TABLE IF EXISTS {table}")  # pylint: disable=sql-injection  # constant names
