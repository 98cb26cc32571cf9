//! What a process gives up before it becomes the agent.

use std::io;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// The newest rules that this launcher knows; an older kernel enforces what it has.
const LANDLOCK: ABI = ABI::V6;

/// Bounds what one process can hold.
pub(crate) fn limits(files: u64) -> io::Result<()> {
    let at_most = |most: u64| Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::Nofile, at_most(files))?;
    setrlimit(Resource::Core, at_most(0))?;
    setrlimit(Resource::Memlock, at_most(64 * 1024))?;
    setrlimit(Resource::Msgqueue, at_most(64 * 1024))?;
    setrlimit(Resource::Sigpending, at_most(1024))?;
    setrlimit(Resource::Rtprio, at_most(0))?;
    Ok(())
}

/// Drops every capability, and the means to get one back.
pub(crate) fn capabilities() -> io::Result<()> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The first number that the kernel does not know is the end of them.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    set_no_new_privs(true)?;
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
