//! One call, followed by server-sent events until it has ended (HTML Standard, 9.2).

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use faena_domain::{CallNum, CallStatus, Namespace};
use faena_protocol::records::CallRecord;
use futures_util::stream;
use tokio::sync::broadcast;

use crate::actions;
use crate::app::App;
use crate::problem::Reply;
use crate::shares::Share;
use crate::view::CallView;

/// How often a comment shows that the connection lives.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Whether a request asks for server-sent events.
pub(super) fn wants_events(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|kind| kind.trim().starts_with("text/event-stream"))
}

struct Following {
    app: App,
    namespace: Namespace,
    num: CallNum,
    /// The next thing to tell; none when everything is told.
    call: Option<CallRecord>,
    told: Option<CallStatus>,
    ends: broadcast::Receiver<CallNum>,
    _place: Share,
}

impl Following {
    /// Waits until the call stands otherwise than was told.
    async fn next(&mut self) -> Option<CallRecord> {
        loop {
            let call = match self.call.take() {
                Some(call) => call,
                None if self.told.is_some_and(CallStatus::is_terminal) => return None,
                None => {
                    tokio::select! {
                        () = actions::calls::something_happens(&mut self.ends, self.num) => {}
                        () = self.app.draining().cancelled() => return None,
                    }
                    actions::calls::find(&self.app, &self.namespace, self.num).await.ok()?
                }
            };
            if self.told != Some(call.status) {
                self.told = Some(call.status);
                return Some(call);
            }
        }
    }
}

/// An event named by the status, with the call as its data.
async fn event(app: &App, namespace: &Namespace, call: CallRecord) -> Event {
    let (name, num) = (call.status.as_str(), call.num);
    let event = Event::default().event(name).id(num.to_string());
    match CallView::whole(call, &app.blobs_of(namespace)).await {
        Ok(view) => event.json_data(view).unwrap_or_else(|_| Event::default().event("error")),
        Err(_) => Event::default().event("error").data("the call's result cannot be read"),
    }
}

/// Follows a call; the stream ends after the terminal event.
pub(crate) fn follow(app: App, namespace: Namespace, call: CallRecord) -> Reply<Response> {
    let place = app.follow(&namespace, &call.function)?;
    let ends = app.scheduler().ends();
    let following = Following { namespace, num: call.num, call: Some(call), told: None, ends, app, _place: place };
    let events = stream::unfold(following, |mut following| async move {
        let call = following.next().await?;
        let event = event(&following.app, &following.namespace, call).await;
        Some((Ok::<_, Infallible>(event), following))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}
