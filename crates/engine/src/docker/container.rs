//! What a container is made with.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};
use faena_domain::limits::DEV_SHM;
use faena_instance_protocol::{AGENT, CODE, NONCE, SECRETS, SECRETS_BYTES, SHIMS, SOCKET};
use faena_launcher::CA_BUNDLE;

use super::DockerConfig;
use super::code::{self, CodeBy};
use crate::InstanceSpec;
use crate::host::RESOLV_CONF;

/// The platform's id; all labels together say whose a container is.
pub(super) const LABEL_PLATFORM: &str = "faena";
/// The worker's name.
pub(super) const LABEL_WORKER: &str = "faena.worker";
/// The run of the worker.
pub(super) const LABEL_INCARNATION: &str = "faena.incarnation";

/// Files and folders of /proc and /sys that tell of the host or reach it: Docker's own list, and what safety.md adds.
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
const READ_ONLY: [&str; 4] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"];

/// Files of /etc that name the user, the host and the resolver; they replace the image's. `ID` stands for the user's id.
const IDENTITY: [(&str, &str); 4] = [
    ("passwd", "root:x:0:0:root:/:/bin/false\nfunction:x:ID:ID:function:/tmp:/bin/sh\n"),
    ("group", "root:x:0:\nfunction:x:ID:\n"),
    ("hosts", "127.0.0.1 localhost faena\n::1 localhost faena\n"),
    ("resolv.conf", RESOLV_CONF),
];

/// Writes those files into a container's folder.
///
/// # Errors
/// A folder that cannot be written to.
pub(super) fn write_identity(folder: &Path, host_id: u32) -> std::io::Result<()> {
    for (name, text) in IDENTITY {
        let path = folder.join(name);
        std::fs::write(&path, text.replace("ID", &host_id.to_string()))?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    }
    Ok(())
}

fn bind(source: &Path, target: &str, read_only: bool) -> Mount {
    let propagation = MountBindOptionsPropagationEnum::RPRIVATE;
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.display().to_string()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        bind_options: Some(MountBindOptions { propagation: Some(propagation), ..MountBindOptions::default() }),
        ..Mount::default()
    }
}

/// A bind in which mounts that are made on the host later are seen.
fn bind_slave(source: &Path, target: &str) -> Mount {
    let propagation = MountBindOptionsPropagationEnum::RSLAVE;
    let options = MountBindOptions { propagation: Some(propagation), ..MountBindOptions::default() };
    Mount { bind_options: Some(options), ..bind(source, target, false) }
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

fn ulimit(name: &str, most: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(most), hard: Some(most) }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// One container to be made.
pub(super) struct Container<'a> {
    pub(super) spec: &'a InstanceSpec,
    pub(super) config: &'a DockerConfig,
    /// Its folder on the host.
    pub(super) folder: &'a Path,
    pub(super) code_by: CodeBy,
    /// Who its processes are on the host.
    pub(super) host_id: u32,
    pub(super) nonce: &'a str,
    /// What its image declares as volumes.
    pub(super) volumes: &'a [String],
    /// The processors that it keeps to, where those are not all.
    pub(super) processors: Option<&'a str>,
}

impl Container<'_> {
    /// What the copy of the code takes of the container's memory.
    fn copied_bytes(&self) -> u64 {
        match self.code_by {
            CodeBy::Overlay => 0,
            CodeBy::Copy => self.spec.code.as_deref().map_or(0, code::tree_bytes),
        }
    }
}

/// The mounts: agent, its socket, the code, and the certificates where a build needs them.
fn mounts(container: &Container<'_>) -> Vec<Mount> {
    let Container { spec, config, folder, code_by, .. } = container;
    let mut mounts = vec![
        bind(&config.agent, AGENT, true),
        bind(&folder.join("socket"), SOCKET, false),
        bind(&config.shims, SHIMS, true),
    ];
    mounts.extend(IDENTITY.map(|(name, _)| bind(&folder.join(name), &format!("/etc/{name}"), true)));
    match (code_by, &spec.code) {
        (CodeBy::Overlay, _) => mounts.push(bind_slave(&code::merged(folder), &spec.path)),
        (CodeBy::Copy, Some(code)) => mounts.push(bind(code, CODE, true)),
        (CodeBy::Copy, None) => {}
    }
    mounts.extend(spec.ca_bundle.as_ref().map(|bundle| bind(bundle, CA_BUNDLE, true)));
    mounts
}

/// `/tmp`, whatever the image calls a volume, and the place of copied code: bounded, in memory, gone with the container.
fn tmpfs(container: &Container<'_>, copied: u64) -> HashMap<String, String> {
    let spec = container.spec;
    let options = format!("rw,exec,nosuid,nodev,mode=1777,size={}", spec.limits.tmp.0);
    let volumes = container.volumes.iter().filter(|volume| **volume != spec.path).map(String::as_str);
    let mut points: HashMap<String, String> =
        volumes.chain(["/tmp"]).map(|point| (point.to_owned(), options.clone())).collect();
    let id = container.host_id;
    let options = format!("rw,noexec,nosuid,nodev,mode=0700,uid={id},gid={id},size={SECRETS_BYTES}");
    points.insert(SECRETS.to_owned(), options);
    if container.code_by == CodeBy::Copy {
        let (id, size) = (container.host_id, spec.limits.disk.0 + copied);
        let options = format!("rw,exec,nosuid,nodev,mode=0755,uid={id},gid={id},size={size}");
        points.insert(spec.path.clone(), options);
    }
    points
}

/// Docker takes IPv6 from containers of a daemon that does not route it, `::1` included, which programs listen on. A kernel
/// without IPv6 knows no such setting, and a container that names it would not start.
fn loopback_ipv6() -> Option<HashMap<String, String>> {
    let has_ipv6 = Path::new("/proc/sys/net/ipv6/conf/lo/disable_ipv6").exists();
    has_ipv6.then(|| HashMap::from([("net.ipv6.conf.lo.disable_ipv6".to_owned(), "0".to_owned())]))
}

fn host_config(container: &Container<'_>) -> HostConfig {
    let (spec, copied) = (container.spec, container.copied_bytes());
    let memory = signed(spec.limits.memory.0 + copied);
    #[expect(clippy::cast_possible_truncation, reason = "a handful of cores")]
    let nano_cpus = (spec.limits.cpu * 1e9) as i64;
    HostConfig {
        mounts: Some(mounts(container)),
        tmpfs: Some(tmpfs(container, copied)),
        readonly_rootfs: Some(true),
        cap_drop: Some(strings(&["ALL"])),
        security_opt: Some(strings(&["no-new-privileges:true"])),
        network_mode: Some("none".to_owned()),
        sysctls: loopback_ipv6(),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        privileged: Some(false),
        memory: Some(memory),
        memory_swap: Some(memory),
        nano_cpus: Some(nano_cpus),
        cpuset_cpus: container.processors.map(str::to_owned),
        // The agent is one process of the container's, and none of the user's.
        pids_limit: Some(i64::from(spec.limits.pids) + 1),
        ulimits: Some(vec![ulimit("nofile", i64::from(spec.limits.files)), ulimit("core", 1)]),
        shm_size: Some(signed(DEV_SHM)),
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        auto_remove: Some(false),
        // As in the sandbox: what user code can set is no lower.
        oom_score_adj: Some(900),
        init: Some(false),
        masked_paths: Some(strings(&MASKED)),
        readonly_paths: Some(strings(&READ_ONLY)),
        ..HostConfig::default()
    }
}

/// The whole request.
pub(super) fn body(container: &Container<'_>) -> ContainerCreateBody {
    let Container { spec, config, host_id, nonce, .. } = container;
    let mut entrypoint = strings(&[AGENT, "--connect", SOCKET]);
    if container.code_by == CodeBy::Copy && spec.code.is_some() {
        entrypoint.extend(["--copy-to".to_owned(), spec.path.clone()]);
    }
    if spec.egress {
        entrypoint.push("--egress".to_owned());
    }
    let labels = [
        (LABEL_PLATFORM, &config.belonging.platform),
        (LABEL_WORKER, &config.belonging.worker),
        (LABEL_INCARNATION, &config.belonging.incarnation),
    ];
    ContainerCreateBody {
        image: Some(spec.image.0.clone()),
        entrypoint: Some(entrypoint),
        cmd: Some(Vec::new()),
        env: Some(vec![format!("{NONCE}={nonce}")]),
        user: Some(format!("{host_id}:{host_id}")),
        working_dir: Some("/".to_owned()),
        hostname: Some("faena".to_owned()),
        healthcheck: Some(HealthConfig { test: Some(strings(&["NONE"])), ..HealthConfig::default() }),
        labels: Some(labels.map(|(name, value)| (name.to_owned(), value.clone())).into()),
        host_config: Some(host_config(container)),
        ..ContainerCreateBody::default()
    }
}
