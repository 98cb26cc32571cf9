//! An interpreter that is held ready: it has loaded itself and our shim and nothing of a user's, and is a spawner.
//!
//! `hold` becomes the interpreter, on the host's own system; the shim calls [`serve`] through a library of ours. An
//! instance is then one clone of that interpreter. The clone builds its root, gives up what it could do and installs the
//! list of system calls as any other child of a spawner does; then it forks. One of both executes the agent, and the
//! other goes on as the interpreter, once nobody can look into the agent any more.
//!
//! ```text
//! interpreter ─ clone3 ─▶ child: groups, root, limits, capabilities, landlock, seccomp
//!                           ├─ fork ─▶ process of the user's: groups, streams; waits, then loads code
//!                           └─ exec ─▶ agent, which is then not dumpable, and lets the process go on
//! ```

use std::convert::Infallible;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use faena_confine::seccomp::Filters;
use faena_instance_protocol::DEFAULT_PATH;
use faena_instance_protocol::handler::ANSWERS;

use crate::{mounts, spawner};

/// What holds an interpreter: after the word, the interpreter and the words that it is started with.
pub(crate) fn hold() -> ExitCode {
    let Err(error) = become_interpreter(std::env::args().skip(2).collect());
    eprintln!("no interpreter is held ready: {error}");
    ExitCode::FAILURE
}

/// The system that instances see is read-only, and so is whatever the interpreter has mapped of it.
fn become_interpreter(words: Vec<String>) -> io::Result<Infallible> {
    mounts::leave_namespace()?;
    mounts::make_private()?;
    mounts::attach_read_only(&mounts::clone_tree(Path::new("/usr"))?, "/usr".as_ref())?;
    let (program, words) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    // What an interpreter reads of its environment when it starts is that of every instance.
    let env = [("PATH", DEFAULT_PATH), ("LANG", "C.UTF-8")];
    Err(Command::new(program).args(words).env_clear().envs(env).exec())
}

/// Serves orders from standard input. Returns in a new instance what its process is to do, as [`faena_instance_protocol::handler::begin`] writes it;
/// in the process that called it, nothing at the end of the orders, or when they cannot be served.
pub fn serve() -> Option<Vec<u8>> {
    let served = Filters::new().map_err(io::Error::other).and_then(|filters| spawner::serve(Some(filters)));
    match served {
        Ok(None) => None,
        Ok(Some(begun)) => {
            // The interpreter's own descriptors and ours, which exec would have closed.
            close_all();
            Some(begun.enter())
        }
        Err(error) => {
            eprintln!("the spawner of instances ended: {error}");
            None
        }
    }
}

fn close_all() {
    // SAFETY: the call takes numbers only; the owners of these descriptors in this process are gone.
    unsafe { libc::syscall(libc::SYS_close_range, ANSWERS + 1, libc::c_uint::MAX, 0) };
}
