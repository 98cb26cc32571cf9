//! Calls that are accepted durably go to db many at once: those that come while others are on their way go together.

use std::sync::Arc;

use faena_db_client::{DEADLINE, DbClient};
use faena_domain::Payload;
use faena_protocol::DbError;
use faena_protocol::db::CallsAccept;
use faena_protocol::records::{CallRecord, NewCall};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::batch;

/// Messages on their way: while db writes the calls of one it has the next.
const UNDER_WAY: usize = 2;
/// The most calls that wait for a message.
const WAITING: usize = 4096;

struct Asked {
    call: NewCall,
    reply: oneshot::Sender<Result<CallRecord, DbError>>,
}

/// What accepts calls; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Accepts(mpsc::Sender<Asked>);

impl Accepts {
    /// Starts the task that sends, which ends when nobody can ask it any more.
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
    let under_way = Arc::new(Semaphore::new(UNDER_WAY));
    while let Ok(place) = Arc::clone(&under_way).acquire_owned().await {
        let Some(first) = queue.recv().await else { return };
        let batch = batch::gather(first, || queue.try_recv().ok(), |asked| held_by(&asked.call), batch::BOUNDS);
        let db = db.clone();
        tokio::spawn(async move {
            send(&db, batch).await;
            drop(place);
        });
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
            for (call, reply) in request.calls.into_iter().zip(replies) {
                let answer = db.ask(&CallsAccept { calls: vec![call] }).await;
                let _ = reply.send(answer.and_then(|mut answers| answers.pop().unwrap_or(Err(DbError::Unavailable))));
            }
            return;
        }
        Err(error) => vec![Err(error); replies.len()],
    };
    for (reply, answer) in replies.into_iter().zip(answers) {
        // Whoever asked may have gone; the call is there all the same.
        let _ = reply.send(answer);
    }
}
