//! Streams between processes: a body that is read here is sent in parts over a connection that many calls share, and made a
//! body again there.
//!
//! Neither side holds more of a body than [`WINDOW`] bytes: parts are sent against credit, which their reader gives back when
//! it has passed them on.

use std::sync::Arc;

use bytes::Bytes;
use faena_domain::CallNum;
use faena_protocol::direct::Header;
use faena_protocol::direct::wire::{self, Part, PartTold, cost};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::body::{PIECE, PipeReceiver, PipeSender, WINDOW, pipe};

/// The most parts on their way at once: the credit divided by the least cost.
const PARTS: usize = WINDOW / 64 + 2;

/// Sends messages over a connection.
pub trait PartSender: Clone + Send + Sync + 'static {
    /// Sends a message as soon as there is room for it; false where the connection is gone.
    fn send(&self, message: Bytes) -> impl Future<Output = bool> + Send;
}

/// The sending side of a body. The other side gives it credit, or stops it.
#[derive(Clone, Debug)]
pub struct Outgoing {
    credit: Arc<Semaphore>,
    hangup: CancellationToken,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self { credit: Arc::new(Semaphore::new(WINDOW)), hangup: CancellationToken::new() }
    }
}

impl Outgoing {
    /// Sends a body, until it ends or the other side reads no more.
    pub async fn send<B>(&self, num: CallNum, body: B, sender: &impl PartSender)
    where
        B: Body<Data = Bytes> + Unpin + Send,
        B::Error: Send,
    {
        let sent = self.hangup.run_until_cancelled(self.send_frames(num, body, sender)).await;
        let last = match sent {
            Some(true) => PartTold::End,
            Some(false) => PartTold::BrokenOff,
            None => return,
        };
        // The last part costs nothing: there is always room for it, whether or not anybody reads on.
        if let Ok(bytes) = wire::part(num, Part::Told(last)) {
            sender.send(bytes).await;
        }
    }

    /// Sends every frame; false where the body was broken off.
    async fn send_frames<B>(&self, num: CallNum, mut body: B, sender: &impl PartSender) -> bool
    where
        B: Body<Data = Bytes> + Unpin + Send,
        B::Error: Send,
    {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            let is_sent = match frame.into_data() {
                Ok(data) => self.send_data(num, data, sender).await,
                Err(other) => match other.into_trailers() {
                    Ok(trailers) => {
                        let trailers = Part::Told(PartTold::Trailers(listed(&trailers)));
                        self.put(num, trailers, sender).await
                    }
                    Err(_) => true,
                },
            };
            if !is_sent {
                return false;
            }
        }
        true
    }

    async fn send_data(&self, num: CallNum, mut data: Bytes, sender: &impl PartSender) -> bool {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            if !self.put(num, Part::Data(piece), sender).await {
                return false;
            }
        }
        true
    }

    async fn put(&self, num: CallNum, part: Part, sender: &impl PartSender) -> bool {
        let Ok(permit) = self.credit.acquire_many(cost(&part)).await else { return false };
        permit.forget();
        match wire::part(num, part) {
            Ok(bytes) => sender.send(bytes).await,
            Err(_) => false,
        }
    }
}

/// The receiving side of a body.
#[derive(Debug)]
pub struct Incoming {
    parts: mpsc::Sender<Part>,
}

impl Incoming {
    /// A body that comes in parts. A task of this runtime passes them on, and tells the other side when the reader is gone.
    /// Dropping this breaks the body off.
    pub fn begin(num: CallNum, length: Option<u64>, sender: impl PartSender) -> (Self, PipeReceiver) {
        let (parts, coming) = mpsc::channel(PARTS);
        let (to, body) = pipe(length);
        tokio::spawn(pass_on(num, coming, to, sender));
        (Self { parts }, body)
    }

    /// Takes a part. False if the other side has sent more than its credit, or a part that is larger than any.
    pub fn take(&self, part: Part) -> bool {
        let bytes = match &part {
            Part::Data(data) => data.len(),
            Part::Told(PartTold::Trailers(trailers)) => {
                trailers.iter().map(|Header(name, value)| name.len() + value.len()).sum()
            }
            Part::Told(_) => 0,
        };
        bytes <= MAX_CREDIT as usize && !matches!(self.parts.try_send(part), Err(mpsc::error::TrySendError::Full(_)))
    }
}

async fn pass_on(num: CallNum, mut coming: mpsc::Receiver<Part>, to: PipeSender, sender: impl PartSender) {
    let tell = async |told: PartTold| {
        // A connection that is gone takes the body with it.
        if let Ok(bytes) = wire::part(num, Part::Told(told)) {
            sender.send(bytes).await;
        }
    };
    loop {
        let part = tokio::select! {
            part = coming.recv() => part,
            () = to.closed() => return tell(PartTold::Hangup).await,
        };
        // Without an end the body is broken off.
        let Some(part) = part else { return };
        let cost = cost(&part);
        let frame = match part {
            Part::Data(data) => Frame::data(data),
            Part::Told(PartTold::Trailers(trailers)) => Frame::trailers(trailers_of(trailers)),
            Part::Told(PartTold::End) => return to.finish().await,
            Part::Told(_) => return,
        };
        if to.send(frame).await.is_err() {
            return tell(PartTold::Hangup).await;
        }
        tell(PartTold::Credit(cost)).await;
    }
}

fn listed(trailers: &HeaderMap) -> Vec<Header> {
    trailers.iter().map(|(name, value)| Header(name.to_string(), value.as_bytes().to_vec())).collect()
}

fn trailers_of(listed: Vec<Header>) -> HeaderMap {
    let parsed = listed.into_iter().filter_map(|Header(name, value)| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(&value).ok()?))
    });
    parsed.collect()
}

/// Both directions of a call's streams, as one side sees them.
#[derive(Debug, Default)]
pub struct Streams {
    /// The sending side.
    pub outgoing: Outgoing,
    /// The receiving side, once a body comes.
    pub incoming: Option<Incoming>,
    /// Cancelled when the other side drains.
    pub draining: CancellationToken,
}

impl Streams {
    /// Handles a message of the other side.
    pub fn take(&mut self, part: Part) {
        match part {
            Part::Told(PartTold::Credit(bytes)) => self.outgoing.credit.add_permits(bytes.min(MAX_CREDIT) as usize),
            Part::Told(PartTold::Hangup) => self.outgoing.hangup.cancel(),
            Part::Told(PartTold::Draining) => self.draining.cancel(),
            part => {
                if self.incoming.as_ref().is_some_and(|incoming| !incoming.take(part)) {
                    self.incoming = None;
                }
            }
        }
    }
}

impl Drop for Streams {
    /// No more credit comes, so senders stop.
    fn drop(&mut self) {
        self.outgoing.hangup.cancel();
    }
}

/// The most credit that one message gives, in bytes: that of one part.
const MAX_CREDIT: u32 = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http_body_util::{Full, StreamBody};

    use super::*;

    /// A connection whose messages are handed to the other side's streams.
    #[derive(Clone)]
    struct Line(mpsc::UnboundedSender<Bytes>);

    impl PartSender for Line {
        async fn send(&self, message: Bytes) -> bool {
            self.0.send(message).is_ok()
        }
    }

    /// Two sides, each with the streams that the other's messages reach.
    fn sides() -> (Line, Line, Arc<Mutex<Streams>>, Arc<Mutex<Streams>>) {
        let (left, right) = (Arc::new(Mutex::new(Streams::default())), Arc::new(Mutex::new(Streams::default())));
        let deliver = |to: &Arc<Mutex<Streams>>| {
            let (sender, mut messages) = mpsc::unbounded_channel::<Bytes>();
            let to = Arc::clone(to);
            tokio::spawn(async move {
                while let Some(bytes) = messages.recv().await {
                    let Ok(wire::WorkerMessage::Part(_, part)) = wire::WorkerMessage::decode(&bytes) else { continue };
                    to.lock().expect("not poisoned").take(part);
                }
            });
            Line(sender)
        };
        (deliver(&right), deliver(&left), left, right)
    }

    #[tokio::test]
    async fn a_part_that_is_larger_than_any_breaks_the_body_off() {
        let (line, _) = mpsc::unbounded_channel();
        let (incoming, _body) = Incoming::begin(CallNum(1), None, Line(line));
        assert!(incoming.take(Part::Data(Bytes::from(vec![0; MAX_CREDIT as usize]))));
        assert!(!incoming.take(Part::Data(Bytes::from(vec![0; MAX_CREDIT as usize + 1]))));
        let trailers = vec![Header("x".repeat(40_000), vec![0; 40_000])];
        assert!(!incoming.take(Part::Told(PartTold::Trailers(trailers))));
    }

    #[tokio::test]
    async fn a_body_arrives_whole_and_in_order() {
        let (to_right, to_left, left, right) = sides();
        let sent: Bytes = (0..1_000_000_u32).map(|number| number.to_le_bytes()[0]).collect::<Vec<_>>().into();
        let (incoming, body) = Incoming::begin(CallNum(1), None, to_left);
        right.lock().expect("not poisoned").incoming = Some(incoming);
        let outgoing = left.lock().expect("not poisoned").outgoing.clone();
        let whole = sent.clone();
        tokio::spawn(async move { outgoing.send(CallNum(1), Full::new(whole), &to_right).await });
        assert_eq!(body.collect().await.expect("whole").to_bytes(), sent);
    }

    #[tokio::test]
    async fn no_more_is_sent_than_there_is_credit_for() {
        let (sender, mut messages) = mpsc::unbounded_channel();
        let outgoing = Outgoing::default();
        let endless = StreamBody::new(futures_util::stream::repeat_with(|| {
            Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(vec![7; 1024])))
        }));
        let sending = tokio::spawn(async move { outgoing.send(CallNum(1), endless, &Line(sender)).await });
        let mut data = 0;
        while data < WINDOW {
            let bytes: Bytes = messages.recv().await.expect("a part");
            data += match wire::WorkerMessage::decode(&bytes) {
                Ok(wire::WorkerMessage::Part(_, Part::Data(data))) => data.len(),
                _ => panic!("no data"),
            };
        }
        tokio::task::yield_now().await;
        assert!(messages.try_recv().is_err(), "it sent more");
        sending.abort();
    }

    #[tokio::test]
    async fn a_reader_that_goes_stops_the_sender() {
        let (to_right, to_left, left, right) = sides();
        let (incoming, body) = Incoming::begin(CallNum(1), None, to_left);
        right.lock().expect("not poisoned").incoming = Some(incoming);
        let outgoing = left.lock().expect("not poisoned").outgoing.clone();
        let (_held, endless) = pipe(None);
        drop(body);
        outgoing.send(CallNum(1), endless, &to_right).await;
    }

    #[tokio::test]
    async fn a_body_that_has_used_its_credit_up_ends_all_the_same() {
        let (sender, mut messages) = mpsc::unbounded_channel();
        let outgoing = Outgoing::default();
        let exact = Full::new(Bytes::from(vec![7; WINDOW]));
        outgoing.send(CallNum(1), exact, &Line(sender)).await;
        let mut last = None;
        while let Ok(bytes) = messages.try_recv() {
            last = Some(bytes);
        }
        let last = wire::WorkerMessage::decode(&last.expect("parts")).expect("a part");
        assert!(matches!(last, wire::WorkerMessage::Part(_, Part::Told(PartTold::End))), "{last:?}");
    }

    #[tokio::test]
    async fn streams_that_are_dropped_stop_what_waits_for_credit() {
        let (sender, _messages) = mpsc::unbounded_channel();
        let streams = Streams::default();
        let outgoing = streams.outgoing.clone();
        let long = Full::new(Bytes::from(vec![7; 2 * WINDOW]));
        let sending = tokio::spawn(async move { outgoing.send(CallNum(1), long, &Line(sender)).await });
        tokio::task::yield_now().await;
        drop(streams);
        sending.await.expect("it ends");
    }

    #[tokio::test]
    async fn a_connection_that_ends_breaks_the_body_off() {
        let (_to_right, to_left, _left, _right) = sides();
        let (incoming, body) = Incoming::begin(CallNum(1), None, to_left);
        drop(incoming);
        assert!(body.collect().await.is_err());
    }
}
