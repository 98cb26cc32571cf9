//! The task that owns an instance.

mod answers;
mod handler_streams;
mod output;
mod renewal;
mod streams;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use faena_domain::log::LogBuffer;
use faena_domain::{CallError, ErrorKind, Layer, Reuse};
use faena_engine::{AgentSocket, Usage};
use faena_instance_protocol::handler::Kind;
use faena_instance_protocol::{Ended, ToAgent, ToMiniworker};
use faena_protocol::direct::InvocationEnd;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc;

use super::{InFlight, Order, Protocol, ServerInstance, http};
use crate::call::InstanceCall;
use crate::code::CodeLease;
use crate::egress::Egress;
use crate::result;
use answers::read_frames;
pub(super) use handler_streams::HandlerStream;
use renewal::Used;

/// How long the end of a process may take to be told that closed its pipes.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The most bytes that are kept of output which is written while no call runs.
pub(crate) const MAX_LOG_BETWEEN: usize = 64 * 1024;
/// A sleep that nothing waits for.
const FAR: Duration = Duration::from_secs(24 * 3600);

/// Owns the instance.
pub(super) struct Task {
    pub(super) server: Arc<ServerInstance>,
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
    /// Packets without a route, as they were counted last.
    pub(super) unroutable: u64,
    /// Calls that were ended while their process still worked at them; frames of these are ignored. At most as many as the
    /// instance takes at once.
    pub(super) given_up: HashSet<u64>,
}

/// Why an instance ends.
pub(super) enum EndReason {
    /// Its owner retired it.
    Retired,
    /// Its process has ended.
    Ended(Ended),
    /// It is gone, or sent what no instance sends.
    Lost(String),
}

impl Task {
    pub(super) async fn run(mut self) {
        let over = self.live().await;
        self.server.traffic().closed = true;
        if matches!(over, EndReason::Ended(_)) {
            self.last_output().await;
            self.end_streams(&over).await;
        }
        let left = std::mem::take(&mut self.server.traffic().in_flight);
        let is_http = matches!(self.server.protocol, Protocol::Http(_));
        for mut flight in left {
            let is_whole = !flight.call.is_body_taken;
            if is_http && is_whole && !flight.call.has_moved && !flight.call.is_sent.load(Ordering::Relaxed) {
                flight.call.has_moved = true;
                self.move_on(flight.call);
                continue;
            }
            let end = match flight.broken_stream(|| "its process has ended".to_owned()) {
                Some(end) => InvocationEnd { error: Some(self.why(&over, " while it answered")), ..end },
                None => flight.call.failed(flight.began, self.why(&over, " before it answered")),
            };
            self.end(flight, end);
        }
        self.return_orders();
        self.server.owner.gone();
        if let Protocol::Http(client) = &self.server.protocol {
            client.close();
        }
        let guard = self.server.guard.lock().take();
        if let Some(guard) = guard {
            self.server.owner.tear_down(guard, self.is_spent).await;
        }
        self.server.gone.cancel();
    }

    /// Returns the calls that were ordered and have not begun, so that another instance takes them; those that were
    /// cancelled meanwhile end here.
    fn return_orders(&mut self) {
        self.orders.close();
        let (mut calls, mut cancelled) = (Vec::new(), Vec::new());
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Begin(call) => calls.push(call),
                Order::Cancel(num) => cancelled.push(num),
                // The call was ended with the instance.
                Order::Answered(..) | Order::StreamStopped(..) => {}
            }
        }
        for call in calls {
            if cancelled.contains(&call.num) {
                let end = call.cancelled();
                call.end(end);
                self.server.owner.retired();
            } else {
                self.server.owner.returned(call);
            }
        }
    }

    async fn live(&mut self) -> EndReason {
        let server = Arc::clone(&self.server);
        let sleep = tokio::time::sleep(FAR);
        tokio::pin!(sleep);
        loop {
            if let Some(over) = self.is_over() {
                return over;
            }
            if server.traffic().has_closed_input {
                return self.last_words().await;
            }
            let earliest = self.earliest();
            // A deadline that is armed too early only wakes us in vain; it is moved when it fires.
            let armed = server.traffic().armed;
            if earliest.is_some_and(|at| armed.is_none_or(|armed| at < armed)) {
                server.traffic().armed = earliest;
                sleep.as_mut().reset(earliest.map_or_else(far, tokio::time::Instant::from_std));
            }
            if let Some(used) = self.used.take()
                && let Err(over) = self.renew(used).await
            {
                return over;
            }
            let lease_ms = self.lease_ms;
            let is_retired = server.retired.is_cancelled();
            let has_unsent = !server.traffic().unsent.is_empty();
            tokio::select! {
                biased;
                read = read_frames(&mut self.answers, &mut self.incoming) => match read {
                    Ok(0) => {
                        self.answers = None;
                        let mut traffic = server.traffic();
                        (traffic.closed, traffic.has_closed_input) = (true, true);
                    }
                    Ok(_) => if let Err(over) = self.take_answers() { return over },
                    Err(error) => return EndReason::Lost(error.to_string()),
                },
                Some(order) = self.orders.recv() => if let Err(over) = self.order(order).await { return over },
                () = server.look_again.notified() => {}
                () = server.writable(), if has_unsent => drop(server.flush()),
                () = readable(self.output.as_ref()) => self.drain_output(),
                frame = self.agent.receive() => match frame {
                    Ok((ToMiniworker::Ended(ended), _)) => return EndReason::Ended(ended),
                    Ok((ToMiniworker::Connected { error }, fds)) => {
                        if let Protocol::Http(client) = &server.protocol {
                            client.connected(error, fds);
                        }
                    }
                    Ok(_) => return EndReason::Lost("its agent sent a frame that is not expected now".to_owned()),
                    Err(error) => return EndReason::Lost(error.to_string()),
                },
                () = http::wanted(&server.protocol) => {
                    if let Err(error) = self.agent.send(&ToAgent::Connect { port: http::PORT }, &[]).await {
                        return EndReason::Lost(error.to_string());
                    }
                }
                () = &mut sleep => {
                    server.traffic().armed = None;
                    sleep.as_mut().reset(far());
                    self.judge();
                }
                () = server.lease_changed(lease_ms) => if let Err(over) = self.tell_lease().await { return over },
                () = server.retired.cancelled(), if !is_retired => {}
            }
        }
    }

    /// A process that neither listens nor speaks any more has ended, as a rule, and its agent says how.
    async fn last_words(&mut self) -> EndReason {
        match tokio::time::timeout(LAST_WORDS, self.agent.receive()).await {
            Ok(Ok((ToMiniworker::Ended(ended), _))) => EndReason::Ended(ended),
            _ => EndReason::Lost("its process closed what it answers on".to_owned()),
        }
    }

    /// It is over when it is not wanted and nothing runs in it.
    pub(super) fn is_over(&self) -> Option<EndReason> {
        let traffic = self.server.traffic();
        let is_unwanted = self.server.retired.is_cancelled() || traffic.closed;
        (self.is_given_up || (is_unwanted && traffic.in_flight.is_empty())).then_some(EndReason::Retired)
    }

    fn earliest(&self) -> Option<Instant> {
        let traffic = self.server.traffic();
        traffic.in_flight.iter().map(|flight| flight.call.deadline).min()
    }

    /// Takes a call out that ends, and what was written until now.
    pub(super) fn take(&mut self, id: u64) -> Option<InFlight> {
        let mut traffic = self.server.traffic();
        let index = traffic.in_flight.iter().position(|flight| flight.id == id)?;
        let flight = traffic.in_flight.swap_remove(index);
        traffic.is_renewing = self.server.code.serving.reuse == Reuse::Fork;
        drop(traffic);
        self.is_ending = true;
        self.drain_output();
        self.is_ending = false;
        Some(flight)
    }

    /// Tells the end of a call, and before that that its slot is free: a client that gets the reply may call again at once.
    pub(super) fn finish(&mut self, mut flight: InFlight, end: InvocationEnd) {
        let end = self.complete(end, flight.egress.take());
        let ServerInstance { owner, code, .. } = &*self.server;
        match code.serving.reuse {
            Reuse::Version => owner.finished(),
            Reuse::Fork => self.used = Some(Used::of(&flight)),
            Reuse::Never => {
                self.is_spent = true;
                self.server.retire();
                owner.retired();
            }
        }
        flight.call.end(end);
    }

    pub(super) fn end(&mut self, mut flight: InFlight, end: InvocationEnd) {
        let end = self.complete(end, flight.egress.take());
        flight.call.end(end);
    }

    async fn order(&mut self, order: Order) -> Result<(), EndReason> {
        match order {
            Order::Begin(call) => self.begin_leased(call).await,
            Order::Cancel(num) => {
                let id = self.server.traffic().in_flight.iter().find(|flight| flight.call.num == num).map(|f| f.id);
                if let Some(flight) = id.and_then(|id| self.take(id)) {
                    let end = flight.call.cancelled();
                    self.abandon(flight, end);
                }
                Ok(())
            }
            Order::StreamStopped(id, why) => {
                self.stream_stopped(id, why);
                Ok(())
            }
            Order::Answered(id, answer) => {
                let Some(mut flight) = self.take(id) else { return Ok(()) };
                let answer = match answer {
                    Err(unsent) if unsent.is_unsent && !flight.call.has_moved => {
                        flight.call.has_moved = true;
                        flight.call.restore(unsent.body);
                        self.move_on(flight.call);
                        return Ok(());
                    }
                    answer => answer,
                };
                let end = http::end(&flight.call, flight.began, answer);
                self.finish(flight, end);
                Ok(())
            }
        }
    }

    /// Gives back a call that the process never saw, because it takes no connections any more; another instance has it.
    fn move_on(&self, call: Box<InstanceCall>) {
        self.server.retire();
        self.server.owner.returned(call);
    }

    async fn begin_leased(&mut self, call: Box<InstanceCall>) -> Result<(), EndReason> {
        let until = call.lease.as_ref().map_or(u64::MAX, |lease| *lease.borrow());
        if until < self.lease_ms {
            self.say_lease(until).await?;
        }
        if let Err(call) = self.server.write(call) {
            self.server.owner.returned(call);
        }
        Ok(())
    }

    pub(super) async fn say_lease(&mut self, until_ms: u64) -> Result<(), EndReason> {
        self.lease_ms = until_ms;
        let lease = ToAgent::Lease { until_ms };
        self.agent.send(&lease, &[]).await.map_err(|error| EndReason::Lost(error.to_string()))
    }

    /// The earliest lease of the calls that have one, or none.
    async fn tell_lease(&mut self) -> Result<(), EndReason> {
        let until = {
            let traffic = self.server.traffic();
            let leases = traffic.in_flight.iter().filter_map(|flight| flight.call.lease.as_ref());
            leases.map(|lease| *lease.borrow()).min().unwrap_or(u64::MAX)
        };
        if until == self.lease_ms { Ok(()) } else { self.say_lease(until).await }
    }

    /// Ends what has run for too long.
    fn judge(&mut self) {
        let now = Instant::now();
        let late: Vec<u64> = {
            let traffic = self.server.traffic();
            traffic.in_flight.iter().filter(|flight| flight.call.deadline <= now).map(|flight| flight.id).collect()
        };
        for id in late {
            if let Some(mut flight) = self.take(id) {
                if flight.stream.is_some() {
                    self.server.tell_of_stream(id, Kind::Stop, &[]);
                }
                let broken = flight.broken_stream(|| "it did not end when it was told to".to_owned());
                let end = broken.unwrap_or_else(|| flight.call.ran_late(flight.began));
                self.abandon(flight, end);
            }
        }
    }

    /// Ends a call that its process still works at. No further one is begun beside it; where it was the only one the
    /// instance goes at once, otherwise when the others have ended. A call that may run again elsewhere takes the whole
    /// instance with it: nothing of it may run on.
    pub(super) fn abandon(&mut self, flight: InFlight, end: InvocationEnd) {
        self.given_up.insert(flight.id);
        if flight.stream.is_some() {
            self.server.tell_of_stream(flight.id, Kind::Stop, &[]);
        }
        let may_run_again = flight.call.lease.is_some();
        if self.server.code.serving.reuse == Reuse::Fork {
            self.used = Some(Used::of(&flight));
            return self.end(flight, end);
        }
        self.end(flight, end);
        self.server.retire();
        if may_run_again {
            self.is_given_up = true;
        }
        self.server.owner.retired();
    }

    /// What calls are told that were under way when it ended.
    fn why(&self, over: &EndReason, when: &str) -> CallError {
        let error = |kind, message: String| CallError::new(kind, Layer::Run, message);
        match over {
            EndReason::Retired => error(ErrorKind::Infrastructure, "the instance was given up".to_owned()),
            EndReason::Lost(why) => error(ErrorKind::Infrastructure, format!("the instance was lost: {why}")),
            EndReason::Ended(ended) => {
                result::fallen(ended.exit, ended.oom_kills, self.server.code.limits.memory, (Layer::Run, when))
            }
        }
    }
}

fn far() -> tokio::time::Instant {
    tokio::time::Instant::now() + FAR
}

async fn readable(output: Option<&Receiver>) {
    match output {
        Some(output) => drop(output.readable().await),
        None => std::future::pending().await,
    }
}
