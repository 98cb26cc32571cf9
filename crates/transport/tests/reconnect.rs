//! A client survives its server: nothing hangs, nothing is lost that was asked again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::time::Duration;

use faena_protocol::Envelope;
use faena_transport::{Endpoint, RpcClient, RpcError, Server, ServerEvent};

const LONG: Duration = Duration::from_secs(20);

async fn echo(mut server: Server) {
    let handle = server.handle();
    while let Some(event) = server.next().await {
        if let ServerEvent::Message(peer, bytes) = event {
            handle.send(&peer, bytes).await;
        }
    }
}

fn request(id: &str) -> Envelope {
    Envelope::new(id, "echo", &id).unwrap()
}

fn endpoint(folder: &tempfile::TempDir) -> Endpoint {
    Endpoint::new(folder.path().join("s")).unwrap()
}

#[tokio::test]
async fn many_requests_at_once_get_their_own_replies() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::bind(&endpoint(&folder)).await.unwrap();
    tokio::spawn(echo(server));
    let client = RpcClient::connect(endpoint(&folder));
    let calls = (0..200).map(|n| {
        let client = client.clone();
        tokio::spawn(async move {
            let id = n.to_string();
            (client.call(&request(&id), LONG).await.unwrap().parse::<String>().unwrap(), id)
        })
    });
    for call in calls.collect::<Vec<_>>() {
        let (reply, id) = call.await.unwrap();
        assert_eq!(reply, id);
    }
}

#[tokio::test]
async fn a_request_made_while_the_server_is_away_is_answered_when_it_comes() {
    let folder = tempfile::tempdir().unwrap();
    let client = RpcClient::connect(endpoint(&folder));
    let early = tokio::spawn({
        let client = client.clone();
        async move { client.call(&request("early"), LONG).await.map(|reply| reply.id) }
    });
    let server = Server::bind(&endpoint(&folder)).await.unwrap();
    tokio::spawn(echo(server));
    assert_eq!(early.await.unwrap().unwrap(), "early");
}

#[tokio::test]
async fn a_server_that_comes_back_is_found_and_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut silent = Server::bind(&endpoint(&folder)).await.unwrap();
    let client = RpcClient::connect(endpoint(&folder));
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.call(&request("a"), LONG).await.map(|reply| reply.id) }
    });
    // The first server reads the request and goes without an answer.
    while !matches!(silent.next().await, Some(ServerEvent::Message(..))) {}
    drop(silent);
    let server = Server::bind(&endpoint(&folder)).await.unwrap();
    tokio::spawn(echo(server));
    assert_eq!(call.await.unwrap().unwrap(), "a");
}

#[tokio::test]
async fn a_deadline_ends_the_wait_for_a_server_that_never_comes() {
    let folder = tempfile::tempdir().unwrap();
    let client = RpcClient::connect(endpoint(&folder));
    let error = client.call(&request("x"), Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, RpcError::Deadline(_)));
}

#[tokio::test]
async fn a_client_that_leaves_is_reported_as_lost() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::bind(&endpoint(&folder)).await.unwrap();
    let client = RpcClient::connect(endpoint(&folder));
    let _ = tokio::spawn(async move { client.call(&request("x"), Duration::from_secs(1)).await }).await;
    loop {
        if let Some(ServerEvent::Lost(_)) = server.next().await {
            return;
        }
    }
}
