//! The layers of safety of a sandbox.

/// A layer of the sandbox's safety, by the name that `--accept-missing` and `GET /workers` use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// User, pid, mount, net, ipc, uts and cgroup namespaces.
    Namespaces,
    /// The list of system calls.
    Seccomp,
    /// Nothing outside of the instance's root, should a mount be wrong.
    Landlock,
    /// A bound of memory.
    Memory,
    /// A bound of processes.
    Pids,
    /// A bound of CPU time.
    Cpu,
    /// A whole instance dies by one write.
    Kill,
    /// Each instance has a user of its own.
    OwnUid,
}

impl Layer {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Namespaces,
        Self::Seccomp,
        Self::Landlock,
        Self::Memory,
        Self::Pids,
        Self::Cpu,
        Self::Kill,
        Self::OwnUid,
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Seccomp => "seccomp",
            Self::Landlock => "landlock",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
            Self::Kill => "kill",
            Self::OwnUid => "own-uid",
        }
    }

    /// The layer of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|layer| layer.as_str() == name)
    }

    /// How to get it, for people.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Namespaces => {
                "allow unprivileged user namespaces (sysctl user.max_user_namespaces, on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0), or run as root"
            }
            Self::Seccomp => "use a kernel with CONFIG_SECCOMP_FILTER",
            Self::Landlock => "boot with lsm=landlock,… on a kernel of 5.13 or later",
            Self::Memory | Self::Pids | Self::Cpu => {
                "run as root, or let systemd delegate the controller: systemd-run --user --scope -p Delegate=yes faena up"
            }
            Self::Kill => "use a kernel of 5.14 or later with a cgroup v2 tree that is writable here",
            Self::OwnUid => "run as root",
        }
    }
}
