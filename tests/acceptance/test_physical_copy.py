"""A base backup that starts beside its original runs none of the original's jobs."""

from __future__ import annotations

import subprocess

from tests.acceptance.rig import COMMAND, ROOT, Rig
from tests.support.server_process import free_port
from tests.support.servers import PostgresServer, postgres_binary


def test_a_worker_of_another_instance_refuses_a_base_backup(rig: Rig, postgres: PostgresServer) -> None:
    rig.start(SIDESTREAM_INSTANCE="production")
    rig.workers[-1].terminate()
    rig.workers[-1].wait(20)
    job = rig.enqueue("note", "of production")
    copy = PostgresServer()
    copy.port = free_port()
    try:
        primary = ("-h", "127.0.0.1", "-p", str(postgres.port), "-U", "postgres")
        copy.run(postgres_binary("pg_basebackup"), *primary, "-D", str(copy.data), "--checkpoint", "fast")
        copy.start()
        variables = rig.variables | {
            "SIDESTREAM_DATABASE_URL": copy.dsn(rig.dsn.rpartition("/")[2]),
            "SIDESTREAM_INSTANCE": "staging",
        }
        refused = subprocess.run(
            [COMMAND, "worker", "run"], cwd=ROOT, env=variables, text=True, capture_output=True, timeout=60, check=False
        )
    finally:
        copy.close()
    assert refused.returncode != 0
    assert "belongs to the instance 'production', and this worker is of the instance 'staging'" in refused.stderr
    assert rig.job(job).state == "pending"
    variables = rig.variables | {"SIDESTREAM_INSTANCE": "production"}
    checked = subprocess.run(
        [COMMAND, "db", "check"], cwd=ROOT, env=variables, text=True, capture_output=True, timeout=60, check=True
    )
    assert "workers with another instance name, or none, refuse it and its copies" in checked.stdout
    rig.start(SIDESTREAM_INSTANCE="production")
    assert rig.ends(job).state == "done"
