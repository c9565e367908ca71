-- Questions (queries.py). A statement is put together from a head, the fragments for what was asked (named
-- `head.field`), and a tail; every value is a parameter.

-- name: reached
-- for: how far the log is folded
SELECT stream, seq, first_seq FROM meta WHERE one = 1;

-- name: flow_runs
-- for: flow runs, for listing
SELECT id, seq, name, flow_name, flow_version, deployment, pool, queue, parent, tags, cause_kind, cause_name,
       cause_event, state_type, state_name, state_message, attempt, scheduled_at, started_at, ended_at, duration_s,
       updated_at, correlationid, causationid
FROM flow_runs
WHERE NOT EXISTS (SELECT 1 FROM deleted_runs AS gone WHERE gone.id = flow_runs.id AND gone.seq > flow_runs.seq);

-- name: flow_runs.id
-- for: one run
AND id = :id;

-- name: flow_runs.id_prefix
-- for: runs whose id begins so
AND id >= :id_from AND id < :id_to;

-- name: flow_runs.states
-- for: types, or names without regard to case and dashes
AND (state_type IN (SELECT value FROM json_each(:types))
     OR lower(state_name) IN (SELECT value FROM json_each(:names)));

-- name: flow_runs.types
-- for: types alone, which have an index
AND state_type IN (SELECT value FROM json_each(:types));

-- name: flow_runs.name
-- for: the run's own name
AND name = :name;

-- name: flow_runs.flow
-- for: runs of a flow
AND flow_name = :flow;

-- name: flow_runs.deployment
-- for: runs of a deployment
AND deployment = :deployment;

-- name: flow_runs.pool
-- for: runs of a pool
AND pool = :pool;

-- name: flow_runs.tags
-- for: runs that have every one of these tags
AND NOT EXISTS (SELECT 1 FROM json_each(:tags) AS wanted
                WHERE wanted.value NOT IN (SELECT value FROM json_each(flow_runs.tags)));

-- name: flow_runs.parent
-- for: subflows of a run
AND parent = :parent;

-- name: flow_runs.top_level
-- for: runs that are no subflow
AND parent IS NULL;

-- name: flow_runs.since
-- for: due from then on
AND scheduled_at >= :since;

-- name: flow_runs.until
-- for: due before
AND scheduled_at < :until;

-- name: flow_runs.text
-- for: a part of what a person would recognise the run by
AND (name LIKE :text ESCAPE '\' OR flow_name LIKE :text ESCAPE '\' OR deployment LIKE :text ESCAPE '\'
     OR state_message LIKE :text ESCAPE '\');

-- name: flow_runs.cause
-- for: asked for by a rule, schedule, … of this name
AND cause_name = :cause;

-- name: flow_runs.cause_event
-- for: asked for by this event
AND cause_event = :cause_event;

-- name: flow_runs.correlation
-- for: of one story
AND correlationid = :correlation;

-- name: flow_runs.after
-- for: the pages after the first
AND (scheduled_at, id) < (:after_at, :after_id);

-- name: flow_runs.newest_first
-- for: the order of listing
ORDER BY scheduled_at DESC, id DESC LIMIT :limit;

-- name: task_runs
-- for: task runs of a flow run, in the order they were called
SELECT id, seq, flow_run, name, task_name, attempt, position, tags, state_type, state_name, state_message,
       started_at, duration_s, updated_at
FROM task_runs WHERE flow_run = :flow_run AND (place, id) > (:after_place, :after_id)
  AND NOT EXISTS (SELECT 1 FROM gone_runs WHERE gone_runs.id = task_runs.flow_run)
ORDER BY place, id LIMIT :limit;

-- name: task_run
-- for: one task run
SELECT id, seq, flow_run, name, task_name, attempt, position, tags, state_type, state_name, state_message,
       started_at, duration_s, updated_at
FROM task_runs WHERE id = :id AND NOT EXISTS (SELECT 1 FROM gone_runs WHERE gone_runs.id = task_runs.flow_run);

-- name: tasks_alone
-- for: task runs outside any flow
SELECT id, seq, flow_run, name, task_name, attempt, position, tags, state_type, state_name, state_message,
       started_at, duration_s, updated_at
FROM task_runs WHERE flow_run = id;

-- name: tasks_alone.states
-- for: types, or names without regard to case and dashes
AND (state_type IN (SELECT value FROM json_each(:types))
     OR lower(state_name) IN (SELECT value FROM json_each(:names)));

-- name: tasks_alone.task
-- for: runs of a task
AND task_name = :task;

-- name: tasks_alone.before
-- for: the pages after the first
AND seq < :before;

-- name: tasks_alone.newest_first
-- for: the order of listing: what changed last
ORDER BY seq DESC LIMIT :limit;

-- name: task_states
-- for: how the tasks of a run are doing
SELECT state_type, count(*) FROM task_runs WHERE flow_run = :flow_run GROUP BY state_type;

-- name: events
-- for: events, for listing
SELECT seq, id, type, source, subject, time, recorded_at, correlationid, causationid, causaldepth, body
FROM events WHERE TRUE;

-- name: events.id
-- for: one event; recorded again outside the broker's memory it stands in the log twice
AND id = :id ORDER BY seq DESC LIMIT 1;

-- name: events.id_prefix
-- for: events whose id begins so
AND id >= :id_from AND id < :id_to;

-- name: events.seq
-- for: the event at one place in the log
AND seq = :seq;

-- name: events.type
-- for: one type
AND type = :type;

-- name: events.types
-- for: any of some types
AND type IN (SELECT value FROM json_each(:types));

-- name: events.subject
-- for: about one thing
AND subject = :subject;

-- name: events.subject_prefix
-- for: about things whose name begins so
AND subject >= :subject_from AND subject < :subject_to;

-- name: events.source
-- for: from one source
AND source = :source;

-- name: events.correlation
-- for: of one story
AND correlationid = :correlation;

-- name: events.causation
-- for: led to by one event
AND causationid = :causation;

-- name: events.since
-- for: recorded from then on. Sequences grow with the time of recording, so this is a bound on the key
AND seq >= coalesce((SELECT seq FROM events
                     WHERE recorded_at >= :since
                       AND seq >= coalesce((SELECT seq FROM events WHERE seq % 64 = 0 AND recorded_at < :since
                                            ORDER BY recorded_at DESC, seq DESC LIMIT 1), 0)
                     ORDER BY seq LIMIT 1),
                    9223372036854775807);

-- name: events.until
-- for: recorded before
AND seq < coalesce((SELECT seq FROM events
                    WHERE recorded_at >= :until
                      AND seq >= coalesce((SELECT seq FROM events WHERE seq % 64 = 0 AND recorded_at < :until
                                           ORDER BY recorded_at DESC, seq DESC LIMIT 1), 0)
                    ORDER BY seq LIMIT 1),
                   9223372036854775807);

-- name: events.after_seq
-- for: after a place in the log
AND seq > :after_seq;

-- name: events.before_seq
-- for: before a place in the log
AND seq < :before_seq;

-- name: events.newest_first
-- for: the order of listing
ORDER BY seq DESC LIMIT :limit;

-- name: events.oldest_first
-- for: the order of the log
ORDER BY seq LIMIT :limit;

-- name: event_types
-- for: the types there are, by hopping from one to the next in the index instead of reading it whole
WITH RECURSIVE hop (type) AS (
    SELECT min(type) FROM events
    UNION ALL
    SELECT (SELECT min(type) FROM events WHERE type > hop.type) FROM hop WHERE hop.type IS NOT NULL
)
SELECT type FROM hop WHERE type IS NOT NULL;

-- name: event_hours
-- for: how many events of each type came in each hour
SELECT hour, type, n FROM event_hours WHERE hour >= substr(:since, 1, 13) ORDER BY hour, type;

-- name: cause_chain
-- for: what led to an event, nearest first; bounded, because nothing stops a foreign event from naming itself
WITH RECURSIVE chain (seq, causationid, depth) AS (
    SELECT * FROM (SELECT seq, causationid, 0 FROM events WHERE id = :id ORDER BY seq DESC LIMIT 1)
    UNION ALL
    SELECT events.seq, events.causationid, chain.depth + 1
    FROM chain JOIN events ON events.seq = (SELECT max(seq) FROM events WHERE id = chain.causationid)
    WHERE chain.depth < :depth
)
SELECT events.seq, id, type, source, subject, time, recorded_at, correlationid, events.causationid, causaldepth, body
FROM chain JOIN events USING (seq) GROUP BY events.seq ORDER BY min(chain.depth);

-- name: firings
-- for: decisions of rules
SELECT id, seq, automation, decision, key, count, version, shadow, reason, time FROM firings WHERE TRUE;

-- name: firings.id
-- for: one decision
AND id = :id;

-- name: firings.automation
-- for: of one rule
AND automation = :automation;

-- name: firings.decision
-- for: triggered, resolved or suppressed
AND decision = :decision;

-- name: actions
-- for: the latest outcome of actions
SELECT key, seq, state, kind, automation, firing, attempt, error, duration_s, time FROM actions WHERE TRUE;

-- name: actions.state
-- for: in one state
AND state = :state;

-- name: actions.automation
-- for: of one rule
AND automation = :automation;

-- name: actions.firing
-- for: of one decision
AND firing = :firing;

-- name: actions.key
-- for: one action
AND key = :key;

-- name: notifications
-- for: messages to people
SELECT seq, outcome, channel, kind, severity, title, attempt, duration_s, error, time
FROM notifications WHERE TRUE;

-- name: notifications.channel
-- for: of one channel
AND channel = :channel;

-- name: notifications.outcome
-- for: sent, failed, silenced or grouped
AND outcome = :outcome;

-- name: failing_channels
-- for: addresses of channels whose latest messages, one or more, all failed; of the last days
WITH recent AS (
    SELECT seq, outcome, channel, kind, address, error, time FROM notifications
    WHERE seq >= :seq AND channel IS NOT NULL AND address IS NOT NULL AND outcome IN ('sent', 'failed')
), latest AS (
    SELECT channel, address, max(CASE WHEN outcome = 'sent' THEN seq ELSE 0 END) AS sent
    FROM recent GROUP BY channel, address
)
-- Of the bare columns SQLite takes those of the row that has the maximum.
SELECT max(r.seq) AS seq, r.channel, r.kind, r.address, count(*) AS failures, r.error, r.time
FROM recent AS r JOIN latest AS l ON l.channel = r.channel AND l.address = r.address
WHERE r.outcome = 'failed' AND r.seq > l.sent
GROUP BY r.channel, r.address
ORDER BY r.channel, r.address;

-- name: webhook_deliveries
-- for: requests at webhooks
SELECT seq, webhook, outcome, type, status, reason, time FROM webhook_deliveries WHERE TRUE;

-- name: webhook_deliveries.webhook
-- for: at one webhook
AND webhook = :webhook;

-- name: webhook_deliveries.outcome
-- for: received or rejected
AND outcome = :outcome;

-- name: artifacts
-- for: what runs show people
SELECT id, seq, artifact, key, type, description, flow_run, task_run, flow, time FROM artifacts
WHERE NOT EXISTS (SELECT 1 FROM gone_runs WHERE gone_runs.id = artifacts.flow_run);

-- name: artifacts.id
-- for: one
AND id = :id;

-- name: artifacts.type
-- for: of one type
AND type = :type;

-- name: artifacts.flow_run
-- for: last shown by one flow run
AND flow_run = :flow_run;

-- name: schedule_fires
-- for: schedules that came due
SELECT seq, deployment, schedule, outcome, scheduled_at, flow_run, reason, time FROM schedule_fires WHERE TRUE;

-- name: schedule_fires.deployment
-- for: of one deployment
AND deployment = :deployment;

-- name: before
-- for: the pages after the first, of listings in the order of the log
AND seq < :before;

-- name: newest_first
-- for: the order of such listings
ORDER BY seq DESC LIMIT :limit;

-- name: workers
-- for: who works, or did
SELECT id, seq, state, name, pool, details, time FROM workers ORDER BY state = 'started' DESC, seq DESC;

-- name: deployment_last
-- for: the latest run of each deployment that is more than a plan
SELECT id, seq, name, flow_name, flow_version, deployment, pool, queue, parent, tags, cause_kind, cause_name,
       cause_event, state_type, state_name, state_message, attempt, max(scheduled_at) AS scheduled_at, started_at,
       ended_at, duration_s, updated_at, correlationid, causationid
FROM flow_runs WHERE deployment IS NOT NULL AND state_type <> 'SCHEDULED'
  AND NOT EXISTS (SELECT 1 FROM deleted_runs AS gone WHERE gone.id = flow_runs.id AND gone.seq > flow_runs.seq)
GROUP BY deployment;

-- name: deployment_next
-- for: the earliest run of each deployment that is still a plan
SELECT id, seq, name, flow_name, flow_version, deployment, pool, queue, parent, tags, cause_kind, cause_name,
       cause_event, state_type, state_name, state_message, attempt, min(scheduled_at) AS scheduled_at, started_at,
       ended_at, duration_s, updated_at, correlationid, causationid
FROM flow_runs WHERE deployment IS NOT NULL AND state_type = 'SCHEDULED' GROUP BY deployment;

-- name: deployment_states
-- for: how the runs of each deployment went
SELECT deployment, state_type, count(*) FROM flow_runs
WHERE deployment IS NOT NULL AND scheduled_at >= :since
  AND NOT EXISTS (SELECT 1 FROM deleted_runs AS gone WHERE gone.id = flow_runs.id AND gone.seq > flow_runs.seq)
GROUP BY deployment, state_type;

-- name: automation_activity
-- for: what some rules decided, those of :shadowed on trial and the others live; of the rest nothing is looked at
SELECT automation,
       sum(decision = 'triggered' AND counts AND time >= :since) AS triggered,
       sum(decision = 'suppressed' AND counts AND time >= :since) AS suppressed,
       sum(decision = 'resolved' AND counts AND time >= :since) AS resolved,
       max(CASE WHEN decision = 'triggered' AND counts THEN time END) AS last_triggered_at,
       (SELECT count(*) FROM actions
        WHERE actions.automation = firings.automation AND actions.state = 'dead-lettered') AS dead_letters,
       (SELECT error FROM actions
        WHERE actions.automation = firings.automation AND actions.state = 'dead-lettered'
        ORDER BY seq DESC LIMIT 1) AS last_error
FROM (SELECT automation, decision, time, shadow = (automation IN (SELECT value FROM json_each(:shadowed))) AS counts
      FROM firings INDEXED BY firings_automation WHERE automation IN (SELECT value FROM json_each(:names))) AS firings
GROUP BY automation ORDER BY automation;

-- name: count_flow_runs
-- for: runs by state: unfinished ones all, finished ones of late
SELECT state_type, count(*) FROM flow_runs
WHERE (state_type IN ('SCHEDULED', 'PENDING', 'RUNNING', 'PAUSED', 'CANCELLING')
       OR (state_type IN ('COMPLETED', 'FAILED', 'CANCELLED', 'CRASHED') AND scheduled_at >= :since))
  AND NOT EXISTS (SELECT 1 FROM deleted_runs AS gone WHERE gone.id = flow_runs.id AND gone.seq > flow_runs.seq)
GROUP BY state_type;

-- name: count_recent
-- for: everything that is counted by its place in the log
SELECT 'events', coalesce(sum(n), 0) FROM event_hours WHERE hour >= substr(:since, 1, 13)
UNION ALL SELECT 'task_runs', coalesce(sum(n), 0) FROM event_hours
          WHERE hour >= substr(:since, 1, 13) AND type = 'task-run.completed'
UNION ALL SELECT 'firings.' || decision, count(*) FROM firings WHERE seq >= :seq AND NOT shadow GROUP BY decision
UNION ALL SELECT 'actions.' || state, count(*) FROM actions WHERE seq >= :seq GROUP BY state
UNION ALL SELECT 'dead_letters', count(*) FROM actions WHERE state = 'dead-lettered'
UNION ALL SELECT 'notifications.' || outcome, count(*) FROM notifications WHERE seq >= :seq GROUP BY outcome
UNION ALL SELECT 'webhooks.' || outcome, count(*) FROM webhook_deliveries WHERE seq >= :seq GROUP BY outcome
UNION ALL SELECT 'workers.' || state, count(*) FROM workers GROUP BY state
UNION ALL SELECT 'unreadable', count(*) FROM unreadable;

-- name: seq_since
-- for: the first place in the log at or after a moment
SELECT coalesce((SELECT seq FROM events
                 WHERE recorded_at >= :since
                   AND seq >= coalesce((SELECT seq FROM events WHERE seq % 64 = 0 AND recorded_at < :since
                                        ORDER BY recorded_at DESC, seq DESC LIMIT 1), 0)
                 ORDER BY seq LIMIT 1),
                9223372036854775807);
