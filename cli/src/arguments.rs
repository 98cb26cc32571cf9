//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::remote::RemoteTask;

/// Self-hosted functions: upload an archive, name the runtime, call it over HTTP.
///
/// Settings come from a TOML file, then from variables FAENA_…, then from flags; each later one wins.
#[derive(Debug, Parser)]
#[command(name = "faena", version, about, long_about)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) task: TaskArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskArguments {
    /// Runs db, api and one worker in this process
    Up(Options),
    /// Runs the database service alone
    Db(Options),
    /// Runs the HTTP edge alone
    Api(Options),
    /// Runs a worker alone
    Worker(Options),
    /// Checks whether this machine can be a platform or a node: clock, control groups, the sandbox's layers, disk, the
    /// platform's reachability, versions
    Doctor(Options),
    /// Prints a token with which the first account can be made (POST /setup), on the machine of the database
    Setup(Options),
    /// Writes the database and the blobs of a platform, which may run, to one file
    Backup {
        /// A new file
        file: PathBuf,
        /// Adds the keys that encrypt secrets: anyone who has the file can then read the secrets
        #[arg(long)]
        with_keys: bool,
        #[command(flatten)]
        options: Options,
    },
    /// Makes a data folder of a backup
    Restore {
        /// The file
        file: PathBuf,
        #[command(flatten)]
        options: Options,
    },
    #[command(flatten)]
    Remote(RemoteTask),
}

/// Which part of the platform a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Up,
    Db,
    Api,
    Worker,
}

/// What is to be done.
pub(crate) enum Task {
    Serve(Role),
    Doctor,
    Setup,
    Backup { file: PathBuf, with_keys: bool },
    Restore { file: PathBuf },
}

/// What a command is about: a platform on this machine, under settings, or one that is asked over HTTP.
pub(crate) enum Command {
    Local(Task, Options),
    Remote(RemoteTask),
}

impl TaskArguments {
    pub(crate) fn split(self) -> Command {
        let (task, options) = match self {
            Self::Remote(task) => return Command::Remote(task),
            Self::Up(options) => (Task::Serve(Role::Up), options),
            Self::Db(options) => (Task::Serve(Role::Db), options),
            Self::Api(options) => (Task::Serve(Role::Api), options),
            Self::Worker(options) => (Task::Serve(Role::Worker), options),
            Self::Doctor(options) => (Task::Doctor, options),
            Self::Setup(options) => (Task::Setup, options),
            Self::Backup { file, with_keys, options } => (Task::Backup { file, with_keys }, options),
            Self::Restore { file, options } => (Task::Restore { file }, options),
        };
        Command::Local(task, options)
    }
}

/// Flags; what is not given is not serialised, so that it overrides nothing.
#[derive(Debug, Args, Serialize)]
pub(crate) struct Options {
    /// Settings file (default: /etc/faena.toml where it is there)
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
    /// Prints every setting as TOML, with where its value came from, and ends
    #[arg(long)]
    #[serde(skip)]
    pub(crate) print_config: bool,
    /// Address for people (default: 127.0.0.1:3000)
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<String>,
    /// Lets clients of other machines speak plain HTTP; credentials cross the network in clear
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    insecure_http: bool,
    /// Data folder (default: ~/.local/share/faena)
    #[arg(long, value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<PathBuf>,
    /// Folder of the sockets between roles (default: one for each data folder, below /run or XDG_RUNTIME_DIR)
    #[arg(long, value_name = "FOLDER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<PathBuf>,
    /// Name of the worker, and of its node (default: the host's)
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Where nodes of other machines come in, like 0.0.0.0:3400 (default: none)
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<String>,
    /// For a worker: the address where its platform takes nodes in
    #[arg(long = "api", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    /// For a worker: the token that it joins by; - reads it from standard input, @FILE from a file
    #[arg(long, value_name = "TOKEN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    join: Option<String>,
    /// Calls at once (default: twice the cores, at least 4)
    #[arg(long, value_name = "NUMBER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    slots: Option<u32>,
    /// A layer of the sandbox to go without; may be repeated
    #[arg(long, value_name = "LAYER")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    accept_missing: Vec<String>,
    /// What to log, like info or info,faena_api=debug
    #[arg(long, value_name = "FILTER")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
}
