//! What the processes of an instance hold and have used.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::Usage;

/// The longest beginning of a file that is looked at: a number, or the first line of `cpu.stat`.
const MOST: usize = 128;

/// The files of an instance's control groups. They stay open, since opening one by its path costs several times as much as
/// reading it, and they are read after every call that is not very short.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    memory: Option<File>,
    peak: Option<File>,
    cpu: Option<File>,
}

/// Where these files lie.
#[derive(Debug, Default)]
pub(crate) struct MeterPaths {
    /// The bytes that are held.
    pub(crate) memory: Option<PathBuf>,
    /// The most bytes that were held.
    pub(crate) peak: Option<PathBuf>,
    /// CPU time: nanoseconds in v1, a line in microseconds in v2 (cgroup-v1/cpuacct.rst and cgroup-v2.rst).
    pub(crate) cpu: Option<PathBuf>,
}

impl Meter {
    /// Opens the files that exist. Figures of missing files are not reported.
    pub(crate) fn open(paths: MeterPaths) -> Self {
        let open = |path: Option<PathBuf>| File::open(path?).ok();
        Self { memory: open(paths.memory), peak: open(paths.peak), cpu: open(paths.cpu) }
    }

    /// The bytes that are held.
    pub(crate) fn memory(&self) -> Option<u64> {
        number(self.memory.as_ref()?)
    }

    /// What has been used.
    pub(crate) fn usage(&self) -> Usage {
        Usage { peak_memory: self.peak.as_ref().and_then(number), cpu_us: self.cpu.as_ref().and_then(cpu_us) }
    }
}

fn with_beginning<T>(file: &File, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    let mut bytes = [0; MOST];
    let count = file.read_at(&mut bytes, 0).ok()?;
    read(std::str::from_utf8(&bytes[..count]).ok()?)
}

fn number(file: &File) -> Option<u64> {
    with_beginning(file, |text| text.trim().parse().ok())
}

fn cpu_us(file: &File) -> Option<u64> {
    with_beginning(file, |text| match text.lines().find_map(|line| line.strip_prefix("usage_usec ")) {
        Some(micros) => micros.trim().parse().ok(),
        None => text.trim().parse::<u64>().ok().map(|nanos| nanos / 1000),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read_again_and_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| Some(folder.path().join(name));
        std::fs::write(folder.path().join("peak"), "4096\n").expect("written");
        std::fs::write(folder.path().join("cpu"), "usage_usec 17\nuser_usec 9\n").expect("written");
        let meter = Meter::open(MeterPaths { memory: path("none"), peak: path("peak"), cpu: path("cpu") });
        assert_eq!((meter.memory(), meter.usage().peak_memory, meter.usage().cpu_us), (None, Some(4096), Some(17)));
        std::fs::write(folder.path().join("cpu"), "18000\n").expect("written");
        assert_eq!(meter.usage().cpu_us, Some(18));
    }
}
