//! Roots that a spawner has prepared, one for each kind of instance: an instance takes a copy of its mounts, which costs
//! the same whatever it is made of.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

use crate::{SpawnFailure, Spec, Step, mounts, root};

/// The most that are kept; beyond it all are let go of, and those in use come back at once.
const MOST: usize = 64;
/// What the folders hold over which they are mounted.
const BYTES: u64 = 1024 * 1024;

/// What is kept, by all that it was made of.
#[derive(Default)]
pub(crate) struct Bases {
    known: HashMap<String, PathBuf>,
    /// How many there ever were.
    made: u64,
}

impl Bases {
    /// Where the base of an instance is mounted.
    pub(crate) fn of(&mut self, spec: &Spec) -> Result<PathBuf, SpawnFailure> {
        let key = format!("{:?}", (&spec.root, &spec.etc, &spec.agent, &spec.shims, &spec.path, &spec.ca_bundle));
        if let Some(place) = self.known.get(&key) {
            return Ok(place.clone());
        }
        if self.made == 0 {
            mounts::tmpfs(&spec.roots, BYTES, 0o700, MountFlags::empty()).step("mounting what roots are mounted on")?;
        }
        if self.known.len() >= MOST {
            self.known.drain().for_each(|(_, place)| let_go(&place));
        }
        self.made += 1;
        let place = spec.roots.join(self.made.to_string());
        fs::create_dir(&place).step("making a folder for a root")?;
        let home = rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .step("remembering where we are")?;
        let prepared = root::prepare(&place, spec);
        let left = rustix::process::fchdir(&home).step("leaving a root");
        if let Err(failure) = prepared.and(left) {
            let_go(&place);
            return Err(failure);
        }
        self.known.insert(key, place.clone());
        Ok(place)
    }
}

/// Instances keep their copies.
fn let_go(place: &PathBuf) {
    let _ = mounts::detach(place);
    let _ = fs::remove_dir(place);
}
