//! The device of one instance: which connection a packet belongs to, and what may be asked for.
//!
//! Nothing here reads a device, a socket or a clock: packets and the time come in, and what is to be done goes out through
//! [`Effects`].

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use faena_instance_protocol::link;

use crate::bucket::Bucket;
use crate::flow::{Flow, Life, Moved, Outlet, Peer};
use crate::message::{Blocked, Counters, FlowId, QueryId, Refuse};
use crate::packet::{Ends, Flags, Packet, Unreachable, datagram, probe, reset, unreachable};

/// Connections of one instance at once, those that are being opened included.
pub const FLOWS: usize = 64;
/// Connections of one instance that are being opened at once.
pub const HALF_OPEN: usize = 32;
/// Queries of one instance that are not answered yet.
const QUERIES: usize = 32;
/// The longest query; a longer one comes by TCP (RFC 7766).
const MAX_QUERY: usize = 1232;
/// What one instance may ask for: so many at once, and so many a second. A program that opens a thousand connections a
/// second notices nothing.
const OPENINGS: (u32, u32) = (2000, 1500);
const LOOKUPS: (u32, u32) = (200, 100);
/// Replies to what belongs to no connection.
const REPLIES: (u32, u32) = (500, 500);
/// Reports of what was refused here.
const REPORTS: (u32, u32) = (20, 1);

/// What a device has done by others.
pub(crate) trait Effects: Outlet {
    /// Asks the worker for a connection.
    fn dial(&mut self, flow: FlowId, call: u64, ends: Ends);
    /// Has the worker answer a query.
    fn query(&mut self, query: QueryId, message: &[u8]);
    /// Reports what was refused here.
    fn blocked(&mut self, why: Blocked, ends: Ends);
    /// Takes a place for a connection; false where the owner or the node has no other.
    fn take_place(&mut self) -> bool;
    /// Gives the place of a connection back.
    fn give_place(&mut self, flow: FlowId);
    /// Has a connection looked at again at this time.
    fn wake(&mut self, flow: FlowId, at: Instant);
    /// Publishes what has passed since the device was attached.
    fn count(&mut self, counters: &Counters);
    /// A new number.
    fn number(&mut self) -> u64;
}

/// A connection that was asked for: its first segment waits until the destination is reached.
struct Dialing {
    flow: FlowId,
    syn: Vec<u8>,
}

/// One device.
pub(crate) struct Device<P> {
    own: Ipv4Addr,
    mtu: usize,
    dialing: HashMap<Ends, Dialing>,
    flows: HashMap<Ends, (FlowId, Flow<P>)>,
    by_id: HashMap<FlowId, Ends>,
    queries: HashMap<QueryId, Ends>,
    openings: Bucket,
    lookups: Bucket,
    replies: Bucket,
    reports: Bucket,
    budget: u64,
    /// What may still pass.
    left: u64,
    /// The call that runs; connections are asked for in its name.
    pub(crate) call: u64,
    pub(crate) counters: Counters,
    /// Connections that a panic of their stack has ended.
    panics: u64,
    scratch: Vec<u8>,
}

impl<P: Peer> Device<P> {
    /// A device whose instance has this address; `budget` bytes may pass in a call.
    pub(crate) fn new(own: Ipv4Addr, budget: u64, now: Instant) -> Self {
        let bucket = |(burst, rate): (u32, u32)| Bucket::new(burst, rate, now);
        Self {
            own,
            mtu: usize::from(link::MTU),
            dialing: HashMap::new(),
            flows: HashMap::new(),
            by_id: HashMap::new(),
            queries: HashMap::new(),
            openings: bucket(OPENINGS),
            lookups: bucket(LOOKUPS),
            replies: bucket(REPLIES),
            reports: bucket(REPORTS),
            budget,
            left: budget,
            call: 0,
            counters: Counters::default(),
            panics: 0,
            scratch: Vec::new(),
        }
    }

    /// Has connections of an earlier gateway reset: a program that only reads would never learn that they are gone. What
    /// the instance answers belongs to no connection here.
    pub(crate) fn reset_lost(&self, lost: impl IntoIterator<Item = Ends>, effects: &mut impl Effects) {
        lost.into_iter().for_each(|ends| effects.send(&probe(ends, self.own)));
    }

    /// Takes a packet of the instance.
    pub(crate) fn packet(&mut self, bytes: &[u8], effects: &mut impl Effects, now: Instant) {
        match Packet::parse(bytes, self.own) {
            Some(Packet::Tcp { ends, flags }) => self.segment((ends, flags), bytes, effects, now),
            Some(Packet::Udp { ends, payload }) if is_resolver(ends) => self.look_up(ends, payload, effects, now),
            Some(Packet::Udp { ends, .. }) => self.refuse_datagram(ends, bytes, effects, now),
            None => {}
        }
    }

    fn segment(&mut self, (ends, flags): (Ends, Flags), bytes: &[u8], effects: &mut impl Effects, now: Instant) {
        if self.flows.contains_key(&ends) {
            self.step(ends, Some(bytes), effects, now);
        } else if self.dialing.contains_key(&ends) {
            // Another copy of its first segment says nothing new while the destination is being reached.
            if flags.rst {
                self.forget_dialing(ends, effects);
            }
        } else if flags.opens() {
            self.open(ends, bytes, effects, now);
        } else if self.replies.take(now) {
            reset(bytes, self.own).iter().for_each(|packet| effects.send(packet));
        }
    }

    fn refuse_datagram(&mut self, ends: Ends, bytes: &[u8], effects: &mut impl Effects, now: Instant) {
        if self.replies.take(now) {
            let error = unreachable(bytes, self.own, Unreachable::Port);
            error.iter().for_each(|packet| effects.send(packet));
            self.report(Blocked::Udp, ends, effects, now);
        }
    }

    fn open(&mut self, ends: Ends, syn: &[u8], effects: &mut impl Effects, now: Instant) {
        // A flood is not answered.
        if !self.openings.take(now) {
            return;
        }
        let is_spent = self.left == 0;
        let is_full = self.flows.len() + self.dialing.len() >= FLOWS || self.dialing.len() >= HALF_OPEN;
        if is_spent || is_full || !effects.take_place() {
            reset(syn, self.own).iter().for_each(|packet| effects.send(packet));
            // The worker knows from the counters what has been spent.
            if !is_spent {
                self.report(Blocked::Connections, ends, effects, now);
            }
            return;
        }
        let flow = FlowId(effects.number());
        self.by_id.insert(flow, ends);
        self.dialing.insert(ends, Dialing { flow, syn: syn.to_vec() });
        effects.dial(flow, self.call, ends);
    }

    fn look_up(&mut self, ends: Ends, message: &[u8], effects: &mut impl Effects, now: Instant) {
        if message.len() <= MAX_QUERY && self.queries.len() < QUERIES && self.lookups.take(now) {
            let query = QueryId(effects.number());
            self.queries.insert(query, ends);
            effects.query(query, message);
        }
    }

    fn report(&mut self, why: Blocked, ends: Ends, effects: &mut impl Effects, now: Instant) {
        if self.reports.take(now) {
            effects.blocked(why, ends);
        }
    }

    fn forget_dialing(&mut self, ends: Ends, effects: &mut impl Effects) -> Option<Vec<u8>> {
        let Dialing { flow, syn } = self.dialing.remove(&ends)?;
        self.by_id.remove(&flow);
        effects.give_place(flow);
        Some(syn)
    }

    /// The destination of a connection was reached; a client that names a server in TLS has to name one of `names`, where
    /// there are some. False where nothing waits for it any longer.
    pub(crate) fn dialed(
        &mut self,
        flow: FlowId,
        (peer, names): (P, Option<Vec<String>>),
        effects: &mut impl Effects,
        now: Instant,
    ) -> bool {
        let waiting = self.by_id.get(&flow).copied().and_then(|ends| Some((ends, self.dialing.remove(&ends)?)));
        let Some((ends, Dialing { syn, .. })) = waiting else { return false };
        let seed = effects.number();
        self.flows.insert(ends, (flow, Flow::new(ends, self.own, self.mtu, (peer, seed), now).with_names(names)));
        self.counters.connections += 1;
        effects.count(&self.counters);
        self.step(ends, Some(&syn), effects, now);
        true
    }

    /// There is no connection.
    pub(crate) fn refused(&mut self, flow: FlowId, how: Refuse, effects: &mut impl Effects) {
        let Some(ends) = self.by_id.get(&flow).copied() else { return };
        let Some(syn) = self.forget_dialing(ends, effects) else { return };
        let packet = match how {
            Refuse::Reset => reset(&syn, self.own),
            Refuse::Unreachable => unreachable(&syn, self.own, Unreachable::Host),
        };
        packet.iter().for_each(|packet| effects.send(packet));
    }

    /// A query was answered.
    pub(crate) fn answer(&mut self, query: QueryId, message: &[u8], effects: &mut impl Effects) {
        let Some(ends) = self.queries.remove(&query) else { return };
        if !message.is_empty() {
            effects.send(&datagram(ends, self.own, message));
        }
    }

    /// The peer of a connection may be read from or written to.
    pub(crate) fn ready(
        &mut self,
        flow: FlowId,
        (readable, writable): (bool, bool),
        effects: &mut impl Effects,
        now: Instant,
    ) {
        let Some(ends) = self.by_id.get(&flow).copied() else { return };
        if let Some((_, flow)) = self.flows.get_mut(&ends) {
            flow.is_readable |= readable;
            flow.is_writable |= writable;
            self.step(ends, None, effects, now);
        }
    }

    /// The time has come for which a connection wanted to be woken. One that has another time meanwhile is left alone.
    pub(crate) fn woken(&mut self, flow: FlowId, at: Instant, effects: &mut impl Effects, now: Instant) {
        let Some(ends) = self.by_id.get(&flow).copied() else { return };
        if let Some((_, flow)) = self.flows.get_mut(&ends).filter(|(_, flow)| flow.wakes_at == Some(at)) {
            flow.wakes_at = None;
            self.step(ends, None, effects, now);
        }
    }

    fn step(&mut self, ends: Ends, packet: Option<&[u8]>, effects: &mut impl Effects, now: Instant) {
        let Self { flows, scratch, left, .. } = self;
        let Some((id, flow)) = flows.get_mut(&ends) else { return };
        let id = *id;
        let stepped = catch_unwind(AssertUnwindSafe(|| flow.step(packet, (effects, scratch), *left, now)));
        // A connection whose stack panicked is dropped with it; whatever its instance sends to it is reset.
        let (Moved { sent, received }, life) = stepped.unwrap_or_else(|_| {
            self.panics += 1;
            flow.peer.abort();
            packet.and_then(|bytes| reset(bytes, self.own)).iter().for_each(|packet| effects.send(packet));
            (Moved::default(), Life::Over)
        });
        self.counters.sent += sent;
        self.counters.received += received;
        self.left = self.left.saturating_sub(sent + received);
        if sent + received > 0 {
            // Before a reset: a call that ends because of one reports all that has passed.
            effects.count(&self.counters);
        }
        match life {
            Life::Over => self.forget_flow(ends, effects),
            Life::Refused => {
                self.forget_flow(ends, effects);
                self.report(Blocked::ServerName, ends, effects, now);
            }
            Life::Goes(at) => {
                // An earlier time takes the place of a later one.
                if let Some(at) = at.filter(|at| flow.wakes_at.is_none_or(|wakes| *at < wakes)) {
                    flow.wakes_at = Some(at);
                    effects.wake(id, at);
                }
            }
        }
        if self.left == 0 {
            self.reset_flows(effects, now);
        }
    }

    fn forget_flow(&mut self, ends: Ends, effects: &mut impl Effects) {
        if let Some((flow, _)) = self.flows.remove(&ends) {
            self.by_id.remove(&flow);
            effects.give_place(flow);
        }
    }

    fn reset_flows(&mut self, effects: &mut impl Effects, now: Instant) {
        for (_, (flow, mut connection)) in self.flows.drain() {
            self.by_id.remove(&flow);
            effects.give_place(flow);
            let scratch = &mut self.scratch;
            let reset = catch_unwind(AssertUnwindSafe(|| connection.reset(effects, scratch, now)));
            self.panics += u64::from(reset.is_err());
        }
    }

    /// A call has ended: its connections are reset, and those that were asked for are never opened. `next` is the number of
    /// the next one.
    pub(crate) fn end_call(&mut self, next: u64, effects: &mut impl Effects, now: Instant) {
        self.call = next;
        self.reset_flows(effects, now);
        for (_, Dialing { flow, syn }) in self.dialing.drain() {
            self.by_id.remove(&flow);
            effects.give_place(flow);
            reset(&syn, self.own).iter().for_each(|packet| effects.send(packet));
        }
        self.queries.clear();
        self.renew();
    }

    /// What may pass is as at the beginning.
    pub(crate) fn renew(&mut self) {
        self.left = self.budget;
    }

    /// What has passed on another way, and counts too.
    pub(crate) fn charge(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// How many connections a panic has ended.
    #[cfg(test)]
    pub(crate) fn panics(&self) -> u64 {
        self.panics
    }

    /// The connections that it has.
    #[cfg(test)]
    pub(crate) fn connections(&self) -> usize {
        self.flows.len() + self.dialing.len()
    }
}

/// Whether a datagram goes to the resolver.
fn is_resolver(Ends { target, .. }: Ends) -> bool {
    target.port() == link::DNS_PORT && *target.ip() == link::RESOLVER
}

#[cfg(test)]
mod tests;
