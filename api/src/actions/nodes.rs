//! Nodes of other machines.

use faena_domain::{Labels, Timestamp};
use faena_protocol::db::NodeTokenMake;
use faena_protocol::front::JoinToken;
use faena_protocol::records::NodeTokenRecord;
use faena_scheduler::unix_ms;
use sha2::{Digest, Sha256};

use crate::app::App;
use crate::problem::{ErrorCode, Problem, Reply};

/// Bytes of a token's secret.
const SECRET: usize = 32;

/// A token that one machine joins by.
pub(crate) struct NewNodeToken {
    pub(crate) id: String,
    pub(crate) token: String,
    pub(crate) expires_at: Timestamp,
    /// What to run on that machine.
    pub(crate) command: String,
}

/// Makes a join token that is valid for `seconds`; db stores only the hash of its secret.
pub(crate) async fn make_token(app: &App, labels: Labels, seconds: u64) -> Reply<NewNodeToken> {
    let front = app.nodes().front.as_ref().ok_or_else(|| {
        Problem::new(ErrorCode::Conflict, "this platform does not accept nodes on other machines")
            .hint("start it with --nodes ADDRESS:PORT, like --nodes 0.0.0.0:3400")
    })?;
    let mut secret = [0; SECRET];
    getrandom::fill(&mut secret).map_err(|error| Problem::internal("making a token", &error))?;
    let secret = hex::encode(secret);
    let expires_at = Timestamp(unix_ms() + i64::try_from(seconds * 1000).unwrap_or(i64::MAX));
    let id = uuid::Uuid::new_v4().simple().to_string();
    let secret_sha256 = hex::encode(Sha256::digest(&secret));
    let record = NodeTokenRecord { id: id.clone(), secret_sha256, labels: labels.clone(), expires_at };
    app.db().ask(&NodeTokenMake { token: record }).await?;
    let (authority, role) = (front.authority, "node".to_owned());
    let token = JoinToken { id: id.clone(), secret, authority, role, labels }.encode();
    let command = format!("faena worker --join {token} --api {}", front.public);
    Ok(NewNodeToken { id, token, expires_at, command })
}
