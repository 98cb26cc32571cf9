//! The `faena` binary: every role of the platform, alone or all in one process.

mod arguments;
mod backup;
mod doctor;
mod folders;
mod node;
mod remote;
mod roles;
mod settings;
mod setup;
mod shards;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use arguments::{Arguments, Command, Role, Task};
use settings::Settings;

fn main() -> ExitCode {
    // A worker runs this program again as its launcher and as its gateway, which must not have threads.
    if let Some(code) = faena_launcher::run_if_asked().or_else(faena_gateway::run_if_asked) {
        return code;
    }
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("faena: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (task, options) = match arguments.task.split() {
        Command::Local(task, options) => (task, options),
        Command::Remote(task) => return remote::run(task),
    };
    let settings = Settings::load(&options)?;
    if options.print_config {
        print!("{}", settings.explained(&options)?);
        return Ok(());
    }
    // Whatever we make is ours alone; what instances need is opened to them one by one.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let role = match task {
        Task::Serve(role) => role,
        Task::Doctor => return doctor::examine(&settings),
        Task::Setup => return setup::offer(&settings),
        Task::Backup { file, with_keys } => return backup::write(&settings, &file, with_keys),
        Task::Restore { file } => return backup::restore(&settings, &file),
    };
    raise_descriptor_limit();
    leave_no_core_dump();
    faena_telemetry::init_logs(&settings.log, settings.log_format.into())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(1, |cores| cores.get().min(8)))
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(match role {
        Role::Up => Box::pin(roles::up(settings)) as std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>>>>,
        Role::Db => Box::pin(roles::db(settings)),
        Role::Api => Box::pin(roles::api(settings)),
        Role::Worker => Box::pin(roles::worker(settings, options.name.is_some())),
    })
}

/// Memory has secrets, so it is not written to a disk when a process crashes. A limit of one byte also stops dumps that the kernel
/// hands to a program, which zero does not (core(5), and `do_coredump` in fs/coredump.c).
fn leave_no_core_dump() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    // Lowering a limit is always permitted.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(1), maximum: Some(1) });
}

/// Connections and pipes need descriptors; the system's first answer is often 1,024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised the one there is has to do.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
