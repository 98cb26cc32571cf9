//! Identity providers, and who signs in with them.

use faena_domain::config::SecretText;
use faena_domain::{ProviderName, Timestamp};

use super::{Put, requests};
use crate::records::{AccountRecord, ProviderLogin, ProviderRecord, TokenRecord};

requests! {
    /// Adds a provider, or replaces the one of its name: the sessions and keys of who signed in with it end then, unless its issuer
    /// and its mappings stay the same.
    Write ProviderPut = "provider.put" by [Api] -> Put<ProviderRecord> {
        /// The provider.
        provider: ProviderRecord,
        /// The secret of the client; none of a public one.
        client_secret: Option<SecretText>,
    }
    /// A provider with the secret of the client, for a sign-in.
    Read ProviderGet = "provider.get" by [Api] -> ProviderLogin {
        /// Its name.
        name: ProviderName,
    }
    /// All providers, by name.
    Read ProviderList = "provider.list" by [Api] -> Vec<ProviderRecord> {}
    /// Forgets a provider. The sessions and keys of who has signed in with it end.
    Write ProviderDelete = "provider.delete" by [Api] -> () {
        /// Its name.
        name: ProviderName,
    }
    /// Ends the sessions and keys of an identity that no mapping gives access any longer.
    Write IdentityRefused = "identity.refused" by [Api] -> () {
        /// The provider that has verified it.
        provider: ProviderName,
        /// Who vouches for the subject.
        issuer: String,
        /// Names the person at the issuer.
        subject: String,
    }
    /// Begins a session of an identity that was verified. Its account is made at its first sign-in to a namespace; after that
    /// the account's scopes and metadata become those of this sign-in.
    Write IdentitySignIn = "identity.signIn" by [Api] -> AccountRecord {
        /// The provider that has verified it.
        provider: ProviderName,
        /// Who vouches for the subject.
        issuer: String,
        /// Names the person at the issuer.
        subject: String,
        /// The account as it is made where there is none; otherwise its namespace, scopes and metadata count.
        account: AccountRecord,
        /// The session.
        session: String,
        /// The cookie of the session. The session ends with it.
        cookie: TokenRecord,
        /// Until when the account's keys are taken.
        keys_end_at: Timestamp,
    }
}
