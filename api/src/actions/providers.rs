//! Identity providers.

use faena_domain::config::SecretText;
use faena_protocol::db::{ProviderPut, Put};
use faena_protocol::records::ProviderRecord;

use crate::app::App;
use crate::problem::{ErrorCode, Problem, Reply};
use crate::providers::provider;

/// Adds a provider, or replaces the one of its name, after checking its settings and that the namespaces of its mappings exist.
pub(crate) async fn put(
    app: &App,
    record: ProviderRecord,
    client_secret: Option<SecretText>,
) -> Reply<Put<ProviderRecord>> {
    provider(&record, client_secret.as_ref())?;
    for mapping in &record.mappings {
        app.access().rules(&mapping.namespace).await.map_err(|problem| {
            if !problem.is(ErrorCode::UnknownNamespace) {
                return problem;
            }
            let detail = format!("a mapping names the namespace {}, which does not exist", mapping.namespace);
            Problem::new(ErrorCode::InvalidProvider, detail)
        })?;
    }
    let put = app.db().ask(&ProviderPut { provider: record, client_secret }).await?;
    app.access().refresh().await?;
    Ok(put)
}
