//! Programs of this host.

use std::path::{Path, PathBuf};

/// Where a program of the host is found inside.
pub(crate) fn host_program(name: &str) -> Option<PathBuf> {
    ["/usr/local/bin", "/usr/bin", "/bin"].iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists())
}

/// The `/etc/resolv.conf` of every instance: names are looked up at the address that its network device leads to. Without a
/// device there is no route to it, and a look-up fails at once.
pub(crate) const RESOLV_CONF: &str = "nameserver 198.18.0.1\noptions timeout:5 attempts:2\n";

#[cfg(test)]
mod tests {
    use faena_instance_protocol::link;

    #[test]
    fn instances_look_names_up_where_their_device_leads() {
        assert!(super::RESOLV_CONF.starts_with(&format!("nameserver {}\n", link::RESOLVER)));
    }
}
