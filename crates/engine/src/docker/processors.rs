//! The processors that a worker was bound to: its containers keep to them, as the instances of the sandbox do.

use rustix::thread::{CpuSet, sched_getaffinity};

/// Processors that are there (sysfs-devices-system-cpu).
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// The numbers of a list as the kernel and Docker write it: `0-3,5`.
fn numbers(list: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        numbers.extend(first.parse().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(numbers)
}

/// Some of the processors that are there.
pub(super) struct Bound {
    list: String,
    /// How many there are.
    online: usize,
}

/// What this process was bound to, where that is less than there is.
pub(super) fn bound_to() -> Option<Bound> {
    let allowed = sched_getaffinity(None).ok()?;
    let online = numbers(&std::fs::read_to_string(ONLINE).ok()?)?;
    let is_ours = |number: &usize| *number < CpuSet::MAX_CPU && allowed.is_set(*number);
    let ours: Vec<usize> = online.iter().copied().filter(is_ours).collect();
    let list = ours.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    (!ours.is_empty() && ours.len() < online.len()).then_some(Bound { list, online: online.len() })
}

impl Bound {
    /// The list, where the daemon has the same processors and can bind to them. It takes a while to tell.
    pub(super) async fn where_known(self, docker: &bollard::Docker) -> Result<Option<String>, bollard::errors::Error> {
        let info = docker.info().await?;
        let is_known = info.ncpu == i64::try_from(self.online).ok() && info.cpu_set == Some(true);
        Ok(is_known.then_some(self.list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_processors_is_read() {
        assert_eq!(numbers("0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(numbers(""), None);
    }
}
