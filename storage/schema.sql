-- The read model: what the log says, folded into rows for asking questions of. It is disposable: no migrations,
-- `schema_version` differs -> everything is dropped and folded again (store.py).
--
-- Every row (but those of `event_hours`) is made by one event, its *last* one, and carries that event's sequence. So a row can go when its event
-- has left the log, and folding what is left gives the same rows. Bodies (parameters, results, details) are not
-- copied out of the event: `events.seq` has them.
-- Moments are RFC 3339 text in UTC with microseconds, which sorts as time does.

CREATE TABLE meta (
    one            INTEGER PRIMARY KEY CHECK (one = 1),
    schema_version INTEGER NOT NULL,
    stream         TEXT    NOT NULL,                      -- which incarnation of the log this was folded from
    seq            INTEGER NOT NULL CHECK (seq >= 0),     -- everything up to here is folded
    first_seq      INTEGER NOT NULL CHECK (first_seq >= 0) -- everything before has left the log and these tables
) STRICT;

CREATE TABLE events (
    seq           INTEGER PRIMARY KEY,
    id            TEXT NOT NULL,
    type          TEXT NOT NULL,
    source        TEXT NOT NULL,
    subject       TEXT,
    time          TEXT NOT NULL,
    recorded_at   TEXT NOT NULL,
    correlationid TEXT,
    causationid   TEXT,
    causaldepth   INTEGER NOT NULL DEFAULT 0,
    body          BLOB NOT NULL                            -- the stored JSON, whole
) STRICT;
CREATE INDEX events_id ON events (id);
CREATE INDEX events_type ON events (type);
CREATE INDEX events_subject ON events (subject) WHERE subject IS NOT NULL;
-- One in 64, from which it is not far: places in the log grow with the time of recording.
CREATE INDEX events_recorded_at ON events (recorded_at) WHERE seq % 64 = 0;
CREATE INDEX events_correlationid ON events (correlationid) WHERE correlationid IS NOT NULL;
CREATE INDEX events_causationid ON events (causationid) WHERE causationid IS NOT NULL;

-- How many events of each type were recorded in each hour: counting the events themselves would read all of them.
CREATE TABLE event_hours (
    hour TEXT    NOT NULL,                                 -- beginning of a moment, such as 2026-01-31T17
    type TEXT    NOT NULL,
    n    INTEGER NOT NULL CHECK (n > 0),
    PRIMARY KEY (hour, type)
) STRICT, WITHOUT ROWID;

CREATE TABLE unreadable (
    seq     INTEGER PRIMARY KEY,
    subject TEXT NOT NULL,                                 -- of the bus
    why     TEXT NOT NULL,
    body    BLOB NOT NULL
) STRICT;

CREATE TABLE flow_runs (
    id            TEXT PRIMARY KEY,
    seq           INTEGER NOT NULL UNIQUE,
    name          TEXT NOT NULL,
    flow_name     TEXT NOT NULL,
    flow_version  TEXT,
    deployment    TEXT,
    pool          TEXT,
    queue         TEXT,
    parent        TEXT,
    tags          TEXT NOT NULL CHECK (json_valid(tags)),
    cause_kind    TEXT,
    cause_name    TEXT,
    cause_event   TEXT,
    state_type    TEXT NOT NULL CHECK (state_type IN ('SCHEDULED', 'PENDING', 'RUNNING', 'COMPLETED', 'FAILED',
                                                     'CANCELLED', 'CRASHED', 'PAUSED', 'CANCELLING')),
    state_name    TEXT NOT NULL,
    state_message TEXT,
    attempt       INTEGER NOT NULL,
    scheduled_at  TEXT NOT NULL,                           -- or, if nobody scheduled it, when it was first heard of
    started_at    TEXT,
    ended_at      TEXT,
    duration_s    REAL,
    updated_at    TEXT NOT NULL,
    correlationid TEXT,
    causationid   TEXT
) STRICT;
CREATE INDEX flow_runs_scheduled_at ON flow_runs (scheduled_at, id);
CREATE INDEX flow_runs_state ON flow_runs (state_type, scheduled_at, id);
CREATE INDEX flow_runs_flow ON flow_runs (flow_name, scheduled_at, id);
CREATE INDEX flow_runs_deployment ON flow_runs (deployment, scheduled_at, id) WHERE deployment IS NOT NULL;
CREATE INDEX flow_runs_parent ON flow_runs (parent) WHERE parent IS NOT NULL;
CREATE INDEX flow_runs_cause ON flow_runs (cause_event) WHERE cause_event IS NOT NULL;

CREATE TABLE task_runs (
    id            TEXT PRIMARY KEY,
    seq           INTEGER NOT NULL,
    flow_run      TEXT NOT NULL,
    name          TEXT NOT NULL,
    task_name     TEXT NOT NULL,
    attempt       INTEGER NOT NULL,
    position      INTEGER NOT NULL,                        -- which of the equal calls of its flow run, from 0
    place         TEXT GENERATED ALWAYS AS (substr(id, -12)) VIRTUAL,  -- ids end in the attempt and in the order of calls
    tags          TEXT NOT NULL CHECK (json_valid(tags)),
    state_type    TEXT NOT NULL CHECK (state_type IN ('SCHEDULED', 'PENDING', 'RUNNING', 'COMPLETED', 'FAILED',
                                                     'CANCELLED', 'CRASHED', 'PAUSED', 'CANCELLING')),
    state_name    TEXT NOT NULL,
    state_message TEXT,
    started_at    TEXT,
    duration_s    REAL,
    updated_at    TEXT NOT NULL
) STRICT;
-- With the id, so that a page of a listing is read from the place where it begins.
CREATE INDEX task_runs_flow_run ON task_runs (flow_run, place, id);
-- Those outside any flow, which stand under their own id: background tasks, mostly.
CREATE INDEX task_runs_alone ON task_runs (seq) WHERE flow_run = id;

-- Runs that people deleted. One is shown no more while this is the last word about it: a transition behind it shows it again.
CREATE TABLE deleted_runs (
    id   TEXT PRIMARY KEY,
    seq  INTEGER NOT NULL UNIQUE,
    time TEXT NOT NULL
) STRICT;

CREATE VIEW gone_runs AS
SELECT deleted_runs.id FROM deleted_runs LEFT JOIN flow_runs ON flow_runs.id = deleted_runs.id
WHERE flow_runs.seq IS NULL OR flow_runs.seq < deleted_runs.seq;

-- What rules decided: one row per automation.triggered, .resolved, .suppressed.
CREATE TABLE firings (
    id         TEXT PRIMARY KEY,                           -- of the event
    seq        INTEGER NOT NULL UNIQUE,
    automation TEXT NOT NULL,
    decision   TEXT NOT NULL CHECK (decision IN ('triggered', 'resolved', 'suppressed')),
    key        TEXT,
    count      INTEGER,
    version    TEXT,
    shadow     INTEGER NOT NULL CHECK (shadow IN (0, 1)),  -- decided by a rule on trial, which does nothing
    reason     TEXT,
    time       TEXT NOT NULL
) STRICT;
CREATE INDEX firings_automation ON firings (automation, seq);

-- What became of each action: its latest outcome, by its key.
CREATE TABLE actions (
    key        TEXT PRIMARY KEY,
    seq        INTEGER NOT NULL UNIQUE,
    state      TEXT NOT NULL CHECK (state IN ('executed', 'failed', 'dead-lettered', 'redriven', 'dropped', 'skipped')),
    kind       TEXT,
    automation TEXT,
    firing     TEXT,
    attempt    INTEGER,
    error      TEXT,
    duration_s REAL,
    time       TEXT NOT NULL
) STRICT;
CREATE INDEX actions_state ON actions (state, seq);
CREATE INDEX actions_firing ON actions (firing) WHERE firing IS NOT NULL;
CREATE INDEX actions_automation ON actions (automation, seq) WHERE automation IS NOT NULL;

CREATE TABLE notifications (
    seq        INTEGER PRIMARY KEY,
    outcome    TEXT NOT NULL CHECK (outcome IN ('sent', 'failed', 'silenced', 'grouped')),
    channel    TEXT,
    kind       TEXT,                                       -- such as mailto; the address itself is a secret
    address    INTEGER,                                    -- which of the channel's, from 0
    severity   TEXT,
    title      TEXT,
    attempt    INTEGER,
    duration_s REAL,
    error      TEXT,
    time       TEXT NOT NULL
) STRICT;
CREATE INDEX notifications_channel ON notifications (channel, seq) WHERE channel IS NOT NULL;

CREATE TABLE webhook_deliveries (
    seq      INTEGER PRIMARY KEY,
    webhook  TEXT NOT NULL,
    outcome  TEXT NOT NULL CHECK (outcome IN ('received', 'rejected')),
    type     TEXT,                                         -- of the event an accepted request became
    status   INTEGER,
    reason   TEXT,
    time     TEXT NOT NULL
) STRICT;
CREATE INDEX webhook_deliveries_webhook ON webhook_deliveries (webhook, seq);

CREATE TABLE schedule_fires (
    seq          INTEGER PRIMARY KEY,
    deployment   TEXT,
    schedule     TEXT,
    outcome      TEXT NOT NULL CHECK (outcome IN ('fired', 'skipped')),
    scheduled_at TEXT,
    flow_run     TEXT,
    reason       TEXT,
    time         TEXT NOT NULL
) STRICT;
CREATE INDEX schedule_fires_deployment ON schedule_fires (deployment, seq) WHERE deployment IS NOT NULL;

CREATE TABLE workers (
    id      TEXT PRIMARY KEY,
    seq     INTEGER NOT NULL UNIQUE,
    state   TEXT NOT NULL CHECK (state IN ('started', 'stopped', 'lost')),
    name    TEXT NOT NULL,
    pool    TEXT,
    details TEXT NOT NULL CHECK (json_valid(details)),
    time    TEXT NOT NULL
) STRICT;

-- What runs show people: each as it is now. Its history is the events with its subject.
CREATE TABLE artifacts (
    id          TEXT PRIMARY KEY,                          -- its key, or where it has none, its own id
    seq         INTEGER NOT NULL UNIQUE,
    artifact    TEXT NOT NULL,                             -- the id of what is shown now
    key         TEXT,
    type        TEXT NOT NULL,
    description TEXT,
    flow_run    TEXT,
    task_run    TEXT,
    flow        TEXT,
    time        TEXT NOT NULL
) STRICT;
CREATE INDEX artifacts_flow_run ON artifacts (flow_run) WHERE flow_run IS NOT NULL;
