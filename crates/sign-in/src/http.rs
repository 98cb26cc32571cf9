//! Requests to providers.

use std::time::Duration;

use openidconnect::{HttpRequest, HttpResponse};
use ureq::Agent;
use ureq::http::{StatusCode, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::SignInError;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer, in bytes.
const MAX_ANSWER: u64 = 1024 * 1024;

/// Why a provider could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// Only loopback may be asked without TLS.
    #[error("{0} is not https")]
    Plain(String),
    #[error(transparent)]
    Failed(#[from] ureq::Error),
}

/// Whether an address may be asked: over TLS, or on this machine.
pub(crate) fn is_permitted(uri: &Uri) -> bool {
    let is_loopback = || matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match uri.scheme_str() {
        Some("https") => true,
        Some("http") => is_loopback(),
        _ => false,
    }
}

/// What asks a provider.
#[derive(Debug)]
pub(crate) struct Http {
    agent: Agent,
    /// Whether what is asked may lie on this machine without TLS, as the issuer does.
    is_local: bool,
}

impl Http {
    /// One that trusts the usual authorities, or those of a PEM text in their place; `is_local` where the issuer is an http address
    /// of this machine.
    pub(crate) fn new(authorities: Option<&str>, is_local: bool) -> Result<Self, SignInError> {
        let mut tls = TlsConfig::builder();
        if let Some(pem) = authorities {
            let certificate = |item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            };
            let certificates: Vec<Certificate<'static>> = parse_pem(pem.as_bytes()).filter_map(certificate).collect();
            if certificates.is_empty() {
                return Err(SignInError::Configuration("`ca` holds no certificate as PEM".to_owned()));
            }
            tls = tls.root_certs(RootCerts::new_with_certs(&certificates));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            // A code or a token is for whom it was sent to.
            .max_redirects(0)
            .proxy(None)
            .tls_config(tls.build());
        Ok(Self { agent: config.build().into(), is_local })
    }

    pub(crate) fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let is_permitted =
            request.uri().scheme_str() == Some("https") || (self.is_local && is_permitted(request.uri()));
        if !is_permitted {
            return Err(HttpError::Plain(request.uri().to_string()));
        }
        let (parts, mut body) = self.agent.run(request)?.into_parts();
        let bytes = body.with_config().limit(MAX_ANSWER).read_to_vec()?;
        Ok(HttpResponse::from_parts(parts, bytes))
    }

    /// A JSON document behind an access token; none where the provider refuses it.
    pub(crate) fn document(&self, uri: &str, token: &str) -> Result<Option<serde_json::Value>, SignInError> {
        let unreachable = |error: &dyn std::fmt::Display| SignInError::Unreachable(error.to_string());
        let request = ureq::http::Request::get(uri).header("authorization", format!("Bearer {token}"));
        let answer = self.call(request.body(Vec::new()).map_err(|error| unreachable(&error))?);
        let answer = answer.map_err(|error| unreachable(&error))?;
        Ok((answer.status() == StatusCode::OK).then(|| serde_json::from_slice(answer.body()).ok()).flatten())
    }
}
