//! Secrets: sealed before the store sees them.

use faena_protocol::db::SecretsRotate;

use super::{Request, RequestContext, RuleResult, Write, write};
use crate::tx::{SealedSecret, SecretPlace, StoreError, StoreResult, Tx};

/// The requests of this module.
pub(super) const REQUESTS: &[Request] = &[write::<SecretsRotate>()];

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

impl Write for SecretsRotate {
    fn write(&self, tx: &dyn Tx, context: &RequestContext<'_>) -> RuleResult<u64> {
        let mut secrets = tx.sealed_secrets_for_update()?;
        let is_told = |place: &SecretPlace| matches!(place, SecretPlace::Config(..) | SecretPlace::Provider(_));
        let told = secrets.iter().filter(|secret| is_told(&secret.place)).count();
        let sealed: Vec<&[u8]> = secrets.iter().map(|secret| secret.sealed.as_slice()).collect();
        context.keyring.rotate(&sealed).map_err(StoreError::new)?;
        // What cannot be opened stays as it is: the file may come back that has its key.
        secrets.retain_mut(|SealedSecret { place, sealed }| {
            let (namespace, path) = place.bound_to();
            context.keyring.reseal(namespace, &path, sealed).map(|again| *sealed = again).is_ok()
        });
        tx.replace_sealed(&secrets)?;
        Ok(told as u64)
    }
}
