"""Installation and removal: the tables are the engine's, the models are only laid over them."""

from sidestream import install


def pre_init_hook(env):
    """Create the engine's tables before Odoo looks at the models over them."""
    install(env.cr._obj)


def uninstall_hook(env):
    """Remove the tables that no model stands for; Odoo removes the others with their models."""
    for table in ("sidestream_job_record", "sidestream_control", "sidestream_rule", "sidestream_meta"):
        env.cr.execute(f"DROP TABLE IF EXISTS {table}")  # pylint: disable=sql-injection  # names of our own
