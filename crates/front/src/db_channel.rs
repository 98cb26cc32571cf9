//! Requests of a node to db.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use faena_domain::Owner;
use faena_protocol::db::{Answered, Message, REPLY_ERROR, REPLY_OK, Sender, VersionsMinimum, WorkerJoin, messages};
use faena_protocol::front::Opened;
use faena_protocol::records::Code;
use faena_protocol::{DbError, DbRequest, Envelope};
use faena_transport::front::FrameStream;
use faena_transport::{Link, LinkEvent};
use serde::Deserialize;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::Shared;
use crate::nodes::Node;
use crate::refusal::refuse;
use crate::relay::{JUDGED, QUEUE, linked};

static MESSAGES: LazyLock<HashMap<&str, &Message>> =
    LazyLock::new(|| messages().map(|message| (message.name, message)).collect());

/// The largest request of a node: a result that is no blob, and what goes with it.
const MAX_REQUEST: usize = 1024 * 1024;
/// Requests of one connection that db has not answered; the next ones wait.
const UNDER_WAY: usize = 256;
/// Questions about versions whose replies have not come; more of them are forgotten.
const ASKED: usize = 64;

pub(crate) async fn serve(shared: &Arc<Shared>, node: &Arc<Node>, mut frames: FrameStream) {
    let mut link = match linked(Link::connect(shared.config.db.clone()), "database service").await {
        Ok(link) => link,
        Err(refused) => return refuse(&mut frames, refused).await,
    };
    frames.permit_frames_of(MAX_REQUEST);
    if frames.send_json(&Opened::Ready).await.is_err() {
        return;
    }
    let (to_node, queue) = mpsc::channel(QUEUE);
    let (judged, mut from_node) = mpsc::channel(JUDGED);
    let carrying = frames.exchange(queue, judged);
    tokio::pin!(carrying);
    // Replies to these tell the node of versions that it is to run.
    let (mut asked, mut under_way) = (HashSet::new(), 0);
    loop {
        let reply = tokio::select! {
            () = &mut carrying => return,
            Some(frame) = from_node.recv(), if under_way < UNDER_WAY => match judge(node, &frame) {
                Ok(request) => {
                    let message = if request.msg_type == WorkerJoin::TYPE { as_member(&request) } else { Some(frame) };
                    if request.msg_type == VersionsMinimum::TYPE && asked.len() < ASKED {
                        asked.insert(request.id);
                    }
                    let Some(message) = message else { return };
                    under_way += 1;
                    link.handle().send(message).await;
                    continue;
                }
                Err(Unfit { id: None, message }) => {
                    return warn!(node = %node.name, message, "a request of a node cannot be read, and its connection is cut off");
                }
                Err(Unfit { id: Some(id), message }) => {
                    warn!(node = %node.name, message, "a request of a node is refused");
                    let refused = Envelope::new(id, REPLY_ERROR, &DbError::Invalid { message });
                    let Ok(bytes) = refused.and_then(|reply| reply.encode()) else { return };
                    Bytes::from(bytes)
                }
            },
            event = link.next() => match event {
                Some(LinkEvent::Message(reply)) => {
                    under_way -= usize::from(under_way > 0);
                    note(node, &mut asked, &reply);
                    reply
                }
                Some(LinkEvent::Up) => continue,
                Some(LinkEvent::Down) | None => return debug!(node = %node.name, "db is gone, and the node's connection with it"),
            },
        };
        if to_node.try_send(reply).is_err() {
            return warn!(node = %node.name, "a node takes no replies; its connection is cut off");
        }
    }
}

/// A request that a node may not make.
#[derive(Debug)]
struct Unfit {
    /// Its id, where it has one.
    id: Option<String>,
    message: String,
}

/// What every request of a worker says.
#[derive(Deserialize)]
struct Owned {
    owner: Owner,
}

/// The request, where the node may make it.
fn judge(node: &Node, frame: &[u8]) -> Result<Envelope, Unfit> {
    let request = Envelope::decode(frame).map_err(|error| Unfit { id: None, message: error.to_string() })?;
    let unfit = |message: String| Err(Unfit { id: Some(request.id.clone()), message });
    let message = MESSAGES.get(request.msg_type.as_str());
    if !message.is_some_and(|message| message.senders.contains(&Sender::Worker)) {
        return unfit(format!("a node may not ask db for {:?}", request.msg_type));
    }
    match request.parse::<Owned>() {
        Ok(Owned { owner }) if owner.worker == node.name.as_str() => Ok(request),
        Ok(Owned { owner }) => unfit(format!("the node {} may not speak for {:?}", node.name, owner.worker)),
        Err(error) => unfit(error.to_string()),
    }
}

/// The request of a worker that joins, as that of a node that has joined by a token.
fn as_member(request: &Envelope) -> Option<Bytes> {
    let WorkerJoin { owner, .. } = request.parse().ok()?;
    let join = Envelope::new(request.id.as_str(), WorkerJoin::TYPE, &WorkerJoin { owner, is_member: true }).ok()?;
    join.encode().ok().map(Bytes::from)
}

/// Remembers the versions that a node is told of.
fn note(node: &Node, asked: &mut HashSet<String>, reply: &[u8]) {
    if asked.is_empty() {
        return;
    }
    let Ok(reply) = Envelope::decode(reply) else { return };
    if !asked.remove(&reply.id) || reply.msg_type != REPLY_OK {
        return;
    }
    let answered = reply.parse::<Answered>().ok();
    let codes = answered.and_then(|answered| serde_json::from_str::<Vec<Code>>(answered.answer.get()).ok());
    codes.iter().flatten().for_each(|code| node.grants.code(code));
}

#[cfg(test)]
mod tests {
    use faena_protocol::db::{CallsStarted, Ping};

    use super::*;
    use crate::nodes::Nodes;

    fn judged<R: DbRequest>(request: &R) -> Result<(), String> {
        let node = node();
        let frame = Envelope::new("1", R::TYPE, request).and_then(|envelope| envelope.encode()).expect("a frame");
        judge(&node, &frame).map(drop).map_err(|unfit| unfit.message)
    }

    fn node() -> std::sync::Arc<Node> {
        let record = faena_protocol::records::NodeRecord {
            name: "a".parse().expect("a name"),
            labels: faena_domain::Labels::default(),
            is_cordoned: false,
            cordon_reason: None,
            is_draining: false,
            is_stopped: false,
            incarnation: String::new(),
            certificate: None,
            joined_at: faena_domain::Timestamp(0),
            seen_at: faena_domain::Timestamp(0),
        };
        Nodes::default().get(&record)
    }

    fn owner(worker: &str) -> Owner {
        Owner { worker: worker.to_owned(), incarnation: "1".to_owned() }
    }

    #[test]
    fn a_node_speaks_for_itself_alone() {
        assert_eq!(judged(&WorkerJoin { owner: owner("a"), is_member: false }), Ok(()));
        assert!(judged(&WorkerJoin { owner: owner("b"), is_member: false }).is_err());
        assert!(judged(&CallsStarted { owner: owner("b"), calls: Vec::new() }).is_err());
        assert_eq!(judged(&VersionsMinimum { owner: owner("a") }), Ok(()));
        assert!(judged(&VersionsMinimum { owner: owner("b") }).is_err());
    }

    #[test]
    fn a_node_asks_for_what_workers_may_ask_for() {
        assert!(judged(&Ping {}).is_err_and(|message| message.contains("may not ask")));
    }

    #[test]
    fn every_request_of_a_worker_names_its_owner() {
        for message in messages().filter(|message| message.senders.contains(&Sender::Worker)) {
            let frame = format!(r#"{{"v":1,"id":"1","msgType":{:?},"content":{{}}}}"#, message.name);
            let node = node();
            assert!(judge(&node, frame.as_bytes()).is_err(), "{}", message.name);
        }
    }
}
