//! A server of axum, as a user's program: it is uploaded by the tests of frameworks.

use std::convert::Infallible;

use axum::extract::{Path, Query};
use axum::http::StatusCode;
use axum::response::Sse;
use axum::response::sse::Event;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

async fn hello(Path(name): Path<String>, Query(query): Query<Map<String, Value>>) -> Json<Value> {
    Json(json!({"name": name, "query": query}))
}

async fn echo(Json(body): Json<Value>) -> (StatusCode, Json<Value>) {
    (StatusCode::CREATED, Json(body))
}

async fn events() -> Sse<impl futures_util::Stream<Item = Result<Event, Infallible>>> {
    let numbers = (0..3).map(|number| Ok(Event::default().data(number.to_string())));
    Sse::new(futures_util::stream::iter(numbers))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let app = Router::new().route("/hello/{name}", get(hello)).route("/echo", post(echo)).route("/events", get(events));
    let port = std::env::var("PORT").ok().and_then(|port| port.parse::<u16>().ok()).unwrap_or(8080);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    axum::serve(listener, app).await
}
