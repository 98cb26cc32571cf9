//! The artifact: the tree under `path` as a tar.

use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use tar::{Builder, EntryType, Header};

/// Writes the tree: regular files, folders and symbolic links, nothing else, no owner, modes 0755 or 0644.
pub(crate) fn write(root: &str, to: OwnedFd) -> io::Result<()> {
    let mut archive = Builder::new(BufWriter::with_capacity(256 * 1024, File::from(to)));
    let mut folders = vec![Path::new(root).to_owned()];
    while let Some(folder) = folders.pop() {
        let list = || fs::read_dir(&folder)?.collect::<io::Result<Vec<_>>>();
        let mut entries = opened(&folder, 0o700, list)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let metadata = fs::symlink_metadata(&path)?;
            let name = path.strip_prefix(root).map_err(io::Error::other)?;
            if metadata.is_dir() {
                archive.append_data(&mut header(&metadata, EntryType::Directory, 0), name, io::empty())?;
                folders.push(path);
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path)?;
                archive.append_link(&mut header(&metadata, EntryType::Symlink, 0), name, target)?;
            } else if metadata.is_file() {
                append_file(&mut archive, &path, name).map_err(|error| named(name, &error))?;
            }
        }
    }
    archive.into_inner()?.flush()
}

fn named(name: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", name.display()))
}

/// Does something with a path of the tree; where its mode forbids that, it is given one that does not. Its owner is whom we
/// run as, and no other process is left that could put a link in its place.
fn opened<T>(path: &Path, mode: u32, act: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match act() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).and_then(|()| act())
        }
        done => done,
    }
}

fn append_file(archive: &mut Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    let open = || File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = opened(path, 0o600, open)?;
    let metadata = file.metadata()?;
    archive.append_data(&mut header(&metadata, EntryType::Regular, metadata.len()), name, file)
}

fn header(metadata: &Metadata, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(if metadata.is_dir() || metadata.mode() & 0o111 != 0 { 0o755 } else { 0o644 });
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header
}
