//! Numbers for calls, taken from db in blocks; what is left of a block at a stop is a gap.

use faena_db_client::DbClient;
use faena_domain::CallNum;
use faena_protocol::DbError;
use faena_protocol::db::CallNumReserve;
use tokio::sync::Mutex;

/// How many are taken at once.
const BLOCK: u32 = 256;

/// Gives out each number once.
#[derive(Debug)]
pub(crate) struct Numbers {
    db: DbClient,
    /// The next number, and the end of the block.
    block: Mutex<(i64, i64)>,
}

impl Numbers {
    pub(crate) fn new(db: DbClient) -> Self {
        Self { db, block: Mutex::new((0, 0)) }
    }

    /// A number that nobody has.
    pub(crate) async fn next(&self) -> Result<CallNum, DbError> {
        let mut block = self.block.lock().await;
        if block.0 == block.1 {
            let first = self.db.ask(&CallNumReserve { count: BLOCK }).await?.0;
            *block = (first, first + i64::from(BLOCK));
        }
        block.0 += 1;
        Ok(CallNum(block.0 - 1))
    }
}
