//! Callbacks. What signs one is kept as the hexadecimal digits of the sealed bytes.

use faena_domain::{CallNum, FunctionId};

use super::rows::{Hex, Json, Text};
use super::tx::SqliteTx;
use crate::tx::{CallbackRows, CallbackStatus, DueCallback, StoreResult};

impl CallbackRows for SqliteTx<'_> {
    fn insert_callback(&self, num: CallNum, secret: &[u8], status: CallbackStatus, due_at: i64) -> StoreResult<()> {
        self.execute(
            "INSERT OR IGNORE INTO callbacks (num, due_at, secret, status) VALUES (?1, ?2, ?3, ?4)",
            (num.0, due_at, hex::encode_upper(secret), status.as_str()),
        )?;
        Ok(())
    }

    fn is_callback_due(&self, now: i64) -> StoreResult<bool> {
        self.exists("SELECT 1 FROM callbacks WHERE status = 'WAITING' AND due_at <= ?1 LIMIT 1", [now])
    }

    fn due_callbacks_for_update(&self, now: i64, limit: u32) -> StoreResult<Vec<DueCallback>> {
        self.all(
            "SELECT b.num, b.tries, c.callback, b.secret, length(c.spec) + length(c.result) + length(c.attempts),
                 c.namespace, c.function
             FROM callbacks b JOIN calls c ON c.num = b.num
             WHERE b.status = 'WAITING' AND b.due_at <= ?1 ORDER BY b.due_at LIMIT ?2",
            (now, limit),
            |row| {
                let (Json(callback), Hex(secret)) = (row.get(2)?, row.get(3)?);
                let (Text(namespace), Text(name)) = (row.get(5)?, row.get(6)?);
                Ok(DueCallback {
                    num: CallNum(row.get(0)?),
                    function: FunctionId { namespace, name },
                    tries: row.get(1)?,
                    callback,
                    secret,
                    bytes: row.get(4)?,
                })
            },
        )
    }

    fn begin_tries(&self, callbacks: &[CallNum], until: i64) -> StoreResult<()> {
        for num in callbacks {
            self.execute("UPDATE callbacks SET tries = tries + 1, due_at = ?2 WHERE num = ?1", (num.0, until))?;
        }
        Ok(())
    }

    fn postpone_callback(&self, num: CallNum, tries: u32, due_at: i64) -> StoreResult<()> {
        self.execute(
            "UPDATE callbacks SET tries = tries - 1, due_at = ?3 WHERE num = ?1 AND tries = ?2 AND status = 'WAITING'",
            (num.0, tries, due_at),
        )?;
        Ok(())
    }

    fn end_try(
        &self,
        (num, tries): (CallNum, u32),
        status: CallbackStatus,
        due_at: i64,
        error: Option<&str>,
    ) -> StoreResult<()> {
        self.execute(
            "UPDATE callbacks SET status = ?3, due_at = ?4, error = ?5 WHERE num = ?1 AND tries = ?2 AND status = 'WAITING'",
            (num.0, tries, status.as_str(), due_at, error),
        )?;
        Ok(())
    }
}
