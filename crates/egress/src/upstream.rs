//! The operator's own proxy, where that is the only way out.

use crate::authority;

/// A proxy of the operator's, and the names that may be reached through it: addresses are its to judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// User and password, as its URL has them.
    user: Option<String>,
    /// Names; `*.example.org` stands for every name below it.
    hosts: Vec<String>,
}

/// Why a text names no proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no proxy; write http://host:port or http://user:password@host:port")]
pub struct InvalidUpstream(String);

impl Upstream {
    /// Reads `http://[user:password@]host:port`.
    ///
    /// # Errors
    /// A URL of another form.
    pub fn parse(url: &str, hosts: Vec<String>) -> Result<Self, InvalidUpstream> {
        // A password does not belong into a log.
        let shown = url.rsplit('@').next().unwrap_or_default();
        let invalid = || InvalidUpstream(shown.to_owned());
        let rest = url.strip_prefix("http://").ok_or_else(invalid)?.trim_end_matches('/');
        let (user, at) = rest.rsplit_once('@').map_or((None, rest), |(user, at)| (Some(user.to_owned()), at));
        let (host, port) = authority(at, Some(80)).ok_or_else(invalid)?;
        let hosts = hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect();
        Ok(Self { host, port, user, hosts })
    }

    /// Whether a name may be reached.
    pub fn permits(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.hosts.iter().any(|host| match host.strip_prefix('*') {
            Some(suffix) => name.ends_with(suffix) && name.len() > suffix.len(),
            None => *host == name,
        })
    }

    /// The header that it wants, or nothing (RFC 7617).
    pub(crate) fn credentials(&self) -> String {
        use base64::Engine;
        let encode = |user: &String| base64::engine::general_purpose::STANDARD.encode(user);
        self.user.as_ref().map(|user| format!("Proxy-Authorization: Basic {}\r\n", encode(user))).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_proxy_reaches_the_names_it_was_given() {
        let hosts = vec!["a.example".to_owned(), "*.b.example".to_owned()];
        let upstream = Upstream::parse("http://me:secret@proxy.example:3128", hosts).unwrap();
        assert_eq!((upstream.host.as_str(), upstream.port), ("proxy.example", 3128));
        assert_eq!(upstream.credentials(), "Proxy-Authorization: Basic bWU6c2VjcmV0\r\n");
        for (name, may) in [("A.example", true), ("x.b.example.", true), ("b.example", false), ("c.example", false)] {
            assert_eq!(upstream.permits(name), may, "{name}");
        }
        let error = Upstream::parse("socks5://me:secret@proxy.example", Vec::new()).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
