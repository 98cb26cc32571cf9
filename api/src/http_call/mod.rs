//! A call of a function over HTTP: the request goes to the function, and what the function puts out is the reply.
//!
//! [`answer`] is all of it. A call whose path is direct is served on the thread that owns its connection; every other call
//! runs where it may take its time.

mod direct;
mod drain;
mod recorded;
mod reply;
mod stream;
mod websocket;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Method, Request, Response, StatusCode, Version};
use axum::response::IntoResponse;
use bytes::Bytes;
use faena_auth::{AccountId, Principal};
use faena_domain::limits::MAX_BODY;
use faena_domain::plan::{CallPath, CallTarget, CallTerms, plan};
use faena_domain::{CallNum, Contract, Namespace};
use faena_header_case::HeadNames;
use faena_invoker::{BodyStream, Invoker, RequestBody};
use faena_protocol::direct::{Header, HttpRequest};
use faena_protocol::records::{CallSpec, Code, IdempotencyKey};
use hyper::body::Incoming;
use tokio_util::task::AbortOnDropHandle;

use crate::access::{AuditEntry, Grant, Peer, RequestAuth};
use crate::app::App;
use crate::calling::CallingFunction;
use crate::entrance::{Address, Entrance};
use crate::handed::{self, Handed, ROUTE, RequestHead};
use crate::problem::{ErrorCode, Problem, Reply, busy};
use crate::shares::Share;
use crate::versions::Current;
use crate::{actions, authorize, body, guard, idempotency, trace};
use websocket::Handshake;

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
    /// Whether the client speaks TLS, to us or to a proxy that is trusted.
    pub(crate) is_secure: bool,
    /// The connection; none within this machine's platform.
    pub(crate) peer: Option<Arc<Peer>>,
    /// The function that sent it, where one did.
    pub(crate) calling: Option<Arc<CallingFunction>>,
}

/// A call that was read from its request.
struct HttpCall {
    num: CallNum,
    /// The request as it is recorded, and the headers that the function gets besides.
    request: Arc<HttpRequest>,
    private: Vec<Header>,
    params: Bytes,
    /// The body, where it is not the params.
    body: RequestBody,
    traceparent: String,
    /// The memory of its body.
    held: Option<body::Whole>,
    is_head: bool,
    /// What it may take, in milliseconds: what its function may, or less where the caller has less time left.
    timeout_ms: u64,
    /// When the call ends that it comes from, where it comes from one.
    ends_by: Option<Instant>,
    /// The client's connection, where the client takes interim answers.
    interim: Option<HeadNames>,
    entrance: Entrance,
}

/// How a call is executed, and by whom.
struct Plan {
    path: CallPath,
    /// What takes direct calls of the version.
    invoker: Option<Arc<dyn Invoker>>,
    current: Arc<Current>,
}

/// A client that waits for an answer, or reads one that is a stream.
struct Waiting {
    /// Its place among those that wait.
    place: Share,
    grant: Option<Grant>,
}

impl Waiting {
    /// The account that calls, where one does.
    fn account(&self) -> Option<AccountId> {
        self.grant.as_ref()?.principal.account_id().cloned()
    }
}

/// Returns when a request would not be admitted any longer.
async fn revoked(app: App, grant: Option<Grant>) {
    match grant {
        Some(grant) => app.access().revoked(&grant).await,
        None => std::future::pending().await,
    }
}

/// A request whose body has not come yet.
struct Arriving {
    parts: Parts,
    body: Incoming,
    /// The client asks for a WebSocket.
    handshake: Option<(Handshake, BodyStream)>,
    entrance: Entrance,
    /// What it was admitted by; none where a function calls, which ends with its own call.
    grant: Option<Grant>,
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

async fn serve(app: &App, mut request: Request<Incoming>, client: &Client) -> Reply<Response<Body>> {
    let nowhere = || crate::problem::unknown_route(request.uri());
    let address = match &client.calling {
        // The worker has said which function is called; the request says nothing of it.
        Some(calling) => Address::of(&calling.target),
        None => app.hosts().address(&request).ok_or_else(nowhere)?,
    };
    let entrance = address.entrance;
    let (principal, grant) = match &client.calling {
        Some(calling) => {
            guard::judge_internal(calling, request.uri(), request.headers())?;
            let (namespace, name) = (calling.namespace.clone(), calling.name.clone());
            let principal = Principal::function(namespace, name, calling.scopes.clone());
            authorize::permit_function(app.access(), &principal, &address.name, request.uri().path()).await?;
            (Arc::new(principal), None)
        }
        None => {
            guard::judge_call(app, entrance, (request.method(), request.uri(), request.headers()))?;
            let grant = admit(app, &address, &request, client).await?;
            (Arc::clone(&grant.principal), Some(grant))
        }
    };
    app.admission().disk()?;
    // On its own origin a function may use this header for itself.
    let has_key = entrance == Entrance::Path && request.headers().contains_key("idempotency-key");
    let known = app.versions().known(&principal.namespace, &address.name);
    let current = match (&client.calling, known) {
        (Some(_), Some(current)) => current,
        (Some(calling), None) => app.versions().of(&principal.namespace, &calling.target, None).await?,
        (None, Some(current)) if !address.is_qualified() => current,
        (None, _) => app.versions().of(&principal.namespace, &address.function(&principal.namespace)?, None).await?,
    };
    let handshake = match current.code.serving.contract {
        Contract::Http => websocket::asked(&mut request)?,
        Contract::Handler | Contract::Command => None,
    };
    let terms = CallTerms {
        is_waited: true,
        is_passed_on: true,
        has_key,
        is_upgrade: handshake.is_some(),
        ..Default::default()
    };
    let plan = decide(app, current, &terms)?;
    let (parts, body) = request.into_parts();
    let arriving = Arriving { parts, body, handshake, entrance, grant };
    if plan.path == CallPath::Direct {
        return run(app, plan, arriving, client).await;
    }
    let (shared, client) = (app.clone(), client.clone());
    let running =
        AbortOnDropHandle::new(app.shared().spawn(async move { run(&shared, plan, arriving, &client).await }));
    running.await.unwrap_or_else(|error| Err(Problem::internal("calling a function", &error)))
}

/// Who calls, where they may.
async fn admit(app: &App, address: &Address<'_>, request: &Request<Incoming>, client: &Client) -> Reply<Grant> {
    let auth = RequestAuth {
        headers: request.headers(),
        entrance: Some(address.entrance),
        host: address.namespace,
        peer: client.peer.as_deref(),
        is_about_itself: false,
    };
    let path = address.entrance.path(request.uri());
    let mut caller = None;
    let admitted = async {
        let principal = app.access().principal(&auth).await?;
        let permitted = authorize::permit_call(app.access(), &principal, (&address.name, path), true).await;
        caller = Some(Arc::clone(&principal));
        permitted.map(|place| authorize::grant_of_call(&principal, &auth, (&address.name, path), place))
    };
    let admitted = match admitted.await {
        // A host names a function, whatever is missing of it.
        Err(problem) if problem.is(ErrorCode::UnknownNamespace) && address.entrance == Entrance::Host => {
            Err(address.unknown())
        }
        admitted => admitted,
    };
    if let Err(problem) = &admitted {
        let caller = caller.unwrap_or_else(|| Arc::new(Principal::anonymous(Namespace::default())));
        let entry = AuditEntry::of(&caller, (request.method(), ROUTE), &address.name, client.address);
        app.access().audit.refused(AuditEntry { outcome: problem.status().as_u16(), ..entry });
    }
    admitted
}

fn decide(app: &App, current: Arc<Current>, terms: &CallTerms) -> Reply<Plan> {
    let code = &current.code;
    let invoker = app.invokers().iter().find(|invoker| invoker.offers(code)).cloned();
    let target = CallTarget {
        status: current.status,
        contract: code.serving.contract,
        has_concurrency: code.concurrency.is_some(),
        is_offered: invoker.is_some(),
    };
    let path = plan(terms, &target).ok_or_else(|| websocket::not_now(&current, terms.has_key))?;
    Ok(Plan { path, invoker, current })
}

async fn run(app: &App, plan: Plan, arriving: Arriving, client: &Client) -> Reply<Response<Body>> {
    let Plan { path, invoker, current } = plan;
    let Arriving { parts, body, handshake, entrance, grant } = arriving;
    let is_server = current.code.serving.contract == Contract::Http;
    let request = RequestHead {
        method: &parts.method,
        uri: &parts.uri,
        headers: &parts.headers,
        // Nothing of the body was read yet, and nothing written: it is this request's. No other contract needs it.
        written: if is_server { client.names.take_head() } else { None },
        client: client.address,
        is_secure: client.is_secure,
        entrance,
        has_trailers: is_server && path == CallPath::Direct,
        // On our own origin an interim answer would reach a browser before the answer that is kept apart.
        interim: (is_server && entrance == Entrance::Host && parts.version == Version::HTTP_11)
            .then(|| client.names.clone()),
        private_headers: app.private_headers(),
        calling: client.calling.as_deref(),
    };
    let response = match (path, invoker) {
        (CallPath::Direct, Some(invoker)) => {
            direct(app, &invoker, &current, &request, (body, handshake, grant)).await?
        }
        (path, _) => {
            let call = read(app, &current, &request, body).await?;
            let body = call.held.as_deref().unwrap_or_default();
            let key = match entrance {
                Entrance::Path => {
                    idempotency::idempotency_key(&parts.headers, (&parts.method, &parts.uri), None, body)?
                }
                Entrance::Host => None,
            };
            let account = grant.as_ref().and_then(|grant| grant.principal.account_id().cloned());
            stored(app, (path, account), &current, call, key).await?
        }
    };
    // A browser, curl and most libraries say what they accept, and follow; to others the answer goes as it is.
    let follows = is_server && entrance == Entrance::Path && parts.headers.contains_key("accept");
    Ok(if follows { reply::below_prefix(response, &current.code.function) } else { response })
}

/// Hands a call to an instance.
async fn direct(
    app: &App,
    invoker: &Arc<dyn Invoker>,
    current: &Current,
    request: &RequestHead<'_>,
    (incoming, handshake, grant): (Incoming, Option<(Handshake, BodyStream)>, Option<Grant>),
) -> Reply<Response<Body>> {
    let permit = app.completions().permit().ok_or_else(busy)?;
    let Code { namespace, function, serving, .. } = &*current.code;
    let waiting = app.follow(namespace, function)?;
    let is_stream = serving.contract == Contract::Http && stream::is_streamed(request.headers);
    let (call, handshake) = match handshake {
        Some((handshake, body)) => (begin(app, current, request, RequestBody::Upgrade(body)).await?, Some(handshake)),
        None if is_stream => {
            (begin(app, current, request, RequestBody::Stream(stream::of_request(incoming))).await?, None)
        }
        None => (read(app, current, request, incoming).await?, None),
    };
    let waiting = Waiting { place: waiting, grant };
    direct::run(app, invoker, current, call, (permit, waiting), handshake).await
}

/// Reads a call from its request, and gives it a number.
async fn read(app: &App, current: &Current, head: &RequestHead<'_>, incoming: Incoming) -> Reply<HttpCall> {
    let Code { namespace, function, serving, .. } = &*current.code;
    let of = Some((namespace, function));
    let held = body::read(app.admission(), head.headers, Body::new(incoming), of, MAX_BODY).await?;
    let handed = handed::hand(head, serving.contract, held.bytes())?;
    let body = handed.body.clone().map(RequestBody::Whole).unwrap_or_default();
    number(app, current, (head, handed), (body, Some(held))).await
}

/// A call whose body comes while it runs.
async fn begin(app: &App, current: &Current, head: &RequestHead<'_>, body: RequestBody) -> Reply<HttpCall> {
    let handed = handed::hand(head, current.code.serving.contract, &Bytes::new())?;
    number(app, current, (head, handed), (body, None)).await
}

/// Gives a call its number.
async fn number(
    app: &App,
    current: &Current,
    (head, Handed { params, request, private, .. }): (&RequestHead<'_>, Handed),
    (body, held): (RequestBody, Option<body::Whole>),
) -> Reply<HttpCall> {
    let num = app.call_ids().next().await?;
    let (traceparent, is_head) = (trace::parent(head.headers), *head.method == Method::HEAD);
    let (interim, entrance) = (head.interim.clone(), head.entrance);
    let timeout_ms = current.code.limits.timeout.0.min(head.calling.map_or(u64::MAX, CallingFunction::left_ms));
    let ends_by = head.calling.map(|calling| calling.deadline);
    Ok(HttpCall {
        num,
        request,
        private,
        params,
        body,
        traceparent,
        held,
        is_head,
        timeout_ms,
        ends_by,
        interim,
        entrance,
    })
}

/// Runs a call by the scheduler: without a row before its end, or with one.
async fn stored(
    app: &App,
    (path, account): (CallPath, Option<AccountId>),
    current: &Current,
    call: HttpCall,
    key: Option<IdempotencyKey>,
) -> Reply<Response<Body>> {
    let Code { namespace, function, limits, .. } = &*current.code;
    let timeout_ms = call.timeout_ms;
    // One that waits longer than its caller lives is for nothing.
    let queue_ms = if call.ends_by.is_some() { 0 } else { QUEUE_MS };
    let blobs = app.blobs_of(namespace);
    let body = match call.body.whole() {
        Some(body) => Some(blobs.payload(body.clone()).await?),
        None => None,
    };
    let spec = CallSpec {
        num: call.num,
        namespace: namespace.clone(),
        function: function.clone(),
        params: blobs.payload(call.params).await?,
        body,
        request: Some(call.request),
        private_headers: call.private,
        direct: true,
        timeout_ms: Some(timeout_ms).filter(|timeout| *timeout < limits.timeout.0),
        max_age_ms: timeout_ms + queue_ms,
        run_at: None,
        priority: 0,
        key,
        waited: false,
        replay_of: None,
        callback: None,
        retries: Some(0),
        traceparent: call.traceparent,
        account,
    };
    let record = if path == CallPath::Queued {
        let age = Duration::from_millis(spec.max_age_ms);
        actions::calls::accept_and_wait(app, spec, None, age + JUDGED).await?
    } else {
        actions::calls::run_sync(app, spec, &current.code, None).await?
    };
    reply::of_record(app, namespace, call.entrance, record).await
}
