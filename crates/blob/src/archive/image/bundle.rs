//! An archive of layers: which of its files are the layers of its image, in their order.
//!
//! Formats: OCI image specification 1.1 ("Image Layout", "Image Manifest", "Image Configuration"); Docker image
//! specification 1.2 ("Combined Image JSON + Filesystem Changeset Format").

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::entries::{Entry, Kind, tar};
use super::super::{ArchiveError, Origin, judge};
use super::ImageFormat;
use super::layer::Layer;

/// The longest of the documents that describe an image.
const MAX_DOCUMENT: u64 = 4 * 1024 * 1024;
/// The most layers of an image; Docker itself makes 127.
const MAX_LAYERS: usize = 512;
/// How deep the indexes of an OCI layout may lie in each other.
const MAX_INDEXES: usize = 4;
/// Files that a bundle may have; a root file system has more.
const MAX_FILES: usize = 10_000;

/// Folders of which every root file system has one at its top, and no bundle of layers has any.
pub(super) const ROOTS: [&str; 12] =
    ["bin", "etc", "usr", "dev", "lib", "lib64", "sbin", "opt", "proc", "sys", "var", "home"];

/// The files of an archive that may be a bundle of layers.
pub(super) struct Bundle {
    files: HashMap<String, Layer>,
    /// Links, by which older Dockers name a layer twice.
    links: HashMap<String, String>,
    /// A folder of a root file system lies at the top, so the archive is no bundle.
    is_root: bool,
}

/// An image of layers.
pub(super) struct Image {
    pub(super) format: ImageFormat,
    /// The lowest first.
    pub(super) layers: Vec<Layer>,
    pub(super) config: Config,
}

/// The part of an image's configuration that is used.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    architecture: String,
    os: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) config: Execution,
    pub(super) rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Execution {
    #[serde(default, rename = "Env", deserialize_with = "or_default")]
    pub(super) env: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    /// The digest of each unpacked layer.
    pub(super) diff_ids: Vec<String>,
}

/// One image in the `manifest.json` of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    layers: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    #[serde(default, rename = "mediaType")]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
struct OciIndex {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct OciManifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// JSON in which `null` stands for what is absent.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

/// This machine's architecture, as images name it (Go's `GOARCH`).
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn json<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, ArchiveError> {
    serde_json::from_slice(bytes).map_err(|error| ArchiveError::Damaged(format!("its {name} cannot be read: {error}")))
}

impl Bundle {
    /// Looks at the names in a tar.
    pub(super) fn read(whole: &Layer) -> Result<Self, ArchiveError> {
        let mut bundle = Self { files: HashMap::new(), links: HashMap::new(), is_root: false };
        tar(&mut whole.buffered(), &mut |entry: Entry, _content| {
            bundle.see(&entry, whole)?;
            Ok(())
        })?;
        Ok(bundle)
    }

    fn see(&mut self, entry: &Entry, whole: &Layer) -> Result<(), ArchiveError> {
        let path = judge::path(entry, Origin::Image)?;
        let top = path.split('/').next().unwrap_or_default();
        self.is_root |= ROOTS.contains(&top);
        if self.is_root || self.files.len() + self.links.len() >= MAX_FILES {
            return Ok(());
        }
        match &entry.kind {
            Kind::File => drop(self.files.insert(path, whole.part(entry.position, entry.size))),
            Kind::Link(target) | Kind::Hard(target) => {
                self.links.insert(path, String::from_utf8_lossy(target).into_owned());
            }
            Kind::Folder | Kind::Sparse | Kind::Other(_) => {}
        }
        Ok(())
    }

    /// The image in it; none where it is a root file system.
    pub(super) fn image(&self) -> Result<Option<Image>, ArchiveError> {
        let image = if self.is_root {
            return Ok(None);
        } else if let Some(manifest) = self.files.get("manifest.json") {
            self.docker(manifest)?
        } else if let Some(index) = self.files.get("index.json") {
            self.oci(index)?
        } else {
            return Ok(None);
        };
        let Config { architecture: of, os, rootfs, .. } = &image.config;
        if os != "linux" || of != architecture() {
            let ours = architecture();
            return Err(ArchiveError::NotRead(format!(
                "is an image for {os}/{of}, and this platform runs linux/{ours}"
            )));
        }
        if rootfs.diff_ids.len() != image.layers.len() || image.layers.len() > MAX_LAYERS {
            let (layers, named) = (image.layers.len(), rootfs.diff_ids.len());
            return Err(ArchiveError::Damaged(format!("it has {layers} layers, and its configuration names {named}")));
        }
        Ok(Some(image))
    }

    fn docker(&self, manifest: &Layer) -> Result<Image, ArchiveError> {
        let images: Vec<DockerManifest> = json("manifest.json", &manifest.text(MAX_DOCUMENT)?)?;
        let [DockerManifest { config, layers }] = images.as_slice() else {
            let why = format!("holds {} images; write one of them with `docker save NAME`", images.len());
            return Err(ArchiveError::NotRead(why));
        };
        let config = json("configuration", &self.file(config)?.text(MAX_DOCUMENT)?)?;
        let layers = layers.iter().map(|name| self.file(name)).collect::<Result<_, _>>()?;
        Ok(Image { format: ImageFormat::DockerArchive, layers, config })
    }

    fn oci(&self, index: &Layer) -> Result<Image, ArchiveError> {
        let mut index: OciIndex = json("index.json", &index.text(MAX_DOCUMENT)?)?;
        for _ in 0..MAX_INDEXES {
            let chosen = choose(index.manifests)?;
            let document = self.blob(&chosen.digest)?.text(MAX_DOCUMENT)?;
            if chosen.media_type.contains("index") || chosen.media_type.contains("manifest.list") {
                index = json("index", &document)?;
                continue;
            }
            let manifest: OciManifest = json("manifest", &document)?;
            let config = json("configuration", &self.blob(&manifest.config.digest)?.text(MAX_DOCUMENT)?)?;
            // The digests of the configuration are those of the unpacked layers, and are verified then.
            let path = |layer: &Descriptor| self.file(&path_of(&layer.digest));
            let layers = manifest.layers.iter().map(path).collect::<Result<_, _>>()?;
            return Ok(Image { format: ImageFormat::OciArchive, layers, config });
        }
        Err(ArchiveError::Damaged("its indexes lie too deep in each other".to_owned()))
    }

    /// A file with the digest that names it.
    fn blob(&self, digest: &str) -> Result<Layer, ArchiveError> {
        let blob = self.file(&path_of(digest))?;
        blob.verify(digest)?;
        Ok(blob)
    }

    /// A file; through one link, where a link has its name.
    fn file(&self, name: &str) -> Result<Layer, ArchiveError> {
        let target = self.links.get(name).map(|target| beside(name, target));
        let found = self.files.get(name).or_else(|| self.files.get(target.as_deref()?));
        let name: String = name.chars().take(100).collect();
        found.cloned().ok_or_else(|| ArchiveError::Damaged(format!("the file {name:?} that it names is not in it")))
    }
}

/// Where a link leads that lies at a path.
fn beside(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Where an OCI layout keeps a blob.
fn path_of(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// The one manifest of an index that is for machines like this one.
fn choose(manifests: Vec<Descriptor>) -> Result<Descriptor, ArchiveError> {
    let is_ours = |manifest: &Descriptor| {
        manifest.platform.as_ref().is_none_or(|of| of.os == "linux" && of.architecture == architecture())
    };
    let mut ours: Vec<Descriptor> = manifests.into_iter().filter(is_ours).collect();
    match (ours.pop(), ours.len()) {
        (Some(only), 0) => Ok(only),
        (found, more) => {
            let (count, of) = (more + usize::from(found.is_some()), architecture());
            Err(ArchiveError::NotRead(format!("holds {count} images for linux/{of}; it must hold one")))
        }
    }
}
