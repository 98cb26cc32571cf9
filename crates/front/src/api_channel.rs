//! Messages between a node and the api.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use faena_protocol::Envelope;
use faena_protocol::db::{Cordon, NodeChange};
use faena_protocol::front::Opened;
use faena_protocol::node::{NodeInfo, TYPE, ToApi, ToWorker};
use faena_transport::front::FrameStream;
use faena_transport::{Link, LinkEvent};
use serde::Deserialize;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::Shared;
use crate::nodes::{Node, Run, TWO_RUNS};
use crate::refusal::refuse;
use crate::relay::{JUDGED, QUEUE, linked};

pub(crate) async fn serve(shared: &Arc<Shared>, node: &Arc<Node>, mut frames: FrameStream) {
    let mut link = match linked(Link::connect(shared.config.api.clone()), "api").await {
        Ok(link) => link,
        Err(refused) => return refuse(&mut frames, refused).await,
    };
    if frames.send_json(&Opened::Ready).await.is_err() {
        return;
    }
    let (to_node, queue) = mpsc::channel(QUEUE);
    let (judged, mut from_node) = mpsc::channel(JUDGED);
    let carrying = frames.exchange(queue, judged);
    tokio::pin!(carrying);
    let mut run = None;
    loop {
        tokio::select! {
            () = &mut carrying => return,
            Some(frame) = from_node.recv() => match judge(shared, node, frame, &mut run) {
                Ok(message) => drop(link.handle().send(message).await),
                Err(error) => return warn!(node = %node.name, error, "a message of a node is refused, and its connection cut off"),
            },
            event = link.next() => match event {
                Some(LinkEvent::Message(message)) => {
                    note(node, &message);
                    if to_node.try_send(message).is_err() {
                        return warn!(node = %node.name, "a node takes no messages; its connection is cut off");
                    }
                }
                Some(LinkEvent::Up) => {}
                Some(LinkEvent::Down) | None => return debug!(node = %node.name, "the api is gone, and the node's connection with it"),
            },
        }
    }
}

/// Calls, ends or builds that a node holds when it connects, and slots, at most.
const MAX_HELD: usize = 8192;
const MAX_SLOTS: u32 = 4096;

/// Which message it is.
#[derive(Deserialize)]
struct Kind {
    is: String,
}

/// The message as the api gets it, where the node may send it.
fn judge(
    shared: &Arc<Shared>,
    node: &Arc<Node>,
    frame: Bytes,
    run: &mut Option<(Run, String)>,
) -> Result<Bytes, String> {
    let envelope = Envelope::decode(&frame).map_err(|error| error.to_string())?;
    if envelope.msg_type != TYPE {
        return Err(format!("{:?} is no message to an api", envelope.msg_type));
    }
    if envelope.parse::<Kind>().map_err(|error| error.to_string())?.is != "hello" {
        return Ok(frame);
    }
    let mut message: ToApi = envelope.parse().map_err(|error| error.to_string())?;
    let ToApi::Hello { node: info, calls, ended, builds } = &mut message else {
        return Err("a hello that is none".to_owned());
    };
    if info.owner.worker != node.name.as_str() {
        return Err(format!("it says that it is {:?}", info.owner.worker));
    }
    check_size(info, calls.len().max(ended.len()).max(builds.len()))?;
    let distinct: HashSet<_> = calls.iter().map(|call| (call.num, call.epoch)).collect();
    if distinct.len() < calls.len() {
        return Err("it names a call twice".to_owned());
    }
    info.direct = info.direct.iter().map(|lane| crate::lane::socket(shared, node, lane)).collect::<Result<_, _>>()?;
    let incarnation = info.owner.incarnation.clone();
    match run {
        Some((_, begun)) if *begun != incarnation => return Err("it says that it is another run now".to_owned()),
        Some(_) => {}
        None => *run = Some((node.begin_run(&incarnation), incarnation.clone())),
    }
    if node.has_other_run(&incarnation) {
        tokio::spawn(cordon_if_twice(Arc::clone(shared), Arc::clone(node), incarnation));
    }
    let again = Envelope::new(envelope.id, TYPE, &message).and_then(|envelope| envelope.encode());
    again.map(Bytes::from).map_err(|error| error.to_string())
}

/// # Errors
/// More of something than any machine has.
fn check_size(info: &NodeInfo, held: usize) -> Result<(), String> {
    let is_within = held <= MAX_HELD
        && info.direct.len() <= usize::from(crate::lane::LANES)
        && info.engines.len() <= 8
        && info.slots <= MAX_SLOTS
        && info.build_slots <= MAX_SLOTS;
    if is_within { Ok(()) } else { Err("it says that it has more than a machine can have".to_owned()) }
}

/// A run that vanished is gone by then; one that is still there is a copy of the node.
async fn cordon_if_twice(shared: Arc<Shared>, node: Arc<Node>, incarnation: String) {
    tokio::time::sleep(TWO_RUNS).await;
    if !node.has_other_run(&incarnation) {
        return;
    }
    warn!(node = %node.name, "two workers are connected with the certificate of one node, which is cordoned");
    let reason =
        "two workers were connected with its certificate; remove it, and join each machine with a token of its own";
    let cordon = Some(Cordon { is_on: true, reason: Some(reason.to_owned()) });
    let change = NodeChange { name: node.name.clone(), cordon, drain: None, labels: None };
    if let Err(error) = shared.db.ask(&change).await {
        warn!(node = %node.name, %error, "the node could not be cordoned");
    }
    shared.directory.look();
}

/// Remembers what a node is sent.
fn note(node: &Node, message: &[u8]) {
    let Ok(envelope) = Envelope::decode(message) else { return };
    let is_work = envelope.parse::<Kind>().is_ok_and(|kind| matches!(kind.is.as_str(), "call" | "build"));
    if !is_work {
        return;
    }
    match envelope.parse::<ToWorker>() {
        Ok(ToWorker::Call { job, .. }) => node.grants.call(&job),
        Ok(ToWorker::Build { job, .. }) => node.grants.build(&job),
        _ => {}
    }
}
