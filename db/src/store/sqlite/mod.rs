//! SQLite: one thread that writes with group commit, readers beside it.

mod accounts;
mod audit;
mod blobs;
mod builds;
mod callbacks;
mod calls;
mod completed;
mod config;
mod credentials;
mod functions;
mod idempotency_keys;
mod images;
mod migrate;
mod namespaces;
mod nodes;
mod providers;
mod queues;
mod reader;
mod retention;
mod rows;
mod runtimes;
mod tx;
mod writer;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use faena_protocol::db::{AccessSeen, FunctionsSeen};
use faena_protocol::{DbError, Envelope};
use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

pub use migrate::MigrateError;

use super::{Responder, Store};
use crate::StoreSettings;
use crate::changes::ChangeLog;
use crate::clock::{Clock, KernelTime, TimeSource};
use crate::keyring::Keyring;
use crate::metrics::Metrics;
use crate::reserve::{Disk, Reserve};
use crate::rules::{Job, RequestContext, grant_grace, prepare};
use tx::SqliteTx;
use writer::Files;

/// The oldest SQLite that does not corrupt a WAL when a write races a checkpoint (sqlite.org/wal.html, "The WAL-Reset Bug").
const OLDEST_SQLITE: i32 = 3_051_003;
/// Reading connections.
const READERS: usize = 2;
/// How long a connection waits for another's lock.
const BUSY: Duration = Duration::from_secs(5);
/// Pages in the WAL before they are carried over, 16 MB; the same few pages are written again and again, so what is carried
/// over more seldom is less.
const CHECKPOINT_PAGES: u32 = 4000;
/// Compiled statements that a connection keeps: about as many as there are.
const STATEMENTS: usize = 256;
/// The WAL is truncated above this.
const WAL_LIMIT: u64 = 64 * 1024 * 1024;

/// Why the database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The SQLite we are linked with is too old to be trusted.
    #[error(
        "SQLite {0} is older than 3.51.3, which repaired a corruption of the write-ahead log; build with the bundled one"
    )]
    TooOld(&'static str),
    /// The file cannot be opened or configured.
    #[error("cannot open the database {path}")]
    Open {
        /// Where.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The schema cannot be brought up to date.
    #[error("cannot migrate the database {path}")]
    Migrate {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: MigrateError,
    },
    /// The leases cannot be granted again.
    #[error("cannot use the database {path}: {source}")]
    Leases {
        /// Where.
        path: PathBuf,
        /// What the database said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The keys of secrets cannot be read or made.
    #[error("cannot use the keys of secrets in {path}: {source}")]
    Keys {
        /// Where.
        path: PathBuf,
        /// What is wrong with them.
        #[source]
        source: std::io::Error,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// The embedded database. Dropping it finishes what was submitted.
#[derive(Debug)]
pub struct SqliteStore {
    writer: writer::Writer,
    readers: reader::Readers,
    metrics: Metrics,
    shared: Arc<Shared>,
}

impl SqliteStore {
    /// Opens or makes the database file, and brings its schema up to date. Secrets are sealed under the keys in a file of their
    /// own, which is made where it is not there.
    ///
    /// # Errors
    /// [`OpenError`]; a database of a newer Faena is refused untouched.
    pub fn open(path: &Path, keys: &Path, settings: StoreSettings, metrics: &Metrics) -> Result<Self, OpenError> {
        Self::open_with(path, keys, settings, Arc::new(KernelTime), metrics)
    }

    /// Opens it under a clock of one's own.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn open_with(
        path: &Path,
        keys: &Path,
        settings: StoreSettings,
        time: Arc<dyn TimeSource>,
        metrics: &Metrics,
    ) -> Result<Self, OpenError> {
        if rusqlite::version_number() < OLDEST_SQLITE {
            return Err(OpenError::TooOld(rusqlite::version()));
        }
        let open = |source| OpenError::Open { path: path.to_owned(), source };
        let mut connection = connect(path, OpenFlags::default()).map_err(open)?;
        migrate::migrate(&mut connection).map_err(|source| OpenError::Migrate { path: path.to_owned(), source })?;
        let unusable = |source| OpenError::Keys { path: keys.to_owned(), source };
        // A new key would open none of the secrets that are there.
        if has_secrets(&connection).map_err(open)? && !keys.exists() {
            let missing = "it is not there, and the database has secrets that were sealed under keys in it; \
                           put it back, or make an empty file to go on without these secrets";
            return Err(unusable(std::io::Error::other(missing)));
        }
        let keyring = Keyring::open(keys).map_err(unusable)?;
        let clock = Clock::start(stored_clock(&connection).map_err(open)?, time);
        let granted = grant_grace(&SqliteTx { connection: &connection }, clock.now());
        granted.map_err(|source| OpenError::Leases { path: path.to_owned(), source: source.into() })?;
        let mut reserve = Reserve::beside(path, settings.disk_reserve.0);
        let disk = Mutex::new(reserve.look());
        let changes = ChangeLog::beginning_at(clock.now());
        let access = AtomicU64::new(u64::try_from(clock.now()).unwrap_or(0) * 1000);
        let shared = Arc::new(Shared { clock, settings, disk, changes, keyring, access });
        let readers = (0..READERS)
            .map(|_| connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX))
            .collect::<Result<Vec<_>, _>>()
            .map_err(open)?;
        let files = Files { wal: PathBuf::from(format!("{}-wal", path.display())), reserve };
        Ok(Self {
            writer: writer::Writer::start(connection, Arc::clone(&shared), files, metrics.clone())
                .map_err(OpenError::Thread)?,
            readers: reader::Readers::start(readers, &shared).map_err(OpenError::Thread)?,
            metrics: metrics.clone(),
            shared,
        })
    }
}

/// Writes a whole and consistent copy of a database, which other processes may be using, to a new file
/// (sqlite.org/lang_vacuum.html, `VACUUM INTO`).
///
/// # Errors
/// A database that cannot be read, or a file that is there already or cannot be written.
pub fn backup(from: &Path, to: &Path) -> Result<(), OpenError> {
    let open = |source| OpenError::Open { path: from.to_owned(), source };
    let connection =
        Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(open)?;
    connection.busy_timeout(BUSY).map_err(open)?;
    connection.execute("VACUUM INTO ?1", [to.display().to_string()]).map(drop).map_err(open)
}

/// What the writing thread and the reading ones know together.
#[derive(Debug)]
pub(crate) struct Shared {
    clock: Clock,
    settings: StoreSettings,
    /// How much room the disk had when it was looked at last.
    disk: Mutex<Disk>,
    /// What calls run, and when that changed.
    changes: ChangeLog,
    keyring: Keyring,
    /// See [`AccessSeen`]. It begins with db time in milliseconds times a thousand: a database that was away has not seen less
    /// than before.
    access: AtomicU64,
}

impl Shared {
    fn set_disk(&self, disk: Disk) {
        *self.disk.lock() = disk;
    }

    fn context(&self) -> RequestContext<'_> {
        RequestContext {
            now: self.clock.now(),
            wall: self.clock.wall(),
            disk: *self.disk.lock(),
            clock_step_ms: self.clock.wall_step_ms(),
            settings: &self.settings,
            changes: &self.changes,
            access_seen: AccessSeen(self.access.load(Ordering::SeqCst)),
            access_changes: Cell::new(false),
            changed: RefCell::default(),
            keyring: &self.keyring,
        }
    }
}

/// Db time when the database was last at work.
fn stored_clock(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    connection.query_row("SELECT value FROM meta WHERE key = ?1", [tx::CLOCK], |row| row.get(0)).optional()
}

/// Whether a secret is kept that only an administrator can put again.
fn has_secrets(connection: &Connection) -> rusqlite::Result<bool> {
    const KEPT: &str = "SELECT EXISTS (SELECT 1 FROM config WHERE sealed IS NOT NULL)
                             OR EXISTS (SELECT 1 FROM providers WHERE secret IS NOT NULL)";
    connection.query_row(KEPT, [], |row| row.get(0))
}

fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, flags)?;
    // The busy timeout comes first: changing the journal mode takes a lock.
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "cache_size", -4000)?;
    // What a savepoint needs to go back lies in memory, not in a file beside.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // A plan depends on the statement alone. Otherwise one whose parameters might choose a partial index is compiled again
    // each time that they are bound, which costs more than most statements themselves.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    if !flags.contains(OpenFlags::SQLITE_OPEN_READ_ONLY) {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", i64::try_from(WAL_LIMIT).unwrap_or(i64::MAX))?;
    }
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

impl Store for SqliteStore {
    fn submit(&self, request: &Envelope, respond: Responder) {
        let refused = match prepare(request) {
            Ok(Job::Write { work, changes }) => {
                self.metrics.writes.inc();
                self.writer.submit(writer::Task { work, changes, respond }).err().map(|task| task.respond)
            }
            Ok(Job::Read(read)) => {
                self.metrics.reads.inc();
                self.readers.submit((read, respond)).err().map(|(_, respond)| respond)
            }
            Err(error) => return respond(Err(DbError::Invalid { message: error.to_string() })),
        };
        if let Some(respond) = refused {
            tracing::warn!(request = request.msg_type, "a queue of the database is full");
            respond(Err(DbError::Full));
        }
    }

    fn functions_seen(&self) -> FunctionsSeen {
        self.shared.changes.seen()
    }
}

/// What SQLite said, as the asker learns it; details stay in the log.
fn internal(doing: &str, error: &rusqlite::Error) -> DbError {
    tracing::error!(%error, doing, "the database failed");
    DbError::Internal { message: doing.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cargo reads `.cargo/config.toml` only for builds within the tree, and another `LIBSQLITE3_FLAGS` goes before it.
    #[test]
    fn sqlite_is_compiled_as_the_tree_says() {
        let connection = Connection::open_in_memory().unwrap();
        let mut statement = connection.prepare("PRAGMA compile_options").unwrap();
        let options = statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<Vec<String>, _>>().unwrap();
        assert!(options.contains(&"DEFAULT_MEMSTATUS=0".to_owned()), "{options:?}");
    }
}
