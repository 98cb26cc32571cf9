//! Control groups of whichever version the host has, below the worker's own.
//!
//! Each instance has `faena/<platform>.<worker>/<instance>` in the v2 tree and in every v1 hierarchy that bounds something, with
//! a group `agent` and a group `user` in it. The bounds lie on `user`, so the agent is never what is killed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use faena_domain::Limits;
use tracing::warn;

use crate::Belonging;
use crate::meter::{Meter, MeterPaths};

/// What bounds something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Controller {
    Memory,
    Pids,
    Cpu,
}

impl Controller {
    const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        }
    }
}

/// The trees of this host that we may write to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trees {
    v1: BTreeMap<Controller, PathBuf>,
    v2: Option<PathBuf>,
    /// Controllers of the v2 tree that are ours to use.
    v2_controllers: Vec<Controller>,
}

/// One line of /proc/self/mountinfo, as far as it matters (proc(5)).
fn mounts() -> Vec<(String, PathBuf, PathBuf, String)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(3);
            let (root, point) = (left.next()?, left.next()?);
            let mut right = right.split(' ');
            let kind = right.next()?.to_owned();
            let options = right.nth(1)?.to_owned();
            Some((kind, PathBuf::from(root), PathBuf::from(point), options))
        })
        .collect()
}

/// Our own group in each hierarchy: the v2 tree under the empty name.
fn own_groups() -> BTreeMap<String, PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut groups = BTreeMap::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        if let (Some(controllers), Some(path)) = (parts.next(), parts.next()) {
            for controller in controllers.split(',') {
                groups.insert(controller.to_owned(), PathBuf::from(path));
            }
        }
    }
    groups
}

/// Where a group of ours lies below a mount point that may itself show only a part of the hierarchy.
fn locate(point: &Path, root: &Path, own: &Path) -> PathBuf {
    let relative = own.strip_prefix(root).or_else(|_| own.strip_prefix("/")).unwrap_or(own);
    point.join(relative)
}

impl Trees {
    /// Finds the trees, and prepares the worker's own group in each: no two platforms share one.
    pub(crate) fn prepare(belonging: &Belonging) -> Self {
        let worker = &format!("{}.{}", belonging.platform, belonging.worker);
        let own = own_groups();
        let mut trees = Self::default();
        for (kind, root, point, options) in mounts() {
            match kind.as_str() {
                "cgroup" => {
                    let named = |controller: &Controller| options.split(',').any(|option| option == controller.name());
                    if let Some(controller) = Controller::ALL.into_iter().find(named) {
                        let group =
                            own.get(controller.name()).map_or_else(|| point.clone(), |own| locate(&point, &root, own));
                        trees.add_v1(controller, &group.join("faena").join(worker));
                    }
                }
                "cgroup2" => {
                    let group = own.get("").map_or_else(|| point.clone(), |own| locate(&point, &root, own));
                    trees.add_v2(&group, worker);
                }
                _ => {}
            }
        }
        trees
    }

    fn add_v1(&mut self, controller: Controller, group: &Path) {
        match fs::create_dir_all(group) {
            Ok(()) => drop(self.v1.insert(controller, group.to_owned())),
            Err(error) => warn!(%error, group = %group.display(), "a control group cannot be made"),
        }
    }

    fn add_v2(&mut self, own: &Path, worker: &str) {
        let group = own.join("faena").join(worker);
        if let Err(error) = fs::create_dir_all(&group) {
            return warn!(%error, group = %group.display(), "a control group cannot be made");
        }
        let offered = fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
        let wanted = Controller::ALL
            .into_iter()
            .filter(|controller| !self.v1.contains_key(controller))
            .filter(|controller| offered.split_whitespace().any(|name| name == controller.name()));
        for controller in wanted {
            if delegate(own, &group, controller).is_ok() {
                self.v2_controllers.push(controller);
            }
        }
        self.v2 = Some(group);
    }

    /// Whether something is bounded by either version.
    pub(crate) fn bounds(&self, controller: Controller) -> bool {
        self.v1.contains_key(&controller) || self.v2_controllers.contains(&controller)
    }

    /// Whether a whole instance can be killed by one write.
    pub(crate) fn can_kill(&self) -> bool {
        self.v2.as_ref().is_some_and(|group| group.join("cgroup.kill").exists())
    }

    /// Every folder of instances in these trees.
    fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        self.v1.values().chain(&self.v2)
    }

    /// The groups of one instance, which bound nothing yet.
    pub(crate) fn make(&self, instance: &str) -> io::Result<Group> {
        let group = self.adopt(instance);
        match group.make() {
            Ok(()) => Ok(group),
            // What was there before is another's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
            Err(error) => {
                group.try_remove();
                Err(error)
            }
        }
    }

    /// Removes the worker's own groups, which are empty when it stops.
    pub(crate) fn remove(&self) {
        for root in self.roots() {
            // Where something is left in it, the next start finds it there.
            let _ = fs::remove_dir(root);
        }
    }

    /// Instances that have a group here.
    pub(crate) fn instances(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .roots()
            .flat_map(|root| fs::read_dir(root).into_iter().flatten().flatten())
            .filter(|entry| entry.path().is_dir())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// The groups of an instance that are there already.
    pub(crate) fn adopt(&self, instance: &str) -> Group {
        Group {
            folders: self.roots().map(|root| root.join(instance)).collect(),
            trees: self.clone(),
            meter: OnceLock::new(),
            instance: instance.to_owned(),
        }
    }
}

/// Hands a v2 controller down from our own group. A group that hands controllers down may hold no processes, so all
/// of ours move into a leaf first (cgroup-v2.rst, "No Internal Process Constraint"); the root group is exempt.
fn delegate(own: &Path, group: &Path, controller: Controller) -> io::Result<()> {
    let enable = |folder: &Path| fs::write(folder.join("cgroup.subtree_control"), format!("+{}", controller.name()));
    if enable(own).is_err() {
        let leaf = own.join("faena-worker");
        fs::create_dir_all(&leaf)?;
        for pid in fs::read_to_string(own.join("cgroup.procs"))?.split_whitespace() {
            fs::write(leaf.join("cgroup.procs"), pid)?;
        }
        enable(own)?;
    }
    for folder in [own.join("faena"), group.to_owned()] {
        enable(&folder)?;
    }
    Ok(())
}

/// The groups of one instance.
#[derive(Debug)]
pub(crate) struct Group {
    instance: String,
    folders: Vec<PathBuf>,
    trees: Trees,
    meter: OnceLock<Meter>,
}

impl Group {
    fn make(&self) -> io::Result<()> {
        for folder in &self.folders {
            fs::create_dir(folder)?;
            if self.is_v2(folder) {
                for controller in &self.trees.v2_controllers {
                    fs::write(folder.join("cgroup.subtree_control"), format!("+{}", controller.name()))?;
                }
            }
            for part in self.parts(folder) {
                fs::create_dir(folder.join(part))?;
            }
        }
        Ok(())
    }

    /// Agent and user are told apart where something is bounded: moving a process costs the more the newer the tree is.
    fn parts(&self, folder: &Path) -> &'static [&'static str] {
        if self.is_v2(folder) && self.trees.v2_controllers.is_empty() { &[] } else { &["agent", "user"] }
    }

    fn is_v2(&self, folder: &Path) -> bool {
        self.trees.v2.as_ref().is_some_and(|root| folder.starts_with(root))
    }

    fn of(&self, controller: Controller) -> Option<(PathBuf, bool)> {
        let v1 = self.trees.v1.get(&controller).map(|root| (root, false));
        let v2 =
            self.trees.v2.as_ref().filter(|_| self.trees.v2_controllers.contains(&controller)).map(|root| (root, true));
        v1.or(v2).map(|(root, is_v2)| (root.join(&self.instance).join("user"), is_v2))
    }

    /// Bounds whatever enters them from now on.
    pub(crate) fn bound(&self, limits: &Limits) -> io::Result<()> {
        if let Some((folder, is_v2)) = self.of(Controller::Memory) {
            let bytes = limits.memory.0.to_string();
            if is_v2 {
                fs::write(folder.join("memory.max"), &bytes)?;
                write_if_there(&folder.join("memory.swap.max"), "0")?;
            } else {
                fs::write(folder.join("memory.limit_in_bytes"), &bytes)?;
                write_if_there(&folder.join("memory.memsw.limit_in_bytes"), &bytes)?;
                // Where swap is not accounted for, nothing is swapped at all.
                fs::write(folder.join("memory.swappiness"), "0")?;
            }
        }
        if let Some((folder, _)) = self.of(Controller::Pids) {
            fs::write(folder.join("pids.max"), limits.pids.to_string())?;
        }
        if let Some((folder, is_v2)) = self.of(Controller::Cpu) {
            const PERIOD_US: f64 = 100_000.0;
            let quota = format!("{:.0}", (limits.cpu * PERIOD_US).max(1000.0));
            if is_v2 {
                fs::write(folder.join("cpu.max"), format!("{quota} {PERIOD_US:.0}"))?;
            } else {
                fs::write(folder.join("cpu.cfs_period_us"), format!("{PERIOD_US:.0}"))?;
                fs::write(folder.join("cpu.cfs_quota_us"), quota)?;
            }
        }
        Ok(())
    }

    /// Files to which a process writes `0` to enter the agent's groups. It is born in that of the v2 tree.
    pub(crate) fn agent_entrances(&self) -> Vec<PathBuf> {
        self.folders.iter().filter(|folder| !self.is_v2(folder)).map(|folder| folder.join("agent/tasks")).collect()
    }

    /// Files to which a process writes `0` to enter the user's groups.
    pub(crate) fn user_entrances(&self) -> Vec<PathBuf> {
        let file = |folder: &PathBuf| if self.is_v2(folder) { "user/cgroup.procs" } else { "user/tasks" };
        let bounded = self.folders.iter().filter(|folder| !self.parts(folder).is_empty());
        bounded.map(|folder| folder.join(file(folder))).collect()
    }

    /// The group of the v2 tree that an agent is born in.
    pub(crate) fn birth(&self) -> Option<PathBuf> {
        let folder = self.folders.iter().find(|folder| self.is_v2(folder))?;
        Some(if self.parts(folder).is_empty() { folder.clone() } else { folder.join("agent") })
    }

    /// What stops the instance where it stands, and lets it go on.
    pub(crate) fn freezer(&self) -> Option<Freezer> {
        let folder = self.folders.iter().find(|folder| self.is_v2(folder))?;
        Some(Freezer { file: folder.join("cgroup.freeze"), words: ["1", "0"] })
    }

    /// What the user's processes hold and have used.
    pub(crate) fn meter(&self) -> &Meter {
        self.meter.get_or_init(|| Meter::open(self.meter_paths()))
    }

    fn meter_paths(&self) -> MeterPaths {
        let memory = self.of(Controller::Memory);
        let memory =
            memory.map(|(folder, is_v2)| folder.join(if is_v2 { "memory.current" } else { "memory.usage_in_bytes" }));
        // Every group of the newer tree tells its CPU time, whether or not it bounds it.
        let newer = self.trees.v2.as_ref().map(|root| {
            let folder = root.join(&self.instance);
            let user = folder.join("user");
            if user.is_dir() { user.join(CPU_TIME[1]) } else { folder.join(CPU_TIME[1]) }
        });
        let older = self.of(Controller::Cpu).filter(|(_, is_v2)| !is_v2).map(|(folder, _)| folder.join(CPU_TIME[0]));
        let cpu = [older, newer].into_iter().flatten().find(|file| file.exists());
        MeterPaths { memory, peak: self.memory_files().1, cpu }
    }

    /// What tells how often memory ran out, and the most that was held.
    pub(crate) fn memory_files(&self) -> (Option<PathBuf>, Option<PathBuf>) {
        let Some((folder, is_v2)) = self.of(Controller::Memory) else { return (None, None) };
        let names =
            if is_v2 { ("memory.events", "memory.peak") } else { ("memory.oom_control", "memory.max_usage_in_bytes") };
        let there = |path: PathBuf| path.exists().then_some(path);
        (there(folder.join(names.0)), there(folder.join(names.1)))
    }

    /// Kills every process of the instance, where the kernel can do that in one write.
    pub(crate) fn kill(&self) {
        for folder in self.folders.iter().filter(|folder| self.is_v2(folder)) {
            if let Err(error) = fs::write(folder.join("cgroup.kill"), "1") {
                warn!(%error, instance = self.instance, "the control group could not be killed");
            }
        }
    }

    /// Removes the groups; false while processes are still in them.
    pub(crate) fn try_remove(&self) -> bool {
        let gone = |folder: &Path| match fs::remove_dir(folder) {
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(()) => true,
        };
        let all = |folder: &PathBuf| {
            let parts = self.parts(folder).iter().fold(true, |so_far, part| gone(&folder.join(part)) & so_far);
            parts && gone(folder)
        };
        self.folders.iter().map(all).fold(true, |so_far, gone| so_far & gone)
    }

    /// Removes the groups when the last process has left them, which takes the kernel a moment.
    pub(crate) async fn remove(self) {
        const TRIES: u32 = 100;
        for _ in 0..TRIES {
            if self.try_remove() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        warn!(instance = self.instance, "a control group could not be removed; it stays until the next start");
    }
}

/// A file that freezes whatever is in its group.
#[derive(Debug)]
pub(crate) struct Freezer {
    file: PathBuf,
    /// What freezes, and what thaws.
    words: [&'static str; 2],
}

/// A file of the group that a process of another's making is in: of the controller's v1 hierarchy, or of the v2 tree.
fn file_of_process(pid: i32, controller: &str, [v1, v2]: [&str; 2]) -> Option<(PathBuf, bool)> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let group = |wanted: &str| {
        text.lines().find_map(|line| {
            let (names, path) = line.split_once(':')?.1.split_once(':')?;
            names.split(',').any(|name| name == wanted).then(|| PathBuf::from(path))
        })
    };
    let file = |kind: &str, wanted: &str, name: &str| {
        let is_it = |options: &str| wanted.is_empty() || options.split(',').any(|option| option == wanted);
        let mounted = mounts().into_iter().find(|(found, _, _, options)| found == kind && is_it(options));
        let (_, root, point, _) = mounted?;
        // The group at the top of the v2 tree is the host's own, and has no such file.
        Some(locate(&point, &root, &group(wanted)?).join(name)).filter(|file| file.exists())
    };
    file("cgroup", controller, v1)
        .map(|file| (file, false))
        .or_else(|| file("cgroup2", "", v2).map(|file| (file, true)))
}

impl Freezer {
    /// The freezer of a container's first process.
    pub(crate) fn of_process(pid: i32) -> Option<Self> {
        let (file, is_v2) = file_of_process(pid, "freezer", ["freezer.state", "cgroup.freeze"])?;
        Some(Self { file, words: if is_v2 { ["1", "0"] } else { ["FROZEN", "THAWED"] } })
    }

    pub(crate) fn freeze(&self) -> io::Result<()> {
        fs::write(&self.file, self.words[0])
    }

    pub(crate) fn thaw(&self) -> io::Result<()> {
        fs::write(&self.file, self.words[1])
    }
}

/// Files that tell what a container holds and has used.
pub(crate) fn meter_paths_of_process(pid: i32) -> MeterPaths {
    let file = |controller, names| file_of_process(pid, controller, names).map(|(file, _)| file);
    MeterPaths {
        memory: file("memory", ["memory.usage_in_bytes", "memory.current"]),
        peak: file("memory", ["memory.max_usage_in_bytes", "memory.peak"]),
        cpu: file("cpuacct", CPU_TIME),
    }
}

/// Files that tell the CPU time of a group: in v1, and in v2.
const CPU_TIME: [&str; 2] = ["cpuacct.usage", "cpu.stat"];

fn write_if_there(path: &Path, value: &str) -> io::Result<()> {
    if path.exists() { fs::write(path, value) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_below_a_mount_that_shows_a_part() {
        let at = |point: &str, root: &str, own: &str| locate(Path::new(point), Path::new(root), Path::new(own));
        assert_eq!(at("/sys/fs/cgroup/memory", "/", "/a/b"), Path::new("/sys/fs/cgroup/memory/a/b"));
        assert_eq!(at("/sys/fs/cgroup", "/docker/x", "/docker/x/y"), Path::new("/sys/fs/cgroup/y"));
    }
}
