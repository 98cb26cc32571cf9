//! Secrets: sealed before the store sees them.

use faena_domain::CallNum;
use faena_protocol::db::SecretsRotate;

use super::{Request, RequestContext, RuleResult, Write, write};
use crate::keyring::KEY_ID;
use crate::tx::{SealedSecret, SecretPlace, StoreError, StoreResult, Tx};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[write::<SecretsRotate>()];

/// Callbacks of which the secrets are held at once.
const CALLBACKS: u32 = 1000;

/// Seals a secret for its place.
pub(super) fn seal(context: &RequestContext<'_>, place: &SecretPlace, secret: &str) -> StoreResult<Vec<u8>> {
    let (namespace, path) = place.bound_to();
    context.keyring.seal(namespace, &path, secret.as_bytes()).map_err(StoreError::new)
}

/// Opens what was sealed for a place; none where it cannot be opened with the keys of this platform.
pub(super) fn open(context: &RequestContext<'_>, place: &SecretPlace, sealed: &[u8]) -> Option<String> {
    let (namespace, path) = place.bound_to();
    let opened = context.keyring.open_sealed(namespace, &path, sealed).ok()?;
    String::from_utf8(opened).ok()
}

/// The same secrets under the key in use. What cannot be opened stays as it is: the file may come back that has its key.
fn resealed(context: &RequestContext<'_>, mut secrets: Vec<SealedSecret>) -> Vec<SealedSecret> {
    secrets.retain_mut(|SealedSecret { place, sealed }| {
        let (namespace, path) = place.bound_to();
        context.keyring.reseal(namespace, &path, sealed).map(|again| *sealed = again).is_ok()
    });
    secrets
}

impl Write for SecretsRotate {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<u64> {
        context.keyring.rotate(&tx.sealed_prefixes(KEY_ID)?).map_err(StoreError::new)?;
        let secrets = tx.sealed_secrets_for_update()?;
        // Users do not know the secrets that sign callbacks as theirs; the reply counts the others.
        let is_counted = |secret: &&SealedSecret| !matches!(secret.place, SecretPlace::Function(_));
        let counted = secrets.iter().filter(is_counted).count();
        tx.replace_sealed(&resealed(context, secrets))?;
        let mut after = CallNum(i64::MIN);
        loop {
            let callbacks = tx.sealed_callbacks_for_update(after, CALLBACKS)?;
            let Some(SecretPlace::Callback(last, _)) = callbacks.last().map(|callback| &callback.place) else {
                return Ok(counted as u64);
            };
            after = *last;
            tx.replace_sealed(&resealed(context, callbacks))?;
        }
    }
}
