//! A connection that is read and written piece by piece.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use faena_test_support::Platform;

/// How long anything is waited for.
const LONG: Duration = Duration::from_secs(30);

/// A connection to a platform, and what was read of it and not looked at yet.
pub(crate) struct Connection {
    stream: TcpStream,
    pending: Vec<u8>,
}

impl Connection {
    /// Connects, and sends these bytes.
    pub(crate) fn send(platform: &Platform, bytes: &str) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", platform.port)).expect("the platform listens");
        stream.set_read_timeout(Some(LONG)).expect("a socket");
        let mut connection = Self { stream, pending: Vec::new() };
        connection.write(bytes.as_bytes());
        connection
    }

    /// A request without a body.
    pub(crate) fn get(platform: &Platform, path: &str, headers: &str) -> Self {
        Self::send(platform, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"))
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
    }

    /// Sends a chunk of a body.
    pub(crate) fn chunk(&mut self, bytes: &[u8]) {
        self.write(format!("{:x}\r\n", bytes.len()).as_bytes());
        self.write(bytes);
        self.write(b"\r\n");
    }

    /// Reads some more; false at the end.
    fn more(&mut self) -> bool {
        let mut chunk = [0; 64 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(count) => {
                self.pending.extend_from_slice(&chunk[..count]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("{error}; so far: {:?}", String::from_utf8_lossy(&self.pending)),
        }
    }

    /// Reads until these bytes have come, and returns everything up to and with them.
    pub(crate) fn until(&mut self, wanted: &[u8]) -> String {
        loop {
            if let Some(at) = self.pending.windows(wanted.len()).position(|window| window == wanted) {
                let rest = self.pending.split_off(at + wanted.len());
                return String::from_utf8_lossy(&std::mem::replace(&mut self.pending, rest)).into_owned();
            }
            let seen = String::from_utf8_lossy(&self.pending).into_owned();
            assert!(self.more(), "the connection ended before {:?}: {seen:?}", String::from_utf8_lossy(wanted));
        }
    }

    /// Reads so many bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.pending.len() < count {
            assert!(self.more(), "the connection ended after {} bytes", self.pending.len());
        }
        let rest = self.pending.split_off(count);
        std::mem::replace(&mut self.pending, rest)
    }

    /// Reads the head of an answer.
    pub(crate) fn head(&mut self) -> String {
        self.until(b"\r\n\r\n")
    }

    /// Reads everything until the other side closes.
    pub(crate) fn rest(mut self) -> Vec<u8> {
        while self.more() {}
        self.pending
    }
}
