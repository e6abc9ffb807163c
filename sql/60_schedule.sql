-- schedule, unschedule, next_runs: recurring jobs. Ticks are fired by whoever calls pgq.maintain or pgq.promote first.
-- Tables: schedule; enqueues into the queues that it names.
--
-- A tick is the time at which a cron line says that a job is to run. pgq.schedule.next_at is the one to come; firing it
-- enqueues the job and moves next_at on, in one transaction and with the row locked. So each tick becomes one job,
-- however many sessions maintain, and whatever is killed or rolled back.

-- Cron lines ----------------------------------------------------------------------------------------------------------

CREATE TYPE pgq.cron AS (
    seconds int ARRAY,
    minutes int ARRAY,
    hours int ARRAY,
    days int ARRAY,
    months int ARRAY,
    weekdays int ARRAY,
    either boolean,
    any_hour boolean
);
COMMENT ON TYPE pgq.cron IS 'A cron line that was read; each field is the sorted list of its values';
COMMENT ON COLUMN pgq.cron.seconds IS '0 to 59; a line of five fields has 0';
COMMENT ON COLUMN pgq.cron.minutes IS '0 to 59';
COMMENT ON COLUMN pgq.cron.hours IS '0 to 23';
COMMENT ON COLUMN pgq.cron.days IS 'Days of the month, 1 to 31';
COMMENT ON COLUMN pgq.cron.months IS '1 to 12';
COMMENT ON COLUMN pgq.cron.weekdays IS 'Days of the week, 0 (Sunday) to 6';
COMMENT ON COLUMN pgq.cron.either IS 'A day matches by day of month or day of week; otherwise by both';
COMMENT ON COLUMN pgq.cron.any_hour IS 'The field of hours begins with a star; see pgq._next_run';

CREATE FUNCTION pgq._bad_cron(cron text, place text, problem text, rule text) RETURNS void
    LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'invalid_parameter_value',
        MESSAGE = format('"%s" is not a cron line', left(cron, 128)),
        DETAIL = format('%s: %s.', place, problem),
        HINT = rule;
END;
$$;
COMMENT ON FUNCTION pgq._bad_cron(text, text, text, text) IS 'Raises 22023: where a cron line is wrong, and what is allowed';

-- Numbers, * and names, a-b, and /n after any of them; a/n goes on to the end of the range.
CREATE FUNCTION pgq._cron_field(cron text, field text, at int, kind int, number int) RETURNS int[]
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_name CONSTANT text := ('{second,minute,hour,day of month,month,day of week}'::text[])[kind];
    v_low CONSTANT int := ('{0,0,0,1,1,0}'::int[])[kind];
    v_high CONSTANT int := ('{59,59,23,31,12,7}'::int[])[kind];
    v_last CONSTANT int := CASE kind WHEN 6 THEN 6 ELSE v_high END;  -- 7 is a second name of Sunday
    v_words CONSTANT text[] := CASE kind
        WHEN 5 THEN '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}'
        WHEN 6 THEN '{sun,mon,tue,wed,thu,fri,sat}'
    END;
    v_range CONSTANT text := format('%s to %s', v_low, v_high)
        || coalesce(', or ' || v_words[1] || ' to ' || v_words[cardinality(v_words)], '');
    v_rule CONSTANT text := format('Allowed for the %s: %s, *, ranges as in a-b, steps as in */2 or a-b/2 (1 to %s), and '
        'lists of these with commas and without blanks.', v_name, v_range, v_last - v_low + 1);
    v_item text;
    v_match text[];
    v_from int;
    v_to int;
    v_values int[] := '{}';
BEGIN
    FOREACH v_item IN ARRAY string_to_array(field, ',') LOOP
        v_match := regexp_match(v_item, '^(?:[*]|([a-z0-9]+)(?:-([a-z0-9]+))?)(?:/([0-9]+))?$');
        IF v_match IS NULL THEN
            at := at + length(substring(v_item, '^(?:(?:[*]|[a-z0-9]+(?:-(?:[a-z0-9]+)?)?)(?:/[0-9]*)?)?'));
            PERFORM pgq._bad_cron(cron, format('Field %s (%s), character %s', number, v_name, at),
                CASE WHEN btrim(substr(cron, at, 1)) = '' THEN 'something is missing'
                    ELSE format('"%s" is not expected here', substr(cron, at, 1)) END, v_rule);
        END IF;
        v_from := v_low;
        v_to := v_last;
        IF v_match[1] IS NOT NULL THEN
            v_from := pgq._cron_value(v_match[1], v_low, v_high, v_words);
            IF v_from IS NULL THEN
                PERFORM pgq._bad_cron(cron, format('Field %s (%s), character %s', number, v_name, at),
                    format('"%s" is not %s', left(v_match[1], 20), v_range), v_rule);
            END IF;
            v_to := CASE WHEN v_match[3] IS NULL THEN v_from ELSE greatest(v_from, v_last) END;
        END IF;
        IF v_match[2] IS NOT NULL THEN
            v_to := pgq._cron_value(v_match[2], v_low, v_high, v_words);
            IF kind = 6 AND v_to = 0 AND v_from > 0 THEN
                v_to := 7;
            END IF;
            IF v_to IS NULL OR v_to < v_from THEN
                PERFORM pgq._bad_cron(cron, format('Field %s (%s), character %s', number, v_name, at + length(v_match[1]) + 1),
                    format(CASE WHEN v_to IS NULL THEN '"%s" is not %s' ELSE '"%s" comes before the beginning of the range' END,
                        left(v_match[2], 20), v_range),
                    CASE WHEN v_to IS NULL THEN v_rule
                        ELSE format('Write two ranges: %s-%s,%s-%s.', v_from, v_last, v_low, v_to) END);
            END IF;
        END IF;
        IF v_match[3] IS NOT NULL AND pgq._cron_value(v_match[3], 1, v_last - v_low + 1, NULL) IS NULL THEN
            PERFORM pgq._bad_cron(cron,
                format('Field %s (%s), character %s', number, v_name, at + length(v_item) - length(v_match[3])),
                format('a step of %s is not 1 to %s', left(v_match[3], 20), v_last - v_low + 1), v_rule);
        END IF;
        v_values := v_values || ARRAY(
            SELECT CASE kind WHEN 6 THEN n % 7 ELSE n END FROM generate_series(v_from, v_to, coalesce(v_match[3]::int, 1)) n
        );
        at := at + length(v_item) + 1;
    END LOOP;
    RETURN ARRAY(SELECT DISTINCT v FROM unnest(v_values) v ORDER BY v);
END;
$$;
COMMENT ON FUNCTION pgq._cron_field(text, text, int, int, int) IS
    'The values of a field of a cron line, which begins at a character of it and is its number-th; kind: 1 (second) to 6';

CREATE FUNCTION pgq._cron_value(word text, low int, high int, words text[]) RETURNS int
    LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE
        WHEN word !~ '^[0-9]{1,2}$' THEN low + array_position(words, word) - 1
        WHEN word::int BETWEEN low AND high THEN word::int
    END
$$;
COMMENT ON FUNCTION pgq._cron_value(text, int, int, text[]) IS 'A number or name in a cron line; null: it is neither';

-- As Vixie's cron and cronie read it: if neither of the fields for days begins with a star, a day matches by either of
-- them, otherwise it must match both.
CREATE FUNCTION pgq._read_cron(cron text) RETURNS pgq.cron
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_line text := lower(cron COLLATE "C");
    v_fields text[];
    v_starts int[] := '{}';
    v_at int := 1;
    v_field text;
    v_first int;
    v_cron pgq.cron;
BEGIN
    PERFORM pgq._require('cron', length(cron) <= 1000, 'a cron line of up to 1000 characters');
    v_line := CASE btrim(v_line, E' \t')
        WHEN '@yearly' THEN '0 0 1 1 *'
        WHEN '@annually' THEN '0 0 1 1 *'
        WHEN '@monthly' THEN '0 0 1 * *'
        WHEN '@weekly' THEN '0 0 * * 0'
        WHEN '@daily' THEN '0 0 * * *'
        WHEN '@midnight' THEN '0 0 * * *'
        WHEN '@hourly' THEN '0 * * * *'
        ELSE v_line
    END;
    LOOP
        v_at := v_at + length(substring(substr(v_line, v_at), E'^[ \t]*'));
        v_field := substring(substr(v_line, v_at), E'^[^ \t]+');
        EXIT WHEN v_field IS NULL;
        v_fields := v_fields || v_field;
        v_starts := v_starts || v_at;
        v_at := v_at + length(v_field);
    END LOOP;
    IF coalesce(cardinality(v_fields), 0) NOT IN (5, 6) THEN
        PERFORM pgq._bad_cron(cron,
            CASE WHEN cardinality(v_fields) > 6 THEN format('Field 7, character %s', v_starts[7])
                WHEN left(v_fields[1], 1) = '@' THEN format('Field 1, character %s', v_starts[1])
                ELSE format('Field %s, character %s', cardinality(v_starts) + 1, length(v_line) + 1) END,
            CASE WHEN cardinality(v_fields) > 6 THEN 'there are at most six fields'
                WHEN left(v_fields[1], 1) = '@' THEN format('"%s" is no name of a cron line', left(v_fields[1], 20))
                ELSE format('the line ends after %s fields', cardinality(v_starts)) END,
            'Five fields: minute, hour, day of month, month, day of week; six: a second before them; or one of @yearly, '
            '@annually, @monthly, @weekly, @daily, @midnight, @hourly.');
    END IF;
    v_first := 6 - cardinality(v_fields);
    v_cron.seconds := CASE WHEN v_first = 1 THEN '{0}'::int[] ELSE pgq._cron_field(cron, v_fields[1], v_starts[1], 1, 1) END;
    v_cron.minutes := pgq._cron_field(cron, v_fields[2 - v_first], v_starts[2 - v_first], 2, 2 - v_first);
    v_cron.hours := pgq._cron_field(cron, v_fields[3 - v_first], v_starts[3 - v_first], 3, 3 - v_first);
    v_cron.days := pgq._cron_field(cron, v_fields[4 - v_first], v_starts[4 - v_first], 4, 4 - v_first);
    v_cron.months := pgq._cron_field(cron, v_fields[5 - v_first], v_starts[5 - v_first], 5, 5 - v_first);
    v_cron.weekdays := pgq._cron_field(cron, v_fields[6 - v_first], v_starts[6 - v_first], 6, 6 - v_first);
    v_cron.any_hour := left(v_fields[3 - v_first], 1) = '*';
    v_cron.either := left(v_fields[4 - v_first], 1) <> '*' AND left(v_fields[6 - v_first], 1) <> '*';
    IF NOT v_cron.either AND v_cron.days[1] > (
        SELECT max(('{31,29,31,30,31,30,31,31,30,31,30,31}'::int[])[m]) FROM unnest(v_cron.months) m
    ) THEN
        PERFORM pgq._bad_cron(cron, format('Field %s (day of month), character %s', 4 - v_first, v_starts[4 - v_first]),
            'none of the months has such a day, so it would never run',
            'February has 29 days at most, April, June, September and November have 30.');
    END IF;
    RETURN v_cron;
END;
$$;
COMMENT ON FUNCTION pgq._read_cron(text) IS 'Reads a cron line; raises 22023 and says where it is wrong';

-- The next tick -------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._cron_time(cron pgq.cron, second int) RETURNS int
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_hour int;
    v_minute int;
    v_second int;
BEGIN
    FOREACH v_hour IN ARRAY cron.hours LOOP
        CONTINUE WHEN v_hour * 3600 + 3599 < second;
        FOREACH v_minute IN ARRAY cron.minutes LOOP
            CONTINUE WHEN v_hour * 3600 + v_minute * 60 + 59 < second;
            FOREACH v_second IN ARRAY cron.seconds LOOP
                IF v_hour * 3600 + v_minute * 60 + v_second >= second THEN
                    RETURN v_hour * 3600 + v_minute * 60 + v_second;
                END IF;
            END LOOP;
        END LOOP;
    END LOOP;
    RETURN NULL;
END;
$$;
COMMENT ON FUNCTION pgq._cron_time(pgq.cron, int) IS 'The first second of a day that matches, from this one on; null: none';

-- Ends because _read_cron refuses what never matches. The rarest there is: a 29 February on a given weekday, which may
-- be 40 years away.
CREATE FUNCTION pgq._cron_wall(cron pgq.cron, wall timestamp) RETURNS timestamp
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_month date := date_trunc('month', wall);
    v_day int := extract(day FROM wall);
    v_second int := extract(epoch FROM wall - date_trunc('day', wall));
    v_first int;
    v_this_day boolean;
    v_this_weekday boolean;
BEGIN
    LOOP
        IF extract(month FROM v_month)::int = ANY (cron.months) THEN
            v_first := extract(dow FROM v_month)::int - 1;
            FOR d IN v_day..(v_month + interval '1 month')::date - v_month LOOP
                v_this_day := d = ANY (cron.days);
                v_this_weekday := (v_first + d) % 7 = ANY (cron.weekdays);
                IF v_this_day AND v_this_weekday OR cron.either AND (v_this_day OR v_this_weekday) THEN
                    v_second := pgq._cron_time(cron, v_second);
                    IF v_second IS NOT NULL THEN
                        RETURN (v_month + d - 1) + make_interval(secs => v_second);
                    END IF;
                END IF;
                v_second := 0;
            END LOOP;
        END IF;
        v_month := v_month + interval '1 month';
        v_day := 1;
        v_second := 0;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq._cron_wall(pgq.cron, timestamp) IS
    'The first time that matches, from this one on, on a clock that is never put forward or back';

-- Instants are timestamps in UTC here and below: their arithmetic depends on no setting, and a day has 24 hours.
CREATE FUNCTION pgq._offset(zone text, instant timestamp) RETURNS interval
    LANGUAGE sql IMMUTABLE
AS $$ SELECT ((instant AT TIME ZONE 'UTC') AT TIME ZONE zone) - instant $$;
COMMENT ON FUNCTION pgq._offset(text, timestamp) IS 'How far the clocks of a time zone are ahead of UTC at an instant';

CREATE FUNCTION pgq._clock_change(zone text, low timestamp, high timestamp) RETURNS timestamp
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_before CONSTANT interval := pgq._offset(zone, low);
    v_middle timestamp;
BEGIN
    IF pgq._offset(zone, high) = v_before THEN
        RETURN NULL;
    END IF;
    WHILE high - low > interval '1 second' LOOP
        v_middle := date_trunc('second', low + (high - low) / 2);
        IF pgq._offset(zone, v_middle) = v_before THEN
            low := v_middle;
        ELSE
            high := v_middle;
        END IF;
    END LOOP;
    RETURN high;
END;
$$;
COMMENT ON FUNCTION pgq._clock_change(text, timestamp, timestamp) IS
    'The instant after low, and not after high, at which the clocks of a time zone are put forward or back; null: none';

-- Clocks are put forward and back. A line whose hours are fixed (30 2 * * *) runs when the clock shows its time, or a
-- later one, for the first time: so once if the hour comes twice, and just after the gap if there is no such time, once
-- for all times in the gap. A line whose hours begin with a star (30 * * * *, 0 */2 * * *) goes by the clock as it is:
-- it runs through an hour that comes twice both times, and not in one that is left out. This is what cronie does (but
-- for the star in the minutes, which has the same effect there).
CREATE FUNCTION pgq._next_run(cron pgq.cron, zone text, after timestamptz) RETURNS timestamptz
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_day CONSTANT interval := interval '24 hours';
    v_at timestamp := date_trunc('second', after AT TIME ZONE 'UTC');
    v_from timestamp := v_at + pgq._offset(zone, v_at) + interval '1 second';
    v_wall timestamp;
    v_change timestamp;
    v_run timestamp;
BEGIN
    IF cron.any_hour THEN
        LOOP
            v_wall := pgq._cron_wall(cron, v_from);
            v_run := v_wall - pgq._offset(zone, v_at);
            v_change := pgq._clock_change(zone, v_at, least(v_run, v_at + v_day));
            EXIT WHEN v_change IS NULL AND v_run <= v_at + v_day;
            -- Go on from the change; or, as there is nothing between, from shortly before the time found.
            v_at := coalesce(v_change, greatest(v_at + v_day, v_wall - 2 * v_day));
            v_from := v_at + pgq._offset(zone, v_at);
        END LOOP;
    ELSE
        v_change := pgq._clock_change(zone, v_at - v_day, v_at);
        IF v_change IS NOT NULL THEN
            v_from := greatest(v_from, v_change + pgq._offset(zone, v_at - v_day));
        END IF;
        v_wall := pgq._cron_wall(cron, v_from);
        v_run := v_wall - pgq._offset(zone, v_wall - v_day);
        v_change := pgq._clock_change(zone, v_wall - v_day, v_wall + v_day);
        IF v_run >= v_change THEN
            v_run := greatest(v_change, v_wall - pgq._offset(zone, v_change));
        END IF;
    END IF;
    RETURN v_run AT TIME ZONE 'UTC';
END;
$$;
COMMENT ON FUNCTION pgq._next_run(pgq.cron, text, timestamptz) IS 'The first tick after an instant';

-- Abbreviations are refused, also those that are names too: AT TIME ZONE 'CET' knows no summer, and PostgreSQL 18 asks
-- the session's own time zone first what they mean.
CREATE FUNCTION pgq._zone(timezone text) RETURNS text
    LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_zone text;
BEGIN
    PERFORM pgq._require('timezone', timezone IS NOT NULL OR NULL, 'the name of a time zone');
    IF upper(timezone COLLATE "C") IN ('UTC', 'GMT') THEN
        RETURN upper(timezone COLLATE "C");
    END IF;
    SELECT z.name INTO v_zone FROM pg_timezone_names z
    WHERE lower(z.name COLLATE "C") = lower(timezone COLLATE "C")
        AND NOT EXISTS (SELECT FROM pg_timezone_abbrevs a WHERE a.abbrev = upper(z.name COLLATE "C"));
    IF v_zone IS NULL THEN
        RAISE EXCEPTION USING
            ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('"%s" is not the full name of a time zone', left(timezone, 128)),
            HINT = 'Give a full name as in SELECT name FROM pg_timezone_names, such as Europe/Berlin, and no abbreviation.';
    END IF;
    RETURN v_zone;
END;
$$;
COMMENT ON FUNCTION pgq._zone(text) IS 'A time zone as the server spells it; raises 22023 if it does not know it';

CREATE FUNCTION pgq.next_runs(
    cron text, timezone text DEFAULT 'UTC', n int DEFAULT 5, after timestamptz DEFAULT NULL
) RETURNS SETOF timestamptz
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_cron CONSTANT pgq.cron := pgq._read_cron(cron);
    v_zone CONSTANT text := pgq._zone(timezone);
    v_run timestamptz := coalesce(after, pgq._now());
BEGIN
    PERFORM pgq._require('n', n BETWEEN 1 AND 1000, 'between 1 and 1000');
    PERFORM pgq._require('after', v_run BETWEEN '1900-01-01 00:00+00' AND '9999-12-31 00:00+00',
        'a time between the years 1900 and 9999');
    FOR v_turn IN 1..n LOOP
        v_run := pgq._next_run(v_cron, v_zone, v_run);
        RETURN NEXT v_run;
    END LOOP;
END;
$$;
COMMENT ON FUNCTION pgq.next_runs(text, text, int, timestamptz) IS
    'The next n times at which a schedule with this cron line would run, after now or after a time. Raises 22023, and says '
    'where the line is wrong';

-- Schedules -----------------------------------------------------------------------------------------------------------

-- Programs call it whenever they start, so it leaves the next tick alone unless there is something to change.
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
DECLARE
    v_cron CONSTANT pgq.cron := pgq._read_cron(cron);
    v_zone CONSTANT text := pgq._zone(timezone);
    v_queue CONSTANT pgq.queue := pgq._find_queue(queue);
BEGIN
    PERFORM pgq._require('name', length(name) BETWEEN 1 AND 128, 'a name of 1 to 128 characters');
    PERFORM pgq._require('payload', payload IS NOT NULL OR NULL, 'JSON; the JSON null is written ''null''');
    PERFORM pgq._require('catch_up', catch_up IN ('skip', 'one', 'all'),
        '''skip'' (missed ticks are left out), ''one'' (one job for all of them) or ''all'' (a job for each)');
    -- Waits for who drops the queue, and makes him wait who comes later.
    PERFORM pg_advisory_xact_lock_shared(pgq._queue_key(v_queue.id));
    PERFORM pgq._producing(queue);
    INSERT INTO pgq.schedule AS s (name, queue, cron, timezone, catch_up, task, payload, next_at)
    VALUES (schedule.name, schedule.queue, schedule.cron, v_zone, schedule.catch_up, schedule.task, schedule.payload,
        pgq._next_run(v_cron, v_zone, pgq._now()))
    ON CONFLICT ON CONSTRAINT schedule_name_pkey DO UPDATE
    SET queue = excluded.queue,
        cron = excluded.cron,
        timezone = excluded.timezone,
        catch_up = excluded.catch_up,
        task = excluded.task,
        payload = excluded.payload,
        next_at = CASE WHEN (s.cron, s.timezone) = (excluded.cron, excluded.timezone) THEN s.next_at ELSE excluded.next_at END,
        retry_at = NULL,
        error = NULL
    WHERE (s.queue, s.cron, s.timezone, s.catch_up, s.task, s.payload, s.error) IS DISTINCT FROM (
        excluded.queue, excluded.cron, excluded.timezone, excluded.catch_up, excluded.task, excluded.payload, NULL
    );
END;
$$;
COMMENT ON FUNCTION pgq.schedule(text, text, text, jsonb, text, text, text) IS
    'Enqueues a job whenever a cron line says so, or changes what was scheduled under this name. cron: minute, hour, day of '
    'month, month, day of week, or a second before them, or @daily and the like; try it with pgq.next_runs. timezone: whose '
    'clock. catch_up: after a time without maintenance ''skip'' missed ticks, run ''one'' job for all of them, or ''all''. '
    'The same line in the same time zone keeps its next tick. The jobs'' headers are {"schedule": name, "scheduled_at": tick}. '
    'Dropping the queue drops its schedules. Raises PQ002, 22023, 22004';

CREATE FUNCTION pgq.unschedule(name text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgq._require('name', name IS NOT NULL OR NULL, 'the name of a schedule');
    DELETE FROM pgq.schedule s WHERE s.name = unschedule.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING
            ERRCODE = 'undefined_object',
            MESSAGE = format('schedule "%s" does not exist', left(name, 128)),
            HINT = 'Look for the right name in the table pgq.schedule.';
    END IF;
END;
$$;
COMMENT ON FUNCTION pgq.unschedule(text) IS
    'Ends what pgq.schedule began; jobs that are in the queue already stay. Raises 42704 if there is no such schedule';

-- Firing --------------------------------------------------------------------------------------------------------------

CREATE FUNCTION pgq._enqueue_tick(schedule pgq.schedule, tick timestamptz) RETURNS bigint
    LANGUAGE plpgsql
AS $$
BEGIN
    RETURN pgq.enqueue(schedule.queue, schedule.payload, schedule.task, headers => jsonb_build_object(
        'schedule', schedule.name,
        'scheduled_at', to_char(tick AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')));
END;
$$;
COMMENT ON FUNCTION pgq._enqueue_tick(pgq.schedule, timestamptz) IS 'Enqueues the job of a tick; returns its id';

-- The newest one by halving the time in which it must be: there may be millions of them.
CREATE FUNCTION pgq._last_run(cron pgq.cron, zone text, tick timestamptz, now timestamptz) RETURNS timestamptz
    LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_end timestamptz := now;
    v_middle timestamptz;
    v_next timestamptz;
BEGIN
    WHILE v_end - tick >= interval '1 second' LOOP
        v_middle := tick + make_interval(secs => extract(epoch FROM v_end - tick)::float8 / 2);
        v_next := pgq._next_run(cron, zone, v_middle);
        IF v_next <= now THEN
            tick := v_next;
        ELSE
            v_end := v_middle;
        END IF;
    END LOOP;
    RETURN tick;
END;
$$;
COMMENT ON FUNCTION pgq._last_run(pgq.cron, text, timestamptz, timestamptz) IS 'The last tick up to now, given an earlier one';

-- What goes wrong with one schedule must not stop the others: it is written down, and tried again a minute later. A
-- tick that is less than a minute late is not a missed one.
CREATE FUNCTION pgq._fire_one(schedule pgq.schedule, now timestamptz) RETURNS bigint
    LANGUAGE plpgsql
AS $$
DECLARE
    v_most CONSTANT int := 100;
    v_minute CONSTANT interval := interval '1 minute';
    v_cron pgq.cron;
    v_tick timestamptz := schedule.next_at;
    v_next timestamptz;
    v_job bigint;
    v_jobs bigint := 0;
BEGIN
    v_cron := pgq._read_cron(schedule.cron);
    v_next := pgq._next_run(v_cron, schedule.timezone, v_tick);
    IF schedule.catch_up = 'skip' AND v_tick < now - v_minute THEN
        v_next := pgq._next_run(v_cron, schedule.timezone, now);
    ELSE
        IF schedule.catch_up <> 'all' AND v_next <= now THEN
            v_tick := pgq._last_run(v_cron, schedule.timezone, v_next, now);
            v_next := pgq._next_run(v_cron, schedule.timezone, now);
        END IF;
        LOOP
            v_job := pgq._enqueue_tick(schedule, v_tick);
            v_jobs := v_jobs + 1;
            EXIT WHEN v_next > now OR v_jobs >= v_most;
            v_tick := v_next;
            v_next := pgq._next_run(v_cron, schedule.timezone, v_tick);
        END LOOP;
    END IF;
    UPDATE pgq.schedule s
    SET next_at = v_next, retry_at = NULL, error = NULL, last_job = coalesce(v_job, s.last_job),
        last_at = CASE WHEN v_job IS NULL THEN s.last_at ELSE v_tick END
    WHERE s.name = schedule.name;
    RETURN v_jobs;
EXCEPTION WHEN OTHERS THEN
    UPDATE pgq.schedule s SET retry_at = now + v_minute, error = format('%s: %s', SQLSTATE, left(SQLERRM, 1000))
    WHERE s.name = schedule.name;
    RETURN 0;
END;
$$;
COMMENT ON FUNCTION pgq._fire_one(pgq.schedule, timestamptz) IS
    'Enqueues what is due of a schedule that is locked, up to 100 jobs, and moves it on; returns how many';

-- Never waits. Who drops a queue takes its lock first and the rows of its schedules later, and enqueue may wait for
-- that lock; so here, too, it comes before the row.
CREATE FUNCTION pgq._fire() RETURNS bigint
    LANGUAGE plpgsql SET enable_seqscan = off
AS $$
DECLARE
    v_now CONSTANT timestamptz := pgq._now();
    v_due record;
    v_schedule pgq.schedule;
    v_jobs bigint := 0;
BEGIN
    FOR v_due IN
        SELECT s.name, s.queue, q.id
        FROM pgq.schedule s JOIN pgq.queue q ON q.name = s.queue
        WHERE coalesce(s.retry_at, s.next_at) <= v_now
        ORDER BY coalesce(s.retry_at, s.next_at), s.name
        LIMIT 300
    LOOP
        EXIT WHEN v_jobs >= 300;
        CONTINUE WHEN NOT pg_try_advisory_xact_lock_shared(pgq._queue_key(v_due.id));
        SELECT * INTO v_schedule FROM pgq.schedule s
        WHERE s.name = v_due.name AND s.queue = v_due.queue AND coalesce(s.retry_at, s.next_at) <= v_now
        FOR UPDATE SKIP LOCKED;
        IF FOUND THEN
            v_jobs := v_jobs + pgq._fire_one(v_schedule, v_now);
        END IF;
    END LOOP;
    RETURN v_jobs;
END;
$$;
COMMENT ON FUNCTION pgq._fire() IS 'Enqueues the jobs of ticks that have come, some 300 at a time; returns how many';
