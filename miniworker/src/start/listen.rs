//! Waits until something listens on the port of a process that speaks HTTP.

use std::time::{Duration, Instant};

use faena_domain::limits::STDERR_TAIL;
use faena_domain::{CallError, ErrorKind, Layer};
use faena_instance_protocol::{ToAgent, ToMiniworker};
use faena_protocol::records::Code;
use tokio::net::unix::pipe::Receiver;

use super::Unfinished;
use super::greet::{ended, read_some, start_log};
use crate::failure::StartError;
use crate::result;
use crate::server::{HttpClient, PORT, Protocol, ServerParts};

/// The pause before a port that refused a connection is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(2);
/// How often a server that does not listen yet is looked at.
const SURVEY: Duration = Duration::from_millis(500);
/// How long a server may listen elsewhere before that is the reason.
const ELSEWHERE: Duration = Duration::from_secs(2);
/// How long a server may use no CPU before it listens.
const IDLE: Duration = Duration::from_secs(5);

/// What a server does that does not listen yet where it should.
struct Watch {
    begun: Instant,
    surveyed: Instant,
    cpu_us: u64,
    /// When it last used CPU time, as far as that was seen.
    worked: Instant,
    /// Since when something listens elsewhere.
    elsewhere: Option<Instant>,
}

impl Watch {
    fn new() -> Self {
        let now = Instant::now();
        Self { begun: now, surveyed: now, cpu_us: 0, worked: now, elsewhere: None }
    }

    /// Records a survey. If waiting longer is pointless it returns the reason, worded to follow "nothing listens on …".
    fn judge(&mut self, listening: &[String], cpu_us: u64, most: Duration) -> Option<String> {
        let now = Instant::now();
        self.surveyed = now;
        if cpu_us != self.cpu_us {
            (self.cpu_us, self.worked) = (cpu_us, now);
        }
        if listening.is_empty() {
            self.elsewhere = None;
        } else if now - *self.elsewhere.get_or_insert(now) >= ELSEWHERE {
            let at = listening.join(", ");
            return Some(format!(
                "; the process listens on {at} instead: it has to take the port from the variable PORT"
            ));
        }
        if now - self.worked >= IDLE {
            let idle = IDLE.as_secs();
            return Some(format!(", and the process has used no CPU for {idle} s: it waits for something else"));
        }
        (now - self.begun >= most).then(|| format!(" after {} ms", most.as_millis()))
    }
}

/// Waits until something listens on the port of a process that speaks HTTP.
pub(super) async fn listen(
    (code, most): (&Code, Duration),
    output: Receiver,
    mut instance: Unfinished,
) -> Result<ServerParts, StartError> {
    let mut log = start_log();
    let mut watch = Watch::new();
    // The reason reaches a call whose own time is as long.
    let most = most.min(code.limits.timeout.duration().mul_f64(0.95));
    loop {
        let is_asked = watch.surveyed.elapsed() >= SURVEY;
        let ask = if is_asked { ToAgent::Survey } else { ToAgent::Connect { port: PORT } };
        instance.agent.send(&ask, &[]).await.map_err(|error| StartError::agent_gone(&error))?;
        match instance.agent.receive().await.map_err(|error| StartError::agent_gone(&error))? {
            (ToMiniworker::Connected { error: None }, _) if !is_asked => break,
            (ToMiniworker::Connected { error: Some(_) }, _) if !is_asked => tokio::time::sleep(TRY_AGAIN).await,
            (ToMiniworker::Surveyed { listening, cpu_us }, _) if is_asked => {
                if let Some(why) = watch.judge(&listening, cpu_us, most) {
                    read_some(&output, &mut log);
                    let message = format!("nothing listens on 127.0.0.1:{} ($PORT){why}", PORT);
                    let mut error = CallError::new(ErrorKind::Start, Layer::Start, message);
                    error.stderr_tail = result::tail(&String::from_utf8_lossy(log.bytes()), STDERR_TAIL).to_owned();
                    return Err(StartError::Failed(error));
                }
            }
            (ToMiniworker::Ended(left), _) => return Err(ended(left, &output, log, code).await),
            _ => return Err(StartError::unexpected_frame()),
        }
        read_some(&output, &mut log);
    }
    Ok(ServerParts {
        instance: instance.finish(),
        protocol: Protocol::Http(HttpClient::default()),
        answers: None,
        output,
        log,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(60);

    fn ago(span: Duration) -> Instant {
        Instant::now().checked_sub(span).expect("the machine is up for longer")
    }

    #[test]
    fn a_server_that_listens_elsewhere_is_told_where() {
        let mut watch = Watch { elsewhere: Some(ago(ELSEWHERE)), ..Watch::new() };
        let why = watch.judge(&["127.0.0.1:3000".to_owned()], 1, MOST).expect("a reason");
        assert!(why.contains("127.0.0.1:3000") && why.contains("PORT"), "{why}");
        assert_eq!(Watch::new().judge(&["127.0.0.1:3000".to_owned()], 1, MOST), None);
    }

    #[test]
    fn a_server_that_does_nothing_is_not_waited_for() {
        let mut watch = Watch { worked: ago(IDLE), cpu_us: 5, ..Watch::new() };
        assert!(watch.judge(&[], 5, MOST).expect("a reason").contains("no CPU"));
        let mut watch = Watch { worked: ago(IDLE), cpu_us: 5, ..Watch::new() };
        assert_eq!(watch.judge(&[], 6, MOST), None, "it works");
        let mut watch = Watch { begun: ago(MOST), ..Watch::new() };
        assert_eq!(watch.judge(&[], 6, MOST).as_deref(), Some(" after 60000 ms"));
    }
}
