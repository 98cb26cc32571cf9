//! What is judged before a handler runs: sizes, whether a web page is behind the request, and whether its principal may ask
//! for it.
//!
//! Loopback is no authentication. A page in the operator's browser can send requests here, so a name that is not
//! ours (DNS rebinding), an origin that is not ours, and a fetch from another site are turned away.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use faena_auth::{Forbidden, Principal, Requirement};
use faena_domain::Namespace;
use faena_domain::identity::MAX_DEPTH;
use faena_domain::limits::{MAX_ARCHIVE, MAX_BODY, MAX_HEADER_BYTES, MAX_IMAGE};
use futures_util::future::{Either, select};
use futures_util::{StreamExt, TryStreamExt};

use crate::access::{AuditEntry, Audited, Grant, Origin, RequestAuth, session_cookie};
use crate::app::App;
use crate::authorize::{self, NO_ROUTE, Operation};
use crate::calling::CallingFunction;
use crate::entrance::{Entrance, host_name};
use crate::problem::{ErrorCode, Problem, Reply};

/// What follows something is sent as this (HTML Standard, 9.2).
const EVENT_STREAM: &str = "text/event-stream";
/// Where a browser begins to sign in, and where it comes back.
const LOGIN: &str = "/login";
const LOGIN_CALLBACK: &str = "/login/callback/";
/// What a multipart body may add to the archive in it.
pub(crate) const MULTIPART_FRAME: u64 = 64 * 1024;

/// Judges a request, counts its answer, and records what it has changed.
pub(crate) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    if let Err(problem) = judge(&app, request.method(), request.uri(), request.headers()) {
        return problem.into_response();
    }
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or(NO_ROUTE, |path| path.as_str()).to_owned();
    let response = admit_and_answer(&app, &route, request, next).await;
    let metrics = app.metrics();
    metrics.request(&route, response.status().as_u16()).inc();
    metrics.request_seconds.observe(begun.elapsed().as_secs_f64());
    response
}

async fn admit_and_answer(app: &App, route: &str, mut request: Request, next: Next) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let operation = Operation::of(&method, route, &uri);
    let origin = request.extensions().get::<Origin>().cloned().unwrap_or_default();
    let (principal, admitted) = admit(app, &operation, route, &uri, (request.headers(), &origin)).await;
    let entry = AuditEntry::of(&principal, (&method, route), &operation.name(), origin.address);
    if let Err(problem) = admitted {
        let mut response = problem.into_response();
        record(app, false, entry, &mut response).await;
        return response;
    }
    let grant = operation.grant(&principal, &RequestAuth::of_route(request.headers(), &origin));
    let is_lasting = lasts(request.headers());
    request.extensions_mut().insert(principal);
    request.extensions_mut().insert(origin);
    if operation.requirement == Requirement::Nothing {
        return recorded(app.clone(), operation.is_change(&method), entry, next.run(request)).await;
    }
    if !operation.is_change(&method) {
        let answering = recorded(app.clone(), false, entry, next.run(request));
        return if is_lasting { while_granted(app, grant, answering).await } else { answering.await };
    }
    let request = request.map(|body| while_still_granted(app, grant, body));
    // A change is recorded also where its client does not wait for the reply.
    let changing = tokio::spawn(recorded(app.clone(), true, entry, next.run(request)));
    changing.await.unwrap_or_else(|error| Problem::internal("changing something", &error).into_response())
}

/// Answers a request, and records it.
async fn recorded(app: App, is_change: bool, entry: AuditEntry, answering: impl Future<Output = Response>) -> Response {
    let mut response = answering.await;
    record(&app, is_change, entry, &mut response).await;
    response
}

/// A body that fails at its end, where its request would not be admitted any longer: nothing is done with one whose
/// credential was revoked while it came.
fn while_still_granted(app: &App, grant: Grant, body: Body) -> Body {
    let access = Arc::clone(app.access());
    let end = futures_util::stream::once(async move {
        if access.holds(&grant).await {
            return Ok(None);
        }
        Err(axum::Error::new(std::io::Error::other("its credential was revoked while it came")))
    });
    let frames = body.into_data_stream().map(|frame| frame.map(Some)).chain(end);
    Body::from_stream(frames.try_filter_map(|frame| std::future::ready(Ok(frame))))
}

/// Whether a request may be answered long after it was admitted: it waits for the end of a call, or follows something.
fn lasts(headers: &HeaderMap) -> bool {
    headers.contains_key("prefer") || text(headers, "accept").is_some_and(|accept| accept.contains(EVENT_STREAM))
}

/// Answers a request, and ends its answer, when it would not be admitted any longer.
async fn while_granted(app: &App, grant: Grant, answering: impl Future<Output = Response>) -> Response {
    let access = Arc::clone(app.access());
    let revoked = Box::pin(async move { access.revoked(&grant).await });
    let (response, revoked) = match select(std::pin::pin!(answering), revoked).await {
        Either::Left((response, revoked)) => (response, revoked),
        Either::Right(_) => return Problem::from(Forbidden::Unauthenticated).into_response(),
    };
    let is_stream = text(response.headers(), "content-type").is_some_and(|kind| kind.starts_with(EVENT_STREAM));
    if !is_stream {
        return response;
    }
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(revoked)))
}

/// Who sends a request, and whether it goes on to its handler.
async fn admit(
    app: &App,
    operation: &Operation<'_>,
    route: &str,
    uri: &Uri,
    (headers, origin): (&HeaderMap, &Origin),
) -> (Arc<Principal>, Reply<()>) {
    let nobody = || Arc::new(Principal::anonymous(Namespace::default()));
    // What is for everyone asks nothing of db.
    if operation.requirement == Requirement::Nothing {
        return (nobody(), no_query(route, uri));
    }
    let auth = RequestAuth { is_about_itself: operation.is_about_itself(), ..RequestAuth::of_route(headers, origin) };
    let principal = match app.access().principal(&auth).await {
        Ok(principal) => principal,
        Err(problem) => return (nobody(), Err(problem)),
    };
    let permitted = async {
        let rules = authorize::rules_for(app.access(), &principal).await?;
        operation.permit(&principal, &rules.rules)?;
        no_query(route, uri)
    };
    let permitted = permitted.await;
    (principal, permitted)
}

/// Records what a request has changed, before its reply, and counts what was refused.
async fn record(app: &App, is_change: bool, mut entry: AuditEntry, response: &mut Response) {
    if let Some(Audited { account, target, namespace }) = response.extensions_mut().remove() {
        entry.account = account.or(entry.account);
        entry.target = target.unwrap_or(entry.target);
        entry.namespace = namespace.unwrap_or(entry.namespace);
    }
    entry.outcome = response.status().as_u16();
    let audit = &app.access().audit;
    if !is_change || !response.status().is_success() {
        audit.refused(entry);
    } else if let Err(error) = audit.changed(entry).await {
        tracing::error!(%error, "a change is not in the audit log");
    }
}

/// Refuses a query where the route would ignore it: its sender meant something by it.
fn no_query(route: &str, uri: &Uri) -> Reply<()> {
    let takes_one = route == NO_ROUTE
        || matches!(
            route,
            "/calls"
                | "/deadLetters"
                | "/function/{name}/logs"
                | "/audit"
                | "/config/{path}"
                | "/rule"
                | "/rule/{id}"
                | "/account/{account}/secret"
                | "/namespace/{namespace}"
                | LOGIN
                | "/login/callback/{provider}"
        );
    match uri.query() {
        Some(query) if !takes_one && !query.is_empty() => {
            Err(Problem::new(ErrorCode::InvalidQuery, format!("{} takes no query", uri.path())))
        }
        _ => Ok(()),
    }
}

/// Checks that apply to every request of the API.
fn judge(app: &App, method: &Method, uri: &Uri, headers: &HeaderMap) -> Reply<()> {
    let is_image = *method == Method::PUT && uri.path().starts_with("/image/");
    declared_size(headers, if is_image { MAX_IMAGE } else { MAX_ARCHIVE + MULTIPART_FRAME })?;
    bounded(headers)?;
    single(uri, headers)?;
    let is_sign_in = uri.path() == LOGIN || uri.path().starts_with(LOGIN_CALLBACK);
    if is_sign_in && *method == Method::GET {
        // A provider sends the browser here, and other sites may link to a sign-in.
        return own_host(app, headers);
    }
    not_a_page(app, headers)?;
    // SameSite=Lax lets a link of another site bring the cookie, and a link changes nothing.
    if method.is_safe() { Ok(()) } else { cookie_of_this_site(headers) }
}

/// Checks that apply to every request for a function.
pub(crate) fn judge_call(app: &App, entrance: Entrance, head: (&Method, &Uri, &HeaderMap)) -> Reply<()> {
    let (method, uri, headers) = head;
    bounded(headers)?;
    single(uri, headers)?;
    match entrance {
        Entrance::Path => not_a_page(app, headers).and_then(|()| cookie_of_this_site(headers)),
        Entrance::Host => not_another_site(method, headers),
    }
}

/// Judges a request of a function to another one.
pub(crate) fn judge_internal(calling: &CallingFunction, uri: &Uri, headers: &HeaderMap) -> Reply<()> {
    bounded(headers)?;
    single(uri, headers)?;
    if calling.depth > MAX_DEPTH {
        let detail = format!("{MAX_DEPTH} calls of functions led to this one, which is the most");
        return Err(Problem::new(ErrorCode::CallLoop, detail));
    }
    if calling.left_ms() == 0 {
        return Err(Problem::new(ErrorCode::Timeout, "the call that this request comes from has no time left"));
    }
    Ok(())
}

/// Refuses requests that a page of another site sends to a function's own origin. Following a link is permitted. On an open
/// platform every request that reaches a function is the operator's.
fn not_another_site(method: &Method, headers: &HeaderMap) -> Reply<()> {
    let host = text(headers, "host").unwrap_or_default();
    let site = text(headers, "sec-fetch-site");
    let is_own = |origin: &str| is_origin_of(origin, host);
    let is_foreign = match (site, text(headers, "origin")) {
        // A page that hides its origin sends `null`; `Sec-Fetch-Site` still tells that it is the same one.
        (Some("same-origin"), Some("null")) => false,
        (_, Some(origin)) => !is_own(origin),
        (Some(site), None) => !is_same_site(site),
        (None, None) => false,
    } || site.is_some_and(|site| !is_same_site(site));
    let is_link = *method == Method::GET
        && text(headers, "sec-fetch-mode") == Some("navigate")
        && text(headers, "sec-fetch-dest") == Some("document");
    if is_foreign && !is_link {
        let detail = "the request comes from a page of another site";
        return Err(Problem::new(ErrorCode::ForeignOrigin, detail));
    }
    Ok(())
}

/// Whether an `Origin` is that of a host.
fn is_origin_of(origin: &str, host: &str) -> bool {
    origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host))
}

/// Whether a `Sec-Fetch-Site` says that no other site is behind the request.
fn is_same_site(site: &str) -> bool {
    matches!(site, "same-origin" | "none")
}

/// The headers hold no more than is promised; the parser's own bound is that of its buffer.
fn bounded(headers: &HeaderMap) -> Reply<()> {
    // A colon and a space, and the end of the line.
    const AROUND: usize = 4;
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + AROUND).sum();
    if bytes > MAX_HEADER_BYTES {
        let detail = format!("the headers have {bytes} bytes; {MAX_HEADER_BYTES} are permitted");
        return Err(Problem::new(ErrorCode::HeadersTooLarge, detail));
    }
    Ok(())
}

/// What is judged below must be what every other reader of the request sees: one host, one origin.
fn single(uri: &Uri, headers: &HeaderMap) -> Reply<()> {
    for name in [header::HOST, header::ORIGIN, header::AUTHORIZATION] {
        if headers.get_all(&name).iter().nth(1).is_some() {
            return Err(Problem::new(ErrorCode::RepeatedHeader, format!("the header {name} is there more than once")));
        }
    }
    let differs =
        uri.authority().is_some_and(|authority| text(headers, "host").is_some_and(|host| host != authority.as_str()));
    if differs {
        return Err(Problem::new(
            ErrorCode::RepeatedHeader,
            "the request names one host in its first line and another in Host",
        ));
    }
    Ok(())
}

/// A body that says it is larger than any route takes is refused before anything else is looked at.
fn declared_size(headers: &HeaderMap, most: u64) -> Reply<()> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match declared {
        Some(length) if length > most => Err(Problem::too_large(format!(
            "a body of {length} bytes is over the limit of {MAX_ARCHIVE} bytes for archives, {MAX_IMAGE} for images and {MAX_BODY} for calls"
        ))),
        _ => Ok(()),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// Refuses a request for a host that is none of ours.
fn own_host(app: &App, headers: &HeaderMap) -> Reply<()> {
    let host = text(headers, "host").unwrap_or_default();
    let name = host_name(host).to_ascii_lowercase();
    // A page can have a name that leads here (DNS rebinding), but no address of its own that does.
    let is_address = || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    let known = matches!(name.as_str(), "localhost" | "127.0.0.1" | "[::1]")
        || app.host_names().contains(&name)
        || (app.is_beyond_loopback() && is_address());
    if !known {
        let detail =
            format!("the Host header names {:?}, which is none of ours", host.chars().take(80).collect::<String>());
        return Err(Problem::new(ErrorCode::ForeignHost, detail)
            .hint("call localhost or 127.0.0.1, or name the host in the setting host_names"));
    }
    Ok(())
}

/// Refuses a request that a page of another site may have sent, with the cookie that the browser adds to it: one that names
/// no origin of ours.
fn cookie_of_this_site(headers: &HeaderMap) -> Reply<()> {
    if session_cookie(headers).is_none() || headers.contains_key(header::AUTHORIZATION) {
        return Ok(());
    }
    let host = text(headers, "host").unwrap_or_default();
    let is_own = match (text(headers, "origin"), text(headers, "sec-fetch-site")) {
        (Some(origin), _) => is_origin_of(origin, host),
        (None, Some(site)) => is_same_site(site),
        (None, None) => false,
    };
    if is_own {
        return Ok(());
    }
    let detail = "the request has the cookie of a session, and does not say that it comes from a page of this platform";
    Err(Problem::new(ErrorCode::ForeignOrigin, detail).hint("a browser sends the header Origin; programs use a key"))
}

fn not_a_page(app: &App, headers: &HeaderMap) -> Reply<()> {
    own_host(app, headers)?;
    let host = text(headers, "host").unwrap_or_default();
    let is_foreign = text(headers, "origin").is_some_and(|origin| !is_origin_of(origin, host))
        || text(headers, "sec-fetch-site").is_some_and(|site| !is_same_site(site));
    if is_foreign {
        let detail = "the request comes from a page of another site";
        return Err(Problem::new(ErrorCode::ForeignOrigin, detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;
    use crate::entrance::host_name;

    #[test]
    fn a_port_is_no_part_of_a_name() {
        assert_eq!(host_name("localhost:3000"), "localhost");
        assert_eq!(host_name("[::1]:3000"), "[::1]");
        assert_eq!(host_name("[::1]"), "[::1]");
    }

    #[test]
    fn an_own_origin_takes_links_from_other_sites_and_nothing_else() {
        let permitted = |method: Method, told: &[(&str, &str)]| {
            let told = told.iter().chain(&[("host", "shop.localhost:3000")]);
            let parsed = told.map(|(name, value)| {
                (HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.parse().expect("a value"))
            });
            not_another_site(&method, &parsed.collect()).is_ok()
        };
        let (cross, own) = (("sec-fetch-site", "cross-site"), ("sec-fetch-site", "same-origin"));
        let (navigate, document) = (("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document"));
        assert!(permitted(Method::GET, &[]));
        assert!(permitted(Method::POST, &[own, ("origin", "http://shop.localhost:3000")]));
        assert!(permitted(Method::POST, &[own, ("origin", "null")]));
        assert!(permitted(Method::GET, &[cross, navigate, document]));
        assert!(!permitted(Method::POST, &[cross, navigate, document]));
        assert!(!permitted(Method::GET, &[cross, navigate, ("sec-fetch-dest", "iframe")]));
        assert!(!permitted(Method::GET, &[cross, ("sec-fetch-mode", "no-cors")]));
        assert!(!permitted(Method::GET, &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "cors")]));
        assert!(!permitted(Method::GET, &[("origin", "http://other.localhost:3000")]));
        assert!(!permitted(Method::POST, &[("origin", "null")]));
    }
}
