//! The audit log. A change is one line, which is written before the reply. Refusals are counted: one line for each minute,
//! account, address and operation.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;

use axum::http::Method;
use faena_auth::{Account, Principal};
use faena_db_client::DbClient;
use faena_domain::{Namespace, Timestamp};
use faena_protocol::DbError;
use faena_protocol::db::AuditAppend;
use faena_protocol::records::AuditRecord;
use faena_scheduler::unix_ms;
use parking_lot::Mutex;
use tracing::error;

/// Refusals are counted over this, in milliseconds.
const MINUTE: i64 = 60_000;
/// Different refusals of a minute that are told apart.
const KINDS: usize = 1000;
/// Stands for what is beyond them.
const OTHERS: &str = "others";
/// The longest name of a thing, in characters.
const TARGET: usize = 200;
/// Lines of one message.
const LINES: usize = 100;

/// What a handler adds to the line of its request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Audited {
    /// The account, where the request proves it and no credential does: it signs in.
    pub(crate) account: Option<String>,
    /// The thing, where the path does not name it.
    pub(crate) target: Option<String>,
    /// The namespace that it concerns, where that is not the principal's.
    pub(crate) namespace: Option<Namespace>,
}

/// What refusals are counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    minute: i64,
    namespace: Namespace,
    account: Option<String>,
    action: String,
    address: String,
    outcome: u16,
}

/// Writes the audit log.
#[derive(Debug)]
pub(crate) struct Audit {
    db: DbClient,
    /// Where each line is written too, before the database has it.
    file: Option<Arc<Mutex<File>>>,
    refusals: Mutex<HashMap<Kind, u64>>,
}

/// One request, as the audit log tells it.
#[derive(Clone, Debug)]
pub(crate) struct AuditEntry {
    pub(crate) namespace: Namespace,
    pub(crate) account: Option<String>,
    pub(crate) action: String,
    pub(crate) target: String,
    pub(crate) address: IpAddr,
    pub(crate) outcome: u16,
}

impl AuditEntry {
    /// That of a principal, before the outcome is known. Who sends no credential may name any namespace, and is recorded in
    /// the root namespace.
    pub(crate) fn of(principal: &Principal, (method, route): (&Method, &str), target: &str, address: IpAddr) -> Self {
        const KNOWN: [Method; 7] =
            [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
        let (namespace, account) = match &principal.account {
            Account::Anonymous => (Namespace::default(), None),
            account => (principal.namespace.clone(), Some(account.to_string())),
        };
        let method = if KNOWN.contains(method) { method.as_str() } else { "OTHER" };
        let target = target.chars().take(TARGET).collect();
        Self { namespace, account, action: format!("{method} {route}"), target, address, outcome: 0 }
    }
}

impl Audit {
    pub(super) fn new(db: DbClient, file: Option<File>) -> Self {
        Self { db, file: file.map(|file| Arc::new(Mutex::new(file))), refusals: Mutex::default() }
    }

    /// Writes lines to the file, one document in each; all of one message in one write, so that none is torn.
    async fn write(&self, lines: &[AuditRecord]) {
        let Some(file) = self.file.clone() else { return };
        let text: String =
            lines.iter().filter_map(|line| serde_json::to_string(line).ok()).map(|line| line + "\n").collect();
        let written = tokio::task::spawn_blocking(move || file.lock().write_all(text.as_bytes())).await;
        if let Err(error) | Ok(Err(error)) = written.map_err(std::io::Error::other) {
            error!(%error, "the audit file cannot be written");
        }
    }

    async fn append(&self, lines: Vec<AuditRecord>) -> Result<(), DbError> {
        self.write(&lines).await;
        let id = uuid::Uuid::new_v4().simple().to_string();
        self.db.ask(&AuditAppend { id, lines }).await
    }

    /// Records a change; its reply waits for this.
    pub(crate) async fn changed(&self, entry: AuditEntry) -> Result<(), DbError> {
        let AuditEntry { namespace, account, action, target, address, outcome } = entry;
        let (at, address) = (Timestamp(unix_ms()), address.to_string());
        self.append(vec![AuditRecord { at, namespace, account, action, target, address, outcome, count: 1 }]).await
    }

    /// Counts a refusal: 401, 403 or 429. Other outcomes are ignored.
    pub(crate) fn refused(&self, entry: AuditEntry) {
        if !matches!(entry.outcome, 401 | 403 | 429) {
            return;
        }
        let AuditEntry { namespace, account, action, address, outcome, .. } = entry;
        let minute = unix_ms() / MINUTE;
        let mut kind = Kind { minute, namespace, account, action, address: address.to_string(), outcome };
        let mut refusals = self.refusals.lock();
        if refusals.len() >= KINDS && !refusals.contains_key(&kind) {
            (kind.account, kind.address, kind.action) = (None, OTHERS.to_owned(), OTHERS.to_owned());
            kind.namespace = Namespace::default();
        }
        *refusals.entry(kind).or_default() += 1;
    }

    /// Writes the refusals of minutes that are over.
    pub(super) async fn flush_old(&self) -> Result<(), DbError> {
        self.flush(unix_ms() / MINUTE).await
    }

    /// Writes all refusals, for who reads the audit log now.
    pub(crate) async fn flush_all(&self) -> Result<(), DbError> {
        self.flush(i64::MAX).await
    }

    async fn flush(&self, before: i64) -> Result<(), DbError> {
        let old: Vec<(Kind, u64)> = self.refusals.lock().extract_if(|kind, _| kind.minute < before).collect();
        if old.is_empty() {
            return Ok(());
        }
        let line = |(kind, count): &(Kind, u64)| AuditRecord {
            at: Timestamp(kind.minute * MINUTE),
            namespace: kind.namespace.clone(),
            account: kind.account.clone(),
            action: kind.action.clone(),
            target: String::new(),
            address: kind.address.clone(),
            outcome: kind.outcome,
            count: *count,
        };
        for (at, part) in old.chunks(LINES).enumerate() {
            if let Err(error) = self.append(part.iter().map(line).collect()).await {
                let mut refusals = self.refusals.lock();
                let unwritten = old[at * LINES..].iter().cloned();
                unwritten.for_each(|(kind, count)| *refusals.entry(kind).or_default() += count);
                return Err(error);
            }
        }
        Ok(())
    }
}
