//! Signing in with an OpenID Connect provider: the authorization code flow with PKCE (OpenID Connect Core 1.0, 3.1;
//! RFC 7636; RFC 9207).
//!
//! A sign-in has two steps. [`Provider::begin`] makes the address that the browser goes to, and what has to be kept with that
//! browser meanwhile. [`Provider::finish`] takes what the browser comes back with, and returns who has signed in. Both block.

mod http;
mod provider;

pub use provider::{Callback, Identity, Pending, Provider, ProviderConfig};

/// Why a sign-in did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    /// What is known of the provider cannot be used.
    #[error("the provider is not set up rightly: {0}")]
    Configuration(String),
    /// The provider cannot be reached, or does not speak OpenID Connect.
    #[error("the provider cannot be asked: {0}")]
    Unreachable(String),
    /// The provider, or the person, has refused.
    #[error("the provider refuses: {0}")]
    Denied(String),
    /// What came back does not belong to a sign-in that this browser has begun, or was not issued for it.
    #[error("{0}")]
    Refused(String),
}
