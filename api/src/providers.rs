//! The identity providers that this api has asked: what they publish about themselves is used for a while.

use std::collections::HashMap;
use std::sync::Arc;

use faena_domain::ProviderName;
use faena_domain::config::SecretText;
use faena_protocol::records::{ProviderLogin, ProviderRecord};
use faena_sign_in::{Provider, ProviderConfig, SignInError};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::problem::{ErrorCode, Problem, Reply};

/// Sign-ins that ask a provider at once.
const AT_ONCE: usize = 16;

/// Asks identity providers.
#[derive(Debug)]
pub(crate) struct Providers {
    at_once: Semaphore,
    known: Mutex<HashMap<ProviderName, Known>>,
}

/// A provider, and what it was made of.
type Known = (ProviderLogin, Arc<Provider>);

impl Default for Providers {
    fn default() -> Self {
        Self { at_once: Semaphore::new(AT_ONCE), known: Mutex::default() }
    }
}

impl From<SignInError> for Problem {
    fn from(error: SignInError) -> Self {
        let code = match error {
            SignInError::Configuration(_) => ErrorCode::InvalidProvider,
            SignInError::Unreachable(_) => ErrorCode::ProviderUnavailable,
            SignInError::Denied(_) | SignInError::Refused(_) => ErrorCode::SignInFailed,
        };
        Self::new(code, error)
    }
}

/// A provider as it is described.
pub(crate) fn provider(record: &ProviderRecord, client_secret: Option<&SecretText>) -> Reply<Provider> {
    let config = ProviderConfig {
        issuer: record.issuer.clone(),
        client_id: record.client_id.clone(),
        client_secret: client_secret.map(|SecretText(text)| text.clone()),
        scopes: record.scopes.clone(),
        authorities: record.ca.clone(),
    };
    Ok(Provider::new(config)?)
}

impl Providers {
    /// Asks a provider on a thread that may block.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        login: ProviderLogin,
        ask: impl FnOnce(&Provider) -> Result<T, SignInError> + Send + 'static,
    ) -> Reply<T> {
        let provider = self.provider(login)?;
        let busy = || Problem::new(ErrorCode::Busy, "too many people are signing in at once").retry_after(1);
        let _permit = self.at_once.try_acquire().map_err(|_| busy())?;
        let asked = tokio::task::spawn_blocking(move || ask(&provider)).await;
        Ok(asked.map_err(|error| Problem::internal("asking an identity provider", &error))??)
    }

    fn provider(&self, login: ProviderLogin) -> Reply<Arc<Provider>> {
        let mut known = self.known.lock();
        if let Some((same, provider)) = known.get(&login.provider.name)
            && *same == login
        {
            return Ok(Arc::clone(provider));
        }
        let provider = Arc::new(provider(&login.provider, login.client_secret.as_ref())?);
        known.insert(login.provider.name.clone(), (login, Arc::clone(&provider)));
        Ok(provider)
    }
}
