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
    secret     TEXT NOT NULL, -- signs its callbacks
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
    root         TEXT NOT NULL DEFAULT '', -- the folder of the source that is used, with a slash at its end
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
    redeliveries INTEGER NOT NULL DEFAULT 0, building_since INTEGER, nodes TEXT, image TEXT,
    PRIMARY KEY (namespace, function, version)
) STRICT, WITHOUT ROWID;

-- Versions of which instances wait whether or not calls come.
CREATE INDEX versions_minimum ON versions (namespace, function, version) WHERE manifest ->> 'minimum' > 0;
CREATE INDEX versions_unbuilt ON versions (status, created_at) WHERE status IN ('PENDING', 'BUILDING');

CREATE TABLE calls (
    num          INTEGER PRIMARY KEY,
    namespace    TEXT NOT NULL,
    function     TEXT NOT NULL, -- the name in lower case
    version      INTEGER NOT NULL,
    status       TEXT NOT NULL
        CHECK (status IN ('PENDING', 'RUNNING', 'DONE', 'FAILED', 'TIMEOUT', 'CANCELLED', 'EXPIRED')),
    spec         TEXT NOT NULL, -- CallSpec
    bytes        INTEGER NOT NULL DEFAULT 0, -- what it holds while it waits
    ready        INTEGER NOT NULL DEFAULT 0, -- 1 once its version is READY
    due          INTEGER NOT NULL DEFAULT 0, -- 1 once it is ready and its time has come, so that a claim looks at nothing else
    engine       TEXT,
    result       TEXT NOT NULL DEFAULT '{"text":""}', -- Payload
    head         TEXT, -- HttpHead of its answer
    streamed     TEXT, -- Streamed
    error        TEXT, -- CallError
    logs         TEXT NOT NULL DEFAULT '{"text":""}', -- Payload
    attempts     TEXT NOT NULL DEFAULT '[]', -- [Attempt]
    kept_bytes   INTEGER NOT NULL DEFAULT 0, -- of its result and log, where that is a kilobyte or more
    log_bytes    INTEGER NOT NULL DEFAULT 0, -- of its log, until that is forgotten
    priority     INTEGER NOT NULL DEFAULT 0,
    callback     TEXT, -- Callback
    replay_of    INTEGER,
    waited       INTEGER NOT NULL DEFAULT 0,
    retries      INTEGER NOT NULL,
    failures     INTEGER NOT NULL DEFAULT 0,
    deliveries   INTEGER NOT NULL DEFAULT 0,
    redeliveries INTEGER NOT NULL DEFAULT 0,
    created_at   INTEGER NOT NULL,
    queued_at    INTEGER NOT NULL,
    claimed_at   INTEGER,
    run_at       INTEGER, -- wall time, until that has come
    not_before   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    ended_at     INTEGER,
    epoch        INTEGER NOT NULL DEFAULT 0,
    worker       TEXT,
    incarnation  TEXT,
    lease_end    INTEGER,
    started      INTEGER NOT NULL DEFAULT 0,
    claim        TEXT
) STRICT;

-- A claim reads what is due in its order. A query for all queued calls of a function names this index, or SQLite takes another.
CREATE INDEX calls_waiting ON calls (namespace, function, due, priority DESC, num) WHERE status = 'PENDING';
CREATE INDEX calls_later ON calls (not_before) WHERE status = 'PENDING' AND ready = 1 AND due = 0 AND run_at IS NULL;
CREATE INDEX calls_run_at ON calls (run_at) WHERE status = 'PENDING' AND run_at IS NOT NULL;
CREATE INDEX calls_expiring ON calls (expires_at) WHERE status = 'PENDING' AND run_at IS NULL;
CREATE INDEX calls_leased ON calls (worker, lease_end) WHERE status = 'RUNNING';
CREATE INDEX calls_claimed ON calls (claim) WHERE status = 'RUNNING';
-- The status is there so that a list of one function's failures looks at no row that is none.
CREATE INDEX calls_of_function ON calls (namespace, function, num, status);
CREATE INDEX calls_of_status ON calls (namespace, status, num);
CREATE INDEX calls_ended ON calls (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX calls_kept ON calls (namespace, function, num) WHERE kept_bytes > 0;

-- The calls of one function that are queued or run, and when the function was served last: the one that waited longest is
-- served first. Code that inserts a call counts it, many at once; triggers keep the count from then on.
CREATE TABLE function_queues (
    namespace   TEXT NOT NULL,
    function    TEXT NOT NULL,
    concurrency INTEGER, -- calls at once; NULL is no bound
    turn        INTEGER NOT NULL DEFAULT 0,
    pending     INTEGER NOT NULL DEFAULT 0,
    bytes       INTEGER NOT NULL DEFAULT 0,
    due         INTEGER NOT NULL DEFAULT 0,
    running     INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (namespace, function)
) STRICT, WITHOUT ROWID;

-- Claims look for the queues of one namespace after the other.
CREATE INDEX function_queues_by_turn ON function_queues (namespace, turn) WHERE due > 0;

-- The same over all functions; counting would take longer the more there are.
CREATE TABLE totals (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    turn    INTEGER NOT NULL DEFAULT 0,
    pending INTEGER NOT NULL DEFAULT 0,
    bytes   INTEGER NOT NULL DEFAULT 0,
    ended   INTEGER NOT NULL DEFAULT 0
) STRICT;

INSERT INTO totals (one) VALUES (1);

CREATE TRIGGER calls_move AFTER UPDATE OF status, due ON calls WHEN OLD.status <> NEW.status OR OLD.due <> NEW.due BEGIN
    UPDATE function_queues SET
        pending = pending + (NEW.status = 'PENDING') - (OLD.status = 'PENDING'),
        bytes = bytes + NEW.bytes * ((NEW.status = 'PENDING') - (OLD.status = 'PENDING')),
        due = due + (NEW.status = 'PENDING' AND NEW.due) - (OLD.status = 'PENDING' AND OLD.due),
        running = running + (NEW.status = 'RUNNING') - (OLD.status = 'RUNNING')
    WHERE namespace = NEW.namespace AND function = NEW.function;
    UPDATE totals SET
        pending = pending + (NEW.status = 'PENDING') - (OLD.status = 'PENDING'),
        bytes = bytes + NEW.bytes * ((NEW.status = 'PENDING') - (OLD.status = 'PENDING')),
        ended = ended + (NEW.status NOT IN ('PENDING', 'RUNNING')) - (OLD.status NOT IN ('PENDING', 'RUNNING'));
END;

CREATE TRIGGER calls_leave AFTER DELETE ON calls BEGIN
    UPDATE totals SET ended = ended - 1;
END;

-- Completed calls that succeeded and whose clients waited, many in one row; they never change (docs/adr/0006-completed-calls-in-batches.md).
CREATE TABLE completed_batches (
    first     INTEGER PRIMARY KEY, -- the lowest number in it
    namespace TEXT NOT NULL,
    function  TEXT NOT NULL, -- the name in lower case
    span      INTEGER NOT NULL, -- the numbers of its calls, divided by the span of a batch
    ended_at  INTEGER NOT NULL, -- of the last of them
    calls     INTEGER NOT NULL,
    records   TEXT NOT NULL -- [EndedCall]
) STRICT;

CREATE INDEX completed_by_span ON completed_batches (namespace, span, first);
CREATE INDEX completed_of_function ON completed_batches (namespace, function, span);
CREATE INDEX completed_ended ON completed_batches (ended_at, calls);

CREATE TRIGGER completed_enter AFTER INSERT ON completed_batches BEGIN
    UPDATE totals SET ended = ended + NEW.calls;
END;

CREATE TRIGGER completed_leave AFTER DELETE ON completed_batches BEGIN
    UPDATE totals SET ended = ended - OLD.calls;
END;

-- What results and logs of a function's ended calls hold, so that those that hold the most are found without a count.
CREATE TABLE kept (
    namespace TEXT NOT NULL,
    function  TEXT NOT NULL,
    bytes     INTEGER NOT NULL,
    PRIMARY KEY (namespace, function)
) STRICT, WITHOUT ROWID;

CREATE INDEX kept_by_bytes ON kept (bytes);

CREATE TRIGGER calls_keep AFTER UPDATE OF kept_bytes ON calls WHEN OLD.kept_bytes <> NEW.kept_bytes BEGIN
    INSERT INTO kept (namespace, function, bytes) VALUES (NEW.namespace, NEW.function, NEW.kept_bytes - OLD.kept_bytes)
        ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes;
END;

CREATE TRIGGER calls_kept_enter AFTER INSERT ON calls WHEN NEW.kept_bytes > 0 BEGIN
    INSERT INTO kept (namespace, function, bytes) VALUES (NEW.namespace, NEW.function, NEW.kept_bytes)
        ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes;
END;

CREATE TRIGGER calls_kept_leave AFTER DELETE ON calls WHEN OLD.kept_bytes > 0 BEGIN
    UPDATE kept SET bytes = bytes - OLD.kept_bytes WHERE namespace = OLD.namespace AND function = OLD.function;
END;

CREATE TRIGGER completed_kept_enter AFTER INSERT ON completed_batches BEGIN
    INSERT INTO kept (namespace, function, bytes) VALUES (NEW.namespace, NEW.function, length(NEW.records))
        ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes;
END;

CREATE TRIGGER completed_kept_leave AFTER DELETE ON completed_batches BEGIN
    UPDATE kept SET bytes = bytes - length(OLD.records) WHERE namespace = OLD.namespace AND function = OLD.function;
END;

-- Calls that were acknowledged and did not succeed.
CREATE TABLE dead_letters (
    num         INTEGER PRIMARY KEY REFERENCES calls (num) ON DELETE CASCADE,
    namespace   TEXT NOT NULL,
    function    TEXT NOT NULL,
    replayed_as INTEGER -- the last call that repeats it
) STRICT;

CREATE INDEX dead_letters_of_function ON dead_letters (namespace, function, num);

-- Calls whose ends are reported to a URL.
CREATE TABLE callbacks (
    num    INTEGER PRIMARY KEY REFERENCES calls (num) ON DELETE CASCADE,
    status TEXT NOT NULL DEFAULT 'WAITING' CHECK (status IN ('WAITING', 'DELIVERED', 'UNDELIVERED')),
    tries  INTEGER NOT NULL DEFAULT 0,
    secret TEXT NOT NULL, -- the function's, as it was when the call ended
    due_at INTEGER NOT NULL,
    error  TEXT -- what went wrong at the last try
) STRICT;

CREATE INDEX callbacks_due ON callbacks (due_at) WHERE status = 'WAITING';

-- What makes the same request the same call.
CREATE TABLE keys (
    namespace  TEXT NOT NULL,
    function   TEXT NOT NULL,
    key        TEXT NOT NULL,
    hash       TEXT NOT NULL, -- of method, path, query, function, version and body
    call       INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, function, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX keys_expiring ON keys (expires_at);
CREATE INDEX keys_of_call ON keys (call);

-- References to blobs; unreferenced ones are removed from the store.
CREATE TABLE blobs (
    key   TEXT NOT NULL,
    owner TEXT NOT NULL, -- call/NAMESPACE/NUM or version/NAMESPACE/FUNCTION/NUMBER
    PRIMARY KEY (key, owner)
) STRICT, WITHOUT ROWID;

CREATE INDEX blobs_of_owner ON blobs (owner);

-- Logs in the blob store that were forgotten and are to be removed from it.
CREATE TABLE released (
    key TEXT PRIMARY KEY,
    at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX released_at ON released (at);
CREATE TABLE access (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    locked INTEGER NOT NULL DEFAULT 0, -- an account was made; never cleared
    setup  TEXT -- the hash of the token that makes the first account
) STRICT;

INSERT INTO access (one) VALUES (1);

CREATE TABLE namespaces (
    name       TEXT PRIMARY KEY, -- in lower case
    created_at INTEGER NOT NULL,
    allow      TEXT NOT NULL, -- what its runtimes may let functions ask for
    quota      TEXT NOT NULL DEFAULT '{}', -- what it may have and do
    deleted    INTEGER NOT NULL DEFAULT 0 -- its name is not used again: calls, lines of the audit and logs have it
, weight INTEGER NOT NULL DEFAULT 1, nodes TEXT) STRICT, WITHOUT ROWID;

CREATE TABLE rules (
    namespace TEXT NOT NULL REFERENCES namespaces (name) ON DELETE CASCADE,
    key       TEXT NOT NULL, -- the id in lower case
    rule      TEXT NOT NULL,
    PRIMARY KEY (namespace, key)
) STRICT, WITHOUT ROWID;

INSERT INTO namespaces (name, created_at, allow) VALUES ('default', 0, '{"egress":true,"minimum":true,"preload":true,"public":true}');
INSERT INTO rules (namespace, key, rule) VALUES ('default', 'default',
    '{"id":"default","scope":"*","resource":{"type":"*","name":"*","endpoint":"*"},"access":"GRANTED","priority":0}');

CREATE TABLE accounts (
    id         TEXT PRIMARY KEY,
    namespace  TEXT NOT NULL REFERENCES namespaces (name) ON DELETE CASCADE,
    key        TEXT NOT NULL, -- the name in lower case
    name       TEXT NOT NULL,
    kind       TEXT NOT NULL,
    scopes     TEXT NOT NULL,
    metadata   TEXT NOT NULL,
    secret     TEXT NOT NULL, -- its hash
    created_at INTEGER NOT NULL,
    UNIQUE (namespace, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
    id       TEXT PRIMARY KEY,
    account  TEXT NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    began_at INTEGER NOT NULL,
    ends_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_of_account ON sessions (account, began_at);
CREATE INDEX sessions_ending ON sessions (ends_at);

CREATE TABLE tokens (
    id         TEXT PRIMARY KEY,
    session    TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    kind       TEXT NOT NULL, -- access or refresh
    hash       TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    successor  TEXT -- of a token that was exchanged: the one that it was exchanged for
) STRICT, WITHOUT ROWID;

CREATE INDEX tokens_of_session ON tokens (session);
CREATE INDEX tokens_expiring ON tokens (expires_at);

CREATE TABLE api_keys (
    id         TEXT PRIMARY KEY,
    account    TEXT NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    key        TEXT NOT NULL, -- the name in lower case
    name       TEXT NOT NULL,
    scopes     TEXT NOT NULL,
    hash       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    used_at    INTEGER,
    UNIQUE (account, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    message   TEXT NOT NULL, -- with its place: a line is appended once
    place     INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    namespace TEXT NOT NULL,
    account   TEXT,
    action    TEXT NOT NULL,
    target    TEXT NOT NULL,
    address   TEXT NOT NULL,
    outcome   INTEGER NOT NULL,
    count     INTEGER NOT NULL,
    UNIQUE (message, place)
) STRICT;

CREATE INDEX audit_of_namespace ON audit (namespace, number);
CREATE INDEX audit_by_age ON audit (at);

-- The leaves of the configuration of each namespace.
CREATE TABLE config (
    namespace TEXT NOT NULL REFERENCES namespaces (name) ON DELETE CASCADE,
    path      TEXT NOT NULL,
    value     TEXT, -- JSON; NULL of a secret
    sealed    BLOB,
    PRIMARY KEY (namespace, path),
    CHECK ((value IS NULL) <> (sealed IS NULL))
) STRICT, WITHOUT ROWID;

-- What was changed of them; the highest number of a namespace is the revision of its configuration.
CREATE TABLE config_changes (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace  TEXT NOT NULL,
    path       TEXT NOT NULL,
    at         INTEGER NOT NULL,
    account    TEXT NOT NULL,
    old        TEXT, -- JSON; NULL where nothing was there, or a secret
    was_secret INTEGER NOT NULL
) STRICT;

CREATE INDEX config_changes_of_namespace ON config_changes (namespace, number);

CREATE INDEX versions_public ON versions (namespace) WHERE manifest ->> 'access' = 'public';

CREATE TABLE providers (
    key        TEXT PRIMARY KEY, -- the name in lower case
    provider   TEXT NOT NULL, -- JSON
    secret     BLOB, -- sealed; NULL of a public client
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- An identity has an account in each namespace that it has signed in to. The secret of such an account is empty: no secret has that hash.
CREATE TABLE identities (
    issuer       TEXT NOT NULL,
    subject      TEXT NOT NULL,
    namespace    TEXT NOT NULL,
    account      TEXT NOT NULL UNIQUE REFERENCES accounts (id) ON DELETE CASCADE,
    provider     TEXT NOT NULL, -- by which it has signed in last
    signed_in_at INTEGER NOT NULL,
    keys_end_at  INTEGER NOT NULL, -- its keys are taken until then; the next sign-in renews it
    PRIMARY KEY (issuer, subject, namespace)
) STRICT, WITHOUT ROWID;

CREATE INDEX identities_of_provider ON identities (provider);

-- What builds of a namespace have taken on a day (days since 1970, UTC).
CREATE TABLE build_time (
    namespace TEXT NOT NULL,
    day       INTEGER NOT NULL,
    ms        INTEGER NOT NULL,
    PRIMARY KEY (namespace, day)
) STRICT, WITHOUT ROWID;

CREATE TABLE nodes (
    key                 TEXT PRIMARY KEY, -- the name in lower case
    name                TEXT NOT NULL,
    labels              TEXT NOT NULL, -- JSON
    cordoned            INTEGER NOT NULL DEFAULT 0,
    cordon_reason       TEXT, -- where the platform itself did that
    draining            INTEGER NOT NULL DEFAULT 0,
    stopped             INTEGER NOT NULL DEFAULT 0,
    incarnation         TEXT NOT NULL DEFAULT '', -- of its last run
    fingerprint         TEXT UNIQUE, -- of its certificate; NULL of a worker on the platform's own machine
    previous            TEXT, -- of the certificate before it
    certificate_ends_at INTEGER,
    joined_at           INTEGER NOT NULL,
    seen_at             INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE node_tokens (
    id         TEXT PRIMARY KEY,
    secret     TEXT NOT NULL, -- SHA-256
    labels     TEXT NOT NULL, -- JSON
    expires_at INTEGER NOT NULL,
    spent_by   TEXT, -- SHA-256 of the key of the node that it was spent for
    spent_for  TEXT -- the name of that node in lower case
) STRICT, WITHOUT ROWID;

CREATE INDEX versions_bound ON versions (namespace) WHERE nodes IS NOT NULL;

-- Images that the platform keeps.
CREATE TABLE images (
    name       TEXT PRIMARY KEY, -- with its tag
    content    TEXT NOT NULL, -- ImageContent
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
