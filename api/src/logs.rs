//! Logs as people read them: of one call or build while it runs and afterwards, of a function over all its calls.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use faena_domain::limits::MAX_CALL_LOG;
use faena_domain::log::{self, LogLine, LogStream};
use faena_domain::units::MB;
use faena_domain::{CallNum, CallStatus, FunctionName, Namespace, Payload, Timestamp, Version};
use faena_protocol::db::{CallList, CallLog, FunctionLogs, LogPage};
use faena_protocol::node::{LogOf, Question, Reply as WorkerReply};
use faena_protocol::records::CallRecord;
use serde::Serialize;

use crate::actions;
use crate::app::App;
use crate::problem::Reply;

/// How long workers may take to tell what is being written.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pages of calls that one request looks through; the reply then names where to go on.
const PAGES: usize = 20;
/// Bytes of logs that one request reads.
const READ_BYTES: u64 = 16 * MB;
/// Running calls of a function whose lines a follower sees before they end.
const FOLLOWED: u32 = 20;
/// Calls that a follower has seen running and whose ends it waits for, at most.
const REMEMBERED: usize = 200;
/// The newest calls that a follower looks at each time; more have ended in between only rarely.
const WINDOW: u32 = 200;

/// A line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LineView {
    /// The call that wrote it; none for a build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) call: Option<i64>,
    /// Which attempt of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    /// The function's version.
    version: i64,
    /// `stdout`, `stderr`, `output` (both, where a process has one pipe for them), or `platform` for a remark of ours.
    #[schema(value_type = String)]
    stream: LogStream,
    /// When it began to be written.
    #[schema(value_type = String)]
    time: Timestamp,
    /// What was written.
    text: String,
}

/// Who wrote the lines of a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    pub(crate) call: Option<(CallNum, u32)>,
    pub(crate) version: Version,
}

impl Writer {
    fn of(call: &CallLog) -> Self {
        Self { call: Some((call.num, call.attempt)), version: call.version }
    }

    fn line(&self, line: LogLine<'_>) -> LineView {
        LineView {
            call: self.call.map(|(num, _)| num.0),
            attempt: self.call.map(|(_, attempt)| attempt),
            version: self.version.0,
            stream: line.stream,
            time: line.at,
            text: line.text.to_owned(),
        }
    }
}

/// A log that is stored, in its stored form.
pub(crate) async fn stored(app: &App, namespace: &Namespace, log: &Payload) -> Reply<String> {
    let bytes = app.blobs_of(namespace).bytes(log, 2 * MAX_CALL_LOG).await?;
    Ok(String::from_utf8(bytes.into()).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// What was written until now by something that runs, in its stored form; none where no worker knows of it.
pub(crate) async fn live(app: &App, of: LogOf) -> Option<String> {
    let mut replies = app.scheduler().ask(Question::Log(of)).await;
    let found = async {
        loop {
            if let WorkerReply::Log(Some(log)) = replies.recv().await? {
                return Some(log);
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.ok().flatten()
}

/// How far a follower has read one log.
#[derive(Debug, Default)]
pub(crate) struct Cursor(HashMap<(Timestamp, LogStream), usize>);

impl Cursor {
    /// The lines that are new since the last time. Lines are known by time and stream, since a log that has ended may have
    /// lines before those that were seen while it was written.
    pub(crate) fn news(&mut self, writer: Writer, stored: &str) -> Vec<LineView> {
        let mut seen: HashMap<(Timestamp, LogStream), usize> = HashMap::new();
        let mut news = Vec::new();
        for line in log::lines(stored) {
            let key = (line.at, line.stream);
            let count = seen.entry(key).or_default();
            *count += 1;
            if *count > self.0.get(&key).copied().unwrap_or(0) {
                news.push(writer.line(line));
            }
        }
        for (key, count) in seen {
            let cursor = self.0.entry(key).or_default();
            *cursor = count.max(*cursor);
        }
        news
    }
}

/// Which lines of a function are asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) namespace: Namespace,
    pub(crate) function: FunctionName,
    pub(crate) version: Option<Version>,
    pub(crate) status: Option<CallStatus>,
    pub(crate) since: Option<Timestamp>,
    pub(crate) before: Option<CallNum>,
    pub(crate) limit: usize,
}

/// Lines, the oldest first, and where to go on with older ones.
pub(crate) struct Lines {
    pub(crate) lines: Vec<LineView>,
    pub(crate) next: Option<CallNum>,
}

/// The newest lines of calls that have ended: whole calls, as many as `limit` has room for, and at least one. A call with
/// more lines than that shows its last ones.
pub(crate) async fn of_function(app: &App, asked: &Asked) -> Reply<Lines> {
    let mut calls: Vec<Vec<LineView>> = Vec::new();
    let (mut count, mut bytes, mut before) = (0, 0, asked.before);
    for _ in 0..PAGES {
        let page = page(app, asked, before, None).await?;
        for call in &page.logs {
            let lines = lines_of(app, &asked.namespace, call).await?;
            bytes += call.log.len();
            if !calls.is_empty() && (count + lines.len() > asked.limit || bytes > READ_BYTES) {
                return Ok(oldest_first(calls, asked.limit, before));
            }
            count += lines.len();
            // The next page begins below this call.
            before = Some(call.num);
            calls.push(lines);
        }
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    Ok(oldest_first(calls, asked.limit, before))
}

fn oldest_first(calls: Vec<Vec<LineView>>, limit: usize, next: Option<CallNum>) -> Lines {
    let mut lines: Vec<LineView> = calls.into_iter().rev().flatten().collect();
    lines.drain(..lines.len().saturating_sub(limit));
    Lines { lines, next }
}

async fn page(app: &App, asked: &Asked, before: Option<CallNum>, calls: Option<u32>) -> Reply<LogPage> {
    let Asked { namespace, function, version, status, .. } = asked.clone();
    let since = asked.since.map(|since| since.0);
    Ok(app.db().ask(&FunctionLogs { namespace, function, version, status, since, before, calls }).await?)
}

async fn lines_of(app: &App, namespace: &Namespace, call: &CallLog) -> Reply<Vec<LineView>> {
    let stored = stored(app, namespace, &call.log).await?;
    Ok(log::lines(&stored).map(|line| Writer::of(call).line(line)).collect())
}

/// Follows a function: lines of running calls as they are written, and of every call once it has ended.
#[derive(Debug)]
pub(crate) struct Follower {
    asked: Asked,
    /// Calls that were seen running and whose last lines are not sent yet, and how far each was read.
    running: BTreeMap<CallNum, Cursor>,
    /// Of the newest calls, those that have ended and whose lines are sent.
    sent: HashSet<CallNum>,
    /// The newest call that was looked at; none before the first look.
    newest: Option<CallNum>,
}

impl Follower {
    pub(crate) fn new(asked: Asked) -> Self {
        Self { asked, running: BTreeMap::new(), sent: HashSet::new(), newest: None }
    }

    /// The lines that have come since the last time. The first time these are the lines since the instant that was asked
    /// for, or none.
    pub(crate) async fn news(&mut self, app: &App) -> Reply<Vec<LineView>> {
        let mut lines = self.of_ended(app).await?;
        if self.asked.status.is_none() {
            let running = self.running_now(app).await?;
            lines.extend(self.of_left(app, &running).await?);
            lines.extend(self.of_running(app, &running).await);
        }
        Ok(lines)
    }

    /// Lines of calls among the newest that have ended since the last look.
    async fn of_ended(&mut self, app: &App) -> Reply<Vec<LineView>> {
        let is_silent = self.newest.is_none() && self.asked.since.is_none();
        let (mut calls, mut before, mut bytes, mut newest) = (Vec::new(), None, 0, self.newest);
        for _ in 0..PAGES {
            let page = page(app, &self.asked, before, Some(WINDOW)).await?;
            newest = newest.max(page.newest);
            bytes += page.logs.iter().map(|call| call.log.len()).sum::<u64>();
            calls.extend(page.logs);
            before = page.next;
            // The last look read the older calls, or the client did not ask for them.
            let is_new = |next| self.newest.is_some_and(|newest| next > newest);
            let goes_on = before.is_some_and(is_new) || (self.newest.is_none() && !is_silent && before.is_some());
            if !goes_on || bytes > READ_BYTES {
                break;
            }
        }
        self.newest = Some(newest.unwrap_or(CallNum(0)));
        let mut lines = Vec::new();
        for call in calls.iter().rev().filter(|call| !self.sent.contains(&call.num)) {
            let mut cursor = self.running.remove(&call.num).unwrap_or_default();
            if !is_silent {
                lines.extend(cursor.news(Writer::of(call), &stored(app, &self.asked.namespace, &call.log).await?));
            }
        }
        self.sent = calls.iter().map(|call| call.num).collect();
        Ok(lines)
    }

    /// The function's calls that run, some of them.
    async fn running_now(&self, app: &App) -> Reply<Vec<CallRecord>> {
        let Asked { namespace, function, version, .. } = &self.asked;
        let request = CallList {
            namespace: namespace.clone(),
            function: Some(function.clone()),
            status: Some(CallStatus::Running),
            dead: false,
            unreplayed: false,
            before: None,
            limit: FOLLOWED,
        };
        let mut calls = app.db().ask(&request).await?;
        // Calls whose clients wait have no row while they run.
        calls.extend(app.in_flight().running(namespace, function, FOLLOWED as usize));
        calls.retain(|call| version.is_none_or(|version| call.version == version));
        Ok(calls)
    }

    /// The last lines of calls that run no more and are not among the newest that have ended.
    async fn of_left(&mut self, app: &App, running: &[CallRecord]) -> Reply<Vec<LineView>> {
        let namespace = self.asked.namespace.clone();
        let is_left = |num: &CallNum| !running.iter().any(|call| call.num == *num);
        let left: Vec<CallNum> = self.running.keys().copied().filter(is_left).take(FOLLOWED as usize).collect();
        let mut lines = Vec::new();
        for num in left {
            let call = actions::calls::find(app, &namespace, num).await?;
            // One that is queued again, or is being written, is looked at again.
            if call.status.is_terminal() && app.in_flight().get(&namespace, num).is_none() {
                let attempt = u32::try_from(call.attempts.len()).unwrap_or(u32::MAX);
                let writer = Writer { call: Some((num, attempt)), version: call.version };
                let mut cursor = self.running.remove(&num).unwrap_or_default();
                lines.extend(cursor.news(writer, &stored(app, &namespace, &call.logs).await?));
                self.sent.insert(num);
            }
        }
        Ok(lines)
    }

    async fn of_running(&mut self, app: &App, running: &[CallRecord]) -> Vec<LineView> {
        let mut lines = Vec::new();
        for call in running.iter().filter(|call| !self.sent.contains(&call.num)) {
            let Some(stored) = live(app, LogOf::Call(call.num)).await else { continue };
            let attempt = u32::try_from(call.attempts.len()).unwrap_or(u32::MAX).saturating_add(1);
            let writer = Writer { call: Some((call.num, attempt)), version: call.version };
            lines.extend(self.running.entry(call.num).or_default().news(writer, &stored));
        }
        // The oldest of too many is the likeliest to be over.
        while self.running.len() > REMEMBERED {
            self.running.pop_first();
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITER: Writer = Writer { call: Some((CallNum(7), 1)), version: Version(2) };

    fn texts(lines: &[LineView]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn a_follower_is_told_each_line_once() {
        let mut cursor = Cursor::default();
        assert_eq!(texts(&cursor.news(WRITER, "1 b one\n1 b two\n")), ["one", "two"]);
        assert_eq!(texts(&cursor.news(WRITER, "1 b one\n1 b two\n1 b three\n2 b four\n")), ["three", "four"]);
        // The stored log begins with lines that were written before the call.
        let end = "5 p [written before this call]\n0 b before\n1 b one\n1 b two\n1 b three\n2 b four\n2 b five";
        assert_eq!(texts(&cursor.news(WRITER, end)), ["[written before this call]", "before", "five"]);
    }

    #[test]
    fn the_newest_lines_are_kept_oldest_first() {
        let call = |num: i64, texts: &[&str]| -> Vec<LineView> {
            let writer = Writer { call: Some((CallNum(num), 1)), version: Version(1) };
            let line = |text| writer.line(LogLine { at: Timestamp(num), stream: LogStream::Stderr, text });
            texts.iter().copied().map(line).collect()
        };
        let lines = oldest_first(vec![call(9, &["c", "d"]), call(8, &["a", "b"])], 4, Some(CallNum(8)));
        assert_eq!(texts(&lines.lines), ["a", "b", "c", "d"]);
        let lines = oldest_first(vec![call(9, &["a", "b", "c"])], 2, None);
        assert_eq!(texts(&lines.lines), ["b", "c"], "a call that is too long for any reply");
    }
}
