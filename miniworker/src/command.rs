//! One call of contract `command`: a process of its own, in an instance that no other call has meanwhile.

use faena_domain::environment::{cgi_variables, path_prefix};
use faena_domain::{CallError, CallStatus, Command, ErrorKind, Layer};
use faena_instance_protocol::{INPUT, REQUEST, Run};
use faena_protocol::direct::HttpRequest;
use faena_protocol::records::{CallJob, Outcome};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Node;
use crate::call::CallInput;
use crate::egress::{Connections, EgressCall};
use crate::exec::{ExecInstance, InstanceState};
use crate::failure::AttemptFailure;
use crate::process::{self, Cut, LeaseEnd, ProcessSpec};
use crate::report::AttemptReport;
use crate::result;
use crate::start::program::base_environment;

/// The environment of a call's process.
fn environment(node: &Node, job: &CallJob) -> Vec<(String, String)> {
    let mut env = base_environment(node, &job.code);
    let ours = [
        ("FAENA_CALL", job.num.to_string()),
        ("FAENA_FUNCTION", job.code.function.to_string()),
        ("FAENA_VERSION", job.code.version.to_string()),
        ("FAENA_ATTEMPT", job.attempt.to_string()),
        ("FAENA_DEADLINE_MS", job.deadline_unix_ms.to_string()),
        ("TRACEPARENT", job.traceparent.clone()),
    ];
    env.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    if let Some(request) = &job.request {
        env.extend(cgi_variables(&request.method, &request.path, &request.query, request.joined_headers()));
    }
    env.into_iter().collect()
}

fn run_frame(node: &Node, job: &CallJob) -> Result<Run, AttemptFailure> {
    let command = Command::parse(&job.code.run)
        .map_err(|error| AttemptFailure::Call(CallError::new(ErrorKind::Start, Layer::Start, error.to_string())))?;
    Ok(Run {
        id: job.epoch.0.unsigned_abs(),
        words: command.words,
        env: environment(node, job),
        path_prefix: path_prefix(&job.code.path),
        path: job.code.path.clone(),
        has_answers: false,
        wants_output: true,
        files: vec![INPUT.to_owned(), REQUEST.to_owned()],
    })
}

/// Runs an attempt in an instance that is [prepared](ExecInstance::prepare); tells its outcome, and what it left of the
/// instance. `started` is called when the process has begun.
///
/// # Errors
/// [`AttemptFailure`]; the instance has to go.
pub async fn run_command(
    report: &mut AttemptReport<'_>,
    (exec, input): (&mut ExecInstance, &CallInput),
    (deadline, lease): (Instant, LeaseEnd),
    stop: &CancellationToken,
    started: impl FnOnce(),
) -> Result<(Outcome, InstanceState), AttemptFailure> {
    let (node, job) = (report.node, report.job);
    let process = ProcessSpec {
        run: run_frame(node, job)?,
        stdin: input.stdin(),
        files: vec![
            (INPUT, input.params().clone()),
            (REQUEST, job.request.as_deref().map(HttpRequest::to_context).unwrap_or_else(|| b"null".to_vec()).into()),
        ],
        deadline,
        lease,
        stop,
        log: node.logs.of_command(job.num),
    };
    let depth = job.request.as_ref().map_or(0, |request| request.depth());
    let call = exec.egress.as_ref().map(|egress| egress.outlet().begin(deadline.into_std(), depth));
    let at = &mut report.started;
    let finished = process::run(&mut exec.instance.agent, process, || {
        *at = Some(Instant::now());
        started();
    })
    .await?;
    if finished.cut == Some(Cut::Stop) {
        return Err(AttemptFailure::Stopped);
    }
    let is_whole = finished.cut.is_none() && finished.ended.oom_kills == 0;
    let before = call.map(EgressCall::end).unwrap_or_default();
    let mut egress = exec.egress.as_ref().map(|egress| egress.end_call(before, Connections::Reset)).unwrap_or_default();
    if exec.found_no_route() {
        egress.remark_no_route();
    }
    let attempt = report.attempt(Some(&finished), egress.used);
    let late = (finished.cut == Some(Cut::Deadline)).then(|| report.late(Layer::Run, "its process ran"));
    let answer =
        result::answer(finished, egress.refusals, (job.direct, job.timeout_ms, &job.code.limits.memory.to_string()));
    let blobs = node.blobs.of(&job.code.namespace);
    let mut outcome = Outcome {
        status: answer.status,
        result: blobs.payload(answer.result).await?,
        error: answer.error,
        logs: blobs.payload(answer.log.into_bytes()).await?,
        attempt,
        head: None,
    };
    if let (Some(late), Some(error)) = (late, &mut outcome.error)
        && job.expires
    {
        *error = CallError { stderr_tail: std::mem::take(&mut error.stderr_tail), ..late };
        outcome.status = CallStatus::Expired;
    }
    Ok((outcome, if is_whole { InstanceState::Used } else { InstanceState::Spent }))
}
