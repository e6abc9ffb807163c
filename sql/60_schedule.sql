-- Recurring jobs, and one node at a time: reserved.

CREATE FUNCTION pgq.schedule(
    name text,
    cron text,
    queue text,
    payload jsonb DEFAULT '{}',
    task text DEFAULT NULL,
    timezone text DEFAULT 'UTC',
    catch_up text DEFAULT 'one'
) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._not_yet('schedule');
END;
$$;
COMMENT ON FUNCTION pgq.schedule(text, text, text, jsonb, text, text, text) IS 'Reserved: raises 0A000';

CREATE FUNCTION pgq.unschedule(name text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._not_yet('unschedule');
END;
$$;
COMMENT ON FUNCTION pgq.unschedule(text) IS 'Reserved: raises 0A000';
