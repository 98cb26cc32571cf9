-- The whole schema as it is after every migration; a test proves that both are equal.

-- Times are db time in Unix milliseconds; JSON columns hold the types of faena-protocol.
-- epoch, owner and lease_end are the fence of every claim (docs/adr/0002-fenced-claims.md).

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE runtimes (
    namespace TEXT NOT NULL,
    key       TEXT NOT NULL, -- the name in lower case
    name      TEXT NOT NULL,
    revision  INTEGER NOT NULL,
    PRIMARY KEY (namespace, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE runtime_revisions (
    namespace  TEXT NOT NULL,
    runtime    TEXT NOT NULL,
    revision   INTEGER NOT NULL,
    spec       TEXT NOT NULL, -- RuntimeSpec
    created_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, runtime, revision)
) STRICT, WITHOUT ROWID;

CREATE TABLE functions (
    namespace  TEXT NOT NULL,
    key        TEXT NOT NULL, -- the name in lower case
    name       TEXT NOT NULL,
    current    INTEGER,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE versions (
    namespace    TEXT NOT NULL,
    function     TEXT NOT NULL,
    version      INTEGER NOT NULL,
    runtime      TEXT NOT NULL,
    revision     INTEGER NOT NULL,
    source       TEXT NOT NULL, -- blob key
    source_bytes INTEGER NOT NULL,
    manifest     TEXT NOT NULL, -- Manifest
    limits       TEXT NOT NULL, -- Limits
    status       TEXT NOT NULL CHECK (status IN ('PENDING', 'BUILDING', 'READY', 'ERROR')),
    engine       TEXT,
    image_id     TEXT,
    artifact     TEXT, -- blob key
    error        TEXT, -- BuildFailure
    log          TEXT, -- Payload
    log_tail     TEXT NOT NULL DEFAULT '',
    created_at   INTEGER NOT NULL,
    built_at     INTEGER,
    request      TEXT NOT NULL UNIQUE,
    epoch        INTEGER NOT NULL, -- begins at created_at: a version of a deleted function's successor is no other's
    worker       TEXT,
    incarnation  TEXT,
    lease_end    INTEGER,
    claim        TEXT,
    redeliveries INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (namespace, function, version)
) STRICT, WITHOUT ROWID;

CREATE INDEX versions_unbuilt ON versions (status, created_at) WHERE status IN ('PENDING', 'BUILDING');

CREATE TABLE calls (
    num          INTEGER PRIMARY KEY,
    namespace    TEXT NOT NULL,
    function     TEXT NOT NULL, -- the name in lower case
    version      INTEGER NOT NULL,
    status       TEXT NOT NULL
        CHECK (status IN ('PENDING', 'RUNNING', 'DONE', 'FAILED', 'TIMEOUT', 'CANCELLED', 'EXPIRED')),
    spec         TEXT NOT NULL, -- CallSpec
    ready        INTEGER NOT NULL DEFAULT 0, -- 1 once its version is READY, so that a claim looks at nothing else
    engine       TEXT,
    result       TEXT NOT NULL DEFAULT '{"text":""}', -- Payload
    error        TEXT, -- CallError
    logs         TEXT NOT NULL DEFAULT '{"text":""}', -- Payload
    attempts     TEXT NOT NULL DEFAULT '[]', -- [Attempt]
    priority     INTEGER NOT NULL DEFAULT 0,
    replay_of    INTEGER,
    retries      INTEGER NOT NULL,
    failures     INTEGER NOT NULL DEFAULT 0,
    redeliveries INTEGER NOT NULL DEFAULT 0,
    created_at   INTEGER NOT NULL,
    queued_at    INTEGER NOT NULL,
    not_before   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    ended_at     INTEGER,
    epoch        INTEGER NOT NULL DEFAULT 0,
    worker       TEXT,
    incarnation  TEXT,
    lease_end    INTEGER,
    claim        TEXT
) STRICT;

CREATE INDEX calls_waiting ON calls (num) WHERE status = 'PENDING' AND ready = 1;
CREATE INDEX calls_expiring ON calls (expires_at) WHERE status = 'PENDING';
CREATE INDEX calls_leased ON calls (worker, lease_end) WHERE status = 'RUNNING';
CREATE INDEX calls_claimed ON calls (claim) WHERE status = 'RUNNING';
CREATE INDEX calls_of_version ON calls (namespace, function, version) WHERE status = 'PENDING';
CREATE INDEX calls_of_function ON calls (namespace, function, num);
CREATE INDEX calls_of_status ON calls (namespace, status, num);

-- How many calls of a function wait; counting them for each new one would take longer the more there are.
CREATE TABLE backlog (
    namespace TEXT NOT NULL,
    function  TEXT NOT NULL,
    pending   INTEGER NOT NULL,
    PRIMARY KEY (namespace, function)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER backlog_enter AFTER INSERT ON calls WHEN NEW.status = 'PENDING' BEGIN
    INSERT INTO backlog (namespace, function, pending) VALUES (NEW.namespace, NEW.function, 1)
    ON CONFLICT (namespace, function) DO UPDATE SET pending = pending + 1;
END;

CREATE TRIGGER backlog_move AFTER UPDATE OF status ON calls
WHEN (OLD.status = 'PENDING') <> (NEW.status = 'PENDING') BEGIN
    UPDATE backlog SET pending = pending + iif(NEW.status = 'PENDING', 1, -1)
    WHERE namespace = NEW.namespace AND function = NEW.function;
END;
