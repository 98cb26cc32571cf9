-- Identity providers and who has signed in with them; weights and usage of namespaces.

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

ALTER TABLE namespaces ADD COLUMN weight INTEGER NOT NULL DEFAULT 1; -- its part of what is scarce

-- What builds of a namespace have taken on a day (days since 1970, UTC).
CREATE TABLE build_time (
    namespace TEXT NOT NULL,
    day       INTEGER NOT NULL,
    ms        INTEGER NOT NULL,
    PRIMARY KEY (namespace, day)
) STRICT, WITHOUT ROWID;

ALTER TABLE versions ADD COLUMN building_since INTEGER; -- while it is built

-- Claims look for the queues of one namespace after the other.
DROP INDEX function_queues_by_turn;
CREATE INDEX function_queues_by_turn ON function_queues (namespace, turn) WHERE due > 0;
