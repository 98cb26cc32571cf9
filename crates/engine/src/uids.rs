//! A user of the host for each live instance, so that no per-user bound of the kernel is shared between neighbours.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

/// The first user that is given out; the range above it is free on Debian, Fedora and Alpine (their user tables end
/// at 60,000 and begin again at 65,534; systemd's dynamic users end at 65,519 and are allocated from below).
pub(crate) const FIRST: u32 = 64_700;
/// How many there are.
pub(crate) const COUNT: u32 = 512;

/// The users that are not in use.
#[derive(Clone, Debug)]
pub struct Uids(Arc<Mutex<BTreeSet<u32>>>);

/// A user in use; free again when dropped.
#[derive(Debug)]
pub struct Uid {
    id: u32,
    pool: Uids,
}

impl Default for Uids {
    fn default() -> Self {
        Self(Arc::new(Mutex::new((FIRST..FIRST + COUNT).collect())))
    }
}

impl Uids {
    /// A user that no live instance has, if there is one.
    pub fn take(&self) -> Option<Uid> {
        let id = self.0.lock().pop_first()?;
        Some(Uid { id, pool: self.clone() })
    }
}

impl Uid {
    /// Its number on the host.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Uid {
    fn drop(&mut self) {
        self.pool.0.lock().insert(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_live_instances_share_a_user() {
        let uids = Uids::default();
        let all: Vec<Uid> = std::iter::from_fn(|| uids.take()).collect();
        let distinct: BTreeSet<u32> = all.iter().map(Uid::id).collect();
        assert_eq!(distinct.len(), COUNT as usize);
        drop(all);
        assert!(uids.take().is_some());
    }
}
