-- A table whose changes are jobs, and the copy of it that a worker keeps.

SELECT pgq.create_queue('customers', if_not_exists => true);

CREATE TABLE customer (
    id bigint PRIMARY KEY,
    name text NOT NULL,
    email text NOT NULL,
    password text NOT NULL
);

-- The password stays here: jobs have only the columns that are named.
CREATE TRIGGER outbox AFTER INSERT OR UPDATE OR DELETE ON customer FOR EACH ROW
    EXECUTE FUNCTION pgq.enqueue_row('customers', 'customer-changed', 'id', 'name', 'email');

-- version is the id of the job of the last change; ids grow with each change of a row: its writers wait for each other.
CREATE TABLE customer_copy (
    id bigint PRIMARY KEY,
    name text NOT NULL,
    email text NOT NULL,
    deleted boolean NOT NULL,
    version bigint NOT NULL
);

-- Everything that was forwarded, to see that nothing was twice.
CREATE TABLE forwarded (
    job bigint NOT NULL,
    op text NOT NULL
);
