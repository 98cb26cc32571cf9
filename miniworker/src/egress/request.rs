//! Requests to the proxy: what they ask for, and how they go on from here (RFC 9110, 9.3.6; RFC 9112, 3.2).

use faena_egress::authority;

/// What is no request to a proxy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this proxy takes CONNECT host:port and http:// URLs")]
pub(super) struct Malformed;

/// One request to the proxy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) host: String,
    pub(super) port: u16,
    /// How many bytes its head has.
    pub(super) head: usize,
    /// What a server is asked in its place; none for CONNECT.
    pub(super) plain: Option<Plain>,
}

/// A request for an http:// URL.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plain {
    method: String,
    authority: String,
    path: String,
    /// The headers that go on, each with its line's end.
    headers: Vec<u8>,
}

impl Plain {
    /// The head for the server itself.
    pub(super) fn for_server(&self) -> Vec<u8> {
        self.head(&self.path, "")
    }

    /// The head for another proxy; `credentials` are a whole header or nothing.
    pub(super) fn for_proxy(&self, credentials: &str) -> Vec<u8> {
        self.head(&format!("http://{}{}", self.authority, self.path), credentials)
    }

    fn head(&self, target: &str, extra: &str) -> Vec<u8> {
        let (method, authority) = (&self.method, &self.authority);
        let mut head =
            format!("{method} {target} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n{extra}").into_bytes();
        head.extend_from_slice(&self.headers);
        head.extend_from_slice(b"\r\n");
        head
    }
}

impl Request {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut headers = [httparse::EMPTY_HEADER; 100];
        let mut parsed = httparse::Request::new(&mut headers);
        let Ok(httparse::Status::Complete(head)) = parsed.parse(bytes) else { return Err(Malformed) };
        let (Some(method), Some(target)) = (parsed.method, parsed.path) else { return Err(Malformed) };
        if method.eq_ignore_ascii_case("CONNECT") {
            let (host, port) = authority(target, None).ok_or(Malformed)?;
            return Ok(Self { host, port, head, plain: None });
        }
        let rest = target.strip_prefix("http://").ok_or(Malformed)?;
        let (at, path) = rest.find(['/', '?']).map_or((rest, "/"), |at| rest.split_at(at));
        let (host, port) = authority(at, Some(80)).ok_or(Malformed)?;
        let path = if path.starts_with('?') { format!("/{path}") } else { path.to_owned() };
        let plain =
            Plain { method: method.to_owned(), authority: at.to_owned(), path, headers: passed_on(parsed.headers) };
        Ok(Self { host, port, head, plain: Some(plain) })
    }
}

/// The headers that are not this proxy's own business.
fn passed_on(headers: &[httparse::Header<'_>]) -> Vec<u8> {
    let is_ours = |name: &str| {
        ["host", "connection", "keep-alive", "upgrade"].iter().any(|own| name.eq_ignore_ascii_case(own))
            || name.to_ascii_lowercase().starts_with("proxy-")
    };
    let mut lines = Vec::new();
    for header in headers.iter().filter(|header| !is_ours(header.name)) {
        for part in [header.name.as_bytes(), b": ", header.value, b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Request, Malformed> {
        Request::parse(text.as_bytes())
    }

    #[test]
    fn connect_names_host_and_port() {
        let request = parse("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n").unwrap();
        assert_eq!((request.host.as_str(), request.port, request.plain), ("a.example", 443, None));
        assert_eq!(parse("CONNECT [::1]:443 HTTP/1.1\r\n\r\n").unwrap().host, "::1");
        assert!(parse("CONNECT a.example HTTP/1.1\r\n\r\n").is_err());
    }

    #[test]
    fn a_url_becomes_a_path_and_the_proxys_headers_go() {
        let request =
            parse("GET http://a.example/x?y HTTP/1.1\r\nHost: evil\r\nProxy-Authorization: x\r\nA: b\r\n\r\n").unwrap();
        let plain = request.plain.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let rest = "Host: a.example\r\nConnection: close\r\nA: b\r\n\r\n";
        assert_eq!(text(plain.for_server()), format!("GET /x?y HTTP/1.1\r\n{rest}"));
        assert_eq!(text(plain.for_proxy("")), format!("GET http://a.example/x?y HTTP/1.1\r\n{rest}"));
    }

    #[test]
    fn what_is_no_proxy_request_is_refused() {
        for text in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET https://a/ HTTP/1.1\r\n\r\n",
            "GET http://a@b/ HTTP/1.1\r\n\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
