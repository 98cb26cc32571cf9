//! Numbered migrations, each in one transaction; `PRAGMA user_version` counts them.

use rusqlite::{Connection, TransactionBehavior};

const MIGRATIONS: [&str; 5] = [
    include_str!("../../../migrations/0001_first.sql"),
    include_str!("../../../migrations/0002_accounts.sql"),
    include_str!("../../../migrations/0003_teams.sql"),
    include_str!("../../../migrations/0004_nodes.sql"),
    include_str!("../../../migrations/0005_images.sql"),
];

/// Why the schema cannot be brought up to date. The database is as it was.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A newer Faena wrote it.
    #[error(
        "its schema is version {found}, this Faena knows up to {known}; start the newer Faena again, or restore a backup"
    )]
    Newer {
        /// What the file says.
        found: usize,
        /// What we know.
        known: usize,
    },
    /// Somebody else wrote it, or has changed it.
    #[error(
        "its tables are not those of a Faena with schema version {found}: a Faena before its release wrote it, or somebody changed it; \
         start the Faena that wrote it, or move the data folder away and start with an empty one"
    )]
    Foreign {
        /// What the file says.
        found: usize,
    },
    /// A migration failed.
    #[error("migration {number} failed")]
    Failed {
        /// Which.
        number: usize,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The version cannot be read.
    #[error("cannot read the schema's version")]
    Version(#[source] rusqlite::Error),
}

/// Runs the migrations that the file has not had.
pub(crate) fn migrate(connection: &mut Connection) -> Result<(), MigrateError> {
    migrate_with(connection, &MIGRATIONS)
}

fn migrate_with(connection: &mut Connection, migrations: &[&str]) -> Result<(), MigrateError> {
    let found: usize =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(MigrateError::Version)?;
    if found > migrations.len() {
        return Err(MigrateError::Newer { found, known: migrations.len() });
    }
    if found > 0 && !is_ours(connection, &migrations[..found]).map_err(MigrateError::Version)? {
        return Err(MigrateError::Foreign { found });
    }
    for (number, sql) in migrations.iter().enumerate().skip(found).map(|(index, sql)| (index + 1, sql)) {
        let run = |connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(sql)?;
            transaction.pragma_update(None, "user_version", number)?;
            transaction.commit()
        };
        run(connection).map_err(|source| MigrateError::Failed { number, source })?;
    }
    Ok(())
}

/// Whether the tables are those that these migrations make. Statements rely on triggers and indexes that are not in their
/// text; with others they would count wrong without a word.
fn is_ours(connection: &Connection, migrations: &[&str]) -> rusqlite::Result<bool> {
    let like = Connection::open_in_memory()?;
    migrations.iter().try_for_each(|sql| like.execute_batch(sql))?;
    Ok(schema(connection)? == schema(&like)?)
}

/// The names and statements of all tables, indexes and triggers.
fn schema(connection: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    let mut statement = connection.prepare(
        "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY name",
    )?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migrated() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        connection
    }

    #[test]
    fn the_schema_file_equals_the_sum_of_the_migrations() {
        let whole = Connection::open_in_memory().unwrap();
        whole.execute_batch(include_str!("../../../schema.sql")).unwrap();
        assert_eq!(schema(&whole).unwrap(), schema(&migrated()).unwrap());
    }

    #[test]
    fn a_second_start_changes_nothing() {
        let mut connection = migrated();
        let before = schema(&connection).unwrap();
        migrate(&mut connection).unwrap();
        assert_eq!(schema(&connection).unwrap(), before);
    }

    #[test]
    fn a_newer_database_is_refused() {
        let mut connection = migrated();
        connection.pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(migrate(&mut connection), Err(MigrateError::Newer { found: 99, .. })));
    }

    #[test]
    fn a_database_with_other_tables_is_refused() {
        let mut connection = migrated();
        connection.execute_batch("DROP INDEX calls_waiting").unwrap();
        let before = schema(&connection).unwrap();
        assert!(matches!(migrate(&mut connection), Err(MigrateError::Foreign { found }) if found == MIGRATIONS.len()));
        assert_eq!(schema(&connection).unwrap(), before);
    }

    #[test]
    fn a_migration_that_fails_leaves_everything_as_it_was() {
        let mut connection = migrated();
        let before = schema(&connection).unwrap();
        let broken = [&MIGRATIONS[..], &["CREATE TABLE new (a INTEGER); SELECT nonsense FROM nowhere;"]].concat();
        let number = broken.len();
        let failed = migrate_with(&mut connection, &broken);
        assert!(matches!(failed, Err(MigrateError::Failed { number: found, .. }) if found == number));
        assert_eq!(schema(&connection).unwrap(), before);
    }
}
