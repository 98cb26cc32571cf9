//! Code that cannot be mounted where it belongs is copied there, once, before anything of the user's runs.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Copies what lies below one folder into another: files with their modes, folders, symbolic links as they are.
pub(crate) fn tree(from: &Path, to: &Path) -> io::Result<()> {
    let mut folders = vec![from.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let source = entry?.path();
            let target = to.join(source.strip_prefix(from).map_err(io::Error::other)?);
            let metadata = fs::symlink_metadata(&source)?;
            if metadata.is_dir() {
                fs::create_dir(&target)?;
                folders.push(source);
            } else if metadata.is_symlink() {
                symlink(fs::read_link(&source)?, &target)?;
            } else {
                fs::copy(&source, &target)?;
            }
        }
    }
    Ok(())
}
