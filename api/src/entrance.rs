//! How a request addresses a function: by a path below `/f/`, or by a host of the function's own.
//!
//! A path below `/f/` lies on the origin of the API, so headers that affect a whole origin are removed there. On its own origin a
//! function gets and sends all headers but those of one connection and those of the platform.

use std::borrow::Cow;

use axum::http::{HeaderMap, Request, Uri, header};
use faena_domain::{FunctionName, Namespace};
use percent_encoding::percent_decode_str;

use crate::problem::{ErrorCode, Problem, Reply};

/// Where the paths of functions begin.
pub(crate) const PREFIX: &str = "/f/";
/// The longest label of a host's name (RFC 1035, 2.3.4).
const MAX_LABEL: usize = 63;

/// How a request addresses a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// `/f/NAME`, a part of the API's origin.
    Path,
    /// An origin of the function's own.
    Host,
}

/// A request's function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address<'a> {
    pub(crate) entrance: Entrance,
    /// The name as it was written, decoded.
    pub(crate) name: Cow<'a, str>,
    /// The namespace, where the host names one.
    pub(crate) namespace: Option<&'a str>,
}

/// The hosts of functions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts {
    /// The domain below which functions have hosts, besides `localhost`; in lower case.
    domain: Option<String>,
}

/// The name of a `Host` header without its port.
pub(crate) fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// The labels of a host before a domain.
fn below<'a>(host: &'a str, domain: &str) -> Option<&'a str> {
    let at = host.len().checked_sub(domain.len() + 1)?;
    let (labels, rest) = (host.get(..at)?, host.get(at..)?);
    let is_below = rest.starts_with('.') && rest[1..].eq_ignore_ascii_case(domain) && !labels.is_empty();
    is_below.then_some(labels)
}

impl Hosts {
    pub(crate) fn new(domain: Option<&str>) -> Self {
        Self { domain: domain.map(str::to_ascii_lowercase) }
    }

    /// The labels of a host before the domain of functions; none where it is no function's.
    fn labels<'a>(&self, host: &'a str) -> Option<&'a str> {
        let host = host_name(host);
        below(host, "localhost").or_else(|| below(host, self.domain.as_deref()?))
    }

    /// Whether a request is a call of a function.
    pub(crate) fn is_call<B>(&self, request: &Request<B>) -> bool {
        self.address(request).is_some()
    }

    /// The function that a request addresses; none where it is no call of one.
    pub(crate) fn address<'a, B>(&self, request: &'a Request<B>) -> Option<Address<'a>> {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        if let Some(labels) = host.or(request.uri().host()).and_then(|host| self.labels(host)) {
            let (name, namespace) = match labels.split_once('.') {
                Some((name, namespace)) => (name, Some(namespace)),
                None => (labels, None),
            };
            return Some(Address { entrance: Entrance::Host, name: name.into(), namespace });
        }
        let name = request.uri().path().strip_prefix(PREFIX)?.split('/').next()?;
        // Bytes that are no UTF-8 are replaced here, and refused when the name is parsed.
        let name = percent_decode_str(name).decode_utf8_lossy();
        (!name.is_empty()).then_some(Address { entrance: Entrance::Path, name, namespace: None })
    }
}

impl<'a> Address<'a> {
    /// A function by its name; it gets and sends what it does on its own origin.
    pub(crate) fn of(name: &'a FunctionName) -> Self {
        Self { entrance: Entrance::Host, name: name.as_str().into(), namespace: None }
    }
}

impl Address<'_> {
    /// Whether the host has a namespace, or a name that may be invalid.
    pub(crate) fn is_qualified(&self) -> bool {
        self.entrance == Entrance::Host && (self.namespace.is_some() || !is_label(&self.name))
    }

    /// 404: the host is no function's.
    pub(crate) fn unknown(&self) -> Problem {
        let detail = format!("no function has the host name {:?}", self.name.chars().take(80).collect::<String>());
        Problem::new(ErrorCode::UnknownFunction, detail)
    }

    /// The name, where it is one.
    ///
    /// # Errors
    /// It is none, or names another namespace than the principal's.
    pub(crate) fn function(&self, own: &Namespace) -> Reply<FunctionName> {
        let unknown = || self.unknown();
        if self.namespace.is_some_and(|namespace| !namespace.eq_ignore_ascii_case(own.as_str())) {
            return Err(unknown());
        }
        match self.entrance {
            Entrance::Path => Ok(self.name.parse::<FunctionName>()?),
            Entrance::Host if is_label(&self.name) => self.name.parse().map_err(|_| unknown()),
            Entrance::Host => Err(unknown()),
        }
    }
}

/// Whether a name can be a label of a host's name (RFC 1123, 2.1).
fn is_label(name: &str) -> bool {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    is_plain && name.len() <= MAX_LABEL && !name.starts_with('-') && !name.ends_with('-')
}

impl Entrance {
    /// The path that the function gets: the part after its name, or the whole path.
    pub(crate) fn path(self, uri: &Uri) -> &str {
        match self {
            Self::Host => uri.path(),
            Self::Path => {
                let rest = uri.path().strip_prefix(PREFIX).unwrap_or_default();
                rest.find('/').map_or("/", |at| &rest[at..])
            }
        }
    }

    /// Whether a header of a request is not the function's business: of one connection, or the platform's own.
    pub(crate) fn withholds(self, name: &str, headers: &HeaderMap) -> bool {
        const CREDENTIALS: [&str; 3] = ["authorization", "cookie", "host"];
        // Servers that follow CGI take `_` for `-`, so a name with one could pass for the platform's.
        let dashed = if name.contains('_') { Cow::from(name.replace('_', "-")) } else { Cow::from(name) };
        let is_listed = is_listed(name, headers);
        let name = &*dashed;
        if is_listed || HOP_BY_HOP.contains(&name) || name.starts_with("proxy-") || name.starts_with("faena-") {
            return true;
        }
        match self {
            Self::Path => CREDENTIALS.contains(&name),
            Self::Host => name == "authorization" && is_platforms_token(headers),
        }
    }

    /// Whether a header of an answer is not the function's to set: of one connection, the platform's own, or one that
    /// reaches beyond the answer (docs/reference/safety.md).
    pub(crate) fn refuses(self, name: &str) -> bool {
        const BEYOND: [&str; 17] = [
            "server-timing",
            "set-cookie",
            "set-login",
            "clear-site-data",
            "service-worker-allowed",
            "strict-transport-security",
            "alt-svc",
            "nel",
            "report-to",
            "reporting-endpoints",
            "refresh",
            "www-authenticate",
            "accept-ch",
            "critical-ch",
            "link",
            "speculation-rules",
            "sourcemap",
        ];
        if HOP_BY_HOP.contains(&name) || name.starts_with("proxy-") || name.starts_with("faena-") {
            return true;
        }
        match self {
            Self::Path => BEYOND.contains(&name) || name.starts_with("access-control-"),
            Self::Host => false,
        }
    }
}

/// Headers of one connection, on either side of a function (RFC 9110, 7.6.1), and the length, which each side counts itself.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "content-length"];

/// Whether the credentials of a request are a token of the platform.
fn is_platforms_token(headers: &HeaderMap) -> bool {
    let mut given =
        headers.get_all(header::AUTHORIZATION).iter().filter_map(|value| value.to_str().ok()?.split_once(' '));
    given.any(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && token.trim_start().starts_with("fna_"))
}

/// Whether `Connection` names a header: it is of that connection alone then (RFC 9110, 7.6.1).
fn is_listed(name: &str, headers: &HeaderMap) -> bool {
    let mut options = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    options.any(|options| options.split(',').any(|option| option.trim().eq_ignore_ascii_case(name)))
}

/// A cookie without the attribute that would give it to siblings of its origin.
pub(crate) fn without_domain(cookie: &[u8]) -> Vec<u8> {
    let is_domain = |attribute: &&[u8]| {
        let name = attribute.split(|byte| *byte == b'=').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(b"domain")
    };
    let mut parts = cookie.split(|byte| *byte == b';');
    // The first part is the cookie itself; it may be called `domain`.
    let first = parts.next().unwrap_or_default();
    [first].into_iter().chain(parts.filter(|part| !is_domain(part))).collect::<Vec<_>>().join(&b';')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(hosts: &Hosts, host: &str, path: &str) -> Option<(Entrance, String, Option<String>)> {
        let request = Request::get(path).header("host", host).body(()).expect("a request");
        let address = hosts.address(&request)?;
        Some((address.entrance, address.name.into_owned(), address.namespace.map(str::to_owned)))
    }

    #[test]
    fn a_function_is_addressed_by_path_or_by_host() {
        let hosts = Hosts::new(Some("fn.example.org"));
        let by_path = |name: &str| Some((Entrance::Path, name.to_owned(), None));
        let by_host =
            |name: &str, namespace: Option<&str>| Some((Entrance::Host, name.to_owned(), namespace.map(str::to_owned)));
        for (host, path, expected) in [
            ("localhost:3000", "/f/dice", by_path("dice")),
            ("localhost:3000", "/f/%64ice/a%2Fb?x=1", by_path("dice")),
            ("localhost:3000", "/f/", None),
            ("localhost:3000", "/f//x", None),
            ("localhost:3000", "/functions", None),
            ("shop.localhost:3000", "/f/dice", by_host("shop", None)),
            ("SHOP.LOCALHOST", "/functions", by_host("SHOP", None)),
            ("shop.fn.example.org", "/", by_host("shop", None)),
            ("shop.team.fn.example.org:443", "/", by_host("shop", Some("team"))),
            ("fn.example.org", "/functions", None),
            ("evilfn.example.org", "/functions", None),
            (".localhost", "/functions", None),
        ] {
            assert_eq!(address(&hosts, host, path), expected, "{host}{path}");
        }
        assert_eq!(address(&Hosts::default(), "shop.fn.example.org", "/functions"), None);
    }

    #[test]
    fn only_labels_have_an_origin() {
        let own = Namespace::default();
        let function = |name: &str, namespace| {
            Address { entrance: Entrance::Host, name: name.to_owned().into(), namespace }.function(&own).is_ok()
        };
        assert!(function("shop", None) && function("shop", Some(own.as_str())));
        assert!(!function("shop", Some("other")) && !function("a_b", None) && !function("-a", None));
    }

    #[test]
    fn an_own_origin_keeps_all_but_the_platforms_credentials() {
        let with = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().expect("a value"))]);
        let (own, platforms) = (with("Basic dTpw"), with("Bearer fna_abc"));
        for (name, by_path, by_host) in [
            ("cookie", true, false),
            ("host", true, false),
            ("authorization", true, false),
            ("x-mine", false, false),
            ("connection", true, true),
            ("faena-call", true, true),
        ] {
            let withheld = [Entrance::Path, Entrance::Host].map(|entrance| entrance.withholds(name, &own));
            assert_eq!(withheld, [by_path, by_host], "{name}");
        }
        assert!(Entrance::Host.withholds("authorization", &platforms));
        for name in ["x_forwarded_for", "faena_call"] {
            assert_eq!(Entrance::Host.withholds(name, &own), name.starts_with("faena"), "{name}");
        }
        let mut listed = with("Basic dTpw");
        listed.insert(header::CONNECTION, "close, X-Mine".parse().expect("a value"));
        assert!(Entrance::Path.withholds("x-mine", &listed) && !Entrance::Path.withholds("x-other", &listed));
        listed.append(header::AUTHORIZATION, "Bearer fna_abc".parse().expect("a value"));
        assert!(Entrance::Host.withholds("authorization", &listed), "any of several");
        for name in ["set-cookie", "access-control-allow-origin", "server-timing", "link", "www-authenticate"] {
            assert!(Entrance::Path.refuses(name) && !Entrance::Host.refuses(name), "{name}");
        }
    }

    #[test]
    fn a_cookie_is_no_siblings() {
        for (cookie, expected) in [
            ("a=b; Domain=localhost; Path=/", "a=b; Path=/"),
            ("a=b;DOMAIN = .x ;HttpOnly", "a=b;HttpOnly"),
            ("domain=b; Path=/", "domain=b; Path=/"),
            ("a=b; Secure", "a=b; Secure"),
        ] {
            assert_eq!(without_domain(cookie.as_bytes()), expected.as_bytes(), "{cookie}");
        }
    }
}
