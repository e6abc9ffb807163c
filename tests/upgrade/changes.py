"""What could change in a next version, one of each kind: in the sources, and in a correct upgrade script.

And the mistakes: an upgrade script that leaves one of them out, or does it by half.
"""

from __future__ import annotations

from dataclasses import dataclass

TABLES, INTERNAL, PRODUCE, CONSUME, MAINTAIN, ADMIN, OBSERVE, GRANT = (
    "10_tables.sql",
    "20_internal.sql",
    "30_produce.sql",
    "40_consume.sql",
    "50_maintain.sql",
    "70_admin.sql",
    "80_observe.sql",
    "90_grant.sql",
)


@dataclass(frozen=True)
class Edit:
    """In one file of the sources, something that stands there once becomes something else."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Change:
    """A change of the sources, and what an upgrade script must do for it.

    Args:
        what: in the words of the mistake, as in "an upgrade forgets …".
        about: what each line of the complaint mentions if it is forgotten.
        upgrade: the statements of the upgrade script. `{name}` stands for the new definition of a function.
        edits: places in the sources that change.
        append: what is added at the end of which file; without text, the statements of the upgrade.
    """

    what: str
    about: str
    upgrade: str
    edits: tuple[Edit, ...] = ()
    append: tuple[str, str | None] | None = None


@dataclass(frozen=True)
class Mistake:
    """Other statements in the place of a change's own.

    Args:
        what: the mistake.
        of: the change that it is made in.
        right, wrong: what is replaced in its statements, by what; "" in the place of right: added at the end.
        about: what each line of the complaint mentions.
    """

    what: str
    of: str
    right: str
    wrong: str
    about: str


def added(file: str, what: str, about: str, statements: str) -> Change:
    """A change whose statements are the same in the sources and in the upgrade."""
    return Change(what, about, statements, append=(file, None))


CHANGES = [
    added(
        TABLES,
        "a new table",
        "pgq.note",
        """
        CREATE TABLE pgq.note (id bigint NOT NULL, body text, CONSTRAINT note_id_pkey PRIMARY KEY (id));
        COMMENT ON TABLE pgq.note IS 'Notes';
        COMMENT ON COLUMN pgq.note.id IS 'Number';
        COMMENT ON COLUMN pgq.note.body IS 'Text';
        REVOKE ALL ON TABLE pgq.note FROM PUBLIC;
        REVOKE ALL ON TYPE pgq.note FROM PUBLIC;
        GRANT SELECT ON TABLE pgq.note TO pg_monitor;
        """,
    ),
    added(
        TABLES,
        "a new sequence",
        "sequence pgq.beat|column pgq.beat",
        """
        CREATE SEQUENCE pgq.beat;
        COMMENT ON SEQUENCE pgq.beat IS 'Beats';
        REVOKE ALL ON SEQUENCE pgq.beat FROM PUBLIC;
        SELECT pg_catalog.setval('pgq.beat', 42);
        """,
    ),
    Change(
        "two new columns",
        "pgq.queue.(colour|shape)|queue_(colour|shape)_not_null",
        """
        ALTER TABLE pgq.queue ADD COLUMN colour text NOT NULL DEFAULT 'red', ADD COLUMN shape text NOT NULL DEFAULT '';
        COMMENT ON COLUMN pgq.queue.colour IS 'Colour';
        COMMENT ON COLUMN pgq.queue.shape IS 'Shape';
        """,
        edits=(
            Edit(
                TABLES,
                "    keep_place boolean NOT NULL DEFAULT true,\n    CONSTRAINT queue_id_pkey",
                "    keep_place boolean NOT NULL DEFAULT true,\n    colour text NOT NULL DEFAULT 'red',\n"
                "    shape text NOT NULL DEFAULT '',\n    CONSTRAINT queue_id_pkey",
            ),
        ),
        append=(
            TABLES,
            """
            COMMENT ON COLUMN pgq.queue.colour IS 'Colour';
            COMMENT ON COLUMN pgq.queue.shape IS 'Shape';
            """,
        ),
    ),
    Change(
        "a new column of the jobs",
        r"pgq.job(_\d+)?.origin",
        "ALTER TABLE pgq.job ADD COLUMN origin text; COMMENT ON COLUMN pgq.job.origin IS 'Origin';",
        edits=(
            Edit(
                TABLES,
                "    group_key text\n) PARTITION BY LIST (slot);",
                "    group_key text,\n    origin text\n) PARTITION BY LIST (slot);",
            ),
        ),
        append=(TABLES, "COMMENT ON COLUMN pgq.job.origin IS 'Origin';"),
    ),
    Change(
        "a default",
        "pgq.queue.notify",
        "ALTER TABLE pgq.queue ALTER COLUMN notify SET DEFAULT true;",
        edits=(Edit(TABLES, "    notify boolean NOT NULL,", "    notify boolean NOT NULL DEFAULT true,"),),
    ),
    Change(
        "that a column may be null",
        "pgq.line.queue_id|line_queue_id_not_null",
        "ALTER TABLE pgq.line ALTER COLUMN queue_id DROP NOT NULL;",
        edits=(Edit(TABLES, "    queue_id int NOT NULL,\n    until", "    queue_id int,\n    until"),),
    ),
    Change(
        "the type of a column",
        r"pgq.mark(_kind_seq_pkey)?.kind",
        "ALTER TABLE pgq.mark ALTER COLUMN kind TYPE varchar(40);",
        edits=(
            Edit(TABLES, "    kind text NOT NULL,\n    at timest", "    kind varchar(40) NOT NULL,\n    at timest"),
        ),
    ),
    Change(
        "a constraint",
        "queue_name_check",
        """
        ALTER TABLE pgq.queue DROP CONSTRAINT queue_name_check,
            ADD CONSTRAINT queue_name_check CHECK (length(name) BETWEEN 1 AND 129);
        """,
        edits=(Edit(TABLES, "CHECK (length(name) BETWEEN 1 AND 128)", "CHECK (length(name) BETWEEN 1 AND 129)"),),
    ),
    added(TABLES, "an index", "dead_died_at_idx", "CREATE INDEX dead_died_at_idx ON pgq.dead (died_at);"),
    Change(
        "to drop an index",
        "straggler_lease_idx",
        "DROP INDEX pgq.straggler_lease_idx;",
        edits=(Edit(TABLES, "CREATE INDEX straggler_lease_idx ON pgq.straggler (lease);", ""),),
    ),
    Change(
        "that an index is another one",
        "dead_queue_id_idx",
        "DROP INDEX pgq.dead_queue_id_idx; CREATE INDEX dead_queue_id_idx ON pgq.dead ((lane >> 16), id DESC);",
        edits=(
            Edit(
                TABLES,
                "CREATE INDEX dead_queue_id_idx ON pgq.dead ((lane >> 16), id);",
                "CREATE INDEX dead_queue_id_idx ON pgq.dead ((lane >> 16), id DESC);",
            ),
        ),
    ),
    Change(
        "a storage parameter",
        "table pgq.segment: reloptions",
        "ALTER TABLE pgq.segment SET (fillfactor = 40);",
        edits=(Edit(TABLES, "    )\n) WITH (fillfactor = 50);", "    )\n) WITH (fillfactor = 40);"),),
    ),
    added(
        TABLES,
        "a storage parameter of the segments",
        r"table pgq.job_\d+: toast options",
        """
        DO $$ BEGIN FOR v_slot IN 0..15 LOOP
            EXECUTE format('ALTER TABLE pgq.job_%s SET (toast.vacuum_truncate = false)', v_slot);
        END LOOP; END $$;
        """,
    ),
    added(
        TABLES,
        "how a column is stored",
        "column pgq.dead.payload: attstorage",
        "ALTER TABLE pgq.dead ALTER COLUMN payload SET STORAGE EXTERNAL;",
    ),
    added(
        TABLES,
        "a statistics target",
        "column pgq.dead.lane: attstattarget",
        "ALTER TABLE pgq.dead ALTER COLUMN lane SET STATISTICS 500;",
    ),
    added(
        TABLES,
        "extended statistics",
        "statistics object pgq.dead_st",
        "CREATE STATISTICS pgq.dead_st ON id, lane FROM pgq.dead;",
    ),
    added(TABLES, "the replica identity", "pgq.dead: relreplident", "ALTER TABLE pgq.dead REPLICA IDENTITY FULL;"),
    Change(
        "a label of an enum",
        "type pgq.outcome_kind: definition",
        "ALTER TYPE pgq.outcome_kind ADD VALUE 'noted' BEFORE 'retry';",
        edits=(Edit(TABLES, "ENUM (\n    'done', 'retry',", "ENUM (\n    'done', 'noted', 'retry',"),),
    ),
    added(
        TABLES, "a new type", "pgq.tag", "CREATE TYPE pgq.tag AS (name text); REVOKE ALL ON TYPE pgq.tag FROM PUBLIC;"
    ),
    added(
        TABLES,
        "a new domain",
        "pgq.hue|hue_check",
        "CREATE DOMAIN pgq.hue AS int CONSTRAINT hue_check CHECK (VALUE > 0); REVOKE ALL ON TYPE pgq.hue FROM PUBLIC;",
    ),
    Change(
        "a parameter of a sequence",
        "sequence pgq.watched: seqcycle",
        "ALTER SEQUENCE pgq.watched CYCLE;",
        edits=(
            Edit(TABLES, "CREATE SEQUENCE pgq.watched MINVALUE 0;", "CREATE SEQUENCE pgq.watched MINVALUE 0 CYCLE;"),
        ),
    ),
    Change(
        "a parameter of an identity column",
        "sequence pgq.queue_id_seq: seqmax",
        "ALTER TABLE pgq.queue ALTER COLUMN id SET MAXVALUE 8388606;",
        edits=(Edit(TABLES, "IDENTITY (MAXVALUE 8388607)", "IDENTITY (MAXVALUE 8388606)"),),
    ),
    added(TABLES, "the comment of a table", "table pgq.mark: comment", "COMMENT ON TABLE pgq.mark IS 'Marks';"),
    added(TABLES, "the comment of an index", "dead_id_pkey: comment", "COMMENT ON INDEX pgq.dead_id_pkey IS 'Key';"),
    added(GRANT, "the comment of the schema", "schema pgq: comment", "COMMENT ON SCHEMA pgq IS 'pgqueue, the next';"),
    added(
        ADMIN,
        "a trigger",
        "trigger queue_same",
        """
        CREATE TRIGGER queue_same BEFORE UPDATE ON pgq.queue
            FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
        """,
    ),
    added(
        OBSERVE,
        "a new function",
        "pgq.hello",
        """
        CREATE FUNCTION pgq.hello() RETURNS text
            LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
        AS $$ SELECT 'hello' $$;
        COMMENT ON FUNCTION pgq.hello() IS 'Says hello';
        REVOKE ALL ON FUNCTION pgq.hello() FROM PUBLIC;
        """,
    ),
    Change(
        "what a function does",
        "pgq.resume.*: prosrc",
        "{pgq.resume}",
        edits=(
            Edit(
                ADMIN,
                "SET paused = false WHERE q.id = v_queue.id;",
                "SET paused = false WHERE q.id = v_queue.id AND q.paused;",
            ),
        ),
    ),
    Change(
        "the default of an argument",
        r"pgq.drop_queue.*: definition",
        "{pgq.drop_queue}",
        edits=(
            Edit(
                ADMIN,
                "drop_queue(queue text, force boolean DEFAULT false)",
                "drop_queue(queue text, force boolean DEFAULT NULL)",
            ),
        ),
    ),
    Change(
        "a setting of a function",
        "pgq._wait_for_lane.*: proconfig",
        "ALTER FUNCTION pgq._wait_for_lane(bigint) SET lock_timeout = '150ms';",
        edits=(Edit(CONSUME, "plpgsql SET lock_timeout = '100ms'", "plpgsql SET lock_timeout = '150ms'"),),
    ),
    Change(
        "how volatile a function is",
        "pgq._find_queue.*: provolatile",
        "ALTER FUNCTION pgq._find_queue(text) VOLATILE;",
        edits=(
            Edit(INTERNAL, "RETURNS pgq.queue\n    LANGUAGE plpgsql STABLE", "RETURNS pgq.queue\n    LANGUAGE plpgsql"),
        ),
    ),
    added(
        MAINTAIN,
        "with whose rights a function runs",
        "pgq._marked.*: pro(secdef|config)",
        "ALTER FUNCTION pgq._marked(text) SECURITY DEFINER SET search_path = pg_catalog, pg_temp;",
    ),
    added(
        MAINTAIN, "the cost of a function", "pgq._priority.*: procost", "ALTER FUNCTION pgq._priority(bigint) COST 7;"
    ),
    Change(
        "the functions of all segments",
        r"pgq._lock(_\d+)?\(",
        """
        {pgq._lock_0}
        DROP FUNCTION pgq._lock(int);
        SELECT pgq._for_each_slot('pgq._lock_0()');
        REVOKE ALL ON FUNCTION pgq._lock(int) FROM PUBLIC;
        """,
        edits=(
            Edit(
                INTERNAL,
                "    LOCK TABLE pgq.job_0 IN ROW EXCLUSIVE MODE;",
                "    LOCK TABLE ONLY pgq.job_0 IN ROW EXCLUSIVE MODE;",
            ),
        ),
    ),
    Change(
        "a column of a composite type, its function and its view",
        "pgq.queue_stat|pgq.stats",
        """
        ALTER TYPE pgq.queue_stat ADD ATTRIBUTE oldest_at timestamptz;
        COMMENT ON COLUMN pgq.queue_stat.oldest_at IS 'When that was';
        {pgq.stats}
        CREATE OR REPLACE VIEW pgq.queue_stats AS SELECT * FROM pgq.stats();
        COMMENT ON COLUMN pgq.queue_stats.oldest_at IS 'When that was';
        """,
        edits=(
            Edit(OBSERVE, "    waiting bigint\n);", "    waiting bigint,\n    oldest_at timestamptz\n);"),
            Edit(
                OBSERVE,
                "coalesce(s.waiting, 0)\n    FROM pgq.queue q",
                "coalesce(s.waiting, 0), c.oldest\n    FROM pgq.queue q",
            ),
        ),
        append=(
            OBSERVE,
            """
            COMMENT ON COLUMN pgq.queue_stat.oldest_at IS 'When that was';
            COMMENT ON COLUMN pgq.queue_stats.oldest_at IS 'When that was';
            """,
        ),
    ),
    Change(
        "to clean up after itself",
        "pgq._migrate",
        """
        CREATE FUNCTION pgq._migrate() RETURNS void
            LANGUAGE sql
        AS $$ UPDATE pgq.queue SET notify = notify $$;
        SELECT pgq._migrate();
        DROP FUNCTION pgq._migrate();
        """,
    ),
    added(
        GRANT,
        "the default privileges",
        "default acl",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA pgq GRANT EXECUTE ON ROUTINES TO pg_monitor;",
    ),
]

# What is forgotten first; see `mistakes`.
_BY_HALF = [
    Mistake("the comment of a new table", "a new table", "COMMENT ON TABLE pgq.note IS 'Notes';", "", "note: comment"),
    Mistake(
        "the comment of a new column",
        "a new table",
        "COMMENT ON COLUMN pgq.note.body IS 'Text';",
        "",
        "note.body: comment",
    ),
    Mistake(
        "to close a new table",
        "a new table",
        "FROM PUBLIC;",
        "FROM PUBLIC; GRANT SELECT ON pgq.note TO PUBLIC;",
        "note: acl",
    ),
    Mistake("to close a new type", "a new table", "REVOKE ALL ON TYPE pgq.note FROM PUBLIC;", "", "type pgq.note: acl"),
    Mistake("a grant", "a new table", "GRANT SELECT ON TABLE pgq.note TO pg_monitor;", "", "table pgq.note: acl"),
    Mistake(
        "whose a new table is",
        "a new table",
        "",
        "ALTER TABLE pgq.note OWNER TO pg_monitor;",
        "pgq.note.*: (relowner|typowner|acl)",
    ),
    Mistake(
        "where a new sequence begins",
        "a new sequence",
        "SELECT pg_catalog.setval('pgq.beat', 42);",
        "",
        "pgq.beat: contents",
    ),
    Mistake(
        "in which order new columns come",
        "two new columns",
        "ADD COLUMN colour text NOT NULL DEFAULT 'red', ADD COLUMN shape text NOT NULL DEFAULT ''",
        "ADD COLUMN shape text NOT NULL DEFAULT '', ADD COLUMN colour text NOT NULL DEFAULT 'red'",
        "pgq.queue.(colour|shape): position",
    ),
    Mistake(
        "the default of a new column",
        "two new columns",
        "DEFAULT 'red'",
        "DEFAULT 'blue'",
        "pgq.queue.colour: definition",
    ),
    Mistake(
        "to validate a constraint",
        "a constraint",
        "AND 129);",
        "AND 129) NOT VALID;",
        "queue_name_check.*: (convalidated|definition)",
    ),
    Mistake(
        "the last segment",
        "a storage parameter of the segments",
        "IN 0..15 LOOP",
        "IN 0..14 LOOP",
        "pgq.job_15: toast options",
    ),
    Mistake("the place of a label", "a label of an enum", " BEFORE 'retry'", "", "pgq.outcome_kind: definition"),
    Mistake(
        "to close a new function",
        "a new function",
        "REVOKE ALL ON FUNCTION pgq.hello() FROM PUBLIC;",
        "",
        "pgq.hello.*: acl",
    ),
    Mistake(
        "the comment of a new function",
        "a new function",
        "COMMENT ON FUNCTION pgq.hello() IS 'Says hello';",
        "",
        "pgq.hello.*: comment",
    ),
    Mistake(
        "to pin a search_path", "a new function", "SET search_path = pg_catalog, pg_temp", "", "pgq.hello.*: proconfig"
    ),
    Mistake(
        "the function that chooses a segment",
        "the functions of all segments",
        "REVOKE ALL ON FUNCTION pgq._lock(int) FROM PUBLIC;",
        "",
        r"pgq._lock\(integer\): acl",
    ),
    Mistake(
        "the other fifteen functions",
        "the functions of all segments",
        "DROP FUNCTION pgq._lock(int);\nSELECT pgq._for_each_slot('pgq._lock_0()');\n"
        "REVOKE ALL ON FUNCTION pgq._lock(int) FROM PUBLIC;",
        "",
        r"pgq._lock_\d+\(\): prosrc",
    ),
    Mistake(
        "the view",
        "a column of a composite type, its function and its view",
        "ALTER TYPE pgq.queue_stat ADD ATTRIBUTE oldest_at timestamptz;",
        "ALTER TYPE pgq.queue_stat ADD ATTRIBUTE oldest_at timestamp;",
        "pgq.queue_stats?.oldest_at",
    ),
    Mistake("to drop what it made", "to clean up after itself", "DROP FUNCTION pgq._migrate();", "", "pgq._migrate"),
]


def mistakes() -> list[Mistake]:
    """Each change forgotten altogether, and what is easily forgotten about some of them."""
    whole = [Mistake(c.what, c.what, c.upgrade, "", c.about) for c in CHANGES if c.what != "to clean up after itself"]
    return whole + _BY_HALF
