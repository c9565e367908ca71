-- Statements of the one writer (store.py). `name` starts a statement; `for` says what it is for.

-- name: reached
-- for: moving the sequence on, in the transaction of the rows; changes nothing when another writer was here
UPDATE meta SET seq = :seq WHERE one = 1 AND seq = :previous AND stream = :stream;

-- name: forgotten
-- for: remembering how much of the log's beginning is gone
UPDATE meta SET first_seq = :first_seq WHERE one = 1;

-- name: begin_meta
-- for: the one row of a fresh file
INSERT INTO meta (one, schema_version, stream, seq, first_seq) VALUES (1, :schema_version, :stream, 0, 0);

-- name: read_meta
-- for: where the last writer stopped
SELECT schema_version, stream, seq, first_seq FROM meta WHERE one = 1;

-- name: events
-- for: one event as it came
INSERT INTO events (seq, id, type, source, subject, time, recorded_at, correlationid, causationid, causaldepth, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: body
-- for: comparing the last event with what stands in the log in its place
SELECT body FROM events WHERE seq = :seq;

-- name: event_hours
-- for: counting the events of a batch
INSERT INTO event_hours (hour, type, n) VALUES (?, ?, ?)
ON CONFLICT (hour, type) DO UPDATE SET n = event_hours.n + excluded.n;

-- name: unreadable
-- for: a message that is no event, or an event that does not say what its type promises
INSERT INTO unreadable (seq, subject, why, body) VALUES (?, ?, ?, ?);

-- name: flow_runs
-- for: the latest transition of a flow run
INSERT INTO flow_runs (id, seq, name, flow_name, flow_version, deployment, pool, queue, parent, tags, cause_kind,
                       cause_name, cause_event, state_type, state_name, state_message, attempt, scheduled_at,
                       started_at, ended_at, duration_s, updated_at, correlationid, causationid)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    seq = excluded.seq, name = excluded.name, flow_name = excluded.flow_name, flow_version = excluded.flow_version,
    deployment = excluded.deployment, pool = excluded.pool, queue = excluded.queue, parent = excluded.parent,
    tags = excluded.tags, cause_kind = excluded.cause_kind, cause_name = excluded.cause_name,
    cause_event = excluded.cause_event, state_type = excluded.state_type, state_name = excluded.state_name,
    state_message = excluded.state_message, attempt = excluded.attempt, scheduled_at = excluded.scheduled_at,
    started_at = excluded.started_at, ended_at = excluded.ended_at, duration_s = excluded.duration_s,
    updated_at = excluded.updated_at, correlationid = excluded.correlationid, causationid = excluded.causationid;

-- name: task_runs
-- for: the latest transition of a task run
INSERT INTO task_runs (id, seq, flow_run, name, task_name, attempt, position, tags, state_type, state_name,
                       state_message, started_at, duration_s, updated_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    seq = excluded.seq, flow_run = excluded.flow_run, name = excluded.name, task_name = excluded.task_name,
    attempt = excluded.attempt, position = excluded.position, tags = excluded.tags,
    state_type = excluded.state_type, state_name = excluded.state_name, state_message = excluded.state_message,
    started_at = excluded.started_at, duration_s = excluded.duration_s, updated_at = excluded.updated_at;

-- name: firings
-- for: a decision of a rule; the same decision recorded again (its id is derived) stays one row
INSERT INTO firings (id, seq, automation, decision, key, count, version, shadow, reason, time)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    seq = excluded.seq, automation = excluded.automation, decision = excluded.decision, key = excluded.key,
    count = excluded.count, version = excluded.version, shadow = excluded.shadow, reason = excluded.reason, time = excluded.time;

-- name: actions
-- for: the latest outcome of an action
INSERT INTO actions (key, seq, state, kind, automation, firing, attempt, error, duration_s, time)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET
    seq = excluded.seq, state = excluded.state, kind = excluded.kind, automation = excluded.automation,
    firing = excluded.firing, attempt = excluded.attempt, error = excluded.error,
    duration_s = excluded.duration_s, time = excluded.time;

-- name: notifications
-- for: what became of a message to one address
INSERT INTO notifications (seq, outcome, channel, kind, address, severity, title, attempt, duration_s, error, time)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: webhook_deliveries
-- for: a request at a webhook
INSERT INTO webhook_deliveries (seq, webhook, outcome, type, status, reason, time) VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: schedule_fires
-- for: a schedule that came due
INSERT INTO schedule_fires (seq, deployment, schedule, outcome, scheduled_at, flow_run, reason, time)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: artifacts
-- for: an artifact as it is now
INSERT INTO artifacts (id, seq, artifact, key, type, description, flow_run, task_run, flow, time)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    seq = excluded.seq, artifact = excluded.artifact, key = excluded.key, type = excluded.type,
    description = excluded.description, flow_run = excluded.flow_run, task_run = excluded.task_run,
    flow = excluded.flow, time = excluded.time;

-- name: deleted_runs
-- for: a run that somebody deleted
INSERT INTO deleted_runs (id, seq, time) VALUES (?, ?, ?)
ON CONFLICT (id) DO UPDATE SET seq = excluded.seq, time = excluded.time;

-- name: workers
-- for: the latest word of a worker
INSERT INTO workers (id, seq, state, name, pool, details, time) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET
    seq = excluded.seq, state = excluded.state, name = excluded.name, pool = excluded.pool, details = excluded.details,
    time = excluded.time;

-- name: prune_events
-- for: a bounded bite out of the events that left the log, so that the writer is never held for long
DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE seq < :first_seq ORDER BY seq LIMIT :bite);

-- name: first_hour
-- for: the hour that the beginning of the log has come to
SELECT substr(recorded_at, 1, 13) FROM events WHERE seq >= :first_seq ORDER BY seq LIMIT 1;

-- name: prune_event_hours
-- for: hours of which nothing, or not everything, is left
DELETE FROM event_hours WHERE hour <= :hour;

-- name: recount_event_hour
-- for: what is left of the hour in which the log begins; read by its place, and not by its types from end to end
INSERT INTO event_hours (hour, type, n)
SELECT :hour, type, count(*) FROM events NOT INDEXED
WHERE recorded_at >= :hour AND recorded_at < :hour || '~'
  AND seq <= coalesce((SELECT seq FROM events WHERE seq % 64 = 0 AND recorded_at >= :hour || '~'
                       ORDER BY recorded_at, seq LIMIT 1), 9223372036854775807)
GROUP BY type;

-- name: prune_unreadable
-- for: unreadable messages that left the log
DELETE FROM unreadable WHERE seq < :first_seq;

-- name: prune_flow_runs
-- for: runs whose last transition left the log
DELETE FROM flow_runs WHERE seq < :first_seq;

-- name: prune_task_runs
-- for: task runs whose last transition left the log
DELETE FROM task_runs WHERE seq < :first_seq;

-- name: prune_firings
-- for: decisions that left the log
DELETE FROM firings WHERE seq < :first_seq;

-- name: prune_actions
-- for: outcomes that left the log
DELETE FROM actions WHERE seq < :first_seq;

-- name: prune_notifications
-- for: messages that left the log
DELETE FROM notifications WHERE seq < :first_seq;

-- name: prune_webhook_deliveries
-- for: requests that left the log
DELETE FROM webhook_deliveries WHERE seq < :first_seq;

-- name: prune_schedule_fires
-- for: fires that left the log
DELETE FROM schedule_fires WHERE seq < :first_seq;

-- name: prune_deleted_runs
-- for: deletions that left the log, as the runs have before them
DELETE FROM deleted_runs WHERE seq < :first_seq;

-- name: prune_artifacts
-- for: artifacts that left the log
DELETE FROM artifacts WHERE seq < :first_seq;

-- name: prune_workers
-- for: workers not heard of since
DELETE FROM workers WHERE seq < :first_seq;

-- name: objects
-- for: everything there is to drop before a rebuild
SELECT type, name FROM sqlite_schema
WHERE type IN ('table', 'index', 'view', 'trigger') AND name NOT LIKE 'sqlite_%';
