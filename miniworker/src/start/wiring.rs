//! The pipes between us and a process that answers many calls.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use faena_domain::Contract;
use faena_engine::{Instance, PreloadedProcess};
use faena_instance_protocol::handler::{self, Header, Kind};
use faena_instance_protocol::{DEFAULT_PATH, RESIDENT, Run, SHIMS, ToAgent, ToMiniworker};
use faena_protocol::records::Code;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::{Receiver, Sender};

use super::program::{Executed, run_frame};
use crate::code::CodeLease;
use crate::failure::StartError;
use crate::{Node, capture};

/// A process that answers many calls, before it runs, and our ends of what joins us.
#[derive(Debug)]
pub(super) struct Wiring {
    /// What is run.
    pub(super) run: Run,
    /// An interpreter that waits to be told what to run, and its ends of the pipes between us.
    pub(super) resident: Arc<PreloadedProcess>,
    /// Whether it may be a clone of an interpreter that is held ready.
    pub(super) may_be_clone: bool,
    /// Where frames go to and come from; none where it speaks HTTP.
    pub(super) frames: Option<Frames>,
    pub(super) output: Receiver,
}

impl Wiring {
    pub(super) fn new(node: &Node, code: &Code, tree: &CodeLease, preloads: bool) -> Result<Self, StartError> {
        let program = Executed::of(code, tree)?;
        let (output, end) = capture::pipe().map_err(|error| StartError::of_node(&error))?;
        capture::share(&end);
        let (frames, input, answers) = match code.serving.contract {
            Contract::Http => {
                (None, std::fs::File::open("/dev/null").map_err(|error| StartError::of_node(&error))?.into(), None)
            }
            Contract::Handler | Contract::Command => {
                let (frames, input, answers) = Frames::new().map_err(|error| StartError::of_node(&error))?;
                if program.opens_calls {
                    capture::share(&input);
                }
                (Some(frames), input, Some(answers))
            }
        };
        let may_be_clone = preloads && program.may_be_clone(code, tree);
        let (waiting, domain) = (waiting_run(&code.path, false), code.namespace.to_string());
        Ok(Self {
            run: run_frame(node, code, program.words),
            resident: Arc::new(PreloadedProcess { run: waiting, domain, input, output: end, answers }),
            may_be_clone,
            frames,
            output,
        })
    }

    pub(super) fn offered(&self) -> Option<Arc<PreloadedProcess>> {
        self.may_be_clone.then(|| Arc::clone(&self.resident))
    }

    /// Goes over to an interpreter that waits in an instance which has its code now.
    pub(super) fn take_over(&mut self, channel: Channel) -> io::Result<()> {
        let Channel { frames, output } = channel.registered_here()?;
        (self.frames, self.output) = (Some(frames), output);
        Ok(())
    }
}

/// Tells an interpreter that waits what it is to do. That goes the way of its calls: the zygote that it is a clone of, and so
/// all of its other clones, know nothing of it.
pub(super) async fn say_begin(frames: &mut Frames, run: &Run) -> io::Result<()> {
    let path = format!("{}{DEFAULT_PATH}", run.path_prefix);
    let env = run.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let body = handler::begin(env.chain([("PATH", path.as_str())]), &run.words);
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let header = Header { kind: Kind::Begin, id: 0, length }.encode();
    frames.calls.write_all(&[&header[..], &body].concat()).await
}

/// Our ends of the pipes of a process that speaks frames. Two pipes cost two thirds of what a socket does: nobody is
/// woken because the other has read (docs/adr/0012-two-pipes-for-frames.md).
#[derive(Debug)]
pub(super) struct Frames {
    pub(super) calls: Sender,
    pub(super) answers: Receiver,
}

impl Frames {
    /// Our ends, and those of the process: what it reads calls from, and what it answers on.
    fn new() -> io::Result<(Self, OwnedFd, OwnedFd)> {
        let (input, calls) = pipe_with(PipeFlags::CLOEXEC)?;
        let (answers, end) = capture::pipe()?;
        // A program may open what it answers on by its name.
        capture::share(&end);
        Ok((Self { calls: Sender::from_owned_fd(calls)?, answers }, input, end))
    }
}

/// Our ends of what joins us with a process that speaks frames.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) frames: Frames,
    pub(super) output: Receiver,
}

impl Channel {
    /// The same pipes, registered with the runtime of this task. Another runtime's thread would be woken by each answer, only
    /// to wake this one.
    fn registered_here(self) -> io::Result<Self> {
        let Self { frames: Frames { calls, answers }, output } = self;
        let calls = Sender::from_owned_fd(calls.into_nonblocking_fd()?)?;
        let answers = Receiver::from_owned_fd(answers.into_nonblocking_fd()?)?;
        let output = Receiver::from_owned_fd(output.into_nonblocking_fd()?)?;
        Ok(Self { frames: Frames { calls, answers }, output })
    }
}

/// An interpreter that waits in an instance without code, before it runs.
pub(super) fn waiting(domain: &str, path: &str) -> io::Result<(PreloadedProcess, Channel)> {
    let (output, end) = capture::pipe()?;
    capture::share(&end);
    let (frames, input, answers) = Frames::new()?;
    let (run, domain) = (waiting_run(path, true), domain.to_owned());
    Ok((PreloadedProcess { run, domain, input, output: end, answers: Some(answers) }, Channel { frames, output }))
}

/// The command of an interpreter that waits for its program. With `has_time` it rehearses first (`--rehearse`).
fn waiting_run(path: &str, has_time: bool) -> Run {
    let shim = format!("{SHIMS}/python.py");
    let words = ["python3", "-S", &shim, if has_time { "--rehearse" } else { "--wait" }].map(str::to_owned).into();
    Run {
        id: RESIDENT,
        words,
        env: Vec::new(),
        path_prefix: String::new(),
        path: path.to_owned(),
        has_answers: false,
        wants_output: false,
        files: Vec::new(),
    }
}

/// Starts the process; one pipe takes all that it writes.
pub(super) async fn launch(
    instance: &mut Instance,
    run: Run,
    PreloadedProcess { input, output, answers, .. }: &PreloadedProcess,
) -> Result<(), StartError> {
    let streams = [input, output, output].into_iter().chain(answers).map(AsFd::as_fd).collect::<Vec<_>>();
    let run = Run { has_answers: answers.is_some(), ..run };
    instance.agent.send(&ToAgent::Run(run), &streams).await.map_err(|error| StartError::agent_gone(&error))?;
    match instance.agent.receive().await.map_err(|error| StartError::agent_gone(&error))?.0 {
        ToMiniworker::Started { id: RESIDENT } => Ok(()),
        ToMiniworker::Refused { id: RESIDENT, message } => {
            Err(StartError::refused(format!("the process could not be started: {message}")))
        }
        _ => Err(StartError::unexpected_frame()),
    }
}
