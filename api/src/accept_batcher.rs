//! Calls that are accepted durably go to db many at once: those that come while a message is on its way go in the next.

use faena_db_client::{DEADLINE, DbClient};
use faena_domain::Payload;
use faena_protocol::DbError;
use faena_protocol::db::CallsAccept;
use faena_protocol::records::{Accepted, CallRecord, NewCall};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use faena_scheduler::batch;

/// The most calls that wait for a message.
const WAITING: usize = 4096;

type Reply = oneshot::Sender<Result<CallRecord, DbError>>;

struct Asked {
    call: NewCall,
    reply: Reply,
}

/// What accepts the calls of one thread's connections; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct AcceptBatcher(mpsc::Sender<Asked>);

impl AcceptBatcher {
    /// Starts the task that sends, on the runtime that this is called in; it ends when nobody can ask it any more.
    pub(crate) fn new(db: DbClient) -> Self {
        let (queue, asked) = mpsc::channel(WAITING);
        tokio::spawn(send_all(db, asked));
        Self(queue)
    }

    /// Accepts a call: its row is committed when this returns.
    ///
    /// # Errors
    /// What db says of it.
    pub(crate) async fn accept(&self, call: NewCall) -> Result<CallRecord, DbError> {
        let (reply, answer) = oneshot::channel();
        self.0.try_send(Asked { call, reply }).map_err(|error| match error {
            TrySendError::Full(_) => DbError::Full,
            TrySendError::Closed(_) => DbError::Unavailable,
        })?;
        match tokio::time::timeout(DEADLINE, answer).await {
            Ok(Ok(answer)) => answer,
            // Whether it was accepted is not known.
            _ => Err(DbError::Unavailable),
        }
    }
}

fn held_by(NewCall { spec, .. }: &NewCall) -> u64 {
    spec.params.inline_len() + spec.body.as_ref().map_or(0, Payload::inline_len)
}

async fn send_all(db: DbClient, mut queue: mpsc::Receiver<Asked>) {
    // One message at a time: the more calls share a commit, the less it costs each.
    while let Some(first) = queue.recv().await {
        let batch = batch::gather(first, || queue.try_recv().ok(), |asked| held_by(&asked.call), batch::BOUNDS);
        send(&db, batch).await;
    }
}

async fn send(db: &DbClient, mut batch: Vec<Asked>) {
    // Nobody hears of the call of somebody who has gone.
    batch.retain(|asked| !asked.reply.is_closed());
    let (calls, replies): (Vec<_>, Vec<_>) = batch.into_iter().map(|asked| (asked.call, asked.reply)).unzip();
    if calls.is_empty() {
        return;
    }
    let request = CallsAccept { calls };
    let answers = match db.ask(&request).await {
        Ok(answers) => answers,
        // One of them cannot be accepted, or answered: what is wrong with it is nothing to the others. A call that has
        // been accepted meanwhile is answered as it is.
        Err(DbError::Internal { .. } | DbError::Invalid { .. }) if replies.len() > 1 => {
            let mut gone = None;
            for (call, reply) in request.calls.into_iter().zip(replies).filter(|(_, reply)| !reply.is_closed()) {
                let answer = match gone.clone() {
                    None => accept_one(db, &call).await,
                    Some(error) => Err(error),
                };
                // Where db has no time for one it has none for the others, and what comes next waits for us.
                if let Err(error @ (DbError::Unavailable | DbError::Full)) = &answer {
                    gone = Some(error.clone());
                }
                tell(reply, answer, call);
            }
            return;
        }
        Err(error) => vec![Err(error); replies.len()],
    };
    for ((reply, answer), call) in replies.into_iter().zip(answers).zip(request.calls) {
        tell(reply, answer, call);
    }
}

async fn accept_one(db: &DbClient, call: &NewCall) -> Result<Accepted, DbError> {
    let mut answers = db.ask(&CallsAccept { calls: vec![call.clone()] }).await?;
    answers.pop().unwrap_or(Err(DbError::Unavailable))
}

fn tell(reply: Reply, answer: Result<Accepted, DbError>, call: NewCall) {
    // The client may have gone; the call is accepted all the same.
    let _ = reply.send(answer.map(|accepted| accepted.record(call.spec)));
}
