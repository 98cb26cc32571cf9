//! What the control group tells of memory, whichever version it has.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// Files of a group: v2 first, v1 where that is not there (cgroup-v2.rst and cgroup-v1/memory.rst of the kernel).
const OOM: [&str; 2] = ["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"];
const PEAK: [&str; 2] = ["/sys/fs/cgroup/memory.peak", "/sys/fs/cgroup/memory/memory.max_usage_in_bytes"];

/// The open files of the group that holds the user's processes.
pub(crate) struct Memory {
    oom: Option<File>,
    peak: Option<File>,
}

impl Memory {
    /// The files that were handed over, else those that the instance shows.
    pub(crate) fn new(oom: Option<OwnedFd>, peak: Option<OwnedFd>) -> Self {
        let or_shown = |given: Option<OwnedFd>, shown: [&str; 2]| {
            given.map(File::from).or_else(|| shown.iter().find_map(|path| File::open(path).ok()))
        };
        Self { oom: or_shown(oom, OOM), peak: or_shown(peak, PEAK) }
    }

    /// How often the kernel has killed in this group because memory ran out.
    pub(crate) fn oom_kills(&self) -> u64 {
        let text = self.oom.as_ref().map(read).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }

    /// The most that the group has held, in bytes.
    pub(crate) fn peak(&self) -> Option<u64> {
        read(self.peak.as_ref()?).trim().parse().ok()
    }
}

fn read(file: &File) -> String {
    let mut bytes = [0; 1024];
    let read = file.read_at(&mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}
