//! Functions in Rust that stay alive between calls.
//!
//! A program that calls [`serve`] is a function of the contract `handler`: put it into an archive, let the runtime's
//! `run` name it, and say `contract = "handler"` in faena.toml. It is called with the params as JSON and the body of its
//! request, one call at a time; what it returns is the result.
//!
//! ```no_run
//! fn main() -> std::io::Result<()> {
//!     faena_handler::serve(|call| {
//!         let name: String = serde_json::from_slice(call.params)?;
//!         Ok(format!("Hello, {name}").into_bytes())
//!     })
//! }
//! ```
//!
//! The frames that travel are described in docs/reference/handler-protocol.md.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use faena_instance_protocol::handler::{self, ANSWERS, HEADER, Header, Kind};
use serde::Deserialize;

/// What a call knows of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Context {
    /// The call's number.
    pub call: i64,
    /// The function's name.
    pub function: String,
    /// The function's version.
    pub version: i64,
    /// The attempt's number, from 1; redeliveries count.
    pub attempt: u32,
    /// When the attempt has to end, in Unix milliseconds.
    pub deadline_ms: i64,
    /// Megabytes of memory that the instance may use.
    pub memory_mb: u64,
    /// The W3C trace context that the call carries.
    pub traceparent: String,
    /// The HTTP request that the call is; none where it did not come as one.
    pub request: Option<Request>,
}

/// An HTTP request, but for its body.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path after the function's name.
    pub path: String,
    /// The query, without its question mark.
    pub query: String,
    /// The headers, by their names in lower case.
    pub headers: BTreeMap<String, String>,
}

/// A call.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The params, JSON: the body of a request where that is JSON, else the fields of its query and of its form.
    pub params: &'a [u8],
    /// The body of its request, where that is not the params; empty otherwise.
    pub body: &'a [u8],
    context: &'a [u8],
}

impl Call<'_> {
    /// What the call knows of itself, which is read from its JSON each time that it is asked for.
    ///
    /// # Errors
    /// A worker of another version.
    pub fn context(&self) -> Result<Context, serde_json::Error> {
        serde_json::from_slice(self.context)
    }
}

/// What is copied to be written at once, and room for what is read at first.
const SMALL: usize = 64 * 1024;

/// What went wrong in a call: it fails with the kind `exception`, and the program lives on.
pub type HandlerError = Box<dyn Error + Send + Sync>;

/// Answers calls until there are no more. Standard input and the descriptor 3 belong to this function.
///
/// # Errors
/// Descriptors that are not those of a worker, or what is no frame.
pub fn serve(handle: impl FnMut(Call<'_>) -> Result<Vec<u8>, HandlerError>) -> io::Result<()> {
    let calls = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let answers = File::options().write(true).open(format!("/proc/self/fd/{ANSWERS}"))?;
    serve_on(calls, answers, handle)
}

fn serve_on(
    mut calls: impl Read,
    mut answers: impl Write,
    mut handle: impl FnMut(Call<'_>) -> Result<Vec<u8>, HandlerError>,
) -> io::Result<()> {
    let mut out = Vec::new();
    send(&mut answers, &mut out, Header { kind: Kind::Ready, id: 0, length: 0 }, &[])?;
    let (mut bytes, mut filled) = (vec![0; SMALL], 0);
    loop {
        let read = calls.read(&mut bytes[filled..])?;
        if read == 0 {
            return Ok(());
        }
        filled += read;
        let mut taken = 0;
        while let Some((header, body)) = frame(&bytes[taken..filled])? {
            taken += HEADER + body.len();
            let (kind, answer) = answer(body, &mut handle)?;
            let length = u32::try_from(answer.len()).map_err(io::Error::other)?;
            send(&mut answers, &mut out, Header { kind, id: header.id, length }, &answer)?;
        }
        bytes.copy_within(taken..filled, 0);
        filled -= taken;
        if filled == bytes.len() {
            bytes.resize(2 * filled, 0);
        }
    }
}

/// The first whole frame, if there is one.
fn frame(bytes: &[u8]) -> io::Result<Option<(Header, &[u8])>> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let header = Header::decode(head).filter(|header| header.kind == Kind::Call);
    let header = header.ok_or_else(|| io::Error::other("standard input carries no frames of a worker"))?;
    Ok(rest.get(..header.length as usize).map(|body| (header, body)))
}

fn answer(
    body: &[u8],
    handle: &mut impl FnMut(Call<'_>) -> Result<Vec<u8>, HandlerError>,
) -> io::Result<(Kind, Vec<u8>)> {
    let call = handler::Call::decode(body).ok_or_else(|| io::Error::other("a call without a context"))?;
    let handler::Call { context, params, body } = call;
    Ok(match handle(Call { params, body, context }) {
        Ok(result) => (Kind::Result, result),
        Err(error) => {
            let message = error.to_string();
            let length = u32::try_from(message.len()).map_err(io::Error::other)?;
            let mut answer = length.to_le_bytes().to_vec();
            answer.extend_from_slice(message.as_bytes());
            (Kind::Exception, answer)
        }
    })
}

/// Header and body leave in one write where they are small.
fn send(answers: &mut impl Write, out: &mut Vec<u8>, header: Header, body: &[u8]) -> io::Result<()> {
    if body.len() > SMALL {
        answers.write_all(&header.encode())?;
        return answers.write_all(body);
    }
    out.clear();
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(body);
    answers.write_all(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

    use std::os::unix::net::UnixStream;

    use super::*;

    fn call(id: u64, params: &[u8], body: &[u8]) -> Vec<u8> {
        let context =
            br#"{"call":1,"function":"f","version":2,"attempt":1,"deadlineMs":3,"memoryMb":256,"traceparent":"t"}"#;
        let mut bytes = Vec::new();
        handler::Call { context, params, body }.begin(id, &mut bytes);
        [&bytes, params, body].concat()
    }

    fn reply(stream: &mut UnixStream) -> (Header, Vec<u8>) {
        let mut head = [0; HEADER];
        stream.read_exact(&mut head).unwrap();
        let header = Header::decode(&head).unwrap();
        let mut body = vec![0; header.length as usize];
        stream.read_exact(&mut body).unwrap();
        (header, body)
    }

    #[test]
    fn calls_are_answered_in_turn_however_they_come() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let served = std::thread::spawn(move || {
            serve_on(&theirs, &theirs, |call| {
                let context = call.context()?;
                match call.params {
                    b"bad" => Err("no such thing".into()),
                    params => Ok([params, context.function.as_bytes(), call.body].concat()),
                }
            })
        });
        assert_eq!(reply(&mut ours).0.kind, Kind::Ready);
        let large = vec![b'x'; 200_000];
        let bytes = [call(1, b"a", b"!"), call(2, b"bad", b""), call(3, b"x", &large)].concat();
        let mut writer = ours.try_clone().unwrap();
        let written = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
        assert_eq!(reply(&mut ours), (Header { kind: Kind::Result, id: 1, length: 3 }, b"af!".to_vec()));
        let (header, body) = reply(&mut ours);
        assert_eq!(
            (header.kind, header.id, handler::split(&body).unwrap().0),
            (Kind::Exception, 2, &b"no such thing"[..])
        );
        assert_eq!(reply(&mut ours).0.length, 200_002);
        written.join().unwrap();
        drop(ours);
        served.join().unwrap().unwrap();
    }
}
