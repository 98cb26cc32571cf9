//! What a request hands to a function: the request itself, params made of it, and its body.

use std::borrow::Cow;
use std::io::Read;
use std::net::IpAddr;
use std::sync::Arc;

use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use bytes::Bytes;
use faena_domain::Contract;
use faena_domain::limits::MAX_BODY;
use faena_header_case::{Head, HeadNames, canonical};
use faena_protocol::direct::{Header, HttpRequest};
use faena_protocol::internal::{CALLER, DEPTH, SCOPES};
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use crate::body;
use crate::calling::CallingFunction;
use crate::entrance::{Entrance, PREFIX};
use crate::problem::{ErrorCode, Problem, Reply};

/// The route that its requests are counted and authorised under.
pub(crate) const ROUTE: &str = "/f/{name}";
/// What some programs write before a text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The head of a request.
#[derive(Debug)]
pub(crate) struct RequestHead<'a> {
    pub(crate) method: &'a Method,
    pub(crate) uri: &'a Uri,
    pub(crate) headers: &'a HeaderMap,
    /// The head as bytes, where they are known.
    pub(crate) written: Option<Head>,
    /// Where it came from.
    pub(crate) client: IpAddr,
    /// Whether the client speaks TLS.
    pub(crate) is_secure: bool,
    /// How it addresses its function.
    pub(crate) entrance: Entrance,
    /// Whether its body and its answer may have trailers: both pass through as they come.
    pub(crate) has_trailers: bool,
    /// The connection, where interim answers can be sent on it.
    pub(crate) interim: Option<HeadNames>,
    /// Headers that no record keeps, besides credentials; in lower case.
    pub(crate) private_headers: &'a [String],
    /// The function that sent it, where one did.
    pub(crate) calling: Option<&'a CallingFunction>,
}

impl RequestHead<'_> {
    /// Whether no record keeps a header.
    fn is_private(&self, name: &str) -> bool {
        const CREDENTIALS: [&str; 2] = ["authorization", "cookie"];
        const ENDINGS: [&str; 4] = ["-key", "-token", "-secret", "-signature"];
        let is = |private: &str| name.eq_ignore_ascii_case(private);
        let lower = name.to_ascii_lowercase().replace('_', "-");
        ENDINGS.iter().any(|ending| lower.ends_with(ending))
            || (self.entrance == Entrance::Host && CREDENTIALS.into_iter().any(is))
            || self.private_headers.iter().any(|private| is(private))
    }
}

/// A request as a function gets it.
#[derive(Debug)]
pub(crate) struct Handed {
    /// The params, JSON.
    pub(crate) params: Bytes,
    /// The body, where it is not the params; none where it is empty.
    pub(crate) body: Option<Bytes>,
    /// The request as it is recorded.
    pub(crate) request: Arc<HttpRequest>,
    /// Headers that the function gets besides, and no record keeps.
    pub(crate) private: Vec<Header>,
}

/// The headers that a function gets. A server gets their names as they were written, every other function in lower case.
fn passed_headers(request: &RequestHead<'_>, contract: Contract) -> Vec<Header> {
    let target = request.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let is_of = |head: &&Head| contract == Contract::Http && head.is_request(request.method.as_str(), target);
    let written = request.written.as_ref().filter(is_of);
    let is_passed = |name: &str| match name {
        "te" => request.has_trailers && takes_trailers(request.headers),
        "trailer" => request.has_trailers,
        name => !request.entrance.withholds(name, request.headers),
    };
    let passed = request.headers.iter().filter(|(name, _)| is_passed(name.as_str()));
    let passed = passed.filter_map(|(name, value)| {
        let value: Cow<'_, [u8]> = match name.as_str() {
            // Only `trailers` concerns the function; the other values are for our connection (RFC 9110, 10.1.4).
            "te" => b"trailers".as_slice().into(),
            // The gateway passes on only trailers that the request announces.
            "trailer" => permitted_trailers(request, value)?.into(),
            _ => value.as_bytes().into(),
        };
        let name = match (contract, written.and_then(|head| head.name(name.as_str()))) {
            (Contract::Http, Some(written)) => written.to_owned(),
            (Contract::Http, None) => canonical(name.as_str()),
            (Contract::Handler | Contract::Command, _) => name.to_string(),
        };
        Some(Header(name, value.into_owned()))
    });
    let caller = request.calling.into_iter().flat_map(|calling| of_caller(calling, contract));
    if contract != Contract::Http {
        return passed.chain(caller).collect();
    }
    passed.filter(|Header(name, _)| !is_forwarded(name)).chain(forwarded(request)).chain(caller).collect()
}

/// Headers that tell a function which other one calls it.
fn of_caller(calling: &CallingFunction, contract: Contract) -> impl Iterator<Item = Header> {
    let named = move |name: &str| if contract == Contract::Http { name.to_owned() } else { name.to_ascii_lowercase() };
    let scopes = Some(calling.scopes.names().join(", ")).filter(|scopes| !scopes.is_empty());
    let told = [(CALLER, Some(calling.name.to_string())), (DEPTH, Some(calling.depth.to_string())), (SCOPES, scopes)];
    told.into_iter().filter_map(move |(name, value)| Some(Header(named(name), value?.into_bytes())))
}

/// The trailers that a request announces and may have: none that it could not have as a header.
fn permitted_trailers(request: &RequestHead<'_>, announced: &HeaderValue) -> Option<Vec<u8>> {
    let names = announced.to_str().ok()?.split(',').map(str::trim);
    let is_permitted = |name: &&str| {
        let name = name.to_ascii_lowercase();
        !name.is_empty() && !request.entrance.withholds(&name, request.headers) && !is_forwarded(&name)
    };
    let permitted: Vec<&str> = names.filter(is_permitted).collect();
    (!permitted.is_empty()).then(|| permitted.join(", ").into_bytes())
}

/// Whether the client of a request takes trailers.
fn takes_trailers(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::TE).iter().filter_map(|value| value.to_str().ok());
    values.any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case("trailers")))
}

/// Whether a header says how a client reached the function, which the platform does.
pub(crate) fn is_forwarded(name: &str) -> bool {
    name.to_ascii_lowercase().replace('_', "-").starts_with("x-forwarded-")
}

/// Headers that tell a server how its client reached it. The client's own headers of these names are replaced.
fn forwarded(request: &RequestHead<'_>) -> impl Iterator<Item = Header> {
    let prefix = (request.entrance == Entrance::Path).then(|| {
        let name = request.uri.path().strip_prefix(PREFIX).and_then(|rest| rest.split('/').next()).unwrap_or_default();
        format!("{PREFIX}{name}").into_bytes()
    });
    let host = request.headers.get(header::HOST).map(|host| host.as_bytes().to_vec());
    let told = [
        ("X-Forwarded-Prefix", prefix),
        ("X-Forwarded-Proto", Some(if request.is_secure { b"https".to_vec() } else { b"http".to_vec() })),
        ("X-Forwarded-Host", host),
        ("X-Forwarded-For", Some(request.client.to_string().into_bytes())),
    ];
    told.into_iter().filter_map(|(name, value)| Some(Header(name.to_owned(), value?)))
}

/// Makes params of a request. A function that speaks HTTP gets every body as it came. For all other functions a JSON body is
/// the params.
///
/// # Errors
/// For all but functions that speak HTTP: JSON that is none, and encodings that cannot be undone.
pub(crate) fn hand(head: &RequestHead<'_>, contract: Contract, body: &Bytes) -> Reply<Handed> {
    let (query, headers) = (head.uri.query().unwrap_or_default(), head.headers);
    let (private, recorded): (Vec<Header>, Vec<Header>) =
        passed_headers(head, contract).into_iter().partition(|Header(name, _)| head.is_private(name));
    let mut request = HttpRequest {
        method: head.method.to_string(),
        path: head.entrance.path(head.uri).to_owned(),
        query: query.to_owned(),
        headers: recorded,
        has_json: false,
    };
    let is_json = body::is_json(headers) && !body.is_empty();
    if contract == Contract::Http {
        request.has_json = is_json && !headers.contains_key(header::CONTENT_ENCODING) && body::check_json(body).is_ok();
        let params = if request.has_json { body.clone() } else { fields(query, &[]) };
        let body = Some(body.clone()).filter(|body| !request.has_json && !body.is_empty());
        return Ok(Handed { params, body, request: Arc::new(request), private });
    }
    let body = decoded(headers, body)?;
    if !body.is_empty() && body::is_json(headers) {
        let params = if body.starts_with(BYTE_ORDER_MARK) { body.slice(BYTE_ORDER_MARK.len()..) } else { body };
        body::check_json(&params)?;
        request.has_json = true;
        return Ok(Handed { params, body: None, request: Arc::new(request), private });
    }
    let form = if is_form(headers) { &body[..] } else { &[] };
    let params = fields(query, form);
    let body = Some(body).filter(|body| !body.is_empty());
    Ok(Handed { params, body, request: Arc::new(request), private })
}

fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// The fields of a query and of a form, as texts; one that is repeated is an array of them.
fn fields(query: &str, form: &[u8]) -> Bytes {
    let mut params = Map::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()).chain(form_urlencoded::parse(form)) {
        let value = Value::String(value.into_owned());
        match params.get_mut(&*name) {
            None => drop(params.insert(name.into_owned(), value)),
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    if params.is_empty() { Bytes::from_static(b"{}") } else { Value::Object(params).to_string().into() }
}

/// A body without its Content-Encoding.
fn decoded(headers: &HeaderMap, body: &Bytes) -> Reply<Bytes> {
    let encoding = headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?").trim().to_owned());
    match encoding.unwrap_or_default().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(body.clone()),
        "gzip" | "x-gzip" => {
            let mut plain = Vec::new();
            let read = MultiGzDecoder::new(&body[..]).take(MAX_BODY + 1).read_to_end(&mut plain);
            read.map_err(|error| Problem::new(ErrorCode::BrokenBody, format!("the body is no gzip: {error}")))?;
            if plain.len() as u64 > MAX_BODY {
                return Err(Problem::too_large(format!("the body unpacks to more than {MAX_BODY} bytes")));
            }
            Ok(plain.into())
        }
        other => {
            let other: String = other.chars().take(80).collect();
            let detail = format!("a body with the Content-Encoding {other:?} is not read; gzip is");
            Err(Problem::new(ErrorCode::UnsupportedEncoding, detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn of(contract: Contract, uri: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply<Handed> {
        let parse = |(name, value): &(&str, &str)| {
            (header::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap())
        };
        let (headers, uri) = (headers.iter().map(parse).collect(), uri.parse().unwrap());
        let head = RequestHead {
            method: &Method::POST,
            uri: &uri,
            headers: &headers,
            written: None,
            client: IpAddr::from([127, 0, 0, 1]),
            is_secure: false,
            entrance: Entrance::Path,
            has_trailers: false,
            interim: None,
            private_headers: &[],
            calling: None,
        };
        hand(&head, contract, &Bytes::copy_from_slice(body))
    }

    fn params(contract: Contract, uri: &str, headers: &[(&str, &str)], body: &[u8]) -> String {
        String::from_utf8(of(contract, uri, headers, body).unwrap().params.to_vec()).unwrap()
    }

    const JSON: (&str, &str) = ("content-type", "application/json");
    const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

    #[test]
    fn params_are_the_json_or_the_fields() {
        let handler = |uri: &str, headers: &[(&str, &str)], body: &[u8]| params(Contract::Handler, uri, headers, body);
        assert_eq!(handler("/f/a?x=1", &[JSON], b"{\"a\":1}"), "{\"a\":1}");
        assert_eq!(handler("/f/a?x=1", &[JSON], b"\xef\xbb\xbf7"), "7");
        assert_eq!(handler("/f/a?x=1&y=%C3%B1&x=2", &[JSON], b""), r#"{"x":["1","2"],"y":"ñ"}"#);
        assert_eq!(handler("/f/a?x=1", &[FORM], b"b=2&x=3"), r#"{"b":"2","x":["1","3"]}"#);
        assert_eq!(handler("/f/a", &[], b"raw"), "{}");
        assert!(of(Contract::Handler, "/f/a", &[JSON], b"{\"a\":").is_err());
    }

    #[test]
    fn a_server_gets_every_body_as_it_came() {
        for body in [&b"{\"a\":"[..], b"{\"a\":1}\n{\"a\":2}\n", b"\xef\xbb\xbf7"] {
            let handed = of(Contract::Http, "/f/a/b", &[JSON], body).unwrap();
            assert_eq!((handed.body.as_deref(), handed.request.has_json), (Some(body), false));
        }
        let handed = of(Contract::Http, "/f/a/b?c", &[JSON], b"[1]").unwrap();
        assert_eq!((&handed.params[..], handed.body, handed.request.target().as_str()), (&b"[1]"[..], None, "/b?c"));
    }

    #[test]
    fn a_server_learns_how_its_client_reached_it() {
        let headers = [("host", "localhost:3000"), ("x-forwarded-for", "192.0.2.1"), ("x-mine", "v")];
        let handed = of(Contract::Http, "/f/Shop/cart", &headers, b"").unwrap();
        let told: Vec<String> = handed
            .request
            .headers
            .iter()
            .map(|Header(name, value)| format!("{name}: {}", String::from_utf8_lossy(value)))
            .collect();
        let expected = [
            "X-Mine: v",
            "X-Forwarded-Prefix: /f/Shop",
            "X-Forwarded-Proto: http",
            "X-Forwarded-Host: localhost:3000",
            "X-Forwarded-For: 127.0.0.1",
        ];
        assert_eq!(told, expected);
        let handler = of(Contract::Handler, "/f/a", &headers, b"").unwrap();
        assert!(handler.request.headers.iter().all(|Header(name, _)| name != "X-Forwarded-Prefix"));
    }

    #[test]
    fn gzip_is_unpacked_and_nothing_else_is() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"{\"a\":1}").unwrap();
        let packed = gzip.finish().unwrap();
        assert_eq!(params(Contract::Handler, "/f/a", &[JSON, ("content-encoding", "gzip")], &packed), "{\"a\":1}");
        for (encoding, body) in [("br", &packed[..]), ("gzip", b"no gzip")] {
            assert!(of(Contract::Command, "/f/a", &[("content-encoding", encoding)], body).is_err(), "{encoding}");
        }
    }

    #[test]
    fn a_function_sees_no_credentials() {
        let headers = [
            ("authorization", "v"),
            ("cookie", "v"),
            ("x-mine", "v"),
            ("proxy-authorization", "v"),
            ("faena-call", "v"),
        ];
        let handed = of(Contract::Handler, "/f/a", &headers, b"").unwrap();
        assert_eq!(handed.request.headers, [Header("x-mine".to_owned(), b"v".to_vec())]);
    }
}
