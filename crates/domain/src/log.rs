//! What a call or a build writes beside its result: lines, each with the time it began at and the stream it came on.
//!
//! A [`LogBuffer`] takes bytes as they are read. A [`StoredLog`] puts buffers together by time and is what is kept:
//! text with a line `UNIX_MS STREAM TEXT` for each line that was written, the stream as one letter.
//!
//! ```text
//! 1764369999123 e Traceback (most recent call last):
//! 1764369999124 p [the rest was cut]
//! ```

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// Said in place of what went over a bound.
const CUT: &str = "[the rest was cut]";

/// Where a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Standard output and standard error of a process that has one pipe for both, in the order they were written.
    Output,
    /// The platform's own remark, such as where a log was cut.
    Platform,
}

impl LogStream {
    const ALL: [Self; 4] = [Self::Stdout, Self::Stderr, Self::Output, Self::Platform];

    /// The letter that stands for it in a stored log.
    const fn letter(self) -> char {
        match self {
            Self::Stdout => 'o',
            Self::Stderr => 'e',
            Self::Output => 'b',
            Self::Platform => 'p',
        }
    }

    fn from_letter(letter: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stream| letter.chars().eq([stream.letter()]))
    }
}

/// Bytes of one stream up to a bound, and when they came.
#[derive(Clone, Debug)]
pub struct LogBuffer {
    stream: LogStream,
    bytes: Vec<u8>,
    /// Offsets into `bytes`, rising, and the time of what begins there.
    times: Vec<(usize, Timestamp)>,
    most: usize,
    is_cut: bool,
}

impl LogBuffer {
    /// An empty buffer of at most so many bytes.
    pub fn new(stream: LogStream, most: u64) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Self { stream, bytes: Vec::new(), times: Vec::new(), most, is_cut: false }
    }

    /// Adds what was read at this time; what the bound has no room for is dropped, and [`LogBuffer::is_cut`] tells so.
    pub fn push(&mut self, at: Timestamp, bytes: &[u8]) {
        let kept = bytes.len().min(self.most - self.bytes.len());
        // Wall time may be set back; lines of one stream keep their order.
        let at = self.times.last().map_or(at, |(_, last)| at.max(*last));
        if kept > 0 && self.times.last().is_none_or(|(_, last)| *last != at) {
            self.times.push((self.bytes.len(), at));
        }
        self.bytes.extend_from_slice(&bytes[..kept]);
        self.is_cut |= kept < bytes.len();
    }

    /// Forgets all but the last so many bytes.
    pub fn keep_end(&mut self, most: usize) {
        let gone = self.bytes.len().saturating_sub(most);
        if gone == 0 {
            return;
        }
        self.bytes.drain(..gone);
        let first = self.times.partition_point(|(offset, _)| *offset <= gone).saturating_sub(1);
        self.times.drain(..first);
        self.times.iter_mut().for_each(|(offset, _)| *offset = offset.saturating_sub(gone));
    }

    /// Takes what is there out, and leaves an empty buffer.
    #[must_use]
    pub fn take(&mut self) -> Self {
        let empty = Self { bytes: Vec::new(), times: Vec::new(), is_cut: false, ..*self };
        std::mem::replace(self, empty)
    }

    /// A copy without a line that has no end yet: what is shown of it would change.
    #[must_use]
    pub fn whole_lines(&self) -> Self {
        let mut copy = self.clone();
        let end = copy.bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        copy.bytes.truncate(end);
        copy
    }

    /// What was written.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether more was written than the bound has room for.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// The lines, line ends included, with the time of their first bytes.
    fn lines(&self) -> impl Iterator<Item = (Timestamp, LogStream, &[u8])> {
        let (mut offset, mut index) = (0, 0);
        self.bytes.split_inclusive(|byte| *byte == b'\n').map(move |line| {
            while self.times.get(index + 1).is_some_and(|(begin, _)| *begin <= offset) {
                index += 1;
            }
            offset += line.len();
            (self.times.get(index).map_or(Timestamp(0), |(_, at)| *at), self.stream, line)
        })
    }
}

/// A log in the form that is kept.
#[derive(Debug)]
pub struct StoredLog {
    text: String,
    most: usize,
    is_full: bool,
}

impl StoredLog {
    /// An empty log of at most about so many bytes.
    pub fn new(most: u64) -> Self {
        Self { text: String::new(), most: usize::try_from(most).unwrap_or(usize::MAX), is_full: false }
    }

    /// Adds the lines of some buffers in the order of their times. One buffer's lines keep their order.
    pub fn add(&mut self, buffers: &[&LogBuffer]) {
        let mut lines: Vec<_> = buffers.iter().flat_map(|buffer| buffer.lines()).collect();
        lines.sort_by_key(|(at, ..)| *at);
        let last = lines.last().map_or(Timestamp(0), |(at, ..)| *at);
        for (at, stream, line) in lines {
            self.line(at, stream, &String::from_utf8_lossy(line));
        }
        if buffers.iter().any(|buffer| buffer.is_cut) {
            self.cut(last);
        }
    }

    /// Adds a remark of the platform.
    pub fn remark(&mut self, at: Timestamp, text: &str) {
        self.line(at, LogStream::Platform, text);
        self.end_line();
    }

    fn end_line(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.text.push('\n');
        }
    }

    fn line(&mut self, at: Timestamp, stream: LogStream, text: &str) {
        if self.is_full {
            return;
        }
        if self.text.len() + text.len() > self.most {
            return self.cut(at);
        }
        self.end_line();
        // Writing into a String does not fail.
        let _ = write!(self.text, "{} {} {text}", at.0, stream.letter());
    }

    fn cut(&mut self, at: Timestamp) {
        if !std::mem::replace(&mut self.is_full, true) {
            self.end_line();
            let _ = writeln!(self.text, "{} {} {CUT}", at.0, LogStream::Platform.letter());
        }
    }

    /// The text that is kept.
    pub fn into_text(self) -> String {
        self.text
    }
}

/// A line of a stored log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// When it began to be written, by the clock of its node.
    pub at: Timestamp,
    /// Where it was written.
    pub stream: LogStream,
    /// What was written, without the line end.
    pub text: &'a str,
}

/// The lines of a stored log.
pub fn lines(stored: &str) -> impl Iterator<Item = LogLine<'_>> {
    stored.lines().map(|line| {
        let mut parts = line.splitn(3, ' ');
        let at = parts.next().and_then(|at| at.parse().ok()).unwrap_or(0);
        let stream = parts.next().and_then(LogStream::from_letter).unwrap_or(LogStream::Platform);
        LogLine { at: Timestamp(at), stream, text: parts.next().unwrap_or_default() }
    })
}

/// A stored log as it was written, without times and streams.
pub fn plain(stored: &str) -> String {
    stored.split_inclusive('\n').filter_map(|line| line.splitn(3, ' ').nth(2)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(stream: LogStream, pieces: &[(i64, &str)]) -> LogBuffer {
        let mut buffer = LogBuffer::new(stream, 64);
        pieces.iter().for_each(|(at, text)| buffer.push(Timestamp(*at), text.as_bytes()));
        buffer
    }

    fn stored(buffers: &[&LogBuffer], most: u64) -> String {
        let mut log = StoredLog::new(most);
        log.add(buffers);
        log.into_text()
    }

    #[test]
    fn lines_of_two_streams_are_ordered_by_their_times() {
        let out = buffer(LogStream::Stdout, &[(1, "a\nb"), (5, "c\nlast")]);
        let err = buffer(LogStream::Stderr, &[(3, "oh\n")]);
        let log = stored(&[&out, &err], 1000);
        assert_eq!(log, "1 o a\n1 o bc\n3 e oh\n5 o last");
        assert_eq!(plain(&log), "a\nbc\noh\nlast");
        let texts: Vec<_> = lines(&log).map(|line| (line.at.0, line.text)).collect();
        assert_eq!(texts, [(1, "a"), (1, "bc"), (3, "oh"), (5, "last")]);
    }

    #[test]
    fn what_is_beyond_a_bound_is_cut_and_said_to_be() {
        let long = buffer(LogStream::Output, &[(1, "a\n"), (2, &"x".repeat(100))]);
        assert!(long.is_cut());
        assert!(plain(&stored(&[&long], 1000)).ends_with("x\n[the rest was cut]\n"));
        let many = buffer(LogStream::Output, &[(1, "a\nb\nc\n")]);
        assert_eq!(plain(&stored(&[&many], 10)), "a\nb\n[the rest was cut]\n");
    }

    #[test]
    fn the_end_of_a_buffer_keeps_its_times() {
        let mut buffer = buffer(LogStream::Output, &[(1, "aaaa\n"), (2, "bbbb\n"), (3, "cc\n")]);
        buffer.keep_end(5);
        // The last five bytes are `b`, a line end, `cc` and another.
        assert_eq!(stored(&[&buffer], 1000), "2 b b\n3 b cc\n");
    }

    #[test]
    fn a_clock_that_is_set_back_reorders_no_lines() {
        let log = stored(&[&buffer(LogStream::Output, &[(9, "a\n"), (3, "b\n"), (12, "c\n")])], 1000);
        assert_eq!(log, "9 b a\n9 b b\n12 b c\n");
    }

    #[test]
    fn a_line_may_look_like_a_stored_one() {
        let log = stored(&[&buffer(LogStream::Output, &[(7, "1 e x\n\n  two\n")])], 1000);
        assert_eq!(plain(&log), "1 e x\n\n  two\n");
        assert_eq!(lines(&log).map(|line| line.text).collect::<Vec<_>>(), ["1 e x", "", "  two"]);
    }
}
