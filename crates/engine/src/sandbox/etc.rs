//! An `/etc` of ours: what programs need to start, nothing that tells of the host's people.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use faena_launcher::INSIDE_ID;

/// What is taken over from the host, where everybody may read it.
const COPIED: [&str; 13] = [
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "ssl",
    "ca-certificates",
    "localtime",
    "os-release",
    "debian_version",
    "mime.types",
    "services",
    "protocols",
    "fonts",
];
/// The same, for folders whose names end in a version.
const COPIED_BY_BEGINNING: [&str; 4] = ["python3", "java-", "perl", "gcrypt"];

/// Makes a new folder and puts it into place.
pub(super) fn make(below: &Path) -> io::Result<PathBuf> {
    let (etc, passing) = (below.join("etc"), below.join("etc.new"));
    remove(&passing)?;
    fs::create_dir_all(&passing)?;
    fs::set_permissions(&passing, fs::Permissions::from_mode(0o755))?;
    // About a thousand files and links, each of which waits for the disk: a start would wait for their sum.
    std::thread::scope(|threads| {
        let wanted = fs::read_dir("/etc")?.flatten().map(|entry| entry.path()).filter(|path| is_wanted(path));
        let copies: Vec<_> = wanted.map(|path| threads.spawn(|| copy_into(path, &passing))).collect();
        copies.into_iter().try_for_each(|copy| copy.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
    })?;
    write_ours(&passing)?;
    remove(&etc)?;
    fs::rename(&passing, &etc)?;
    Ok(etc)
}

fn is_wanted(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    COPIED.contains(&&*name) || COPIED_BY_BEGINNING.iter().any(|begin| name.starts_with(begin))
}

fn copy_into(path: PathBuf, folder: &Path) -> io::Result<()> {
    copy(&path, &folder.join(path.file_name().unwrap_or_default()))
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn write_ours(etc: &Path) -> io::Result<()> {
    let files = [
        ("passwd", format!("root:x:0:0:root:/:/bin/false\nfunction:x:{INSIDE_ID}:{INSIDE_ID}:function:/tmp:/bin/sh\n")),
        ("group", format!("root:x:0:\nfunction:x:{INSIDE_ID}:\n")),
        ("hosts", "127.0.0.1 localhost faena\n::1 localhost faena\n".to_owned()),
        ("hostname", "faena\n".to_owned()),
        ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
        ("resolv.conf", crate::host::RESOLV_CONF.to_owned()),
    ];
    for (name, text) in files {
        let path = etc.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}

/// Pages of manuals are half of the alternatives, and no program needs them.
fn is_manual(name: &std::ffi::OsStr) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "gz")
}

/// Copies what everybody may read, and links as they are.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    if metadata.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if metadata.mode() & 0o004 == 0 {
        return Ok(());
    }
    if metadata.is_dir() {
        fs::create_dir(to)?;
        fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
        let entries = fs::read_dir(from)?.flatten().filter(|entry| !is_manual(&entry.file_name()));
        return entries.into_iter().try_for_each(|entry| copy(&entry.path(), &to.join(entry.file_name())));
    }
    if metadata.is_file() {
        fs::copy(from, to)?;
        fs::set_permissions(to, fs::Permissions::from_mode(0o644))?;
    }
    Ok(())
}
