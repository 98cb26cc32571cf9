//! Nodes: who may be one, what an administrator says of them, and when they were seen.

use faena_domain::{Labels, NodeName, NodeSelector, Owner, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::{
    NodeChange, NodeDelete, NodeJoin, NodeList, NodeRenew, NodeTokenMake, NodesConnected, NodesSeen, Resource,
    WorkerStopped,
};
use faena_protocol::records::{NodeCertificate, NodeRecord};
use rusqlite::{Connection, OptionalExtension, Row};
use subtle::ConstantTimeEq;

use super::internal;
use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::{Json, Text, not_found};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[
    write::<NodeTokenMake>(),
    write::<NodeJoin>(),
    write::<NodeRenew>(),
    read::<NodeList>(),
    write::<NodeChange>(),
    write::<NodeDelete>(),
    write::<NodesConnected>(),
    write::<WorkerStopped>(),
];

/// The most tokens that wait for their nodes.
const MAX_TOKENS: u64 = 1000;
/// The most nodes.
const MAX_NODES: u64 = 10_000;
/// How long a token is remembered that is spent or has expired, so that a machine is told so: a week.
const REMEMBERED_MS: i64 = 7 * 24 * 3600 * 1000;
/// Under which key of `meta` the changes are counted.
const CHANGES: &str = "nodes";

const NODE: &str = "name, labels, cordoned, cordon_reason, draining, stopped, fingerprint, previous, certificate_ends_at, joined_at, seen_at, incarnation";

fn record(row: &Row<'_>) -> rusqlite::Result<NodeRecord> {
    let (fingerprint, previous): (Option<Text<_>>, Option<Text<_>>) = (row.get(6)?, row.get(7)?);
    let ends_at: Option<i64> = row.get(8)?;
    let certificate = fingerprint.zip(ends_at).map(|(Text(fingerprint), ends_at)| NodeCertificate {
        fingerprint,
        previous: previous.map(|Text(previous)| previous),
        ends_at: Timestamp(ends_at),
    });
    Ok(NodeRecord {
        name: row.get::<_, Text<_>>(0)?.0,
        labels: row.get::<_, Json<_>>(1)?.0,
        is_cordoned: row.get(2)?,
        cordon_reason: row.get(3)?,
        is_draining: row.get(4)?,
        is_stopped: row.get(5)?,
        incarnation: row.get(11)?,
        certificate,
        joined_at: Timestamp(row.get(9)?),
        seen_at: Timestamp(row.get(10)?),
    })
}

fn node(connection: &Connection, name: &NodeName) -> Result<NodeRecord, DbError> {
    connection
        .prepare_cached(&format!("SELECT {NODE} FROM nodes WHERE key = ?1"))
        .and_then(|mut statement| statement.query_row([name.key()], record).optional())
        .map_err(|error| internal("reading a node", &error))?
        .ok_or_else(|| not_found(Resource::Node, name.as_str()))
}

/// Counts a change that api processes have to hear of.
fn count_change(connection: &Connection) -> rusqlite::Result<()> {
    connection
        .execute(
            "INSERT INTO meta (key, value) VALUES (?1, 1) ON CONFLICT (key) DO UPDATE SET value = value + 1",
            [CHANGES],
        )
        .map(drop)
}

impl Write for NodeTokenMake {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        let broken = |error| internal("keeping a token of a node", &error);
        connection
            .execute("DELETE FROM node_tokens WHERE expires_at < ?1", [context.wall - REMEMBERED_MS])
            .map_err(broken)?;
        let waiting: u64 = connection
            .query_row(
                "SELECT count(*) FROM node_tokens WHERE spent_by IS NULL AND expires_at > ?1 AND id <> ?2",
                (context.wall, &self.token.id),
                |row| row.get(0),
            )
            .map_err(broken)?;
        if waiting >= MAX_TOKENS {
            let message = format!("{MAX_TOKENS} tokens wait for their nodes already, which is the most");
            return Err(DbError::TooMuch { message });
        }
        let token = &self.token;
        connection
            .execute(
                "INSERT INTO node_tokens (id, secret, labels, expires_at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
                (&token.id, &token.secret_sha256, Json(&token.labels), token.expires_at.0),
            )
            .map(drop)
            .map_err(broken)
    }
}

/// The labels of a token that who joins may spend, and whether it was spent for them already.
fn admitted(join: &NodeJoin, connection: &Connection, wall: i64) -> Result<(String, bool), DbError> {
    type Found = (String, String, i64, Option<(String, String)>);
    let found: Option<Found> = connection
        .query_row(
            "SELECT secret, labels, expires_at, spent_by, spent_for FROM node_tokens WHERE id = ?1",
            [&join.token],
            |row| {
                let (by, of): (Option<String>, Option<String>) = (row.get(3)?, row.get(4)?);
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, by.zip(of)))
            },
        )
        .optional()
        .map_err(|error| internal("reading a token of a node", &error))?;
    let refused = |message: &str| Err(DbError::NotAdmitted { message: message.to_owned() });
    let found = found.filter(|(secret, ..)| bool::from(secret.as_bytes().ct_eq(join.secret_sha256.as_bytes())));
    let Some((_, labels, expires_at, spent_by)) = found else {
        return refused("the platform does not know this token; make one with `faena node token`");
    };
    match spent_by {
        Some((by, of)) if by == join.key.to_string() && of == join.name.key() && expires_at > wall => {
            Ok((labels, true))
        }
        Some(_) => refused("this token was used already: each is for one node; make another with `faena node token`"),
        None if expires_at <= wall => refused("this token has expired; make another with `faena node token`"),
        None => Ok((labels, false)),
    }
}

impl Write for NodeJoin {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<NodeRecord, DbError> {
        let broken = |error| internal("taking a node in", &error);
        let (labels, is_spent) = admitted(&self, connection, context.wall)?;
        let fingerprint = self.fingerprint.to_string();
        let nodes: u64 = connection.query_row("SELECT count(*) FROM nodes", [], |row| row.get(0)).map_err(broken)?;
        if nodes >= MAX_NODES {
            return Err(DbError::NotAdmitted { message: format!("there are {MAX_NODES} nodes, which is the most") });
        }
        // Whose reply was lost is there already, unless it was removed meanwhile.
        let taken_in = if is_spent {
            "UPDATE nodes SET name = ?2, labels = ?3, fingerprint = ?4, certificate_ends_at = ?5, joined_at = ?6
             WHERE key = ?1 AND incarnation = ''"
        } else {
            "INSERT INTO nodes (key, name, labels, fingerprint, certificate_ends_at, joined_at, seen_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6) ON CONFLICT DO NOTHING"
        };
        let is_taken_in = connection
            .execute(
                taken_in,
                (self.name.key(), self.name.as_str(), labels, &fingerprint, self.ends_at.0, context.wall),
            )
            .map_err(broken)?;
        if is_taken_in == 0 {
            let message = if is_spent {
                "this token was used already: each is for one node; make another with `faena node token`".to_owned()
            } else {
                let found = node(connection, &self.name)?.name;
                format!(
                    "there is a node {found} already; choose another name with --name, or remove that node first (`faena node rm {found}`)"
                )
            };
            return Err(DbError::NotAdmitted { message });
        }
        connection
            .execute(
                "UPDATE node_tokens SET spent_by = ?2, spent_for = ?3 WHERE id = ?1",
                (&self.token, self.key.to_string(), self.name.key()),
            )
            .map_err(broken)?;
        count_change(connection).map_err(broken)?;
        node(connection, &self.name)
    }
}

impl Write for NodeRenew {
    fn write(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<(), DbError> {
        let broken = |error| internal("renewing the certificate of a node", &error);
        let (from, to) = (self.from.to_string(), self.to.to_string());
        let renewed = connection
            .execute(
                "UPDATE nodes SET fingerprint = ?3, previous = ?2, certificate_ends_at = ?4
                 WHERE key = ?1 AND (fingerprint IN (?2, ?3) OR previous = ?2)",
                (self.name.key(), from, to, self.ends_at.0),
            )
            .map_err(broken)?;
        if renewed == 0 {
            let message = format!("the certificate of the node {} is not taken any longer", self.name);
            return Err(DbError::NotAdmitted { message });
        }
        count_change(connection).map_err(broken)
    }
}

impl Read for NodeList {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<NodesSeen, DbError> {
        let list = || -> rusqlite::Result<NodesSeen> {
            let changes: Option<u64> = connection
                .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
                .query_row([CHANGES], |row| row.get(0))
                .optional()?;
            // 0 is what an asker says that has seen nothing.
            let changes = changes.unwrap_or(0) + 1;
            if changes == self.since {
                return Ok(NodesSeen { changes, nodes: None });
            }
            let mut statement = connection.prepare_cached(&format!("SELECT {NODE} FROM nodes ORDER BY key"))?;
            let nodes = statement.query_map([], record)?.collect::<rusqlite::Result<_>>()?;
            Ok(NodesSeen { changes, nodes: Some(nodes) })
        };
        list().map_err(|error| internal("listing nodes", &error))
    }
}

impl Write for NodeChange {
    fn write(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<NodeRecord, DbError> {
        let broken = |error| internal("changing a node", &error);
        node(connection, &self.name)?;
        let key = self.name.key();
        if let Some(cordon) = self.cordon {
            connection
                .execute(
                    "UPDATE nodes SET cordoned = ?2, cordon_reason = ?3 WHERE key = ?1",
                    (&key, cordon.is_on, cordon.reason),
                )
                .map_err(broken)?;
        }
        if let Some(drain) = self.drain {
            connection.execute("UPDATE nodes SET draining = ?2 WHERE key = ?1", (&key, drain)).map_err(broken)?;
        }
        if let Some(labels) = self.labels {
            connection.execute("UPDATE nodes SET labels = ?2 WHERE key = ?1", (&key, Json(labels))).map_err(broken)?;
        }
        count_change(connection).map_err(broken)?;
        node(connection, &self.name)
    }
}

impl Write for NodeDelete {
    fn write(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<(), DbError> {
        let broken = |error| internal("forgetting a node", &error);
        let deleted = connection.execute("DELETE FROM nodes WHERE key = ?1", [self.name.key()]).map_err(broken)?;
        if deleted == 0 {
            return Err(not_found(Resource::Node, self.name.as_str()));
        }
        // The node cannot join again with the token that it has spent.
        connection.execute("DELETE FROM node_tokens WHERE spent_for = ?1", [self.name.key()]).map_err(broken)?;
        count_change(connection).map_err(broken)
    }
}

impl Write for NodesConnected {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        let broken = |error| internal("seeing nodes", &error);
        let mut statement =
            connection.prepare_cached("UPDATE nodes SET seen_at = ?2 WHERE key = ?1").map_err(broken)?;
        for name in &self.names {
            statement.execute((name.key(), context.wall)).map_err(broken)?;
        }
        Ok(())
    }
}

impl Write for WorkerStopped {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        let broken = |error| internal("a worker stops", &error);
        let stopped = connection
            .execute(
                "UPDATE nodes SET stopped = 1, seen_at = ?3 WHERE key = ?1 AND incarnation = ?2",
                (self.owner.worker.to_ascii_lowercase(), &self.owner.incarnation, context.wall),
            )
            .map_err(broken)?;
        if stopped > 0 { count_change(connection).map_err(broken) } else { Ok(()) }
    }
}

/// The labels of the node of a worker; none where there is no such node.
pub(super) fn labels_of(connection: &Connection, owner: &Owner) -> Result<Labels, DbError> {
    let found: Option<Json<Labels>> = connection
        .prepare_cached("SELECT labels FROM nodes WHERE key = ?1")
        .and_then(|mut statement| statement.query_row([owner.worker.to_ascii_lowercase()], |row| row.get(0)).optional())
        .map_err(|error| internal("reading the labels of a node", &error))?;
    Ok(found.map(|Json(labels)| labels).unwrap_or_default())
}

/// A selector as its column has it: NULL permits every node.
pub(super) fn selector(selector: &NodeSelector) -> Option<Json<&NodeSelector>> {
    (!selector.is_empty()).then_some(Json(selector))
}

/// Whether any version or namespace is bound to nodes; while none is, no claim has to look.
pub(super) fn are_any_bound(connection: &Connection) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM versions WHERE nodes IS NOT NULL)
                 OR EXISTS (SELECT 1 FROM namespaces WHERE nodes IS NOT NULL AND NOT deleted)",
        )?
        .query_row([], |row| row.get(0))
}

/// A condition of SQL: a node whose labels are this parameter is permitted by the selector in this column.
pub(super) fn permits(column: &str, labels: &str) -> String {
    format!(
        "({column} IS NULL OR NOT EXISTS (SELECT 1 FROM json_each({column}) asked
             LEFT JOIN json_each({labels}) had ON had.key = asked.key WHERE had.value IS NOT asked.value))"
    )
}

/// Records that a run of a worker begins. Its node takes work unless it is cordoned.
///
/// # Errors
/// The node joined by a token and was removed: its row is not inserted again.
pub(super) fn begin_run(connection: &Connection, owner: &Owner, is_member: bool, wall: i64) -> Result<(), DbError> {
    let broken = |error| internal("a worker joins", &error);
    let key = owner.worker.to_ascii_lowercase();
    let is_there: bool = connection
        .query_row("SELECT EXISTS (SELECT 1 FROM nodes WHERE key = ?1)", [&key], |row| row.get(0))
        .map_err(broken)?;
    if is_member && !is_there {
        let message = format!("the node {} was removed from the platform", owner.worker);
        return Err(DbError::NotAdmitted { message });
    }
    connection
        .execute(
            "INSERT INTO nodes (key, name, labels, incarnation, joined_at, seen_at) VALUES (?1, ?2, '{}', ?3, ?4, ?4)
             ON CONFLICT DO UPDATE SET incarnation = ?3, stopped = 0, draining = 0, seen_at = ?4",
            (key, &owner.worker, &owner.incarnation, wall),
        )
        .map_err(broken)?;
    count_change(connection).map_err(broken)
}
