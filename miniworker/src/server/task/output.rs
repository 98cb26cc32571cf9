//! What a process writes and uses while it works at calls.

use faena_domain::Reuse;
use faena_domain::limits::{MAX_CALL_LOG, STDERR_TAIL};
use faena_domain::log::{LogBuffer, StoredLog, plain};
use faena_domain::units::Millis;
use faena_gateway::Counters;
use faena_protocol::direct::InvocationEnd;

use super::{LAST_WORDS, MAX_LOG_BETWEEN, Task, readable};
use crate::egress::{Connections, EgressCall, EgressReport};
use crate::{capture, result};

/// What is read at once of what a process writes beside its answers.
const OUTPUT: usize = 1024 * 1024;
/// More cores than an instance is ever given.
const MAX_CORES: u64 = 1024;

impl Task {
    /// Adds to an end what the process wrote, and whom it called.
    pub(super) fn complete(&mut self, mut end: InvocationEnd, call: Option<EgressCall>) -> InvocationEnd {
        let mut report = self.egress_report(call.map(EgressCall::end).unwrap_or_default());
        if self.found_no_route(&end) {
            report.remark_no_route();
        }
        let EgressReport { used, refusals } = report;
        end.attempt.egress = used;
        end.log = self.take_log(&refusals).into_bytes();
        self.account(&mut end);
        if let Some(error) = &mut end.error
            && error.stderr_tail.is_empty()
            && !end.log.is_empty()
        {
            error.stderr_tail = result::tail(&plain(&String::from_utf8_lossy(&end.log)), STDERR_TAIL).to_owned();
        }
        end
    }

    /// Whether something in an instance without egress has tried to reach something. That is read after a call that failed or
    /// took ten milliseconds: it costs a twentieth of one.
    fn found_no_route(&mut self, end: &InvocationEnd) -> bool {
        let is_looked_at = end.error.is_some() || end.attempt.run_ms >= Millis::from_millis(10);
        if self.egress.is_some() || !is_looked_at {
            return false;
        }
        let counted = self.server.unroutable().unwrap_or(self.unroutable);
        counted > std::mem::replace(&mut self.unroutable, counted)
    }

    /// What passed between the instance and the world since a reading. Connections outlive a call where the process does.
    fn egress_report(&self, since: Counters) -> EgressReport {
        let Some(egress) = &self.egress else { return EgressReport::default() };
        if !self.server.traffic().in_flight.is_empty() {
            return egress.end_one_of_several(since);
        }
        let is_kept = self.server.code.serving.reuse == Reuse::Version;
        egress.end_call(since, if is_kept { Connections::Keep } else { Connections::Reset })
    }

    /// The log of a call that ends, as it is stored: first what was written since the call before had ended, marked.
    fn take_log(&mut self, refusals: &LogBuffer) -> String {
        let log = self.server.log().take();
        let mut stored = StoredLog::new(MAX_CALL_LOG);
        if !self.between.is_empty() {
            let now = capture::now();
            stored.remark(now, "[written before this call]");
            stored.add(&[&self.between.take()]);
            stored.remark(now, "[this call]");
        }
        stored.add(&[&log, refusals]);
        stored.into_text()
    }

    /// Adds to an end what the processes have used. That is read after a call that took a millisecond, and
    /// before there is any reading: it costs as much as a short call.
    fn account(&mut self, end: &mut InvocationEnd) {
        if end.attempt.run_ms >= Millis::from_millis(1) || self.usage.peak_memory.is_none() {
            let before = std::mem::replace(&mut self.usage, self.server.usage());
            let used = self.usage.cpu_us.zip(before.cpu_us).map(|(now, before)| now.saturating_sub(before));
            // What the instance used before its first call is no call's.
            end.attempt.cpu_ms =
                used.map(|used| Millis::from_micros(used.min(end.attempt.run_ms.micros().saturating_mul(MAX_CORES))));
        }
        end.attempt.cpu_ms = end.attempt.cpu_ms.or(self.usage.cpu_us.map(|_| Millis::default()));
        end.attempt.peak_memory_bytes = self.usage.peak_memory;
    }

    /// Keeps what the process has written since it was looked at last.
    pub(super) fn drain_output(&mut self) {
        let Some(output) = &self.output else { return };
        let (mut chunk, mut left) = ([0; 8192], OUTPUT);
        let is_calls = self.is_ending || !self.server.traffic().in_flight.is_empty();
        while left > 0 {
            match output.try_read(&mut chunk) {
                Ok(0) => return self.output = None,
                Ok(read) => {
                    left = left.saturating_sub(read);
                    if is_calls {
                        self.server.log().push(capture::now(), &chunk[..read]);
                    } else {
                        self.between.push(capture::now(), &chunk[..read]);
                        self.between.keep_end(MAX_LOG_BETWEEN);
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// What a process wrote that has ended: all of it is dead, so that has an end.
    pub(super) async fn last_output(&mut self) {
        let rest = async {
            while self.output.is_some() {
                readable(self.output.as_ref()).await;
                self.drain_output();
            }
        };
        // A process that holds the pipe open all the same is not waited for.
        let _ = tokio::time::timeout(LAST_WORDS, rest).await;
    }
}
