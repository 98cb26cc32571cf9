//! The task that owns an instance.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use faena_domain::limits::{MAX_CALL_LOG, MAX_RESULT, STDERR_TAIL};
use faena_domain::log::{LogBuffer, StoredLog, plain};
use faena_domain::units::Millis;
use faena_domain::{CallError, ErrorKind, Layer, Reuse};
use faena_engine::{AgentSocket, Usage};
use faena_instance_protocol::handler::{HEADER, Header, Kind, split};
use faena_instance_protocol::{Ended, ToAgent, ToMiniworker};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc;

use super::renewal::Used;
use super::{CHUNK, InFlight, Order, Protocol, Served, widen};
use crate::capture;
use crate::code::CodeLease;
use crate::egress::Egress;
use crate::pool::call::{PoolCall, PoolEnd};
use crate::pool::http;
use crate::result;

/// How long the end of a process may take to be told that closed its pipes.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// What is read at once of what a process writes beside its answers.
const OUTPUT: usize = 1024 * 1024;
/// The most bytes that are kept of output which is written while no call runs.
pub(in crate::pool) const BETWEEN: usize = 64 * 1024;
/// More cores than an instance is ever given.
const MAX_CORES: u64 = 1024;
/// A sleep that nothing waits for.
const FAR: Duration = Duration::from_secs(24 * 3600);

/// Owns the instance.
pub(super) struct Task {
    pub(super) served: Arc<Served>,
    pub(super) agent: AgentSocket,
    pub(super) answers: Option<Receiver>,
    pub(super) output: Option<Receiver>,
    /// What was written while no call ran: it is no call's, and the next one's log tells it apart.
    pub(super) between: LogBuffer,
    pub(super) egress: Option<Egress>,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) incoming: BytesMut,
    /// The pipe of its answers holds more than a pipe does at first.
    pub(super) is_widened: bool,
    /// What the agent was told last.
    pub(super) lease_ms: u64,
    /// It goes at once, whatever it works at.
    pub(super) is_given_up: bool,
    /// It has served the one call that it was for.
    pub(super) is_spent: bool,
    pub(super) tree: CodeLease,
    /// A call has had a process of its own here, of which nothing may be left before the next.
    pub(super) used: Option<Used>,
    /// A call was just taken out whose output may still be in the pipe.
    pub(super) is_ending: bool,
    /// What its processes had used when that was read last.
    pub(super) usage: Usage,
}

/// Why an instance's life is over.
pub(super) enum Over {
    /// Nobody wants it any more.
    Retired,
    /// Its process has ended.
    Ended(Ended),
    /// It is gone, or sent what no instance sends.
    Lost(String),
}

impl Task {
    pub(super) async fn run(mut self) {
        let over = self.live().await;
        self.served.lines().closed = true;
        if matches!(over, Over::Ended(_)) {
            self.last_output().await;
        }
        let left = std::mem::take(&mut self.served.lines().in_flight);
        let is_http = matches!(self.served.protocol, Protocol::Http(_));
        for mut flight in left {
            if is_http && !flight.call.has_moved && !flight.call.is_sent.load(Ordering::Relaxed) {
                flight.call.has_moved = true;
                self.move_on(flight.call);
                continue;
            }
            let error = self.why(&over);
            let end = PoolEnd::failed(&flight.call, flight.began, error);
            self.end(flight, end);
        }
        let Served { pool, key, .. } = &*self.served;
        pool.gone(key, self.served.id.get().copied().unwrap_or(0));
        if let Protocol::Http(client) = &self.served.protocol {
            client.close();
        }
        let guard = self.served.guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        match guard {
            Some(guard) if self.is_spent => pool.put_aside(guard).await,
            Some(guard) => guard.destroy().await,
            None => {}
        }
        let actions = pool.state().replenish(key, Instant::now());
        pool.perform(actions);
        self.served.gone.cancel();
    }

    async fn live(&mut self) -> Over {
        let served = Arc::clone(&self.served);
        let sleep = tokio::time::sleep(FAR);
        tokio::pin!(sleep);
        loop {
            if let Some(over) = self.is_over() {
                return over;
            }
            if served.lines().is_deaf {
                return self.last_words().await;
            }
            let earliest = self.earliest();
            // A deadline that is armed too early only wakes us in vain; it is moved when it fires.
            let armed = served.lines().armed;
            if earliest.is_some_and(|at| armed.is_none_or(|armed| at < armed)) {
                served.lines().armed = earliest;
                sleep.as_mut().reset(earliest.map_or_else(far, tokio::time::Instant::from_std));
            }
            if let Some(used) = self.used.take()
                && let Err(over) = self.renew(used).await
            {
                return over;
            }
            let lease_ms = self.lease_ms;
            let is_retired = served.retired.is_cancelled();
            let has_unsent = !served.lines().unsent.is_empty();
            tokio::select! {
                biased;
                read = read_frames(&mut self.answers, &mut self.incoming) => match read {
                    Ok(0) => {
                        self.answers = None;
                        let mut lines = served.lines();
                        (lines.closed, lines.is_deaf) = (true, true);
                    }
                    Ok(_) => if let Err(over) = self.take_answers() { return over },
                    Err(error) => return Over::Lost(error.to_string()),
                },
                Some(order) = self.orders.recv() => if let Err(over) = self.order(order).await { return over },
                () = served.look_again.notified() => {}
                () = served.writable(), if has_unsent => drop(served.flush()),
                () = readable(self.output.as_ref()) => self.drain_output(),
                frame = self.agent.receive() => match frame {
                    Ok((ToMiniworker::Ended(ended), _)) => return Over::Ended(ended),
                    Ok((ToMiniworker::Connected { error }, fds)) => {
                        if let Protocol::Http(client) = &served.protocol {
                            client.connected(error, fds);
                        }
                    }
                    Ok(_) => return Over::Lost("it sent what no agent sends now".to_owned()),
                    Err(error) => return Over::Lost(error.to_string()),
                },
                () = http::wanted(&served.protocol) => {
                    if let Err(error) = self.agent.send(&ToAgent::Connect { port: http::PORT }, &[]).await {
                        return Over::Lost(error.to_string());
                    }
                }
                () = &mut sleep => {
                    served.lines().armed = None;
                    sleep.as_mut().reset(far());
                    self.judge();
                }
                () = served.lease_changed(lease_ms) => if let Err(over) = self.tell_lease().await { return over },
                () = served.retired.cancelled(), if !is_retired => {}
            }
        }
    }

    /// A process that neither listens nor speaks any more has ended, as a rule, and its agent says how.
    async fn last_words(&mut self) -> Over {
        match tokio::time::timeout(LAST_WORDS, self.agent.receive()).await {
            Ok(Ok((ToMiniworker::Ended(ended), _))) => Over::Ended(ended),
            _ => Over::Lost("its process closed what it answers on".to_owned()),
        }
    }

    /// It is over when it is not wanted and nothing runs in it.
    pub(super) fn is_over(&self) -> Option<Over> {
        let lines = self.served.lines();
        let is_unwanted = self.served.retired.is_cancelled() || lines.closed;
        (self.is_given_up || (is_unwanted && lines.in_flight.is_empty())).then_some(Over::Retired)
    }

    fn earliest(&self) -> Option<Instant> {
        let lines = self.served.lines();
        lines.in_flight.iter().map(|flight| flight.call.deadline).min()
    }

    /// Takes the answers that have come apart.
    fn take_answers(&mut self) -> Result<(), Over> {
        let lost = |why: &str| Over::Lost(why.to_owned());
        loop {
            let Some(head) = self.incoming.first_chunk::<HEADER>() else { return Ok(()) };
            let header = Header::decode(head).ok_or_else(|| lost("it sent what is no frame"))?;
            let length = header.length as usize;
            if !matches!(header.kind, Kind::Result | Kind::Reply | Kind::Exception | Kind::Ended) {
                return Err(lost("it sent what no process sends now"));
            }
            if u64::from(header.length) > MAX_RESULT {
                self.too_large(header.id);
                return Err(Over::Retired);
            }
            if self.incoming.len() < HEADER + length {
                self.incoming.reserve(HEADER + length - self.incoming.len());
                if length > CHUNK
                    && !std::mem::replace(&mut self.is_widened, true)
                    && let Some(answers) = &self.answers
                {
                    widen(answers);
                }
                return Ok(());
            }
            self.incoming.advance(HEADER);
            let body = self.incoming.split_to(length).freeze();
            if header.kind == Kind::Ended && self.served.code.serving.reuse == Reuse::Fork {
                self.own_process_ended(header.id, &body)?;
                continue;
            }
            let Some(flight) = self.take(header.id) else {
                return Err(lost("it answered a call that is not in flight"));
            };
            let end = match header.kind {
                Kind::Ended => return Err(lost("it sent what no process sends now")),
                Kind::Exception => exception(&flight, &body),
                Kind::Reply => reply(&flight, &body),
                _ => PoolEnd::done(&flight.call, flight.began, body),
            };
            self.finish(flight, end);
        }
    }

    /// Takes a call out that ends, and what was written until now.
    pub(super) fn take(&mut self, id: u64) -> Option<InFlight> {
        let mut lines = self.served.lines();
        let index = lines.in_flight.iter().position(|flight| flight.id == id)?;
        let flight = lines.in_flight.swap_remove(index);
        drop(lines);
        self.is_ending = true;
        self.drain_output();
        self.is_ending = false;
        Some(flight)
    }

    fn too_large(&mut self, id: u64) {
        // What it goes on to send is not looked at, so it takes no other call.
        self.served.lines().closed = true;
        if let Some(flight) = self.take(id) {
            let message = format!("the result is over the limit of {MAX_RESULT} bytes");
            let end =
                PoolEnd::failed(&flight.call, flight.began, CallError::new(ErrorKind::Output, Layer::Run, message));
            self.finish(flight, end);
        }
    }

    /// Tells the end of a call, and before that that its slot is free: a client that gets the reply may call again at once.
    pub(super) fn finish(&mut self, flight: InFlight, end: PoolEnd) {
        let end = self.complete(end);
        let (Served { pool, key, code, .. }, id) = (&*self.served, self.served.id());
        match code.serving.reuse {
            Reuse::Version => pool.finished(key, id),
            Reuse::Fork => self.used = Some(Used::of(&flight)),
            Reuse::Never => {
                self.is_spent = true;
                self.served.retire();
                pool.retire(key, id);
            }
        }
        (flight.call.done)(end);
    }

    pub(super) fn end(&mut self, flight: InFlight, end: PoolEnd) {
        let end = self.complete(end);
        (flight.call.done)(end);
    }

    /// Adds to an end what the process wrote, and whom it called.
    pub(super) fn complete(&mut self, mut end: PoolEnd) -> PoolEnd {
        end.log = self.take_log().into_bytes();
        self.account(&mut end);
        if let Some(egress) = &self.egress {
            let is_alone = self.served.lines().in_flight.is_empty();
            end.hosts = if is_alone { egress.end_call() } else { egress.hosts() };
        }
        if let Some(error) = &mut end.error
            && error.stderr_tail.is_empty()
            && !end.log.is_empty()
        {
            error.stderr_tail = result::tail(&plain(&String::from_utf8_lossy(&end.log)), STDERR_TAIL).to_owned();
        }
        end
    }

    /// The log of a call that ends, as it is stored: first what was written since the call before had ended, marked.
    fn take_log(&mut self) -> String {
        let log = self.served.log().take();
        let mut stored = StoredLog::new(MAX_CALL_LOG);
        if !self.between.is_empty() {
            let now = capture::now();
            stored.remark(now, "[written before this call]");
            stored.add(&[&self.between.take()]);
            stored.remark(now, "[this call]");
        }
        stored.add(&[&log]);
        stored.into_text()
    }

    /// Adds to an end what the processes have used. That is read after a call that took a millisecond, and
    /// before there is any reading: it costs as much as a short call.
    fn account(&mut self, end: &mut PoolEnd) {
        if end.run_ms >= Millis::from_millis(1) || self.usage.peak_memory.is_none() {
            let before = std::mem::replace(&mut self.usage, self.served.usage());
            let used = self.usage.cpu_us.zip(before.cpu_us).map(|(now, before)| now.saturating_sub(before));
            // What the instance used before its first call is no call's.
            end.cpu_ms = used.map(|used| Millis::from_micros(used.min(end.run_ms.micros().saturating_mul(MAX_CORES))));
        }
        end.cpu_ms = end.cpu_ms.or(self.usage.cpu_us.map(|_| Millis::default()));
        end.peak_memory = self.usage.peak_memory;
    }

    /// Keeps what the process has written since it was looked at last.
    pub(super) fn drain_output(&mut self) {
        let Some(output) = &self.output else { return };
        let (mut chunk, mut left) = ([0; 8192], OUTPUT);
        let is_calls = self.is_ending || !self.served.lines().in_flight.is_empty();
        while left > 0 {
            match output.try_read(&mut chunk) {
                Ok(0) => return self.output = None,
                Ok(read) => {
                    left = left.saturating_sub(read);
                    if is_calls {
                        self.served.log().push(capture::now(), &chunk[..read]);
                    } else {
                        self.between.push(capture::now(), &chunk[..read]);
                        self.between.keep_end(BETWEEN);
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// What a process wrote that has ended: all of it is dead, so that has an end.
    async fn last_output(&mut self) {
        let rest = async {
            while self.output.is_some() {
                readable(self.output.as_ref()).await;
                self.drain_output();
            }
        };
        // A process that holds the pipe open all the same is not waited for.
        let _ = tokio::time::timeout(LAST_WORDS, rest).await;
    }

    async fn order(&mut self, order: Order) -> Result<(), Over> {
        match order {
            Order::Begin(call) => self.begin_leased(call).await,
            Order::Cancel(num) => {
                let id = self.served.lines().in_flight.iter().find(|flight| flight.call.num == num).map(|f| f.id);
                if let Some(flight) = id.and_then(|id| self.take(id)) {
                    let end = PoolEnd::cancelled(&flight.call);
                    self.abandon(flight, end);
                }
                Ok(())
            }
            Order::Answered(id, answer) => {
                let Some(mut flight) = self.take(id) else { return Ok(()) };
                if answer.as_ref().is_err_and(|failure| failure.is_unsent) && !flight.call.has_moved {
                    flight.call.has_moved = true;
                    self.move_on(flight.call);
                    return Ok(());
                }
                let end = http::end(&flight.call, flight.began, answer);
                self.finish(flight, end);
                Ok(())
            }
        }
    }

    /// Gives back a call that the process never saw, because it takes no connections any more; another instance has it.
    fn move_on(&self, call: Box<PoolCall>) {
        self.served.retire();
        let Served { pool, key, .. } = &*self.served;
        let actions = pool.state().came_back(key, self.served.id(), call);
        pool.perform(actions);
    }

    async fn begin_leased(&mut self, call: Box<PoolCall>) -> Result<(), Over> {
        let until = call.lease.as_ref().map_or(u64::MAX, |lease| *lease.borrow());
        if until < self.lease_ms {
            self.say_lease(until).await?;
        }
        if let Err(call) = self.served.write(call) {
            let Served { pool, key, .. } = &*self.served;
            let id = self.served.id();
            let actions = pool.state().came_back(key, id, call);
            pool.perform(actions);
        }
        Ok(())
    }

    pub(super) async fn say_lease(&mut self, until_ms: u64) -> Result<(), Over> {
        self.lease_ms = until_ms;
        let lease = ToAgent::Lease { until_ms };
        self.agent.send(&lease, &[]).await.map_err(|error| Over::Lost(error.to_string()))
    }

    /// The earliest lease of the calls that have one, or none.
    async fn tell_lease(&mut self) -> Result<(), Over> {
        let until = {
            let lines = self.served.lines();
            let leases = lines.in_flight.iter().filter_map(|flight| flight.call.lease.as_ref());
            leases.map(|lease| *lease.borrow()).min().unwrap_or(u64::MAX)
        };
        if until == self.lease_ms { Ok(()) } else { self.say_lease(until).await }
    }

    /// Ends what has run for too long.
    fn judge(&mut self) {
        let now = Instant::now();
        let late: Vec<u64> = {
            let lines = self.served.lines();
            lines.in_flight.iter().filter(|flight| flight.call.deadline <= now).map(|flight| flight.id).collect()
        };
        for id in late {
            if let Some(flight) = self.take(id) {
                let end = PoolEnd::late(&flight.call, flight.began);
                self.abandon(flight, end);
            }
        }
    }

    /// Ends a call that its process still works at. No further one is begun beside it; where it was the only one the
    /// instance goes at once, otherwise when the others have ended. A call that may run again elsewhere takes the whole
    /// instance with it: nothing of it may run on.
    pub(super) fn abandon(&mut self, flight: InFlight, end: PoolEnd) {
        let may_run_again = flight.call.lease.is_some();
        if self.served.code.serving.reuse == Reuse::Fork {
            self.used = Some(Used::of(&flight));
            return self.end(flight, end);
        }
        self.end(flight, end);
        self.served.retire();
        if may_run_again {
            self.is_given_up = true;
        }
        let Served { pool, key, .. } = &*self.served;
        pool.retire(key, self.served.id());
    }

    /// What calls are told that were under way when it ended.
    fn why(&self, over: &Over) -> CallError {
        let error = |kind, message: String| CallError::new(kind, Layer::Run, message);
        match over {
            Over::Retired => error(ErrorKind::Infrastructure, "the instance was given up".to_owned()),
            Over::Lost(why) => error(ErrorKind::Infrastructure, format!("the instance was lost: {why}")),
            Over::Ended(ended) => {
                let when = (Layer::Run, " before it answered");
                result::fallen(ended.exit, ended.oom_kills, self.served.code.limits.memory, when)
            }
        }
    }
}

fn far() -> tokio::time::Instant {
    tokio::time::Instant::now() + FAR
}

async fn read_frames(answers: &mut Option<Receiver>, incoming: &mut BytesMut) -> io::Result<usize> {
    match answers {
        Some(answers) => {
            // What was answered still holds the room before it; only where little is left is there anew.
            if incoming.capacity() - incoming.len() < CHUNK / 8 {
                incoming.reserve(CHUNK);
            }
            answers.read_buf(incoming).await
        }
        None => std::future::pending().await,
    }
}

async fn readable(output: Option<&Receiver>) {
    match output {
        Some(output) => drop(output.readable().await),
        None => std::future::pending().await,
    }
}

/// A handler's answer with a head of its own.
fn reply(flight: &InFlight, frame: &Bytes) -> PoolEnd {
    let invalid = |why: &str| {
        let error = CallError::new(ErrorKind::Output, Layer::Run, format!("the handler's reply has {why}"));
        PoolEnd::failed(&flight.call, flight.began, error)
    };
    let Some((head, body)) = split(frame) else { return invalid("no head") };
    match serde_json::from_slice(head) {
        Ok(head) => {
            let answer = http::Answer { head, body: frame.slice_ref(body) };
            http::answered(&flight.call, flight.began, answer)
        }
        Err(error) => invalid(&format!("a head that cannot be read: {error}")),
    }
}

/// A handler's exception: its message, and where it came from as the end of its standard error.
fn exception(flight: &InFlight, body: &[u8]) -> PoolEnd {
    let (message, origin) = split(body).unwrap_or((body, &[]));
    let mut error =
        CallError::new(ErrorKind::Exception, Layer::Run, result::tail(&String::from_utf8_lossy(message), STDERR_TAIL));
    error.stderr_tail = result::tail(&String::from_utf8_lossy(origin), STDERR_TAIL).to_owned();
    PoolEnd::failed(&flight.call, flight.began, error)
}
