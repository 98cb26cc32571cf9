//! The API of a platform in this process, whose engine is made of threads and fails as it is told to.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod platform;

use axum::body::Body;
use axum::http::StatusCode;
use faena_test_support::Trouble;
use serde_json::json;

use platform::{Platform, request};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_is_registered_called_and_read_back() {
    let platform = Platform::start(Trouble::None).await;
    let function = platform.deploy("echo", "echo").await;
    assert_eq!((function.status, &function.body["name"]), (StatusCode::CREATED, &json!("echo")));
    let call = platform.invoke("echo", &json!({"n": 1})).await;
    assert_eq!((call.status, &call.body["status"]), (StatusCode::OK, &json!("DONE")));
    assert_eq!(call.body["result"], "{\"n\":1}");
    let num = &call.body["callNum"];
    assert_eq!(platform.get(&format!("/call/{num}")).await.body["result"], call.body["result"]);
    assert_eq!(platform.get("/functions").await.body, json!(["echo"]));
    let again = platform.deploy_again("echo").await;
    assert_eq!((again.status, &again.body["version"]), (StatusCode::OK, &json!(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_of_the_function_is_told_by_its_kind() {
    let platform = Platform::start(Trouble::None).await;
    for (name, run, kind) in [("exit", "exit 3", "exit"), ("signal", "signal 11", "signal"), ("oom", "oom", "oom")] {
        platform.deploy(name, run).await;
        let body = json!({"funcName": name, "params": {}, "retries": 0});
        let request = request("POST", "/invokeFunction").header("content-type", "application/json");
        let call = platform.ask(request.header("prefer", "wait=20").body(Body::from(body.to_string())).unwrap()).await;
        assert_eq!((&call.body["status"], &call.body["error"]["kind"]), (&json!("FAILED"), &json!(kind)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_a_version_whose_image_is_not_there_fails_with_that_reason() {
    let platform = Platform::start(Trouble::Image).await;
    platform.deploy("f", "echo").await;
    let call = platform.invoke("f", &json!({})).await;
    assert_eq!((&call.body["status"], &call.body["error"]["kind"]), (&json!("FAILED"), &json!("image")));
    let function = platform.get("/function/f").await.body;
    assert_eq!(function["status"], "ERROR");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_told_by_what_it_would_be() {
    let platform = Platform::start(Trouble::None).await;
    for (path, code) in [
        ("/runtime/none", "unknown_runtime"),
        ("/function/none", "unknown_function"),
        ("/call/7", "unknown_call"),
        ("/nothing", "unknown_route"),
    ] {
        let reply = platform.get(path).await;
        assert_eq!((reply.status, &reply.body["code"]), (StatusCode::NOT_FOUND, &json!(code)), "{path}");
    }
    let reply = platform.post("/call/7/replay", &json!({})).await;
    assert_eq!((reply.status, &reply.body["code"]), (StatusCode::NOT_FOUND, &json!("unknown_call")));
    let reply = platform.invoke("none", &json!({})).await;
    assert_eq!((reply.status, &reply.body["code"]), (StatusCode::NOT_FOUND, &json!("unknown_function")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_function_is_gone_and_its_calls_stay() {
    let platform = Platform::start(Trouble::None).await;
    platform.deploy("f", "echo").await;
    let call = platform.invoke("f", &json!({})).await;
    assert_eq!(platform.delete("/function/f").await.status, StatusCode::NO_CONTENT);
    assert_eq!(platform.invoke("f", &json!({})).await.status, StatusCode::NOT_FOUND);
    assert_eq!(platform.get(&format!("/call/{}", call.body["callNum"])).await.body["status"], "DONE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_another_host_is_refused_before_anything_is_done() {
    let platform = Platform::start(Trouble::None).await;
    let foreign = axum::http::Request::get("/functions").header("host", "elsewhere.example").body(Body::empty());
    let reply = platform.ask(foreign.unwrap()).await;
    assert_eq!((reply.status, &reply.body["code"]), (StatusCode::MISDIRECTED_REQUEST, &json!("foreign_host")));
    assert_eq!(reply.body["title"], "The host is not ours");
    assert_eq!(platform.engine.live(), 0);
}
