-- Namespaces, accounts, credentials, rules and the audit. What was there before belongs to the namespace `default`.

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
) STRICT, WITHOUT ROWID;

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
