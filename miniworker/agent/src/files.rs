//! `input.json`, `request.json` and `output.json`, in a folder that hostile code has written to.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use faena_instance_protocol::{OUTPUT, Output};

/// Removes whatever stands at a name, without following it.
fn remove(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        // std's remove_dir_all never follows a link on this platform (its documentation, "Security").
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
    }
}

/// Removes `output.json`, if there is anything of that name.
pub(crate) fn remove_output(folder: &str) -> io::Result<()> {
    remove(&Path::new(folder).join(OUTPUT))
}

/// Writes a new file, in place of anything of the same name.
pub(crate) fn place(folder: &str, name: &str, mode: u32, content: &OwnedFd) -> io::Result<()> {
    let path = Path::new(folder).join(name);
    remove(&path)?;
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let content = File::from(content.try_clone()?);
    let mut chunk = vec![0; 64 * 1024];
    let mut offset = 0;
    // The descriptor may be standard input too: its position stays where it is.
    loop {
        let read = content.read_at(&mut chunk, offset)?;
        if read == 0 {
            return Ok(());
        }
        file.write_all(&chunk[..read])?;
        offset += read as u64;
    }
}

/// Copies what a process left as its result; every process is dead by now.
pub(crate) fn take_output(path: &str, to: OwnedFd) -> Output {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Output::None,
        Err(error) => return Output::Invalid(format!("output.json cannot be opened: {error}")),
    };
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => {}
        _ => return Output::Invalid("output.json is no regular file".to_owned()),
    }
    match copy(&mut file, &mut File::from(to)) {
        Ok(()) => Output::File,
        Err(error) => Output::Invalid(format!("output.json cannot be read: {error}")),
    }
}

fn copy(from: &mut File, to: &mut File) -> io::Result<()> {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut chunk)?;
        if read == 0 {
            return Ok(());
        }
        match to.write_all(&chunk[..read]) {
            // Over the limit of a result the miniworker stops reading; it knows why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
}
