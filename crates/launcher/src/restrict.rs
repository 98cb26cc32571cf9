//! What a process gives up before it becomes the agent.

use std::io;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::process::{Resource, Rlimit, setrlimit};

/// The newest rules that this launcher knows; an older kernel enforces what it has.
const LANDLOCK: ABI = ABI::V6;

/// Bounds what one process can hold.
pub(crate) fn limits(files: u64) -> io::Result<()> {
    let at_most = |most: u64| Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::Nofile, at_most(files))?;
    // One byte is too small for a file, and stops dumps that the kernel hands to a program (fs/coredump.c).
    setrlimit(Resource::Core, at_most(1))?;
    setrlimit(Resource::Memlock, at_most(64 * 1024))?;
    setrlimit(Resource::Msgqueue, at_most(64 * 1024))?;
    setrlimit(Resource::Sigpending, at_most(1024))?;
    setrlimit(Resource::Rtprio, at_most(0))?;
    Ok(())
}

/// Confines the process to what lies below its root, should a mount be wrong, and to sockets of its own.
pub(crate) fn landlock(may_be_missing: bool) -> io::Result<()> {
    let root = PathFd::new("/").map_err(io::Error::other)?;
    let restricted = restrict(root).map_err(io::Error::other)?;
    if restricted.ruleset == RulesetStatus::NotEnforced && !may_be_missing {
        return Err(io::Error::other("the kernel does not enforce Landlock"));
    }
    Ok(())
}

fn restrict(root: PathFd) -> Result<RestrictionStatus, RulesetError> {
    let all = AccessFs::from_all(LANDLOCK);
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .add_rule(PathBeneath::new(root, all))?
        .restrict_self()
}
