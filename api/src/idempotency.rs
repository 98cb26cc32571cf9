//! `Idempotency-Key`: what a key stands for.

use axum::http::{HeaderMap, Method, Uri};
use faena_domain::{BlobKey, DigestKind, Version};
use faena_protocol::records::IdempotencyKey;
use sha2::{Digest, Sha256};

use crate::problem::{ErrorCode, Problem, Reply};

/// What an `Idempotency-Key` stands for: the method, where it went, the version it names, and its body.
pub(crate) fn idempotency_key(
    headers: &HeaderMap,
    (method, uri): (&Method, &Uri),
    version: Option<Version>,
    body: &[u8],
) -> Reply<Option<IdempotencyKey>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    let is_visible = (1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_visible || headers.get_all("idempotency-key").iter().count() > 1 {
        let detail = "an Idempotency-Key is one text of 1 to 255 visible ASCII characters";
        return Err(Problem::new(ErrorCode::InvalidKey, detail));
    }
    let version = version.map(|version| version.to_string()).unwrap_or_default();
    let mut hash = Sha256::new();
    for part in [method.as_str(), uri.path(), uri.query().unwrap_or_default(), &version] {
        hash.update(part);
        hash.update([0]);
    }
    hash.update(body);
    Ok(Some(IdempotencyKey { key: key.to_owned(), hash: BlobKey::new(DigestKind::Sha256, hash.finalize().into()) }))
}
