//! The artifact: the tree under `path` as a tar.

use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use tar::{Builder, EntryType, Header};

/// Writes the tree: regular files, folders and symbolic links, nothing else, no owner, modes 0755 or 0644.
pub(crate) fn write(root: &str, to: OwnedFd) -> io::Result<()> {
    let mut archive = Builder::new(BufWriter::with_capacity(256 * 1024, File::from(to)));
    let mut folders = vec![Path::new(root).to_owned()];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<_> = fs::read_dir(&folder)?.collect::<io::Result<_>>()?;
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
                append_file(&mut archive, &path, name)?;
            }
        }
    }
    archive.into_inner()?.flush()
}

fn append_file(archive: &mut Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
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
