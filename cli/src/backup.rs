//! A platform in one file: its database as of one moment, then the blobs.
//!
//! Blobs are written once and never changed, so those that the copy of the database names are there when they are copied
//! after it. The keys that secrets are sealed under, and the authority that issues nodes' certificates, are added on request alone. The platform's id, imported images and unpacked code are left out: a restored platform gets an id of its own,
//! and code is unpacked when it is called.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, bail};

use crate::folders;
use crate::settings::Settings;

/// Names in the file.
const DATABASE: &str = "faena.db";
const OBJECTS: &str = "blobs/objects";
const KEYS: &str = "secret.key";
const AUTHORITY: [&str; 2] = ["nodes-ca.key", "nodes-ca.pem"];

/// Writes a backup of a platform, which may run.
pub(crate) fn write(settings: &Settings, file: &Path, with_keys: bool) -> anyhow::Result<()> {
    let database = settings.data().join(DATABASE);
    if !database.is_file() {
        bail!("there is no database in {}; name the data folder with --data", settings.data().display());
    }
    if file.exists() {
        bail!("{} is there already; name another file", file.display());
    }
    let passing = file.with_extension("part");
    let written = write_to(settings, &database, &passing, with_keys).and_then(|blobs| {
        fs::rename(&passing, file).with_context(|| format!("cannot rename {}", passing.display()))?;
        Ok(blobs)
    });
    if written.is_err() {
        // The reason is told; a part that stays is named .part.
        let _ = fs::remove_file(&passing);
    }
    let bytes = file.metadata().map_or(0, |metadata| metadata.len());
    println!("{}: the database and {} blobs, {bytes} bytes", file.display(), written?);
    Ok(())
}

fn write_to(settings: &Settings, database: &Path, to: &Path, with_keys: bool) -> anyhow::Result<u64> {
    let folder = tempfile::tempdir_in(settings.data()).context("cannot make a folder for the copy of the database")?;
    let copy = folder.path().join(DATABASE);
    faena_db::backup(database, &copy)?;
    let out = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    let mut archive = tar::Builder::new(BufWriter::with_capacity(256 * 1024, out));
    archive.append_path_with_name(&copy, DATABASE).context("cannot write the database into the backup")?;
    if with_keys {
        let keys = settings.secret_key_file();
        let added = archive.append_path_with_name(&keys, KEYS);
        added.with_context(|| format!("cannot write the keys in {} into the backup", keys.display()))?;
        let (key, certificate) = settings.nodes_authority();
        for (file, name) in [key, certificate].iter().zip(AUTHORITY).filter(|(file, _)| file.is_file()) {
            let added = archive.append_path_with_name(file, name);
            added.with_context(|| format!("cannot write {} into the backup", file.display()))?;
        }
    }
    let mut blobs = 0;
    append(&mut archive, &settings.blob_folder().join("objects"), Path::new(OBJECTS), &mut blobs)?;
    let out = archive.into_inner().and_then(|out| out.into_inner().map_err(io::IntoInnerError::into_error));
    out.and_then(|mut out| out.flush().and_then(|()| out.sync_all())).context("cannot write the backup to its end")?;
    Ok(blobs)
}

/// Adds a folder of blobs. One that is removed meanwhile belongs to nothing that is kept.
fn append(archive: &mut tar::Builder<impl Write>, folder: &Path, name: &Path, blobs: &mut u64) -> anyhow::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("cannot read {}", folder.display()))?,
    };
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        let inside = name.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            append(archive, &path, &inside, blobs)?;
            continue;
        }
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => {
                let mut blob = opened.with_context(|| format!("cannot read {}", path.display()))?;
                archive.append_file(&inside, &mut blob).with_context(|| format!("cannot add {}", path.display()))?;
                *blobs += 1;
            }
        }
    }
    Ok(())
}

/// Makes a data folder of a backup.
pub(crate) fn restore(settings: &Settings, file: &Path) -> anyhow::Result<()> {
    let data = settings.data();
    if fs::read_dir(data).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} holds something; a backup is restored into a new folder, which --data names", data.display());
    }
    let mut archive = tar::Archive::new(File::open(file).with_context(|| format!("cannot read {}", file.display()))?);
    folders::private(data)?;
    let mut has_database = false;
    for entry in archive.entries().context("the file is no backup")? {
        let mut entry = entry.context("the backup is damaged")?;
        let path = entry.path().context("the backup is damaged")?.into_owned();
        let is_database = path == Path::new(DATABASE);
        let is_key = path == Path::new(KEYS) || AUTHORITY.iter().any(|name| path == Path::new(name));
        if !is_database && !is_key && !path.starts_with(OBJECTS) {
            bail!("{} is no backup of Faena: it holds {}", file.display(), path.display());
        }
        has_database |= is_database;
        // It refuses paths that lead out, by itself.
        entry.unpack_in(data).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !has_database {
        bail!("{} is no backup of Faena: it holds no database", file.display());
    }
    folders::platform_id(data)?;
    println!("restored into {}; start it with faena up --data {}", data.display(), data.display());
    Ok(())
}
