"""What the harness adds to a database: a clock that can jump, a table for effects of handlers, the clients' role."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

PGQUEUE = Path(__file__).parents[2] / "python/src/pgqueue/sql/pgqueue.sql"
ROLE = "chaos_client"

CHAOS = f"""
CREATE SCHEMA chaos;
CREATE FUNCTION chaos.us(at timestamptz) RETURNS bigint LANGUAGE sql IMMUTABLE
    AS 'SELECT (extract(epoch FROM at) * 1000000)::bigint';
CREATE TABLE chaos.clock (ahead interval NOT NULL);
INSERT INTO chaos.clock VALUES ('0');
CREATE TABLE chaos.effect (job_id bigint NOT NULL, lease_id bigint NOT NULL);
CREATE OR REPLACE FUNCTION pgq._now() RETURNS timestamptz LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS 'SELECT clock_timestamp() + c.ahead FROM chaos.clock c';
DO $$
BEGIN
    IF to_regrole('{ROLE}') IS NULL THEN
        CREATE ROLE {ROLE} LOGIN;
        GRANT pg_read_all_stats TO {ROLE};
    END IF;
END;
$$;
GRANT USAGE ON SCHEMA chaos TO {ROLE};
GRANT SELECT ON chaos.clock TO {ROLE};
GRANT INSERT ON chaos.effect TO {ROLE};
SELECT pgq.grant_admin('{ROLE}');
"""


def install(connection: psycopg.Connection[Any]) -> None:
    """Install pgqueue and what the harness needs into an empty database."""
    connection.execute(PGQUEUE.read_bytes())
    connection.execute(CHAOS.encode())
