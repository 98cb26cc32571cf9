//! Talks to the HTTP API of a platform, for commands that people type.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
pub use ureq::http::Method;
use ureq::http::{self, Request};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long an upload may take, with its reply.
const UPLOAD: Duration = Duration::from_secs(3600);
/// The largest reply that is read, in bytes.
const MAX_REPLY: u64 = 64 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("{0:?} is no address of a platform, like http://127.0.0.1:3000")]
    Address(String),
    /// The file of certificate authorities holds none.
    #[error("there is no certificate in the file of certificate authorities")]
    Authorities,
    /// The platform refuses, and says why.
    #[error("{detail} ({status} {code}){}", hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default())]
    Refused {
        /// The status of the reply.
        status: u16,
        /// The stable code of the problem.
        code: String,
        /// What is wrong.
        detail: String,
        /// What to do.
        hint: Option<String>,
    },
    /// It cannot be reached, or does not speak its API.
    #[error("cannot ask {address}: {cause}")]
    Unreachable {
        /// Who was asked.
        address: String,
        /// What went wrong.
        cause: String,
    },
}

/// Whom to ask, and as whom.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The platform, as `https://faena.example.org`.
    pub address: String,
    /// An access token or a key.
    pub credential: Option<String>,
    /// The namespace that requests concern, where it is not the account's own.
    pub namespace: Option<String>,
    /// Certificate authorities as PEM, in place of the usual ones.
    pub authorities: Option<Vec<u8>>,
}

/// What a request carries.
#[derive(Debug)]
pub enum Body {
    /// Nothing.
    None,
    /// JSON.
    Json(Value),
    /// The bytes of a file.
    File(std::fs::File),
}

/// A platform that is asked.
pub struct Client {
    agent: ureq::Agent,
    config: ClientConfig,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a client of {}", self.config.address)
    }
}

fn authorities(pem: &[u8]) -> Result<RootCerts, ClientError> {
    let certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    };
    let certificates: Vec<Certificate<'static>> = parse_pem(pem).filter_map(certificate).collect();
    if certificates.is_empty() { Err(ClientError::Authorities) } else { Ok(RootCerts::new_with_certs(&certificates)) }
}

impl Client {
    /// A client; nothing is asked yet.
    ///
    /// # Errors
    /// An address that is none, or authorities without a certificate.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let is_address = config.address.parse::<http::Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some() && uri.path() == "/"
        });
        if !is_address {
            return Err(ClientError::Address(config.address));
        }
        let mut tls = TlsConfig::builder();
        if let Some(pem) = &config.authorities {
            tls = tls.root_certs(authorities(pem)?);
        }
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            // A credential is for whom it was given to.
            .max_redirects(0)
            .proxy(None)
            .tls_config(tls.build())
            .build()
            .into();
        Ok(Self { agent, config })
    }

    /// Asks, and reads the answer as JSON; null where it has no body.
    ///
    /// # Errors
    /// [`ClientError`] says who refused what, or what could not be reached.
    pub fn ask(&self, method: Method, path: &str, body: Body) -> Result<Value, ClientError> {
        self.ask_dated(method, path, body).map(|(value, _)| value)
    }

    /// Asks as [`Self::ask`] does; with the time of the platform's clock, where the reply tells it, since the Unix epoch.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn ask_dated(&self, method: Method, path: &str, body: Body) -> Result<(Value, Option<Duration>), ClientError> {
        let ClientConfig { address, credential, namespace, .. } = &self.config;
        let unreachable = |error: &dyn std::fmt::Display| ClientError::Unreachable {
            address: address.clone(),
            cause: error.to_string(),
        };
        let mut request = Request::builder().method(method).uri(format!("{}{path}", address.trim_end_matches('/')));
        if let Some(credential) = credential {
            request = request.header("authorization", format!("Bearer {credential}"));
        }
        if let Some(namespace) = namespace {
            request = request.header("faena-namespace", namespace);
        }
        let answer = match body {
            Body::Json(body) => {
                let request = request.header("content-type", "application/json").body(body.to_string());
                self.agent.run(request.map_err(|error| unreachable(&error))?)
            }
            Body::File(file) => {
                let request = request.header("content-type", "application/octet-stream").body(file);
                let request = request.map_err(|error| unreachable(&error))?;
                self.agent.run(self.agent.configure_request(request).timeout_global(Some(UPLOAD)).build())
            }
            Body::None => self.agent.run(request.body(()).map_err(|error| unreachable(&error))?),
        };
        let mut answer = answer.map_err(|error| unreachable(&error))?;
        let text = answer.body_mut().with_config().limit(MAX_REPLY).read_to_string();
        let text = text.map_err(|error| unreachable(&error))?;
        let status = answer.status();
        let date = answer.headers().get("date").and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let date = date.and_then(|date| date.duration_since(UNIX_EPOCH).ok());
        let value = if text.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text) };
        match value {
            Ok(value) if status.is_success() => Ok((value, date)),
            Ok(problem) => Err(refused(status.as_u16(), &problem)),
            Err(_) => Err(unreachable(&format!("it answers {status} and no JSON"))),
        }
    }
}

fn refused(status: u16, problem: &Value) -> ClientError {
    let text = |field: &str| problem[field].as_str().map(str::to_owned);
    ClientError::Refused {
        status,
        code: text("code").unwrap_or_default(),
        detail: text("detail").unwrap_or_else(|| "the platform refuses".to_owned()),
        hint: text("hint"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(address: &str) -> ClientConfig {
        ClientConfig { address: address.to_owned(), credential: None, namespace: None, authorities: None }
    }

    #[test]
    fn an_address_has_a_scheme_and_no_path() {
        for address in ["http://127.0.0.1:3000", "https://faena.example.org/"] {
            assert!(Client::new(config(address)).is_ok(), "{address}");
        }
        for address in ["", "localhost:3000", "ftp://x", "http://x/y", "http://"] {
            assert!(Client::new(config(address)).is_err(), "{address}");
        }
        let wrong = ClientConfig { authorities: Some(b"nonsense".to_vec()), ..config("https://x") };
        assert!(matches!(Client::new(wrong), Err(ClientError::Authorities)));
    }

    #[test]
    fn a_refusal_says_what_the_problem_says() {
        let problem = json!({"code": "forbidden", "detail": "ann lacks the scope admin", "hint": "ask bob"});
        let error = refused(403, &problem);
        assert_eq!(error.to_string(), "ann lacks the scope admin (403 forbidden); ask bob");
    }

    #[test]
    fn who_does_not_answer_is_named() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = Client::new(config(&format!("http://{free}"))).unwrap();
        let error = client.ask(Method::GET, "/functions", Body::None).unwrap_err();
        assert!(error.to_string().contains(&free.to_string()), "{error}");
    }
}
