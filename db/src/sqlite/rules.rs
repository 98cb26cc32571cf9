//! The rules of a namespace.

use faena_auth::Rule;
use faena_domain::{FunctionName, Namespace};
use faena_protocol::DbError;
use faena_protocol::db::{NamespaceRules, Put, Resource, RuleDelete, RuleList, RulePut, Seen};
use rusqlite::Connection;

use super::access::namespace_quota;
use super::internal;
use super::requests::{Read, Request, RequestContext, Write, read, write};
use super::rows::{Json, Text, not_found};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[read::<RuleList>(), write::<RulePut>(), write::<RuleDelete>()];

/// The most rules of a namespace.
const MAX_RULES: u64 = 1000;

/// The stored rules of a namespace.
fn rules(connection: &Connection, namespace: &Namespace) -> Result<Vec<Rule>, DbError> {
    connection
        .prepare_cached("SELECT rule FROM rules WHERE namespace = ?1 ORDER BY key")
        .and_then(|mut statement| {
            statement.query_map([namespace.as_str()], |row| Ok(row.get::<_, Json<Rule>>(0)?.0))?.collect()
        })
        .map_err(|error| internal("reading rules", &error))
}

/// The functions whose current version says that everyone may call it.
fn public_functions(connection: &Connection, namespace: &Namespace) -> Result<Vec<FunctionName>, DbError> {
    connection
        .prepare_cached(
            "SELECT f.name FROM versions v JOIN functions f
             ON f.namespace = v.namespace AND f.key = v.function AND f.current = v.version
             WHERE v.namespace = ?1 AND v.manifest ->> 'access' = 'public' ORDER BY f.key",
        )
        .and_then(|mut statement| {
            statement.query_map([namespace.as_str()], |row| Ok(row.get::<_, Text<_>>(0)?.0))?.collect()
        })
        .map_err(|error| internal("looking for public functions", &error))
}

/// Writes a rule; one of the same id is replaced.
pub(super) fn insert_rule(connection: &Connection, namespace: &Namespace, rule: &Rule) -> Result<(), DbError> {
    connection
        .execute(
            "INSERT INTO rules (namespace, key, rule) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET rule = ?3",
            (namespace.as_str(), rule.id.key(), Json(rule)),
        )
        .map(drop)
        .map_err(|error| internal("writing a rule", &error))
}

impl Read for RuleList {
    fn read(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Seen<NamespaceRules>, DbError> {
        let quota = namespace_quota(connection, &self.namespace)?;
        let mut rules = rules(connection, &self.namespace)?;
        rules.extend(public_functions(connection, &self.namespace)?.iter().map(Rule::public));
        Ok(Seen { seen: context.access_seen, record: NamespaceRules { rules, quota } })
    }
}

impl Write for RulePut {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<Put<Rule>, DbError> {
        context.changes_access();
        namespace_quota(connection, &self.namespace)?;
        let rules = rules(connection, &self.namespace)?;
        let is_there = rules.iter().any(|rule| rule.id == self.rule.id);
        if !is_there && rules.len() as u64 >= MAX_RULES {
            let message = format!("the namespace {} has {MAX_RULES} rules, which is the most", self.namespace);
            return Err(DbError::Conflict { message });
        }
        insert_rule(connection, &self.namespace, &self.rule)?;
        Ok(Put { record: self.rule, created: !is_there })
    }
}

impl Write for RuleDelete {
    fn write(self, connection: &Connection, context: &RequestContext<'_>) -> Result<(), DbError> {
        context.changes_access();
        let gone = connection
            .execute("DELETE FROM rules WHERE namespace = ?1 AND key = ?2", (self.namespace.as_str(), self.id.key()))
            .map_err(|error| internal("deleting a rule", &error))?;
        if gone == 0 { Err(not_found(Resource::Rule, &self.id)) } else { Ok(()) }
    }
}
