-- Nodes, and the tokens that they join by.

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

-- Labels that a node must have (JSON); NULL permits every node.
ALTER TABLE versions ADD COLUMN nodes TEXT;
ALTER TABLE namespaces ADD COLUMN nodes TEXT;

CREATE INDEX versions_bound ON versions (namespace) WHERE nodes IS NOT NULL;
