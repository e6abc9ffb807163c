"""The bare INSERT of the row that pgq.enqueue would have written, made from one that it wrote."""

from __future__ import annotations

from pathlib import Path

from psycopg import sql

from .systems import Queue

# Computed for each row, as pgq does; every other column is a constant, which is the least work.
COMPUTED = {
    "id": "nextval('bare.job_id_seq')",
    "xid": "pg_current_xact_id()",
    "enqueued_at": "clock_timestamp()",
    "lane": ":lane",
}


class Bare:
    """INSERT … RETURNING id into a plain table with the columns and indexes of pgq.job."""

    def __init__(self, queue: Queue, folder: Path) -> None:
        database = queue.database
        queue.pgbench("enqueue_1.sql", clients=1, transactions=200)  # so that every lane has a row
        columns = [
            name
            for (name,) in database.rows(
                "SELECT attname FROM pg_attribute"
                " WHERE attrelid = 'bare.job'::regclass AND attnum > 0 AND NOT attisdropped"
                " AND attgenerated = '' ORDER BY attnum"
            )
        ]
        with database.connect() as db:
            sample = db.execute(
                sql.SQL("SELECT {} FROM pgq.job ORDER BY id LIMIT 1").format(
                    sql.SQL(", ").join(sql.SQL("quote_nullable({}::text)").format(sql.Identifier(c)) for c in columns)
                )
            ).fetchone()
            lanes = [n for (n,) in db.execute("SELECT DISTINCT lane FROM pgq.job ORDER BY 1")]
        assert sample is not None
        if lanes != list(range(lanes[0], lanes[-1] + 1)):
            raise AssertionError(f"lanes are not consecutive: {lanes}")
        values = dict(zip(columns, sample, strict=True)) | COMPUTED | {"payload": "p.payload"}
        row = ", ".join(values[name] for name in columns)
        head = f"INSERT INTO bare.job ({', '.join(columns)})"
        lane = f"\\set lane random({lanes[0]}, {lanes[-1]})\n"
        # One script for a batch of one, with plain VALUES, and one for many.
        single = row.replace("p.payload", ":payload")
        self.cpu_us: list[float] = []
        self.scripts = {
            1: _write(folder / "bare_1.sql", f"{lane}{head} VALUES ({single}) RETURNING id;\n"),
            100: _write(
                folder / "bare_100.sql",
                f"{lane}{head} SELECT {row} FROM unnest(:payloads::jsonb[]) AS p (payload) RETURNING id;\n",
            ),
        }
        self._queue = queue

    def enqueue(self, batch: int, *, clients: int, seconds: int) -> float:
        """Jobs/s."""
        run = self._queue.pgbench(str(self.scripts[batch]), clients=clients, seconds=seconds)
        self.cpu_us.append(run.cpu_seconds / run.transactions / batch * 1e6)
        return run.tps * batch


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
