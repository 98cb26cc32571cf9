//! Calls, made again; and the dead letters among them.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use faena_auth::{Principal, Scope};
use faena_domain::json::parse_object;
use faena_domain::limits::MAX_PAGE;
use faena_domain::{CallNum, FunctionId, FunctionName, Namespace, Payload, Version};
use faena_protocol::db::{CallList, CallReplay, DeadLetterForget};
use faena_protocol::records::CallRecord;
use serde::Deserialize;

use super::calls;
use crate::app::App;
use crate::authorize::{self, Authenticated, permit_call_record};
use crate::body;
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};
use crate::view::CallView;
use crate::{actions, trace};

/// The largest body: a page of numbers.
const MAX_REPLAY: u64 = 16 * 1024;

#[derive(Debug, Default, Deserialize)]
struct Options {
    version: Option<i64>,
}

async fn again(
    app: &App,
    principal: &Principal,
    headers: &HeaderMap,
    (of, version): (CallNum, Option<Version>),
) -> Reply<CallRecord> {
    let request = CallReplay {
        num: app.call_ids().next().await?,
        namespace: principal.namespace.clone(),
        of,
        version,
        traceparent: trace::parent(headers),
        account: principal.account_id().cloned(),
    };
    Ok(app.db().ask(&request).await?)
}

/// Who repeats a call calls its function.
async fn permit_repeating(app: &App, principal: &Principal, call: &CallRecord) -> Reply<()> {
    let path = call.request.as_ref().map_or("/", |request| request.path.as_str());
    authorize::permit_call(app.access(), principal, (call.function.as_str(), path), false).await.map(drop)
}

/// Whether a record holds all that a call was: the beginning of a body is another body, and a WebSocket is none.
fn is_whole(call: &CallRecord) -> Reply<()> {
    let refused = |why: String| {
        let detail = format!("call {} cannot be replayed: {why}", call.num);
        Err(Problem::new(ErrorCode::NotReplayable, detail).hint("send the request again"))
    };
    if call.head.as_ref().is_some_and(|head| head.status == 101) {
        return refused("it was a WebSocket".to_owned());
    }
    let kept = call.body.as_ref().map_or(0, Payload::len);
    match call.streamed {
        Some(streamed) if streamed.request_bytes > kept => refused(format!(
            "its body was a stream of {} bytes, of which the record has {kept}",
            streamed.request_bytes
        )),
        Some(streamed) if streamed.request_cut => refused("its body had not ended when it did".to_owned()),
        _ => Ok(()),
    }
}

/// Makes a new call of an old one, with the same params, on the version that a new call runs or on the one named.
#[utoipa::path(post, path = "/call/{callNum}/replay", tag = "calls", params(("callNum" = i64, Path,)), request_body(content = Object, content_type = "application/json", description = "nothing, or `version`"),
    responses((status = 202, description = "The new call, with `replayOf`", body = CallView), (status = 404, description = "There is no such call, function or version", body = Problem), (status = 409, description = "The record does not hold all of the call", body = Problem)))]
pub(crate) async fn one(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(num): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Reply<Response> {
    let namespace = &principal.namespace;
    app.admission().disk()?;
    let num = calls::number(&num)?;
    let bytes = body::read(app.admission(), &headers, body, None, MAX_REPLAY).await?;
    let options: Options = if bytes.is_empty() { Options::default() } else { parse_object(&bytes, &["version"])? };
    // One that is not written yet is there in a moment.
    let call = actions::calls::written(&app, namespace, num).await?;
    permit_call_record(&principal, Scope::Deploy, &call)?;
    permit_repeating(&app, &principal, &call).await?;
    is_whole(&call)?;
    let call = again(&app, &principal, &headers, (call.num, options.version.map(Version))).await?;
    app.scheduler().poke(FunctionId::new(namespace, &call.function));
    let (num, traceparent) = (call.num.0, call.traceparent.clone());
    let view = CallView::whole(call, &app.blobs_of(namespace)).await?;
    let mut response = (StatusCode::ACCEPTED, Json(view)).into_response();
    trace::tell(response.headers_mut(), num, &traceparent, None);
    if let Ok(location) = HeaderValue::from_str(&format!("/call/{num}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Calls that were accepted with 202 and given up, newest first; shaped like `/calls`.
#[utoipa::path(get, path = "/deadLetters", tag = "calls", params(("limit" = Option<u32>, Query, description = "1 to 200"), ("cursor" = Option<i64>, Query,), ("funcName" = Option<String>, Query,), ("status" = Option<String>, Query,)),
    responses((status = 200, description = "`{\"c1\": {…}}`; `Link: rel=\"next\"` leads to the next page"), (status = 400, description = "What is wrong", body = Problem)))]
pub(crate) async fn dead_letters(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    RawQuery(query): RawQuery,
) -> Reply<Response> {
    calls::page(&app, &principal.namespace, ("/deadLetters", query), true).await
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selection {
    call_nums: Option<Vec<i64>>,
    func_name: Option<String>,
    version: Option<i64>,
}

/// The dead letters that are meant: those named, or a page of a function's.
async fn selected(app: &App, namespace: &Namespace, selection: &Selection) -> Reply<Vec<CallNum>> {
    match (&selection.call_nums, &selection.func_name) {
        (Some(nums), None) if (1..=MAX_PAGE as usize).contains(&nums.len()) => {
            Ok(nums.iter().map(|num| CallNum(*num)).collect())
        }
        (None, Some(name)) => {
            let function: FunctionName = name.parse()?;
            let list = CallList {
                namespace: namespace.clone(),
                function: Some(function),
                status: None,
                dead: true,
                unreplayed: true,
                before: None,
                limit: MAX_PAGE,
            };
            Ok(app.db().ask(&list).await?.into_iter().map(|call| call.num).collect())
        }
        _ => {
            let detail = format!("name either `callNums`, 1 to {MAX_PAGE} of them, or `funcName`");
            Err(Problem::new(ErrorCode::InvalidSelection, detail))
        }
    }
}

/// Forgets a dead letter; the call stays on record.
#[utoipa::path(delete, path = "/deadLetter/{callNum}", tag = "calls", params(("callNum" = i64, Path,)),
    responses((status = 204, description = "It is no dead letter any more"), (status = 404, description = "There is no such dead letter", body = Problem)))]
pub(crate) async fn forget(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(num): Path<String>,
) -> Reply<StatusCode> {
    let num = calls::number(&num)?;
    app.db().ask(&DeadLetterForget { namespace: principal.namespace.clone(), num }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Replays many dead letters that were not replayed yet: those named, or the newest 200 of a function.
#[utoipa::path(post, path = "/deadLetters/replay", tag = "calls", request_body(content = Object, content_type = "application/json", description = "`callNums` or `funcName`; optionally `version`"),
    responses((status = 202, description = "The new calls, shaped like `/calls`"), (status = 400, description = "What is wrong", body = Problem), (status = 404, description = "There is no such call, function or version", body = Problem)))]
pub(crate) async fn many(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    headers: HeaderMap,
    body: Body,
) -> Reply<Response> {
    let namespace = &principal.namespace;
    app.admission().disk()?;
    let bytes = body::read_json(app.admission(), &headers, body, MAX_REPLAY).await?;
    let selection: Selection = parse_object(&bytes, &["callNums", "funcName", "version"])?;
    let nums = selected(&app, namespace, &selection).await?;
    let mut made = Vec::with_capacity(nums.len());
    for num in nums {
        let call = actions::calls::find(&app, namespace, num).await?;
        permit_repeating(&app, &principal, &call).await?;
        // A dead letter that was replayed is not replayed again: the same request twice makes the same calls.
        made.push(match call.replayed_as {
            Some(replay) => actions::calls::find(&app, namespace, replay).await?,
            None => again(&app, &principal, &headers, (num, selection.version.map(Version))).await?,
        });
    }
    made.iter().for_each(|call| app.scheduler().poke(FunctionId::new(namespace, &call.function)));
    Ok((StatusCode::ACCEPTED, Json(calls::Page(made))).into_response())
}
