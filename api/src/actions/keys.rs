//! Keys of accounts.

use faena_auth::{AccountId, CredentialKind, Scopes};
use faena_domain::{KeyName, Timestamp};
use faena_protocol::db::KeyPut;
use faena_protocol::records::KeyRecord;
use faena_scheduler::unix_ms;

use crate::access::new_credential;
use crate::app::App;
use crate::problem::Reply;

/// Makes a key, and its text, which is not stored.
pub(crate) async fn make(
    app: &App,
    account: AccountId,
    name: KeyName,
    scopes: Scopes,
    expires_at: Option<Timestamp>,
) -> Reply<(KeyRecord, String)> {
    let made = new_credential(CredentialKind::Key)?;
    let created_at = Timestamp(unix_ms());
    let key = KeyRecord { id: made.id, name, account, scopes, created_at, expires_at, last_used_at: None };
    Ok((app.db().ask(&KeyPut { key, hash: made.hash }).await?, made.text))
}
