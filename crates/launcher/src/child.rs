//! The child's way from the clone to the agent.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use faena_confine::privileges::{drop_bounding_set, drop_capabilities};
use rustix::process::{Gid, Uid};

use crate::preloaded::{PreloadedProcess, UserProcess};
use crate::{INSIDE_ID, Inherited, SpawnFailure, Spec, Step, device, mounts, network, restrict, root};

/// Lets the child go on, with the code's tree where its owner could be mapped.
pub(crate) fn send_go(child: &UnixStream, code: Option<&OwnedFd>) -> io::Result<()> {
    send(child, GO, code)
}

/// The bytes that go with a descriptor. No step's name begins with either.
const GO: u8 = b'\x01';
const DEVICE: u8 = b'\x02';

fn send(to: &UnixStream, byte: u8, fd: Option<&OwnedFd>) -> io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::os::fd::AsFd;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    sendmsg(to, &[io::IoSlice::new(&[byte])], &mut control, SendFlags::empty())?;
    Ok(())
}

/// Receives one byte and the descriptor that came with it; no byte at the end. With `PEEK` the byte stays.
fn receive(from: &UnixStream, flags: rustix::net::RecvFlags) -> io::Result<(Option<u8>, Option<OwnedFd>)> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(from, &mut [io::IoSliceMut::new(&mut byte)], &mut control, flags)?;
    let mut last = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            last = fds.last();
        }
    }
    Ok(((received.bytes > 0).then_some(byte[0]), last))
}

fn wait_for_go(parent: &UnixStream) -> io::Result<Option<OwnedFd>> {
    match receive(parent, rustix::net::RecvFlags::empty())? {
        (Some(GO), tree) => Ok(tree),
        _ => Err(io::Error::other("the parent gave up")),
    }
}

/// The device that a child has made, if that comes next.
pub(crate) fn receive_device(child: &UnixStream) -> io::Result<Option<OwnedFd>> {
    use rustix::net::RecvFlags;
    if receive(child, RecvFlags::PEEK)?.0 != Some(DEVICE) {
        return Ok(None);
    }
    Ok(receive(child, RecvFlags::empty())?.1)
}

/// Becomes the agent, or says which step failed. Returns in the process beside the agent, where the clone of an
/// interpreter goes on as one, with what that is to do.
pub(crate) fn run(
    (spec, base): (&Spec, Option<&Path>),
    inherited: &Inherited,
    parent: UnixStream,
    resident: Option<&PreloadedProcess<'_>>,
) -> UserProcess {
    let begun = confine(spec, base, inherited, &parent).and_then(|words| match resident {
        None => exec(words).map(|never| match never {}),
        Some(resident) => resident.begin(|more| exec(words.into_iter().chain(more).collect())),
    });
    begun.unwrap_or_else(|failure| give_up(&failure, &parent))
}

/// Says which step failed, and ends.
pub(crate) fn give_up(SpawnFailure { step, error }: &SpawnFailure, mut parent: &UnixStream) -> ! {
    let _ = parent.write_all(format!("{step}\n{error}").as_bytes());
    // Nothing of the parent's is flushed, and nothing of it ends here.
    // SAFETY: _exit takes no pointers.
    unsafe { libc::_exit(127) }
}

/// All that a child goes through before it is the agent, whose words are returned.
fn confine(
    spec: &Spec,
    base: Option<&Path>,
    inherited: &Inherited,
    parent: &UnixStream,
) -> Result<Vec<String>, SpawnFailure> {
    // The spawner's children are collected by the kernel; the agent collects its own.
    // SAFETY: the default action is installed, no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    inherited.enter_groups().step("entering the control groups")?;
    let code = wait_for_go(parent).step("waiting for the parent")?;
    let words = inherited.arguments(spec)?;
    mounts::make_private().step("making mounts private")?;
    if spec.device && !spec.privileged {
        let device = device::make().step("making a network device")?;
        send(parent, DEVICE, Some(&device)).step("handing over the network device")?;
    }
    let trees = root::Trees::open(spec, base, code)?;
    become_inside_user(spec.privileged).step("becoming the instance's user")?;
    silence().step("closing the streams")?;
    trees.build(spec)?;
    drop(trees);
    if !spec.privileged {
        network::raise_loopback().step("raising the loopback")?;
    }
    rustix::system::sethostname(b"faena").step("naming the host")?;
    rustix::process::setsid().step("beginning a session")?;
    restrict::limits(spec.files).step("setting limits")?;
    drop_bounding_set().and_then(|()| drop_capabilities()).step("dropping capabilities")?;
    restrict::landlock(spec.without_landlock).step("landlock")?;
    Ok(words)
}

/// Files made from here on belong to the instance's user; capabilities in its namespace stay until they are dropped.
pub(crate) fn become_inside_user(privileged: bool) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(INSIDE_ID), Gid::from_raw(INSIDE_ID));
    if privileged {
        rustix::thread::set_thread_groups(&[])?;
    }
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    Ok(())
}

/// The worker's pipes are not the agent's.
fn silence() -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

fn exec(words: Vec<String>) -> Result<Infallible, SpawnFailure> {
    let words: Vec<CString> = words.iter().filter_map(|word| CString::new(word.as_str()).ok()).collect();
    let pointers: Vec<_> = words.iter().map(|word| word.as_ptr()).chain([std::ptr::null()]).collect();
    let none = [std::ptr::null()];
    // SAFETY: the program and the words are NUL-terminated, the lists end with a null pointer, and all outlive the call.
    unsafe { libc::execve(c"/.faena/agent".as_ptr(), pointers.as_ptr(), none.as_ptr()) };
    Err(io::Error::last_os_error()).step("starting the agent")
}
