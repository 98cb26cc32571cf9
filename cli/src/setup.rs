//! A token for the first account, printed for whoever can reach the database service of this data folder.

use anyhow::{Context, bail};
use faena_db_client::DbClient;
use faena_protocol::db::{SetupGet, SetupPut};
use faena_transport::Endpoint;

use crate::folders::Folders;
use crate::settings::Settings;

/// Offers a new token in place of the one before, and prints it.
pub(crate) fn offer(settings: &Settings) -> anyhow::Result<()> {
    let folders = Folders::prepare(settings)?;
    let endpoint = Endpoint::new(folders.run.join("db.sock"))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let token = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    let offered = runtime.block_on(async {
        let db = DbClient::connect(endpoint);
        db.ask(&SetupPut { hash: faena_api::setup_hash(&token) }).await?;
        db.ask(&SetupGet {}).await
    });
    let offered = offered.with_context(|| {
        format!("cannot reach the database service of {}; is the platform running?", folders.data.display())
    })?;
    if offered.is_none() {
        bail!("the platform has accounts already; an administrator makes others with POST /account");
    }
    println!("{token}");
    Ok(())
}
