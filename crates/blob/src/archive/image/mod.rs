//! Images of containers: what `docker save`, an OCI tool or `docker export` has written becomes one root file system.
//!
//! [`flatten`] applies the layers of an image as the OCI image specification says ("Image Layer Filesystem Changeset"), and
//! writes the result as one tar. The tar has each path once, folders before their content, in a fixed order, so that equal
//! images become equal bytes. Devices, pipes and extended attributes are left out: no instance could use them.

mod bundle;
mod layer;
mod tree;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use faena_domain::environment::{is_reserved, is_variable};
use serde::{Deserialize, Serialize};

use super::{ArchiveError, Bounds, Format, format};
use bundle::Bundle;
use layer::{Layer, Scratch};
use tree::Tree;

/// The most bytes of names and values that the variables of an image may have.
const MAX_ENV: usize = 16 * 1024;

/// What an archive of an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// What `docker save` writes: layers, and a `manifest.json` that lists them.
    DockerArchive,
    /// An OCI image layout in a tar.
    OciArchive,
    /// The files themselves, as `docker export` or `mmdebstrap` writes them.
    RootFileSystem,
}

/// What became of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flattened {
    /// What it was.
    pub format: ImageFormat,
    /// Variables that its configuration sets.
    pub env: BTreeMap<String, String>,
    /// What it takes of a disk when it is unpacked, in bytes.
    pub unpacked: u64,
}

/// Writes the root file system of the image in an archive as one tar. Passing files lie in `scratch`, and `reserve` bytes of
/// its disk stay free.
///
/// # Errors
/// [`ArchiveError`]; the tar is then incomplete.
pub fn flatten(mut file: File, scratch: &Path, reserve: u64, to: &mut impl Write) -> Result<Flattened, ArchiveError> {
    let mut scratch = Scratch::new(scratch, reserve, &Bounds::IMAGE)?;
    if format(&mut file)? == Format::Zip {
        let why = "is a zip; an image is a tar or tar.gz, as `docker save` or `docker export` writes it";
        return Err(ArchiveError::NotRead(why.to_owned()));
    }
    let whole = scratch.plain(Layer::whole(file)?)?;
    let bundle = Bundle::read(&whole)?;
    let mut tree = Tree::new(Bounds::IMAGE);
    let (format, env) = match bundle.image()? {
        None => {
            tree.fill(&whole)?;
            if !tree.is_root() {
                let why = "holds neither an image nor a root file system: there is no manifest.json, no index.json, and \
                           no bin, etc, usr or lib at its top";
                return Err(ArchiveError::NotRead(why.to_owned()));
            }
            (ImageFormat::RootFileSystem, BTreeMap::new())
        }
        Some(image) => {
            for (layer, digest) in image.layers.into_iter().zip(&image.config.rootfs.diff_ids) {
                tree.apply(&scratch.verified(layer, digest)?)?;
            }
            (image.format, variables(&image.config.config.env)?)
        }
    };
    let unpacked = tree.write(&mut scratch.guarded(to)?)?;
    Ok(Flattened { format, env, unpacked })
}

/// The variables of an image that processes can have, without those that only the platform sets.
fn variables(env: &[String]) -> Result<BTreeMap<String, String>, ArchiveError> {
    if env.iter().map(String::len).sum::<usize>() > MAX_ENV {
        return Err(ArchiveError::TooLarge(format!("sets variables of more than {MAX_ENV} bytes")));
    }
    let pairs = env.iter().filter_map(|variable| variable.split_once('='));
    let usable = pairs.filter(|(name, value)| is_variable(name) && !is_reserved(name) && !value.contains('\0'));
    Ok(usable.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

#[cfg(test)]
mod tests;
