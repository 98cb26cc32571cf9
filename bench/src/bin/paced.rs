//! An open loop: requests leave at a fixed rate whether or not the last ones were answered, and each is measured from
//! when it should have left, so that what waits behind a slow one counts as slow (coordinated omission).
//!
//! `paced PORT PATH RATE SECONDS` prints the median and the 99th percentile in microseconds.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 16;
const BODY: &str = r#"{"name":"Ada"}"#;

/// A connection with at most one request under way.
struct Connection {
    stream: TcpStream,
    due: Option<Instant>,
    answer: Vec<u8>,
}

impl Connection {
    fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, due: None, answer: Vec::new() })
    }

    /// When the request under way was due, once its answer is whole.
    fn finish(&mut self) -> io::Result<Option<Instant>> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => self.answer.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
        if !is_whole(&self.answer) {
            return Ok(None);
        }
        if !self.answer.starts_with(b"HTTP/1.1 200") {
            return Err(io::Error::other(String::from_utf8_lossy(&self.answer).into_owned()));
        }
        self.answer.clear();
        Ok(self.due.take())
    }
}

/// Whether a head and as many bytes as it promises are there.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    answer.len() >= head + 4 + length.unwrap_or(0)
}

fn run(port: u16, path: &str, rate: f64, span: Duration) -> io::Result<Vec<f64>> {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let mut connections = (0..CONNECTIONS).map(|_| Connection::open(port)).collect::<io::Result<Vec<_>>>()?;
    let mut idle: VecDeque<usize> = (0..CONNECTIONS).collect();
    let mut waiting: VecDeque<Instant> = VecDeque::new();
    let (begun, mut sent, mut took) = (Instant::now(), 0u32, Vec::new());
    loop {
        let now = Instant::now();
        let is_over = now.duration_since(begun) > span;
        while !is_over && f64::from(sent) / rate <= now.duration_since(begun).as_secs_f64() {
            waiting.push_back(begun + Duration::from_secs_f64(f64::from(sent) / rate));
            sent += 1;
        }
        while let (Some(due), Some(index)) = (waiting.front().copied(), idle.front().copied()) {
            waiting.pop_front();
            idle.pop_front();
            connections[index].due = Some(due);
            connections[index].stream.write_all(request.as_bytes())?;
        }
        for (index, connection) in connections.iter_mut().enumerate().filter(|(_, c)| c.due.is_some()) {
            if let Some(due) = connection.finish()? {
                took.push(due.elapsed().as_secs_f64() * 1e6);
                idle.push_back(index);
            }
        }
        if is_over && waiting.is_empty() && idle.len() == CONNECTIONS {
            return Ok(took);
        }
    }
}

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [port, path, rate, seconds] = words.as_slice() else {
        return Err(io::Error::other("usage: paced PORT PATH RATE SECONDS"));
    };
    let number = |text: &String| text.parse::<f64>().map_err(io::Error::other);
    let port = port.parse().map_err(io::Error::other)?;
    let mut took = run(port, path, number(rate)?, Duration::from_secs_f64(number(seconds)?))?;
    took.sort_by(f64::total_cmp);
    let at = |share: usize| took.get(took.len() * share / 100).copied().unwrap_or(0.0);
    println!("{} {}", at(50), at(99));
    Ok(())
}
