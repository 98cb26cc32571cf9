//! The loop of a spawner: orders in, children made, replies out when a child has become an agent, or could not.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use faena_confine::seccomp::Filters;
use faena_confine::user::Streams;
use faena_instance_protocol::handler::ANSWERS;
use faena_instance_protocol::{Decoder, Outgoing};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::bases::Bases;
use crate::preloaded::{PreloadedProcess, UserProcess};
use crate::{
    Inherited, Numbered, Order, READY, Remount, Reply, SpawnFailure, Spec, Step, child, clone, idmap, mounts, network,
    relay,
};

/// How long nothing is asked for before network namespaces are made in advance: long enough that what was asked for last
/// has the processor for itself.
const CALM: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// The longest word of a child that failed.
const WORD: u64 = 4096;

/// A child that has not become what it should yet. Its end of the pipe closes when it has, or says why it cannot.
struct Pending {
    id: u64,
    pipe: UnixStream,
    /// What names a new instance; a child that only lays code has none.
    pidfd: Option<OwnedFd>,
    /// The instance's network device; a child without privilege makes its own, and sends it.
    device: Option<OwnedFd>,
}

impl Pending {
    /// Takes the device that a child has made, where that is what it says; all else is its last word, or its end.
    fn takes_device(&mut self) -> io::Result<bool> {
        if self.device.is_some() {
            return Ok(false);
        }
        self.device = child::receive_device(&self.pipe)?;
        Ok(self.device.is_some())
    }
}

/// What has become of an order.
enum Begun {
    /// A child is on its way.
    Pending(Pending),
    /// It is carried out, and this was made.
    Done(OwnedFd),
    /// We are the child, and this is what its process is to do.
    Inside(UserProcess),
}

/// What has become of the orders that were there.
enum Served {
    All,
    /// There will be no others.
    End,
    /// As in [`Begun`].
    Inside(UserProcess),
}

struct Spawner {
    control: UnixStream,
    decoder: Decoder,
    pending: Vec<Pending>,
    networks: network::Pool,
    privileged: bool,
    /// What is installed in clones of ours, where we are an interpreter.
    filters: Option<Filters>,
    bases: Bases,
}

/// Serves orders from standard input until that ends.
pub(crate) fn main() -> ExitCode {
    let served = be_alone().and_then(|()| serve(None));
    match served {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the spawner of instances ended: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a privileged spawner mounts is for its children alone.
fn be_alone() -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    mounts::leave_namespace()?;
    mounts::make_slave()
}

/// What the kernel adds to the score of everything in an instance when memory runs out. Written with privilege it is the
/// least that user code can set (proc(5), `oom_score_adj`): an instance goes before the rest of the host, whatever it does.
const OOM_SCORE_ADJ: &str = "900";

/// Serves orders from standard input until that ends; in a clone that goes on as an interpreter, returns what its process
/// is to do.
pub(crate) fn serve(filters: Option<Filters>) -> io::Result<Option<UserProcess>> {
    let mut spawner = Spawner::begin(filters)?;
    let served = spawner.run();
    if matches!(served, Ok(Some(_))) {
        // What a clone frees it writes to, and what it writes to has to be copied.
        std::mem::forget(spawner);
    }
    served
}

impl Spawner {
    fn begin(filters: Option<Filters>) -> io::Result<Self> {
        close_on_exec()?;
        // What a terminal sends to all of its processes at once is for the worker: we end when its orders end. Who leads
        // a session already has been left alone.
        let _ = rustix::process::setsid();
        // SAFETY: no handler is installed; ended children are collected by the kernel.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        // Standard input is the control socket; the number 0 is the agents' for something else.
        let control = rustix::io::fcntl_dupfd_cloexec(io::stdin(), ANSWERS + 1)?;
        let null = std::fs::File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        // This has the number now that a clone's process answers on, if nothing had: whatever is to be closed one day has
        // another.
        std::mem::forget(null);
        Ok(Self {
            control: control.into(),
            decoder: Decoder::default(),
            pending: Vec::new(),
            networks: network::Pool::new()?,
            privileged: rustix::process::geteuid().is_root(),
            filters,
            bases: Bases::default(),
        })
    }

    fn run(&mut self) -> io::Result<Option<UserProcess>> {
        self.reply(&Reply { id: READY, result: Ok(()) }, &[])?;
        loop {
            let (has_orders, ended) = self.wait()?;
            for index in ended.into_iter().rev() {
                // One that was killed meanwhile has nothing to say.
                if !self.pending[index].takes_device().unwrap_or(false) {
                    let pending = self.pending.swap_remove(index);
                    self.report(pending)?;
                }
            }
            if !has_orders {
                continue;
            }
            match self.receive()? {
                Served::All => {}
                Served::End => return Ok(None),
                Served::Inside(begun) => return Ok(Some(begun)),
            }
        }
    }

    /// Waits for orders and for children; while there are neither, network namespaces are made.
    fn wait(&mut self) -> io::Result<(bool, Vec<usize>)> {
        loop {
            let fills = self.privileged && self.networks.wants_more();
            let mut fds = vec![PollFd::new(&self.control, PollFlags::IN)];
            fds.extend(self.pending.iter().map(|pending| PollFd::new(&pending.pipe, PollFlags::IN)));
            match poll(&mut fds, fills.then_some(&CALM)) {
                Ok(0) => {
                    drop(fds);
                    self.networks.fill();
                }
                Ok(_) => {
                    let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
                    let ended = (1..fds.len()).filter(|index| is_ready(&fds[*index])).map(|index| index - 1).collect();
                    return Ok((is_ready(&fds[0]), ended));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes what has come.
    fn receive(&mut self) -> io::Result<Served> {
        if self.decoder.read(&self.control)? == 0 {
            return Ok(Served::End);
        }
        while let Some((Numbered { id, order }, fds)) = self.decoder.decode::<Numbered>().map_err(io::Error::other)? {
            let begun = self.begin_order(id, order, fds.into());
            match begun {
                Ok(Begun::Pending(pending)) => self.pending.push(pending),
                Ok(Begun::Done(made)) => self.reply(&Reply { id, result: Ok(()) }, &[made.as_fd()])?,
                Ok(Begun::Inside(begun)) => return Ok(Served::Inside(begun)),
                Err(failure) => self.reply(&Reply { id, result: Err(failure.into()) }, &[])?,
            }
        }
        Ok(Served::All)
    }

    fn begin_order(&mut self, id: u64, order: Order, mut fds: VecDeque<OwnedFd>) -> Result<Begun, SpawnFailure> {
        let mut next = || fds.pop_front().ok_or(io::ErrorKind::UnexpectedEof).step("taking the order's descriptors");
        let fd = next()?;
        match order {
            Order::Launch(spec) => {
                let streams = match spec.process {
                    None => None,
                    Some(_) => {
                        let (input, output, answers) = (next()?, next()?, Some(next()?));
                        let error = output.try_clone().step("sharing the output")?;
                        Some(Streams { input, output, error, answers })
                    }
                };
                self.launch(id, &spec, fd, streams.as_ref())
            }
            Order::Remount(relay) => lay(id, &relay, &fd).map(Begun::Pending),
            Order::MakeDevice => self.networks.make_device(&fd).step("making a network device").map(Begun::Done),
        }
    }

    fn launch(
        &mut self,
        id: u64,
        spec: &Spec,
        socket: OwnedFd,
        streams: Option<&Streams>,
    ) -> Result<Begun, SpawnFailure> {
        let inherited = Inherited::open(spec, socket)?;
        let base = spec.privileged.then(|| self.bases.of(spec)).transpose()?;
        let (ours, theirs) = UnixStream::pair().step("making a socket pair")?;
        let group = inherited.birth_group.as_ref();
        let device = match spec.privileged {
            true => self.networks.enter(spec.device).step("entering a network namespace")?,
            false => None,
        };
        let into = clone::Into { group, network: !spec.privileged };
        let made = match clone::into_namespaces(into) {
            Ok(None) => {
                drop(ours);
                let resident = match (&spec.process, streams, &self.filters) {
                    (Some(run), Some(streams), Some(filters)) => {
                        Some(PreloadedProcess { run, streams, filters, groups: &inherited.user_groups })
                    }
                    _ => None,
                };
                return Ok(Begun::Inside(child::run((spec, base.as_deref()), &inherited, theirs, resident.as_ref())));
            }
            Ok(Some(made)) => Ok(made),
            Err(error) => Err(error),
        };
        if spec.privileged {
            self.networks.leave().step("leaving a network namespace")?;
        }
        let made = made.step("clone3 into new namespaces")?;
        drop(theirs);
        if let Err(failure) = prepare(spec, made.pid, &ours) {
            clone::kill(&made.pidfd);
            // A child that had given up knows better why.
            return Err(last_word(&ours).unwrap_or(failure));
        }
        Ok(Begun::Pending(Pending { id, pipe: ours, pidfd: Some(made.pidfd), device }))
    }

    fn report(&self, pending: Pending) -> io::Result<()> {
        let result = last_word(&pending.pipe).map_or(Ok(()), |failure| Err(failure.into()));
        let made: Vec<_> = pending.pidfd.iter().chain(&pending.device).map(AsFd::as_fd).collect();
        self.reply(&Reply { id: pending.id, result }, &made)
    }

    fn reply(&self, reply: &Reply, made: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut outgoing = Outgoing::new(reply, made).map_err(io::Error::other)?;
        while !outgoing.write(&self.control)? {}
        Ok(())
    }
}

/// What a child said before it gave up. One that was killed says nothing; the process that waits for its agent learns that it is
/// gone.
fn last_word(mut pipe: &UnixStream) -> Option<SpawnFailure> {
    let mut said = String::new();
    let _ = Read::take(&mut pipe, WORD).read_to_string(&mut said);
    let (step, error) = said.split_once('\n')?;
    Some(SpawnFailure { step: step.to_owned(), error: io::Error::other(error.to_owned()) })
}

/// What only the parent can do for a new instance.
fn prepare(spec: &Spec, pid: i32, child: &UnixStream) -> Result<(), SpawnFailure> {
    idmap::map_ids(pid, spec.host_id, spec.privileged).step("mapping users")?;
    if spec.privileged {
        std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ)
            .step("setting the score of the oom killer")?;
    }
    let owned = |code: &std::path::PathBuf| idmap::owned_tree(code, pid).step("mapping the code's owner");
    let code = spec.code.as_ref().filter(|_| spec.privileged).map(owned).transpose()?;
    child::send_go(child, code.as_ref()).step("telling the child to go on")
}

fn lay(id: u64, order: &Remount, instance: &OwnedFd) -> Result<Pending, SpawnFailure> {
    let code = relay::tree(order, instance)?;
    let (ours, theirs) = UnixStream::pair().step("making a socket pair")?;
    if clone::fork().step("forking")?.is_none() {
        drop(ours);
        relay::run(order, instance, &code, &theirs);
    }
    Ok(Pending { id, pipe: ours, pidfd: None, device: None })
}

/// Marks whatever we inherited: what the worker forgot to close is nobody's in an instance.
fn close_on_exec() -> io::Result<()> {
    // SAFETY: the call takes numbers only, and closes nothing now.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
