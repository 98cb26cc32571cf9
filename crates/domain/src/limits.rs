//! What one instance may use, who may ask for how much, and the bounds of everything else.

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use crate::units::{ByteSize, GB, MB, Span};

/// The largest body of a call: `params` and all.
pub const MAX_BODY: u64 = 6 * MB;
/// The largest result of a call.
pub const MAX_RESULT: u64 = 6 * MB;
/// The most headers of a request, and of a function's answer.
pub const MAX_HEADERS: usize = 100;
/// The most bytes of a request's headers, and of those of a function's answer.
pub const MAX_HEADER_BYTES: usize = 32 * 1024;
/// The largest archive that is taken in.
pub const MAX_ARCHIVE: u64 = 256 * MB;
/// The largest archive of an image that is taken in.
pub const MAX_IMAGE: u64 = 4 * GB;
/// The most that an archive may unpack to.
pub const MAX_UNPACKED: u64 = GB;
/// The most entries of an archive.
pub const MAX_ENTRIES: u64 = 20_000;
/// The most that an archive may shrink: unpacked bytes for each packed one, of those beyond [`RATIO_FREE`].
pub const MAX_RATIO: u64 = 200;
/// What any archive may unpack to, however well it was packed.
pub const RATIO_FREE: u64 = 64 * MB;
/// What a file, a folder or a link takes of a disk beside its content: a block.
pub const INODE: u64 = 4096;
/// The most that is kept of the standard error of a call.
pub const MAX_CALL_LOG: u64 = 10 * MB;
/// The end of standard error that an error carries.
pub const STDERR_TAIL: usize = 2048;
/// The longest `Prefer: wait`, in seconds.
pub const MAX_WAIT_S: u64 = 300;
/// The longest list page.
pub const MAX_PAGE: u32 = 200;
/// What a list shows of params and results.
pub const LIST_CUT: usize = 1024;
/// Slots of a worker on a machine with this many cores.
pub fn default_slots(cores: usize) -> usize {
    (cores * 2).max(4)
}

/// What an instance may use; every number is granted, none only asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// Memory of the user's processes, swap included (there is none).
    pub memory: ByteSize,
    /// Cores; 0.5 is half a core.
    pub cpu: f64,
    /// One attempt, from dispatch to its end.
    pub timeout: Span,
    /// Processes and threads at once.
    pub pids: u32,
    /// Open files of one process.
    pub files: u32,
    /// `/tmp`.
    pub tmp: ByteSize,
    /// What may be written in `path`.
    pub disk: ByteSize,
}

/// The number of cores is finite and positive: nothing else is parsed.
impl Eq for Limits {}

impl Hash for Limits {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { memory, cpu, timeout, pids, files, tmp, disk } = *self;
        (memory, cpu.to_bits(), timeout, pids, files, tmp, disk).hash(state);
    }
}

impl Limits {
    /// What an instance gets whose owner asked for nothing.
    pub const DEFAULT: Self = Self {
        memory: ByteSize(256 * MB),
        cpu: 1.0,
        timeout: Span(60_000),
        pids: 128,
        files: 1024,
        tmp: ByteSize(64 * MB),
        disk: ByteSize(64 * MB),
    };

    /// The most a platform grants unless its operator says otherwise.
    pub const MAXIMUM: Self = Self {
        memory: ByteSize(2 * GB),
        cpu: 2.0,
        timeout: Span(15 * 60_000),
        pids: 512,
        files: 1024,
        tmp: ByteSize(512 * MB),
        disk: ByteSize(512 * MB),
    };

    /// What a build gets: memory for its processes and, since tmpfs pages are charged to it, for its disk.
    pub const BUILD: Self = Self {
        memory: ByteSize(2 * GB),
        cpu: 2.0,
        timeout: Span(15 * 60_000),
        pids: 512,
        files: 1024,
        tmp: ByteSize(GB),
        disk: ByteSize(GB),
    };
}

/// `/dev/shm` of every instance.
pub const DEV_SHM: u64 = 64 * MB;

/// Limits as a runtime or a function asks for them; what is left out takes the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AskedLimits {
    /// See [`Limits::memory`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// See [`Limits::cpu`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// See [`Limits::timeout`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// See [`Limits::pids`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// See [`Limits::tmp`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmp: Option<ByteSize>,
    /// See [`Limits::disk`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<ByteSize>,
    /// Calls of the function at once, over all workers; none is no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
}

/// Somebody asked for more, or less, than is granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} = {asked} is more than {by} permits, which is {most}")]
pub struct LimitExceeded {
    /// The limit's name.
    pub what: &'static str,
    /// What was asked for.
    pub asked: String,
    /// What is permitted.
    pub most: String,
    /// Who permits it: "the platform" or "the runtime".
    pub by: &'static str,
}

impl AskedLimits {
    /// The limits granted: what is asked, over `default`, as long as none passes `maximum`.
    ///
    /// # Errors
    /// The first limit above its maximum, or at zero, naming both numbers.
    pub fn grant(&self, default: &Limits, maximum: &Limits, by: &'static str) -> Result<Limits, LimitExceeded> {
        fn check<T: PartialOrd + Default + ToString + Copy>(
            (what, by): (&'static str, &'static str),
            asked: Option<T>,
            default: T,
            most: T,
        ) -> Result<T, LimitExceeded> {
            let fits = |value: &T| *value > T::default() && *value <= most;
            match asked {
                None => Ok(if default < most { default } else { most }),
                Some(value) if fits(&value) => Ok(value),
                Some(value) => Err(LimitExceeded { what, asked: value.to_string(), most: most.to_string(), by }),
            }
        }
        check(("concurrency", by), self.concurrency, 1, u32::MAX)?;
        Ok(Limits {
            memory: check(("memory", by), self.memory, default.memory, maximum.memory)?,
            cpu: check(("cpu", by), self.cpu, default.cpu, maximum.cpu)?,
            timeout: check(("timeout", by), self.timeout, default.timeout, maximum.timeout)?,
            pids: check(("pids", by), self.pids, default.pids, maximum.pids)?,
            files: default.files.min(maximum.files),
            tmp: check(("tmp", by), self.tmp, default.tmp, maximum.tmp)?,
            disk: check(("disk", by), self.disk, default.disk, maximum.disk)?,
        })
    }

    /// The maximum that a runtime with these limits leaves to its functions: its own where it named one.
    pub fn lowered(&self, maximum: &Limits) -> Limits {
        Limits {
            memory: self.memory.unwrap_or(maximum.memory),
            cpu: self.cpu.unwrap_or(maximum.cpu),
            timeout: self.timeout.unwrap_or(maximum.timeout),
            pids: self.pids.unwrap_or(maximum.pids),
            files: maximum.files,
            tmp: self.tmp.unwrap_or(maximum.tmp),
            disk: self.disk.unwrap_or(maximum.disk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_nothing_gets_the_default() {
        let granted = AskedLimits::default().grant(&Limits::DEFAULT, &Limits::MAXIMUM, "the platform");
        assert_eq!(granted, Ok(Limits::DEFAULT));
    }

    #[test]
    fn who_asks_for_too_much_is_told_both_numbers() {
        let asked = AskedLimits { memory: Some(ByteSize(4 * GB)), ..AskedLimits::default() };
        let error = asked.grant(&Limits::DEFAULT, &Limits::MAXIMUM, "the platform").unwrap_err();
        assert_eq!(error.to_string(), "memory = 4 GB is more than the platform permits, which is 2 GB");
    }

    #[test]
    fn a_default_never_passes_a_lowered_maximum() {
        let runtime = AskedLimits { memory: Some(ByteSize(32 * MB)), ..AskedLimits::default() };
        let maximum = runtime.lowered(&Limits::MAXIMUM);
        let granted = AskedLimits::default().grant(&Limits::DEFAULT, &maximum, "the runtime").unwrap();
        assert_eq!(granted.memory, ByteSize(32 * MB));
    }
}
