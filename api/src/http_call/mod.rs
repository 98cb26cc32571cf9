//! A call on `/f/`: the request goes to the function, and what the function puts out is the reply.
//!
//! [`answer`] is all of it. A call whose path is direct is served on the thread that owns its connection; every other call
//! runs where it may take its time.

mod direct;
mod reply;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Method, Request, Response, StatusCode};
use axum::response::IntoResponse;
use bytes::Bytes;
use faena_domain::limits::MAX_BODY;
use faena_domain::plan::{CallPath, CallTarget, CallTerms, plan};
use faena_domain::{CallNum, Contract, FunctionName};
use faena_header_case::HeadNames;
use faena_invoker::Invoker;
use faena_protocol::direct::HttpRequest;
use faena_protocol::records::{CallSpec, Code, IdempotencyKey};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use tokio_util::task::AbortOnDropHandle;

use crate::app::App;
use crate::handed::{self, Handed, PREFIX, ROUTE, RequestHead};
use crate::problem::{ErrorCode, Problem, Reply, busy};
use crate::versions::Current;
use crate::{actions, authorize, body, guard, idempotency, trace};

/// What a call may wait for a slot, over its own time.
const QUEUE_MS: u64 = 10_000;

/// How much later than its age a call is judged at most.
const JUDGED: Duration = Duration::from_secs(2);

/// Who sent a request, and over which connection.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// The names of the headers on the connection.
    pub(crate) names: HeadNames,
    pub(crate) address: IpAddr,
}

/// A call that was read from its request.
struct HttpCall {
    num: CallNum,
    request: Arc<HttpRequest>,
    params: Bytes,
    /// The body, where it is not the params.
    body: Option<Bytes>,
    traceparent: String,
    /// The memory of its body.
    held: body::Whole,
    is_head: bool,
}

/// How a call is executed, and by whom.
struct Plan {
    path: CallPath,
    /// What takes direct calls of the version.
    invoker: Option<Arc<dyn Invoker>>,
    current: Arc<Current>,
}

/// Whether a request is a call of a function.
pub(crate) fn is_one<B>(request: &Request<B>) -> bool {
    request.uri().path().strip_prefix(PREFIX).is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
}

/// Calls a function and replies with what it put out.
pub(crate) async fn answer(app: &App, request: Request<Incoming>, client: &Client) -> Response<Body> {
    let begun = Instant::now();
    let mut response = serve(app, request, client).await.unwrap_or_else(Problem::into_response);
    if let Some(reply::WrittenNames(written)) = response.extensions_mut().remove() {
        client.names.write_next(written.iter().map(String::as_str));
    }
    let metrics = app.metrics();
    match response.status() {
        StatusCode::OK => metrics.direct_ok.inc(),
        status => metrics.request(ROUTE, status.as_u16()).inc(),
    };
    metrics.request_seconds.observe(begun.elapsed().as_secs_f64());
    response
}

async fn serve(app: &App, request: Request<Incoming>, client: &Client) -> Reply<Response<Body>> {
    guard::judge(app, request.uri(), request.headers())?;
    let principal = authorize::authenticate();
    authorize::permit(&principal, request.method(), ROUTE)?;
    app.admission().disk()?;
    let has_key = request.headers().contains_key("idempotency-key");
    let name = name_of(request.uri().path())?;
    let current = match app.versions().known(&principal.namespace, &name) {
        Some(current) => current,
        None => app.versions().of(&principal.namespace, &name.parse::<FunctionName>()?, None).await?,
    };
    let plan = decide(app, current, has_key);
    if plan.path == CallPath::Direct {
        return run(app, plan, request, client).await;
    }
    let (shared, client) = (app.clone(), client.clone());
    let running = AbortOnDropHandle::new(app.shared().spawn(async move { run(&shared, plan, request, &client).await }));
    running.await.unwrap_or_else(|error| Err(Problem::internal("calling a function", &error)))
}

/// The name of the function in a path.
fn name_of(path: &str) -> Reply<Cow<'_, str>> {
    let name = path.strip_prefix(PREFIX).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let malformed = |_| Problem::new(ErrorCode::MalformedPath, "the name in the path is no UTF-8");
    percent_decode_str(name).decode_utf8().map_err(malformed)
}

fn decide(app: &App, current: Arc<Current>, has_key: bool) -> Plan {
    let code = &current.code;
    let invoker = app.invokers().iter().find(|invoker| invoker.offers(code)).cloned();
    let terms = CallTerms { is_waited: true, is_passed_on: true, has_key, ..CallTerms::default() };
    let target = CallTarget {
        status: current.status,
        contract: code.serving.contract,
        has_concurrency: code.concurrency.is_some(),
        is_offered: invoker.is_some(),
    };
    Plan { path: plan(&terms, &target), invoker, current }
}

async fn run(
    app: &App,
    Plan { path, invoker, current }: Plan,
    request: Request<Incoming>,
    client: &Client,
) -> Reply<Response<Body>> {
    let (parts, incoming) = request.into_parts();
    let is_server = current.code.serving.contract == Contract::Http;
    let request = RequestHead {
        method: &parts.method,
        uri: &parts.uri,
        headers: &parts.headers,
        // Nothing of the body was read yet, and nothing written: it is this request's. No other contract needs it.
        written: if is_server { client.names.take_head() } else { None },
        address: client.address,
    };
    let response = execute(app, (path, invoker), &current, (&parts, request, incoming)).await?;
    // A browser, curl and most libraries say what they accept, and follow; to others the answer goes as it is.
    let follows = is_server && parts.headers.contains_key("accept");
    Ok(if follows { reply::below_prefix(response, &current.code.function) } else { response })
}

async fn execute(
    app: &App,
    (path, invoker): (CallPath, Option<Arc<dyn Invoker>>),
    current: &Current,
    (parts, request, incoming): (&Parts, RequestHead<'_>, Incoming),
) -> Reply<Response<Body>> {
    match (path, invoker) {
        (CallPath::Direct, Some(invoker)) => {
            let permit = app.completions().permit().ok_or_else(busy)?;
            let Code { namespace, function, .. } = &*current.code;
            let _waiting = app.follow(namespace, function)?;
            let call = read(app, current, &request, incoming).await?;
            direct::run(app, &invoker, current, call, permit).await
        }
        (path, _) => {
            let call = read(app, current, &request, incoming).await?;
            let key = idempotency::idempotency_key(&parts.headers, (&parts.method, &parts.uri), None, &call.held)?;
            stored(app, path, current, call, key).await
        }
    }
}

/// Reads a call from its request, and gives it a number.
async fn read(app: &App, current: &Current, head: &RequestHead<'_>, incoming: Incoming) -> Reply<HttpCall> {
    let Code { namespace, function, serving, .. } = &*current.code;
    let of = Some((namespace, function));
    let held = body::read(app.admission(), head.headers, Body::new(incoming), of, MAX_BODY).await?;
    let Handed { params, body, request } = handed::hand(head, serving.contract, held.bytes())?;
    let num = app.call_ids().next().await?;
    let (traceparent, is_head) = (trace::parent(head.headers), *head.method == Method::HEAD);
    Ok(HttpCall { num, request, params, body, traceparent, held, is_head })
}

/// Runs a call by the scheduler: without a row before its end, or with one.
async fn stored(
    app: &App,
    path: CallPath,
    current: &Current,
    call: HttpCall,
    key: Option<IdempotencyKey>,
) -> Reply<Response<Body>> {
    let Code { namespace, function, limits, .. } = &*current.code;
    let timeout_ms = limits.timeout.0;
    let body = match call.body {
        Some(body) => Some(app.blobs().payload(body).await?),
        None => None,
    };
    let spec = CallSpec {
        num: call.num,
        namespace: namespace.clone(),
        function: function.clone(),
        params: app.blobs().payload(call.params).await?,
        body,
        request: Some(call.request),
        direct: true,
        timeout_ms: None,
        max_age_ms: timeout_ms + QUEUE_MS,
        run_at: None,
        priority: 0,
        key,
        waited: false,
        replay_of: None,
        callback: None,
        retries: Some(0),
        traceparent: call.traceparent,
    };
    let record = if path == CallPath::Queued {
        let age = Duration::from_millis(spec.max_age_ms);
        actions::calls::accept_and_wait(app, spec, None, age + JUDGED).await?
    } else {
        actions::calls::run_sync(app, spec, &current.code, None).await?
    };
    reply::of_record(app, record).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_first_segment_whatever_follows() {
        let name = |path: &'static str| name_of(path).ok();
        assert_eq!(name("/f/dice").as_deref(), Some("dice"));
        assert_eq!(name("/f/dice/").as_deref(), Some("dice"));
        assert_eq!(name("/f/%64ice/a%2Fb").as_deref(), Some("dice"));
        assert_eq!(name("/f/%ff"), None);
    }

    #[test]
    fn only_paths_with_a_name_are_calls() {
        let is_call = |path: &str| is_one(&Request::get(path).body(()).expect("a request"));
        assert!(is_call("/f/dice") && is_call("/f/dice/") && is_call("/f/dice?x=1"));
        assert!(!is_call("/f/") && !is_call("/f//x") && !is_call("/functions") && !is_call("/f"));
    }
}
