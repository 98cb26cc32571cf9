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

/// Sign-ins that ask one provider at once.
const AT_ONCE: usize = 8;

/// Asks identity providers.
#[derive(Debug, Default)]
pub(crate) struct Providers(Mutex<HashMap<ProviderName, Known>>);

/// A provider.
#[derive(Clone, Debug)]
struct Known {
    /// What it was made of.
    login: ProviderLogin,
    provider: Arc<Provider>,
    /// A slow provider holds up none but its own sign-ins.
    at_once: Arc<Semaphore>,
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
        let Known { provider, at_once, .. } = self.known(login)?;
        let busy = || Problem::new(ErrorCode::Busy, "too many people are signing in at once").retry_after(1);
        let _permit = at_once.try_acquire().map_err(|_| busy())?;
        let asked = tokio::task::spawn_blocking(move || ask(&provider)).await;
        Ok(asked.map_err(|error| Problem::internal("asking an identity provider", &error))??)
    }

    fn known(&self, login: ProviderLogin) -> Reply<Known> {
        let mut known = self.0.lock();
        if let Some(same) = known.get(&login.provider.name).filter(|known| known.login == login) {
            return Ok(same.clone());
        }
        let provider = Arc::new(provider(&login.provider, login.client_secret.as_ref())?);
        let made = Known { provider, at_once: Arc::new(Semaphore::new(AT_ONCE)), login };
        known.insert(made.login.provider.name.clone(), made.clone());
        Ok(made)
    }
}
