//! A user of the host for each live instance, so that no per-user bound of the kernel is shared between neighbours: neither
//! of one worker, nor of two on one host.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use tracing::warn;

/// The first user that is given out; the range above it is free on Debian, Fedora and Alpine (their user tables end
/// at 60,000 and begin again at 65,534; systemd's dynamic users end at 65,519 and are allocated from below).
pub(crate) const FIRST: u32 = 64_700;
/// How many there are.
pub(crate) const COUNT: u32 = 512;
/// Where workers of one host claim users: a file for each, locked by who uses it.
const CLAIMS: &str = "/run/faena/uids";

/// The users that this worker does not use.
#[derive(Clone, Debug)]
pub struct Uids(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    free: Mutex<BTreeSet<u32>>,
    /// Where users are claimed, and as whom; none where this worker is alone.
    claims: Option<(PathBuf, String)>,
}

/// A user in use; free again when dropped.
#[derive(Debug)]
pub struct Uid {
    id: u32,
    claim: Option<File>,
    pool: Uids,
}

/// What became of a claim.
enum Claimed {
    Ours(File),
    /// A worker that is gone had it, and something of that may still live.
    Left(File),
    /// Another worker has it.
    Others,
}

impl Default for Uids {
    fn default() -> Self {
        Self::with(None)
    }
}

impl Uids {
    fn with(claims: Option<(PathBuf, String)>) -> Self {
        Self(Arc::new(Pool { free: Mutex::new((FIRST..FIRST + COUNT).collect()), claims }))
    }

    /// Users that no other worker of this host has. `owner` names this worker, whichever run of it.
    pub fn of_host(owner: &str) -> Self {
        Self::claimed_in(Path::new(CLAIMS), owner)
    }

    fn claimed_in(folder: &Path, owner: &str) -> Self {
        match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder) {
            Ok(()) => Self::with(Some((folder.to_owned(), owner.to_owned()))),
            Err(error) => {
                warn!(%error, folder = %folder.display(), "users cannot be claimed; another worker on this host may use the same ones");
                Self::default()
            }
        }
    }

    /// A user that no live instance has, if there is one.
    pub fn take(&self) -> Option<Uid> {
        let mut free = self.0.free.lock();
        let Some((folder, owner)) = &self.0.claims else {
            return free.pop_first().map(|id| Uid { id, claim: None, pool: self.clone() });
        };
        let mut left = None;
        for id in free.iter().copied() {
            match claim(&folder.join(id.to_string()), owner) {
                Ok(Claimed::Ours(file)) => {
                    free.remove(&id);
                    return Some(Uid { id, claim: Some(file), pool: self.clone() });
                }
                Ok(Claimed::Left(file)) => left = left.or(Some((id, file))),
                Ok(Claimed::Others) => {}
                Err(error) => {
                    warn!(%error, uid = id, "a user cannot be claimed");
                    return None;
                }
            }
        }
        let (id, mut file) = left?;
        free.remove(&id);
        // Its name is written so that the next run of this worker knows it for its own; the lock is what counts.
        let _ = name(&mut file, owner);
        Some(Uid { id, claim: Some(file), pool: self.clone() })
    }
}

fn claim(path: &Path, owner: &str) -> io::Result<Claimed> {
    let mut file = File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Claimed::Others),
        Err(error) => return Err(error.into()),
    }
    let mut before = String::new();
    file.read_to_string(&mut before)?;
    if !before.is_empty() && before != owner {
        return Ok(Claimed::Left(file));
    }
    name(&mut file, owner)?;
    Ok(Claimed::Ours(file))
}

fn name(file: &mut File, owner: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(owner.as_bytes())
}

impl Uid {
    /// Its number on the host.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Uid {
    fn drop(&mut self) {
        if let Some(file) = &self.claim {
            // An empty file means that the user is free. A user whose file keeps a name is taken last.
            let _ = file.set_len(0);
        }
        self.claim = None;
        self.pool.0.free.lock().insert(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(uids: &Uids) -> Vec<Uid> {
        std::iter::from_fn(|| uids.take()).collect()
    }

    fn numbers(uids: &[Uid]) -> BTreeSet<u32> {
        uids.iter().map(Uid::id).collect()
    }

    #[test]
    fn no_two_live_instances_share_a_user() {
        let uids = Uids::default();
        let held = all(&uids);
        assert_eq!(numbers(&held).len(), COUNT as usize);
        drop(held);
        assert!(uids.take().is_some());
    }

    #[test]
    fn no_two_workers_of_a_host_share_a_user() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (Uids::claimed_in(folder.path(), "one"), Uids::claimed_in(folder.path(), "other"));
        let of_one: Vec<Uid> = (0..100).filter_map(|_| one.take()).collect();
        let of_other = all(&other);
        assert_eq!(of_other.len(), COUNT as usize - 100);
        assert!(numbers(&of_one).is_disjoint(&numbers(&of_other)));
        drop(of_one);
        assert_eq!(all(&other).len(), 100, "what one gives back the other may have");
    }

    #[test]
    fn what_a_worker_left_is_its_own_and_taken_last_by_others() {
        let folder = tempfile::tempdir().unwrap();
        let gone = Uids::claimed_in(folder.path(), "gone");
        let held: Vec<Uid> = (0..3).filter_map(|_| gone.take()).collect();
        let left = numbers(&held);
        // Its process has died: the locks are gone, the names stay.
        for uid in held {
            let name = folder.path().join(uid.id().to_string());
            drop(uid);
            std::fs::write(name, "gone").unwrap();
        }
        let other = Uids::claimed_in(folder.path(), "other");
        let taken: Vec<Uid> = (0..COUNT as usize - 3).filter_map(|_| other.take()).collect();
        assert!(numbers(&taken).is_disjoint(&left));
        assert!(left.contains(&other.take().unwrap().id()), "there is no other");
        let again = Uids::claimed_in(folder.path(), "gone");
        assert!(left.contains(&again.take().unwrap().id()));
    }
}
