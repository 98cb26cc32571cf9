//! The direct path between processes: what an api's threads and a worker's threads tell each other, one connection for
//! each pair.
//!
//! ```text
//! api                                  worker
//!   │ ── code: a number for a version ──▶ │   once for each version and connection
//!   │ ── call: number, params ──────────▶ │
//!   │ ── cancel ────────────────────────▶ │   whenever
//!   │ ── forget: every number ──────────▶ │   whenever
//!   │ ◀── interim: head, such as 103 ──── │
//!   │ ◀── answer: head of a stream ────── │   where the answer is one
//!   │ ◀─ part: of a body, or credit ────▶ │   where a body is a stream
//!   │ ◀──────────────── end: result ───── │
//! ```
//!
//! A message is `kind: u8, length: u32 LE, head, body`: the head is JSON of that length, the body is bytes as they are. A
//! connection that ends takes its calls with it: the worker cancels them, the api tells their clients.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use faena_domain::units::Millis;
use faena_domain::{Attempt, CallError, CallNum, CallStatus};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Header, HttpHead, HttpRequest, InvocationEnd, Streamed};
use crate::records::Code;

const CODE: u8 = 1;
const CALL: u8 = 2;
const CANCEL: u8 = 3;
const FORGET: u8 = 4;
const END: u8 = 5;
const ANSWER: u8 = 6;
const PART: u8 = 7;
const INTERIM: u8 = 8;
/// The bytes before a head.
const PREFIX: usize = 5;

/// A message that is none of these.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Its beginning.
    #[error("a message of the direct path is of no known kind, or cut short")]
    Unknown,
    /// Its head.
    #[error("the head of a message of the direct path cannot be read")]
    Head(#[from] serde_json::Error),
}

/// What a call is, but for its params.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallHead {
    /// Its number.
    pub num: CallNum,
    /// The number of its version on this connection.
    pub code: u32,
    /// How long the attempt may take, in milliseconds.
    pub timeout_ms: u64,
    /// How long the call as a whole may still take, in milliseconds.
    pub left_ms: u64,
    /// When it has to have ended, for the function, in Unix milliseconds.
    pub deadline_unix_ms: i64,
    /// The W3C trace context that it carries.
    pub traceparent: String,
    /// How many of the message's last bytes are the body of the request, where that is not the params.
    pub body: Option<usize>,
    /// How the request's body comes, where it is a stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<RequestStream>,
    /// The request that it is.
    pub request: Arc<HttpRequest>,
}

/// How the body of a request comes after the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RequestStream {
    /// As a body, whose length may be known.
    Body(Option<u64>),
    /// As the bytes of a WebSocket.
    Upgrade,
}

/// The head of an answer that is a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnswerHead {
    /// The call.
    pub num: CallNum,
    /// Status and headers.
    pub head: HttpHead,
    /// How long the call waited for an instance.
    pub start_ms: Millis,
    /// How long the function took until the head.
    pub run_ms: Millis,
    /// The length of the body, where it is known.
    pub length: Option<u64>,
}

/// A message about a stream: bytes, or an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Bytes of the body.
    Data(Bytes),
    /// An event.
    Told(PartTold),
}

/// An event of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PartTold {
    /// Trailers of the body.
    Trailers(Vec<Header>),
    /// The body is whole.
    End,
    /// The body was broken off.
    BrokenOff,
    /// More credit, in bytes as [`cost`] counts them.
    Credit(u32),
    /// The reader is gone.
    Hangup,
    /// The worker drains.
    Draining,
}

/// The credit that a part costs, in bytes: a small part takes memory too.
pub fn cost(part: &Part) -> u32 {
    /// More than a part's own bookkeeping.
    const LEAST: u32 = 64;
    match part {
        Part::Data(data) => u32::try_from(data.len()).unwrap_or(u32::MAX).max(LEAST),
        Part::Told(_) => LEAST,
    }
}

#[derive(Serialize, Deserialize)]
struct InterimHead {
    num: CallNum,
    head: HttpHead,
}

#[derive(Serialize, Deserialize)]
struct PartHead {
    num: CallNum,
    told: Option<PartTold>,
}

#[derive(Serialize, Deserialize)]
struct CodeHead<C> {
    id: u32,
    code: C,
}

#[derive(Serialize, Deserialize)]
struct CancelHead {
    num: CallNum,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndHead {
    num: CallNum,
    status: CallStatus,
    head: Option<HttpHead>,
    error: Option<CallError>,
    attempt: Attempt,
    /// How many of the body's last bytes are what the process wrote.
    log: usize,
    streamed: Option<Streamed>,
}

/// From an api to a worker.
#[derive(Clone, Debug)]
pub enum DirectMessage {
    /// This number stands for this version from now on.
    Code(u32, Box<Code>),
    /// Run this; the params, and the body behind them.
    Call(CallHead, Bytes),
    /// Nobody wants this call any longer.
    Cancel(CallNum),
    /// No number stands for anything any more.
    Forget,
    /// A part of a call's request, or an event of its answer.
    Part(CallNum, Part),
}

/// From a worker to an api.
#[derive(Clone, Debug)]
pub enum WorkerMessage {
    /// A call has ended.
    End(CallNum, Box<InvocationEnd>),
    /// The function has sent an interim answer.
    Interim(CallNum, HttpHead),
    /// The answer of a call begins, and is a stream.
    Answer(Box<AnswerHead>),
    /// A part of a call's answer, or an event of its request.
    Part(CallNum, Part),
}

fn encode(kind: u8, head: &impl Serialize, bodies: &[&[u8]]) -> Result<Bytes, WireError> {
    let length: usize = bodies.iter().map(|body| body.len()).sum();
    let mut out = BytesMut::with_capacity(PREFIX + 512 + length).writer();
    out.get_mut().put_bytes(0, PREFIX);
    serde_json::to_writer(&mut out, head)?;
    let mut out = out.into_inner();
    let head = u32::try_from(out.len() - PREFIX).map_err(|_| WireError::Unknown)?;
    out[0] = kind;
    out[1..PREFIX].copy_from_slice(&head.to_le_bytes());
    bodies.iter().for_each(|body| out.extend_from_slice(body));
    Ok(out.freeze())
}

/// The kind, the head and the body of a message.
fn split(bytes: &Bytes) -> Result<(u8, &[u8], Bytes), WireError> {
    let ([kind, length @ ..], rest) = bytes.split_first_chunk::<PREFIX>().ok_or(WireError::Unknown)?;
    let length = u32::from_le_bytes(*length) as usize;
    let head = rest.get(..length).ok_or(WireError::Unknown)?;
    Ok((*kind, head, bytes.slice(PREFIX + length..)))
}

/// Every other message is read from text too, so that each type's reader is compiled once.
fn parse<T: DeserializeOwned>(head: &[u8]) -> Result<T, WireError> {
    let head = std::str::from_utf8(head).map_err(|_| WireError::Unknown)?;
    Ok(serde_json::from_str(head)?)
}

/// A number for a version, as bytes.
///
/// # Errors
/// What serde says.
pub fn code(id: u32, code: &Code) -> Result<Bytes, WireError> {
    encode(CODE, &CodeHead { id, code }, &[])
}

/// A call, as bytes.
///
/// # Errors
/// What serde says.
pub fn call(head: &CallHead, bodies: &[&[u8]]) -> Result<Bytes, WireError> {
    encode(CALL, head, bodies)
}

/// A call that nobody wants any longer, as bytes.
///
/// # Errors
/// What serde says.
pub fn cancel(num: CallNum) -> Result<Bytes, WireError> {
    encode(CANCEL, &CancelHead { num }, &[])
}

/// That no number stands for anything any more, as bytes.
///
/// # Errors
/// None in practice.
pub fn forget() -> Result<Bytes, WireError> {
    encode(FORGET, &(), &[])
}

/// An interim answer, as bytes.
///
/// # Errors
/// What serde says.
pub fn interim(num: CallNum, head: HttpHead) -> Result<Bytes, WireError> {
    encode(INTERIM, &InterimHead { num, head }, &[])
}

/// The head of an answer that is a stream, as bytes.
///
/// # Errors
/// What serde says.
pub fn answer(head: &AnswerHead) -> Result<Bytes, WireError> {
    encode(ANSWER, head, &[])
}

/// A part of a stream, as bytes.
///
/// # Errors
/// What serde says.
pub fn part(num: CallNum, part: Part) -> Result<Bytes, WireError> {
    match part {
        Part::Data(data) => encode(PART, &PartHead { num, told: None }, &[&data]),
        Part::Told(told) => encode(PART, &PartHead { num, told: Some(told) }, &[]),
    }
}

fn decode_part(head: &[u8], body: Bytes) -> Result<(CallNum, Part), WireError> {
    let PartHead { num, told } = parse(head)?;
    Ok((num, told.map_or(Part::Data(body), Part::Told)))
}

/// An end, as bytes.
///
/// # Errors
/// What serde says.
pub fn end(num: CallNum, end: InvocationEnd) -> Result<Bytes, WireError> {
    let InvocationEnd { status, result, head, error, log, attempt, streamed } = end;
    let head = EndHead { num, status, head, error, attempt, log: log.len(), streamed };
    encode(END, &head, &[&result, &log])
}

/// The version that a message to a worker gives a number, where it is about one. Of other messages only the kind is read.
pub fn code_in(bytes: &Bytes) -> Option<Box<Code>> {
    if bytes.first() != Some(&CODE) {
        return None;
    }
    let (_, head, _) = split(bytes).ok()?;
    parse(head).ok().map(|CodeHead { code, .. }| code)
}

impl DirectMessage {
    /// Reads what an api sent.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(bytes: &Bytes) -> Result<Self, WireError> {
        let (kind, head, body) = split(bytes)?;
        match kind {
            CODE => parse(head).map(|CodeHead { id, code }| Self::Code(id, code)),
            CALL => Ok(Self::Call(parse(head)?, body)),
            CANCEL => parse(head).map(|CancelHead { num }| Self::Cancel(num)),
            FORGET => Ok(Self::Forget),
            PART => decode_part(head, body).map(|(num, part)| Self::Part(num, part)),
            _ => Err(WireError::Unknown),
        }
    }
}

impl WorkerMessage {
    /// Reads what a worker sent.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(bytes: &Bytes) -> Result<Self, WireError> {
        let (kind, head, body) = split(bytes)?;
        match kind {
            END => decode_end(head, body),
            INTERIM => parse(head).map(|InterimHead { num, head }| Self::Interim(num, head)),
            ANSWER => Ok(Self::Answer(parse(head)?)),
            PART => decode_part(head, body).map(|(num, part)| Self::Part(num, part)),
            _ => Err(WireError::Unknown),
        }
    }
}

fn decode_end(head: &[u8], mut body: Bytes) -> Result<WorkerMessage, WireError> {
    let EndHead { num, status, head, error, attempt, log, streamed } = parse(head)?;
    let result = body.len().checked_sub(log).map(|length| body.split_to(length)).ok_or(WireError::Unknown)?;
    let end = InvocationEnd { status, result, head, error, log: body.to_vec(), attempt, streamed };
    Ok(WorkerMessage::End(num, Box::new(end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_reads_back_as_itself() {
        let head = CallHead {
            num: CallNum(7),
            code: 3,
            timeout_ms: 1000,
            left_ms: 900,
            deadline_unix_ms: 5,
            traceparent: "00-1-2-01".to_owned(),
            body: Some(4),
            stream: Some(RequestStream::Body(Some(7))),
            request: Arc::new(HttpRequest {
                method: "PUT".to_owned(),
                path: "/a".to_owned(),
                query: "b".to_owned(),
                headers: vec![Header("x".to_owned(), vec![0xff])],
                has_json: false,
            }),
        };
        let bytes = call(&head, &[b"body"]).expect("bytes");
        let DirectMessage::Call(read, body) = DirectMessage::decode(&bytes).expect("a call") else { panic!("no call") };
        assert_eq!((read, &body[..]), (head, &b"body"[..]));
    }

    #[test]
    fn a_part_reads_back_as_itself() {
        let header = Header("X-Sum".to_owned(), b"7".to_vec());
        for sent in [
            Part::Data(Bytes::from_static(b"\0\xff")),
            Part::Data(Bytes::new()),
            Part::Told(PartTold::Trailers(vec![header])),
            Part::Told(PartTold::Credit(9)),
            Part::Told(PartTold::End),
        ] {
            let bytes = part(CallNum(7), sent.clone()).expect("bytes");
            let Ok(DirectMessage::Part(num, to_worker)) = DirectMessage::decode(&bytes) else { panic!("no part") };
            let Ok(WorkerMessage::Part(_, to_api)) = WorkerMessage::decode(&bytes) else { panic!("no part") };
            assert_eq!((num, &to_worker, &to_api), (CallNum(7), &sent, &sent));
        }
    }

    #[test]
    fn what_is_no_message_is_told() {
        for bytes in [&b""[..], b"{}", b"\x09\0\0\0\0", b"\x02\xff\xff\xff\xff{}", b"\x02\x02\0\0\0{}"] {
            assert!(DirectMessage::decode(&Bytes::from_static(bytes)).is_err(), "{bytes:?}");
            assert!(WorkerMessage::decode(&Bytes::from_static(bytes)).is_err(), "{bytes:?}");
        }
    }
}
