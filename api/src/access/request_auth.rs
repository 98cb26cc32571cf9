//! What a request says of who sent it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use faena_auth::{Credential, CredentialKind};
use faena_domain::Namespace;

use super::Peer;
use crate::entrance::Entrance;
use crate::problem::{ErrorCode, Problem, Reply};

/// Names the namespace that a request concerns, where it is not the account's own.
const NAMESPACE: &str = "faena-namespace";

/// The cookie of a browser's session. A browser takes a cookie of this prefix over a secure connection alone, and sends it to
/// this host alone (RFC 6265bis, 4.1.3.2).
pub(crate) const SESSION_COOKIE: &str = "__Host-faena-session";

/// Where a request comes from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The client's address.
    pub(crate) address: IpAddr,
    /// The connection that it came on; none within this process.
    pub(crate) peer: Option<Arc<Peer>>,
    /// Whether it came over TLS.
    pub(crate) is_secure: bool,
}

impl Default for Origin {
    /// This process.
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), peer: None, is_secure: false }
    }
}

/// A request, as far as it says who sent it.
pub(crate) struct RequestAuth<'a> {
    pub(crate) headers: &'a HeaderMap,
    /// How it addresses a function, where it does.
    pub(crate) entrance: Option<Entrance>,
    /// The namespace that its host names.
    pub(crate) host: Option<&'a str>,
    /// The connection that it came on; none within this process.
    pub(crate) peer: Option<&'a Peer>,
    /// Whether the route concerns the account of the request itself, whatever namespace that account is in.
    pub(crate) is_about_itself: bool,
}

impl<'a> RequestAuth<'a> {
    /// A request for a route.
    pub(crate) fn of_route(headers: &'a HeaderMap, origin: &'a Origin) -> Self {
        Self { headers, entrance: None, host: None, peer: origin.peer.as_deref(), is_about_itself: false }
    }

    /// The namespace that it names: by its host, or by a header.
    pub(super) fn namespace(&self) -> Reply<Option<Namespace>> {
        let header = self.headers.get(NAMESPACE).map(|value| value.to_str().unwrap_or("?"));
        let header = header.filter(|_| !self.is_about_itself);
        match self.host.or(header) {
            // Names of namespaces are in lower case.
            Some(name) => Ok(Some(name.to_ascii_lowercase().parse()?)),
            None => Ok(None),
        }
    }

    /// The same; none where it cannot be read.
    pub(crate) fn read_credential(&self) -> Option<Credential> {
        self.credential().ok().flatten()
    }

    /// The credential that it sends to the platform: in a header, or in a browser's cookie where there is no such header. On
    /// its own origin a function has credentials of its own.
    pub(super) fn credential(&self) -> Reply<Option<Credential>> {
        let is_own_origin = self.entrance == Some(Entrance::Host);
        let Some(value) = self.headers.get(header::AUTHORIZATION) else {
            return match session_cookie(self.headers).filter(|_| !is_own_origin) {
                Some(cookie) => read(cookie, &[CredentialKind::Cookie]).map(Some),
                None => Ok(None),
            };
        };
        let bearer = value.to_str().ok().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start())
        });
        match bearer {
            Some(token) if token.starts_with("fna_r_") => {
                Err(unknown_credential().hint("a refresh token is exchanged at POST /token"))
            }
            Some(token) if token.starts_with("fna_") => {
                read(token, &[CredentialKind::Access, CredentialKind::Key]).map(Some)
            }
            _ if is_own_origin => Ok(None),
            _ => Err(unknown_credential().hint("send `Authorization: Bearer` with an access token or a key")),
        }
    }

    /// Whether a proxy has passed it on: it may come from anywhere.
    pub(super) fn is_forwarded(&self) -> bool {
        const MARKS: [&str; 3] = ["forwarded", "x-real-ip", "via"];
        self.headers.keys().any(|name| MARKS.contains(&name.as_str()) || name.as_str().starts_with("x-forwarded-"))
    }
}

/// A credential, which has to be of one of these kinds.
fn read(text: &str, kinds: &[CredentialKind]) -> Reply<Credential> {
    let credential: Credential = text.parse().map_err(|_| unknown_credential())?;
    if kinds.contains(&credential.kind) { Ok(credential) } else { Err(unknown_credential()) }
}

/// The session of the browser that sends a request.
pub(crate) fn session_cookie(headers: &HeaderMap) -> Option<&str> {
    cookie(headers, SESSION_COOKIE)
}

/// The value of a cookie.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    // Another cookie may have any bytes.
    let all = headers.get_all(header::COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    let pairs = all.filter_map(|pair| std::str::from_utf8(pair).ok()?.trim().split_once('='));
    pairs.into_iter().find(|(given, _)| *given == name).map(|(_, value)| value)
}

/// 401: the credential is none of ours.
pub(super) fn unknown_credential() -> Problem {
    Problem::new(ErrorCode::Unauthenticated, "the credential is unknown, or has ended or was revoked")
}
