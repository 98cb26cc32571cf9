//! Numbers for calls, reserved in db in blocks. Numbers that a stop leaves unused are skipped.

use std::time::{Duration, Instant};

use faena_db_client::{DEADLINE, DbClient};
use faena_domain::CallNum;
use faena_protocol::DbError;
use faena_protocol::db::CallNumReserve;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// The fewest and the most that are taken at once. Taking them is a commit, for which every call of that moment waits.
const LEAST: u32 = 256;
const MOST: u32 = 4096;
/// A block that does not last as long is followed by one of twice its size, any other by one of half.
const LASTS: Duration = Duration::from_secs(1);

/// Gives out each number once.
#[derive(Debug)]
pub(crate) struct CallIdAllocator {
    db: DbClient,
    block: Mutex<Block>,
}

#[derive(Debug)]
struct Block {
    next: i64,
    end: i64,
    size: u32,
    taken: Instant,
}

impl CallIdAllocator {
    pub(crate) fn new(db: DbClient) -> Self {
        Self { db, block: Mutex::new(Block { next: 0, end: 0, size: LEAST, taken: Instant::now() }) }
    }

    /// A number that nobody has.
    pub(crate) async fn next(&self) -> Result<CallNum, DbError> {
        let mut block = match self.block.try_lock() {
            Ok(block) => block,
            // The task that reserves a block waits for db, and all others wait for that task.
            Err(_) => timeout(DEADLINE, self.block.lock()).await.map_err(|_| DbError::Unavailable)?,
        };
        if block.next == block.end {
            let size = following(block.size, block.end > 0, block.taken.elapsed());
            let first = self.db.ask(&CallNumReserve { count: size }).await?.0;
            *block = Block { next: first, end: first + i64::from(size), size, taken: Instant::now() };
        }
        block.next += 1;
        Ok(CallNum(block.next - 1))
    }
}

/// How large the block is that follows one of this size, which lasted so long.
fn following(size: u32, is_used: bool, lasted: Duration) -> u32 {
    if is_used && lasted < LASTS { (size * 2).min(MOST) } else { (size / 2).max(LEAST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_grow_while_they_do_not_last() {
        let soon = Duration::from_millis(10);
        assert_eq!(following(LEAST, false, soon), LEAST, "the first");
        assert_eq!(following(LEAST, true, soon), 2 * LEAST);
        assert_eq!(following(MOST, true, soon), MOST);
        assert_eq!(following(MOST, true, LASTS), MOST / 2);
        assert_eq!(following(LEAST, true, LASTS), LEAST);
    }
}
