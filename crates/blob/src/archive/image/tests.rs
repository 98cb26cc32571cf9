//! Images as tools write them, and hostile ones.

use std::os::unix::fs::PermissionsExt;

use sha2::{Digest, Sha256};
use tar::EntryType;

use super::super::tests::{FILE, file, gzipped, tarred, zipped};
use super::super::{Disk, unpack};
use super::*;

const FOLDER: EntryType = EntryType::Directory;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;

type Entries<'a> = &'a [(&'a str, EntryType, &'a str, &'a [u8])];

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn config(layers: &[Vec<u8>]) -> serde_json::Value {
    let digests: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    serde_json::json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }, "os": "linux",
        "config": {"Env": ["PATH=/opt/bin:/bin", "A=b=c", "LD_PRELOAD=/evil", "nothing"]},
        "rootfs": {"type": "layers", "diff_ids": digests}})
}

/// As `docker save` writes it; a layer that is there twice is a link, as older ones write it.
fn docker_with(layers: &[Vec<u8>], config: &serde_json::Value) -> Vec<u8> {
    let config = config.to_string();
    let mut entries: Vec<(String, EntryType, String, Vec<u8>)> = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let same = layers[..number].iter().position(|before| before == layer);
        entries.push(match same {
            Some(same) => (format!("{number}/layer.tar"), LINK, format!("../{same}/layer.tar"), Vec::new()),
            None => (format!("{number}/layer.tar"), FILE, String::new(), layer.clone()),
        });
    }
    let names: Vec<String> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let manifest = serde_json::json!([{"Config": "c.json", "RepoTags": ["evil:latest"], "Layers": names}]);
    entries.push(("c.json".into(), FILE, String::new(), config.into_bytes()));
    entries.push(("manifest.json".into(), FILE, String::new(), manifest.to_string().into_bytes()));
    let borrowed: Vec<_> = entries.iter().map(|(a, b, c, d)| (a.as_str(), *b, c.as_str(), d.as_slice())).collect();
    tarred(&borrowed)
}

fn docker(layers: &[Entries<'_>]) -> Vec<u8> {
    let layers: Vec<Vec<u8>> = layers.iter().map(|layer| tarred(layer)).collect();
    docker_with(&layers, &config(&layers))
}

fn oci(layers: &[Entries<'_>], more: &[serde_json::Value]) -> Vec<u8> {
    let layers: Vec<Vec<u8>> = layers.iter().map(|layer| tarred(layer)).collect();
    let mut blobs = vec![config(&layers).to_string().into_bytes()];
    blobs.extend(layers.iter().map(|layer| gzipped(layer)));
    let descriptors: Vec<_> = blobs.iter().map(|blob| serde_json::json!({"digest": digest(blob)})).collect();
    let manifest = serde_json::json!({"config": descriptors[0], "layers": descriptors[1..]}).to_string().into_bytes();
    let kind = "application/vnd.oci.image.index.v1+json";
    let mut manifests = vec![serde_json::json!({"mediaType": "m", "digest": digest(&manifest)})];
    manifests.extend(more.to_vec());
    let index = serde_json::json!({"manifests": manifests}).to_string().into_bytes();
    let top = serde_json::json!({"manifests": [{"mediaType": kind, "digest": digest(&index)}]});
    blobs.extend([manifest, index]);
    let mut entries: Vec<(String, Vec<u8>)> =
        blobs.into_iter().map(|blob| (format!("blobs/{}", digest(&blob).replace(':', "/")), blob)).collect();
    entries.push(("index.json".into(), top.to_string().into_bytes()));
    let borrowed: Vec<_> = entries.iter().map(|(name, bytes)| (name.as_str(), FILE, "", bytes.as_slice())).collect();
    tarred(&borrowed)
}

fn flattened(archive: &[u8]) -> Result<(Flattened, Vec<u8>), ArchiveError> {
    let (folder, mut to) = (tempfile::tempdir().unwrap(), Vec::new());
    flatten(file(archive), folder.path(), 0, &mut to).map(|flattened| (flattened, to))
}

/// What lies where after an image was unpacked: the text of a file, or where a link leads.
fn unpacked(archive: &[u8]) -> BTreeMap<String, String> {
    let (_, tar) = flattened(archive).unwrap();
    let folder = tempfile::tempdir().unwrap();
    unpack(&mut file(&tar), folder.path(), &Bounds::IMAGE, Disk::default()).unwrap();
    let mut found = BTreeMap::new();
    let mut left = vec![folder.path().to_owned()];
    while let Some(at) = left.pop() {
        for entry in std::fs::read_dir(at).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = path.strip_prefix(folder.path()).unwrap().display().to_string();
            if kind.is_dir() {
                left.push(path);
            } else if kind.is_symlink() {
                found.insert(name, format!("-> {}", std::fs::read_link(path).unwrap().display()));
            } else {
                found.insert(name, std::fs::read_to_string(path).unwrap());
            }
        }
    }
    found
}

fn told(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn layers_of_docker_become_one_tree() {
    let lower: Entries<'_> = &[
        ("etc/", FOLDER, "", b""),
        ("etc/kept", FILE, "", b"kept"),
        ("etc/changed", FILE, "", b"old"),
        ("etc/removed", FILE, "", b"x"),
        ("etc/first", HARD, "etc/changed", b""),
        ("cache/a/b", FILE, "", b"x"),
        ("opaque/old", FILE, "", b"x"),
        ("folder/in", FILE, "", b"x"),
        ("file", FILE, "", b"x"),
        ("dev/null", EntryType::Char, "", b""),
    ];
    let upper: Entries<'_> = &[
        ("etc/changed", FILE, "", b"new"),
        ("etc/.wh.removed", FILE, "", b""),
        (".wh.cache", FILE, "", b""),
        ("opaque/new", FILE, "", b"new"),
        ("opaque/.wh..wh..opq", FILE, "", b""),
        (".wh..wh.plnk/1.2", FILE, "", b"x"),
        ("folder", FILE, "", b"is a file now"),
        ("file/in", FILE, "", b"is a folder now"),
    ];
    let archive = docker(&[lower, upper, upper]);
    let expected = told(&[
        ("etc/changed", "new"),
        ("etc/first", "old"),
        ("etc/kept", "kept"),
        ("file/in", "is a folder now"),
        ("folder", "is a file now"),
        ("opaque/new", "new"),
    ]);
    assert_eq!(unpacked(&archive), expected);
    let (image, tar) = flattened(&archive).unwrap();
    assert_eq!(image.format, ImageFormat::DockerArchive);
    assert_eq!(image.env, told(&[("PATH", "/opt/bin:/bin"), ("A", "b=c")]));
    assert_eq!(flattened(&gzipped(&archive)).unwrap().1, tar, "a packed one is the same");
}

#[test]
fn an_oci_archive_is_read_by_its_index() {
    let elsewhere = serde_json::json!({"digest": "sha256:0", "platform": {"os": "unknown", "architecture": "unknown"}});
    let layer: Entries<'_> = &[("bin/sh", FILE, "", b"sh"), ("usr/bin/bash", HARD, "bin/sh", b"")];
    let archive = oci(&[layer], std::slice::from_ref(&elsewhere));
    assert_eq!(unpacked(&archive), told(&[("bin/sh", "sh"), ("usr/bin/bash", "sh")]));
    assert_eq!(flattened(&archive).unwrap().0.format, ImageFormat::OciArchive);
    assert_eq!(flattened(&archive).unwrap().1, flattened(&docker(&[layer])).unwrap().1, "equal images, equal bytes");
    let twice = oci(&[layer], &[serde_json::json!({"digest": "sha256:0"})]);
    assert!(flattened(&twice).unwrap_err().to_string().contains("holds 2 images"));
}

#[test]
fn a_root_file_system_stays_as_it_is() {
    let files: Entries<'_> = &[
        ("./", FOLDER, "", b""),
        ("manifest.json", FILE, "", b"[]"),
        ("bin", LINK, "usr/bin", b""),
        ("./usr/bin/.wh.x", FILE, "", b"no whiteout"),
        ("/usr/bin/x", FILE, "", b"x"),
    ];
    let archive = tarred(files);
    let expected =
        [("bin", "-> usr/bin"), ("manifest.json", "[]"), ("usr/bin/.wh.x", "no whiteout"), ("usr/bin/x", "x")];
    assert_eq!(unpacked(&archive), told(&expected));
    assert_eq!(flattened(&archive).unwrap().0.format, ImageFormat::RootFileSystem);
}

#[test]
fn a_layer_writes_below_a_link_where_that_leads() {
    let lower: Entries<'_> = &[
        ("bin", LINK, "usr/bin", b""),
        ("lib", LINK, "/usr/lib", b""),
        ("loop", LINK, "loop", b""),
        ("usr/bin/a", FILE, "", b"old"),
    ];
    let upper: Entries<'_> = &[
        ("bin/b", FILE, "", b"b"),
        ("bin/.wh.a", FILE, "", b""),
        ("lib/c", FILE, "", b"c"),
        ("out", LINK, "../../..", b""),
        ("out/d", FILE, "", b"d"),
    ];
    let found = unpacked(&docker(&[lower, upper]));
    let expected = [
        ("bin", "-> usr/bin"),
        ("d", "d"),
        ("lib", "-> /usr/lib"),
        ("loop", "-> loop"),
        ("out", "-> ../../.."),
        ("usr/bin/b", "b"),
        ("usr/lib/c", "c"),
    ];
    assert_eq!(found, told(&expected));
}

#[test]
fn times_and_modes_are_kept() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o755);
    header.set_mtime(1_000_000_000);
    builder.append_data(&mut header, "bin/tool", &b"x"[..]).unwrap();
    let (_, tar) = flattened(&builder.into_inner().unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    unpack(&mut file(&tar), folder.path(), &Bounds::IMAGE, Disk::default()).unwrap();
    let found = std::fs::metadata(folder.path().join("bin/tool")).unwrap();
    assert_eq!(found.permissions().mode() & 0o777, 0o755);
    assert_eq!(std::os::unix::fs::MetadataExt::mtime(&found), 1_000_000_000);
}

#[test]
fn what_is_no_image_is_refused() {
    let layer = tarred(&[("bin/sh", FILE, "", b"sh")]);
    let layers = std::slice::from_ref(&layer);
    let said = |archive: &[u8]| flattened(archive).unwrap_err().to_string();
    assert!(said(b"").contains("empty"));
    assert!(said(b"hello, this is text").contains("no archive"));
    assert!(said(&zipped(&[("bin/sh", b"sh")])).contains("is a zip"));
    assert!(said(&docker_with(layers, &config(&[tarred(&[])]))).contains("has the digest"));
    assert!(said(&docker_with(layers, &config(&[]))).contains("its configuration names 0"));
    let mut foreign = config(layers);
    foreign["architecture"] = "s390x".into();
    assert!(said(&docker_with(layers, &foreign)).contains("linux/s390x"));
    let zstd = [&[0x28, 0xb5, 0x2f, 0xfd][..], &[0; 64]].concat();
    assert!(
        said(&docker_with(std::slice::from_ref(&zstd), &config(std::slice::from_ref(&zstd)))).contains("Zstandard")
    );
    let listed = |manifest: &[u8]| tarred(&[("manifest.json", FILE, "", manifest)]);
    assert!(said(&listed(b"nonsense")).contains("manifest.json cannot be read"));
    assert!(said(&listed(b"[]")).contains("holds 0 images"));
    assert!(said(&listed(br#"[{"Config":"../../etc/passwd","Layers":[]}]"#)).contains("is not in it"));
    for (name, kind, link) in [("../x", FILE, ""), ("a", HARD, "nothing"), ("s", EntryType::GNUSparse, "")] {
        assert!(flattened(&docker(&[&[(name, kind, link, b"")]])).is_err(), "{name}");
    }
    assert!(said(&docker(&[&[]])).contains("holds no file"));
    assert!(said(&docker(&[&[("bin/.wh.", FILE, "", b"")]])).contains("removes nothing"));
    assert!(said(&tarred(&[("src/main.py", FILE, "", b"x")])).contains("neither an image nor a root file system"));
}

#[test]
fn a_short_disk_takes_no_image() {
    let large = vec![7; 20 << 20];
    let archive = gzipped(&tarred(&[("bin/large", FILE, "", &large)]));
    let folder = tempfile::tempdir().unwrap();
    let error = flatten(file(&archive), folder.path(), u64::MAX, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, ArchiveError::Write(why) if why.kind() == std::io::ErrorKind::StorageFull));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2048)) {
        let mut archive = docker(&[&[("a", FILE, "", b"x")]]);
        let at = bytes.len() % archive.len();
        let length = bytes.len().min(archive.len() - at);
        archive[at..at + length].copy_from_slice(&bytes[..length]);
        // Any result is right; a panic is not.
        let _ = flattened(&archive);
    }
}

#[test]
fn a_folder_that_replaces_a_link_is_emptied_itself() {
    let lower: Entries<'_> = &[("usr/one/kept", FILE, "", b"kept"), ("usr/now", LINK, "one", b"")];
    let upper: Entries<'_> = &[
        ("usr/now/", FOLDER, "", b""),
        ("usr/now/.wh..wh..opq", FILE, "", b""),
        ("usr/now/.wh.kept", FILE, "", b""),
        ("usr/now/new", FILE, "", b"new"),
    ];
    assert_eq!(unpacked(&docker(&[lower, upper])), told(&[("usr/now/new", "new"), ("usr/one/kept", "kept")]));
    // What a layer removes and puts there anew is there, in whichever order it says so.
    let again: Entries<'_> = &[("usr/one/kept", FILE, "", b"again"), ("usr/.wh.one", FILE, "", b"")];
    assert_eq!(unpacked(&docker(&[lower, again])), told(&[("usr/now", "-> one"), ("usr/one/kept", "again")]));
}

#[test]
fn an_image_holds_a_bounded_amount_of_memory() {
    let said = |files: Entries<'_>| flattened(&tarred(files)).unwrap_err().to_string();
    let mut builder = tar::Builder::new(Vec::new());
    let deep = "x/".repeat(5000);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(LINK);
    header.set_size(0);
    let link = builder.append_link(&mut header, "usr", &deep[..4000]);
    link.unwrap();
    let mut file = tar::Header::new_gnu();
    file.set_size(0);
    builder.append_data(&mut file, "usr/f", std::io::empty()).unwrap();
    let refused = flattened(&builder.into_inner().unwrap()).unwrap_err().to_string();
    assert!(refused.contains("too long or too deep"), "{refused}");
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_link(&mut header, "usr", &deep).unwrap();
    let refused = flattened(&builder.into_inner().unwrap()).unwrap_err().to_string();
    assert!(refused.contains("cannot be a path"), "{refused}");
    assert!(said(&[("usr", LINK, "", b"")]).contains("cannot be a path"));
    // Folders that names imply count.
    let bounds = Bounds { entries: 10, ..Bounds::IMAGE };
    let layer = Layer::whole(super::super::tests::file(&tarred(&[("a/b/c/d/e/f/g/h/i/j/k", FILE, "", b"")]))).unwrap();
    assert!(matches!(Tree::new(bounds).fill(&layer), Err(ArchiveError::TooLarge(_))));
}

#[test]
fn a_layer_that_is_named_often_is_unpacked_once() {
    let layer = tarred(&[("bin/sh", FILE, "", &vec![7; 1 << 20])]);
    let layers = vec![layer; 200];
    assert_eq!(flattened(&docker_with(&layers, &config(&layers))).unwrap().0.unpacked, (1 << 20) + 2 * 4096);
}
