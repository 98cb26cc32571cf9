//! HTTP/1.1 over a socket, one request a connection.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// A whole reply.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: HashMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The body as a text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// A header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The stable code of a problem document of this status.
    pub fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.headers.get("content-type").map(String::as_str), Some("application/problem+json"));
        let document = self.json();
        assert!(document["detail"].as_str().is_some_and(|detail| detail.len() > 5), "{document}");
        document["code"].as_str().expect("a code").to_owned()
    }
}

/// Sends bytes and takes whatever comes back until the peer closes.
pub fn raw(port: u16, bytes: &[u8]) -> Vec<u8> {
    exchange(TcpStream::connect(("127.0.0.1", port)).expect("the platform listens"), bytes)
}

fn exchange(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a socket");
    // A server that refuses a body may close before it has read all of it.
    let _ = stream.write_all(bytes);
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    reply
}

/// Sends one request. `Host` is localhost unless the headers name one.
pub fn request(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str("Host: localhost\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    parse(&raw(port, &[head.as_bytes(), body].concat()))
}

/// Sends JSON, waits until the connection ends, and drops the answer.
pub fn post(port: u16, path: &str, body: &serde_json::Value) {
    let body = body.to_string();
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    raw(port, &[head.as_bytes(), body.as_bytes()].concat());
}

/// GET of a server that may not be there yet, or no longer.
pub(crate) fn try_get(port: u16, path: &str) -> Option<Reply> {
    // One connection: a test that looked for a free port listens on it until its children have executed their program, so a
    // second one may find nobody.
    let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let reply = exchange(stream, request.as_bytes());
    (!reply.is_empty()).then(|| parse(&reply))
}

fn parse(bytes: &[u8]) -> Reply {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no reply: {:?}", String::from_utf8_lossy(bytes)));
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status line");
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let body = &bytes[end + 4..];
    let chunked = headers.get("transfer-encoding").is_some_and(|value| value == "chunked");
    Reply { status, body: if chunked { unchunk(body) } else { body.to_vec() }, headers }
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(&String::from_utf8_lossy(&rest[..at]), 16).unwrap_or(0);
        let chunk = at + 2..at + 2 + size;
        if size == 0 || rest.len() < chunk.end {
            break;
        }
        body.extend_from_slice(&rest[chunk.clone()]);
        rest = rest.get(chunk.end + 2..).unwrap_or_default();
    }
    body
}
