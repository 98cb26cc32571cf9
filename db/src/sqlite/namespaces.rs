//! Namespaces: what they allow, their quotas and weights, and their end.

use faena_domain::{FunctionId, FunctionName, Namespace, NodeSelector, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::{
    FunctionDelete, NamespaceDelete, NamespaceGet, NamespaceList, NamespacePatch, NamespacePut, Put, Resource,
};
use faena_protocol::records::{NamespaceRecord, StoredUsage};
use rusqlite::{Connection, OptionalExtension, Row};

use super::access::namespace_quota;
use super::clock::day;
use super::providers::remove_mappings;
use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::{Json, Text, not_found};
use super::rules::insert_rule;
use super::{internal, nodes};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[
    write::<NamespacePut>(),
    write::<NamespacePatch>(),
    read::<NamespaceGet>(),
    read::<NamespaceList>(),
    write::<NamespaceDelete>(),
];

/// A namespace, and what it has; its builds are those of the day of an instant.
pub(super) fn namespace(connection: &Connection, name: &Namespace, wall: i64) -> Result<NamespaceRecord, DbError> {
    connection
        .prepare_cached(
            "SELECT name, created_at, allow, quota, weight, (SELECT count(*) FROM functions f WHERE f.namespace = ?1),
                 (SELECT count(*) FROM calls c INDEXED BY calls_leased WHERE c.status = 'RUNNING' AND c.namespace = ?1),
                 (SELECT coalesce(sum(source_bytes), 0) FROM versions v WHERE v.namespace = ?1),
                 (SELECT coalesce(sum(ms), 0) / 60000 FROM build_time b WHERE b.namespace = ?1 AND b.day = ?2), nodes
             FROM namespaces WHERE name = ?1 AND NOT deleted",
        )
        .and_then(|mut statement| {
            let record = |row: &Row<'_>| {
                let (Text(name), Json(allow), Json(quota)) = (row.get(0)?, row.get(2)?, row.get(3)?);
                let usage = StoredUsage {
                    functions: row.get(5)?,
                    queued_calls: row.get(6)?,
                    stored_bytes: row.get(7)?,
                    build_minutes_per_day: row.get(8)?,
                };
                let (created_at, weight) = (Timestamp(row.get(1)?), row.get(4)?);
                let nodes: Option<Json<NodeSelector>> = row.get(9)?;
                let node_selector = nodes.map(|Json(nodes)| nodes).unwrap_or_default();
                Ok(NamespaceRecord { name, created_at, allow, quota, weight, node_selector, usage })
            };
            statement.query_row((name.as_str(), day(wall)), record).optional()
        })
        .map_err(|error| internal("reading a namespace", &error))?
        .ok_or_else(|| not_found(Resource::Namespace, name))
}

impl Write for NamespacePut {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Put<NamespaceRecord>, DbError> {
        context.changes_access();
        let broken = |error| internal("making a namespace", &error);
        let created = connection
            .execute(
                "INSERT INTO namespaces (name, created_at, allow, quota, weight, nodes) VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
                (
                    self.name.as_str(),
                    context.wall,
                    Json(self.allow),
                    Json(self.quota),
                    self.weight,
                    nodes::selector(&self.node_selector),
                ),
            )
            .map_err(broken)?;
        let found = namespace(connection, &self.name, context.wall).map_err(|error| match error {
            DbError::NotFound { .. } => DbError::Conflict {
                message: format!("there was a namespace {}, and names are not used again", self.name),
            },
            error => error,
        })?;
        if created > 0 {
            for rule in faena_auth::RuleSet::beginning().rules() {
                insert_rule(connection, &self.name, rule)?;
            }
        }
        Ok(Put { record: found, created: created > 0 })
    }
}

impl Write for NamespacePatch {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<NamespaceRecord, DbError> {
        let found = namespace(connection, &self.name, context.wall)?;
        let (allow, quota) = (found.allow.changed(self.allow), found.quota.changed(self.quota));
        let weight = self.weight.unwrap_or(found.weight);
        let node_selector = self.node_selector.unwrap_or_else(|| found.node_selector.clone());
        let broken = |error| internal("changing a namespace", &error);
        connection
            .execute(
                "UPDATE namespaces SET allow = ?2, quota = ?3, weight = ?4, nodes = ?5 WHERE name = ?1",
                (self.name.as_str(), Json(allow), Json(quota), weight, nodes::selector(&node_selector)),
            )
            .map_err(broken)?;
        context.changes_access();
        let is_known_by_workers =
            |record: &NamespaceRecord| (record.weight, record.quota.memory_bytes, record.node_selector.clone());
        let changed = NamespaceRecord { allow, quota, weight, node_selector, ..found.clone() };
        if is_known_by_workers(&changed) != is_known_by_workers(&found) {
            // Workers know these by what they run.
            functions_of(connection, &self.name).map_err(broken)?.into_iter().for_each(|function| {
                context.changes_function(function);
            });
        }
        Ok(changed)
    }
}

/// The functions of a namespace.
fn functions_of(connection: &Connection, namespace: &Namespace) -> rusqlite::Result<Vec<FunctionId>> {
    let mut statement = connection.prepare_cached("SELECT name FROM functions WHERE namespace = ?1")?;
    let function = |row: &Row<'_>| Ok(FunctionId::new(namespace, &row.get::<_, Text<FunctionName>>(0)?.0));
    statement.query_map([namespace.as_str()], function)?.collect()
}

impl Read for NamespaceGet {
    fn read(self, connection: &Connection, context: &RequestContext<'_>) -> Result<NamespaceRecord, DbError> {
        namespace(connection, &self.name, context.wall)
    }
}

impl Read for NamespaceList {
    fn read(self, connection: &Connection, _context: &RequestContext<'_>) -> Result<Vec<Namespace>, DbError> {
        connection
            .prepare_cached("SELECT name FROM namespaces WHERE NOT deleted ORDER BY name")
            .and_then(|mut statement| statement.query_map([], |row| Ok(row.get::<_, Text<_>>(0)?.0))?.collect())
            .map_err(|error| internal("listing namespaces", &error))
    }
}

impl Write for NamespaceDelete {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Vec<FunctionName>, DbError> {
        context.changes_access();
        let name = &self.name;
        namespace_quota(connection, name)?;
        if *name == Namespace::default() {
            return Err(DbError::Conflict {
                message: "the namespace default is the platform's own, and stays".to_owned(),
            });
        }
        let deleted = if self.force { delete_content(connection, context, name)? } else { Vec::new() };
        for (what, table) in [
            ("functions", "functions"),
            ("runtimes", "runtimes"),
            ("calls", "calls"),
            ("calls", "completed_batches"),
            ("configuration", "config"),
        ] {
            let held: bool = connection
                .query_row(
                    &format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE namespace = ?1)"),
                    [name.as_str()],
                    |row| row.get(0),
                )
                .map_err(|error| internal("looking into a namespace", &error))?;
            if held && !self.force {
                let message = format!("the namespace {name} still has {what}; it can be deleted once they are gone");
                return Err(DbError::Conflict { message });
            }
        }
        let delete = || -> rusqlite::Result<()> {
            connection.execute("DELETE FROM accounts WHERE namespace = ?1", [name.as_str()])?;
            connection.execute("DELETE FROM rules WHERE namespace = ?1", [name.as_str()])?;
            remove_mappings(connection, name)?;
            connection.execute("UPDATE namespaces SET deleted = 1 WHERE name = ?1", [name.as_str()]).map(drop)
        };
        delete().map(|()| deleted).map_err(|error| internal("deleting a namespace", &error))
    }
}

/// Deletes the functions, runtimes and configuration of a namespace; returns the functions.
fn delete_content(
    connection: &Connection,
    context: &RequestContext<'_>,
    namespace: &Namespace,
) -> Result<Vec<FunctionName>, DbError> {
    let broken = |error| internal("deleting a namespace", &error);
    let functions = functions_of(connection, namespace).map_err(broken)?;
    for function in &functions {
        FunctionDelete { namespace: namespace.clone(), name: function.name.clone() }.write(connection, context)?;
        context.changes_function(function.clone());
    }
    for table in ["runtimes", "runtime_revisions", "config", "config_changes"] {
        connection
            .execute(&format!("DELETE FROM {table} WHERE namespace = ?1"), [namespace.as_str()])
            .map_err(broken)?;
    }
    Ok(functions.into_iter().map(|function| function.name).collect())
}
