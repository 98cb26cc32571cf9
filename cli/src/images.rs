//! Images of the sandbox on this node: its operator says what runs there.

use std::path::Path;

use anyhow::Context;
use faena_domain::ImageName;
use faena_engine::Images;
use faena_worker::node::import_image;

use crate::folders::Folders;
use crate::settings::Settings;

/// Imports a root file system, and prints its id.
pub(crate) fn import(settings: &Settings, name: &str, archive: &Path) -> anyhow::Result<()> {
    let name = ImageName::try_from(name.to_owned()).context("the image's name")?;
    let folders = Folders::prepare(settings)?;
    let id = import_image(&folders.worker(), &name, archive)
        .with_context(|| format!("cannot import {}", archive.display()))?;
    println!("{name} {}", id.0);
    Ok(())
}

/// Prints a line for each image.
pub(crate) fn list(settings: &Settings) -> anyhow::Result<()> {
    let folders = Folders::prepare(settings)?;
    for (name, hash) in Images::at(&folders.worker()).names().context("cannot list the images")? {
        println!("{name} {hash}");
    }
    Ok(())
}
