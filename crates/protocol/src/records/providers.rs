//! Identity providers.

use faena_auth::Mapping;
use faena_domain::config::SecretText;
use faena_domain::{ProviderName, Timestamp};
use serde::{Deserialize, Serialize};

/// A provider of OpenID Connect. Its client secret is kept sealed, and is not part of this.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderRecord {
    /// Its name, a part of the address that browsers come back to.
    pub name: ProviderName,
    /// Its issuer identifier.
    pub issuer: String,
    /// The name that it knows this platform by.
    pub client_id: String,
    /// What is asked for besides `openid`.
    pub scopes: Vec<String>,
    /// What its identities may do.
    pub mappings: Vec<Mapping>,
    /// The authorities that its certificate comes from, as PEM, where they are not the usual ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// When it was made or changed.
    pub created_at: Timestamp,
}

/// A provider, and what proves to it that this platform asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderLogin {
    /// The provider.
    pub provider: ProviderRecord,
    /// The secret of the client; none of a public one.
    pub client_secret: Option<SecretText>,
}
