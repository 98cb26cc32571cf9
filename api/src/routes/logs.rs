//! Logs: of a call, of a build, of a function; as they stand, or followed as server-sent events (HTML Standard, 9.2).

use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use faena_auth::Scope;
use faena_domain::near::nearest;
use faena_domain::units::Span;
use faena_domain::{CallNum, CallStatus, FunctionName, FunctionStatus, Namespace, Timestamp, Version, log};
use faena_protocol::db::{BuildGet, FunctionGet};
use faena_protocol::node::LogOf;
use faena_protocol::records::BuildRef;
use futures_util::{StreamExt, stream};

use super::calls::number;
use super::events::{KEEP_ALIVE, wants_events};
use crate::actions::calls::find;
use crate::app::App;
use crate::authorize::{Authenticated, permit_call_record};
use crate::logs::{self, Asked, Cursor, Follower, LineView, Writer};
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};
use crate::shares::Share;

/// How often a follower looks for new lines.
const LOOK: Duration = Duration::from_millis(500);
/// Lines of a function that one reply has, unless it asks for another number.
const LINES: usize = 1000;
pub(super) const MAX_LINES: usize = 10_000;

/// What a call wrote beside its result; of one that runs, what it has written until now. `Accept: text/event-stream` follows it.
#[utoipa::path(get, path = "/call/{callNum}/logs", tag = "calls", params(("callNum" = i64, Path,)), responses((status = 200, description = "The log: text, or an event `line` for each line and then `end`", content((String = "text/plain"), (LineView = "text/event-stream"))), (status = 404, description = "There is no such call", body = Problem)))]
pub(crate) async fn of_call(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(num): Path<String>,
    headers: HeaderMap,
) -> Reply<Response> {
    let call = find(&app, &principal.namespace, number(&num)?).await?;
    permit_call_record(&principal, Scope::Read, &call)?;
    if wants_events(&headers) {
        let place = app.follow(&principal.namespace, &call.function)?;
        return Ok(follow(app, Following::Call(principal.namespace.clone(), call.num, Cursor::default()), place));
    }
    let log = match call.status.is_terminal() {
        true => logs::stored(&app, &principal.namespace, &call.logs).await?,
        false => logs::live(&app, LogOf::Call(call.num)).await.unwrap_or_default(),
    };
    Ok(text(&log))
}

fn text(stored: &str) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, log::plain(stored)).into_response()
}

/// Lines of all of a function's calls, the oldest first: the newest calls that have ended. `Accept: text/event-stream`
/// follows the function: lines of running calls too, from `since` or from now on.
#[utoipa::path(get, path = "/function/{name}/logs", tag = "functions", params(("name" = String, Path,),
        ("since" = Option<String>, Query, description = "an instant of RFC 3339, or a time before now like 15m"), ("version" = Option<i64>, Query,), ("status" = Option<String>, Query,),
        ("limit" = Option<u32>, Query, description = "1 to 10000; 1000 unless given"), ("cursor" = Option<i64>, Query, description = "only calls with smaller numbers")),
    responses((status = 200, description = "The lines; `Link: rel=\"next\"` leads to older calls", content((Vec<LineView> = "application/json"), (LineView = "text/event-stream"))), (status = 404, description = "There is no such function", body = Problem)))]
pub(crate) async fn of_function(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Reply<Response> {
    let asked = parse(principal.namespace.clone(), name.parse()?, query.as_deref().unwrap_or_default())?;
    let (namespace, name) = (asked.namespace.clone(), asked.function.clone());
    app.db().ask(&FunctionGet { namespace, name }).await?;
    if wants_events(&headers) {
        let place = app.follow(&asked.namespace, &asked.function)?;
        return Ok(follow(app, Following::Function(Box::new(Follower::new(asked))), place));
    }
    let found = logs::of_function(&app, &asked).await?;
    let mut response = Json(found.lines).into_response();
    if let Some(next) = found.next {
        let link = format!("</function/{}/logs?{}>; rel=\"next\"", asked.function, query_of(&asked, next));
        if let Ok(link) = HeaderValue::from_str(&link) {
            response.headers_mut().insert(header::LINK, link);
        }
    }
    Ok(response)
}

fn parse(namespace: Namespace, function: FunctionName, query: &str) -> Reply<Asked> {
    const KNOWN: [&str; 5] = ["since", "version", "status", "limit", "cursor"];
    let invalid = |detail: String| Problem::new(ErrorCode::InvalidQuery, detail);
    let mut asked = Asked { namespace, function, version: None, status: None, since: None, before: None, limit: LINES };
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "since" => asked.since = Some(since(&value).map_err(invalid)?),
            "version" => {
                let version = value.parse().ok().filter(|version| *version > 0);
                asked.version = Some(Version(version.ok_or_else(|| invalid("version must be a number".to_owned()))?));
            }
            "cursor" => asked.before = Some(value.parse().map_err(|error| invalid(format!("cursor: {error}")))?),
            "status" => {
                let ended = CallStatus::ALL.into_iter().filter(|status| status.is_terminal());
                let names = ended.map(CallStatus::as_str).collect::<Vec<_>>().join(", ");
                let status = CallStatus::from_name(&value).filter(|status| status.is_terminal());
                asked.status = Some(status.ok_or_else(|| invalid(format!("status must be one of {names}")))?);
            }
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=MAX_LINES).contains(limit));
                let wrong = || invalid(format!("limit must be a number from 1 to {MAX_LINES}"));
                asked.limit = limit.ok_or_else(wrong)?;
            }
            other => {
                let near = nearest(other, KNOWN).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                let other: String = other.chars().take(80).collect();
                return Err(invalid(format!("unknown parameter {other:?}{near}")));
            }
        }
    }
    Ok(asked)
}

/// An instant, or a span before now.
fn since(value: &str) -> Result<Timestamp, String> {
    if let Ok(span) = value.parse::<Span>() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = now.saturating_sub(span.duration()).as_millis();
        return Ok(Timestamp(i64::try_from(at).unwrap_or(i64::MAX)));
    }
    value.parse().map_err(|_| {
        let value: String = value.chars().take(80).collect();
        format!("since must be an instant like 2026-01-31T08:00:00Z or a time before now like 15m, not {value:?}")
    })
}

/// The query of the page with older calls.
fn query_of(asked: &Asked, next: CallNum) -> String {
    let mut query = form_urlencoded::Serializer::new(format!("limit={}&cursor={next}", asked.limit));
    if let Some(since) = asked.since {
        query.append_pair("since", &since.to_string());
    }
    if let Some(version) = asked.version {
        query.append_pair("version", &version.to_string());
    }
    if let Some(status) = asked.status {
        query.append_pair("status", status.as_str());
    }
    query.finish()
}

/// Follows the build of a function's newest version.
pub(super) fn follow_build(app: App, build: BuildRef, place: Share) -> Response {
    follow(app, Following::Build(build, Cursor::default()), place)
}

/// The thing that a client follows, and how far it has been read.
enum Following {
    Call(Namespace, CallNum, Cursor),
    Build(BuildRef, Cursor),
    Function(Box<Follower>),
}

/// What has come since the last look, and the status once nothing more comes.
struct News {
    lines: Vec<LineView>,
    end: Option<&'static str>,
}

impl Following {
    async fn news(&mut self, app: &App) -> Reply<News> {
        match self {
            Self::Call(namespace, num, cursor) => {
                let call = find(app, namespace, *num).await?;
                let attempts = u32::try_from(call.attempts.len()).unwrap_or(u32::MAX);
                let is_over = call.status.is_terminal();
                let attempt = if is_over { attempts } else { attempts.saturating_add(1) };
                let writer = Writer { call: Some((*num, attempt)), version: call.version };
                let stored = match is_over {
                    true => logs::stored(app, namespace, &call.logs).await?,
                    false => logs::live(app, LogOf::Call(*num)).await.unwrap_or_default(),
                };
                Ok(News { lines: cursor.news(writer, &stored), end: is_over.then(|| call.status.as_str()) })
            }
            Self::Build(of, cursor) => {
                let BuildRef { namespace, function, .. } = of.clone();
                let build = app.db().ask(&BuildGet { namespace, function }).await?;
                let is_over = matches!(build.status, FunctionStatus::Ready | FunctionStatus::Error);
                let stored = match is_over {
                    true => logs::stored(app, &of.namespace, &build.log).await?,
                    false => logs::live(app, LogOf::Build(of.clone())).await.unwrap_or_default(),
                };
                let writer = Writer { call: None, version: build.version };
                Ok(News { lines: cursor.news(writer, &stored), end: is_over.then(|| build.status.as_str()) })
            }
            Self::Function(follower) => Ok(News { lines: follower.news(app).await?, end: None }),
        }
    }
}

/// A stream of events that ends with the followed thing, or when the api stops. It holds a place among the followers.
fn follow(app: App, following: Following, place: Share) -> Response {
    let looks = stream::unfold(Some((app, following, false)), |state| async move {
        let (app, mut following, is_waiting) = state?;
        if is_waiting {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = app.draining().cancelled() => return None,
            }
        }
        match following.news(&app).await {
            Ok(news) => {
                let is_over = news.end.is_some();
                let lines = news.lines.into_iter().map(|line| event("line", &line));
                let end = news.end.map(|status| event("end", &serde_json::json!({ "status": status })));
                let events: Vec<_> = lines.chain(end).collect();
                Some((stream::iter(events), (!is_over).then_some((app, following, true))))
            }
            Err(problem) => Some((stream::iter(vec![event("error", &problem)]), None)),
        }
    });
    let events = looks.flatten().inspect(move |_: &Result<Event, Infallible>| {
        let _held = &place;
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

fn event(name: &str, data: &impl serde::Serialize) -> Result<Event, Infallible> {
    Ok(Event::default().event(name).json_data(data).unwrap_or_else(|_| Event::default().event("error")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &str) -> Reply<Asked> {
        parse(Namespace::default(), "dice".parse().expect("a name"), query)
    }

    #[test]
    fn what_is_asked_for_comes_back_in_the_link() {
        let asked = asked("since=2026-01-31T08:00:00Z&version=3&status=FAILED&limit=7").expect("a query");
        let link = query_of(&asked, CallNum(9));
        assert_eq!(link, "limit=7&cursor=9&since=2026-01-31T08%3A00%3A00.000Z&version=3&status=FAILED");
    }

    #[test]
    fn what_cannot_be_asked_for_is_refused() {
        for query in ["limit=0", "limit=10001", "since=yesterday", "status=RUNNING", "version=x", "sinse=1m"] {
            assert!(asked(query).is_err(), "{query}");
        }
        assert!(asked("since=15m").expect("a span").since.is_some());
    }
}
