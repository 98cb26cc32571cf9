//! Archives as people make them, and as attackers do.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};
use zip::write::SimpleFileOptions;

use faena_domain::program::Tree as _;

use super::*;

pub(super) fn zipped(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, data) in files {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(data).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn entry(builder: &mut tar::Builder<Vec<u8>>, name: &str, kind: EntryType, link: &str, data: &[u8]) {
    let mut header = Header::new_gnu();
    // The builder's own checks would stand in the way of an attacker.
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o755);
    header.set_cksum();
    builder.append(&header, data).unwrap();
}

pub(super) fn tarred(entries: &[(&str, EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, link, data) in entries {
        entry(&mut builder, name, *kind, link, data);
    }
    builder.into_inner().unwrap()
}

pub(super) fn gzipped(data: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(data).unwrap();
    gzip.finish().unwrap()
}

pub(super) fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn checked(bytes: &[u8]) -> Result<Checked, ArchiveError> {
    check(&mut file(bytes), &Bounds::SOURCE)
}

pub(super) const FILE: EntryType = EntryType::Regular;

#[test]
fn the_format_is_told_by_the_bytes() {
    let tar = tarred(&[("a", FILE, "", b"x")]);
    assert_eq!(checked(&zipped(&[("a", b"x")])).unwrap().format, Format::Zip);
    assert_eq!(checked(&gzipped(&tar)).unwrap().format, Format::TarGz);
    assert_eq!(checked(&tar).unwrap().format, Format::Tar);
}

#[test]
fn what_is_no_archive_is_refused() {
    assert!(matches!(checked(b""), Err(ArchiveError::Empty)));
    assert!(matches!(checked(&b"print('hello')\n".repeat(50)), Err(ArchiveError::Unknown)));
    assert!(matches!(checked(&zipped(&[])), Err(ArchiveError::NoFiles)));
    assert!(checked(&gzipped(&b"x".repeat(5000))).is_err());
    let zip = zipped(&[("a", b"hello")]);
    assert!(checked(&zip[..zip.len() / 2]).is_err());
    let noise: Vec<u8> = (0..20_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let tar = gzipped(&tarred(&[("a", FILE, "", &noise)]));
    assert!(checked(&tar[..tar.len() / 2]).is_err());
    assert!(checked(&tar[..tar.len() - 4]).is_err(), "without its checksum");
}

#[test]
fn entries_that_reach_out_hide_or_repeat_are_refused() {
    let link = EntryType::Symlink;
    let hostile: Vec<Vec<u8>> = vec![
        zipped(&[("../canary", b"x")]),
        zipped(&[("a/../../canary", b"x")]),
        zipped(&[("/tmp/canary", b"x")]),
        zipped(&[("..\\canary", b"x")]),
        zipped(&[("C:\\canary", b"x")]),
        tarred(&[("a", FILE, "", b"x"), ("a", FILE, "", b"y")]),
        tarred(&[("../canary", FILE, "", b"x")]),
        tarred(&[("/tmp/canary", FILE, "", b"x")]),
        tarred(&[("l", link, "/etc/passwd", b"")]),
        tarred(&[("l", link, "../x", b"")]),
        tarred(&[("l", EntryType::Link, "/etc/passwd", b"")]),
        tarred(&[("d", EntryType::Char, "", b"")]),
        tarred(&[("f", EntryType::Fifo, "", b"")]),
        tarred(&[("d", EntryType::Directory, "", b""), ("l", link, "d", b""), ("l/x", FILE, "", b"x")]),
        tarred(&[("d/x", FILE, "", b"x"), ("l", link, "d", b""), ("l", EntryType::Directory, "", b"")]),
        tarred(&[("a", FILE, "", b"x"), ("a/b", FILE, "", b"y")]),
        tarred(&[("a/b", FILE, "", b"y"), ("a", FILE, "", b"x")]),
        tarred(&[("a/b", FILE, "", b"y"), ("a", link, "c", b"")]),
        tarred(&[("a\nb", FILE, "", b"x")]),
    ];
    for bytes in hostile {
        let refused = checked(&bytes);
        assert!(matches!(refused, Err(ArchiveError::Entry { .. } | ArchiveError::Damaged(_))), "{refused:?}");
    }
}

#[test]
fn bombs_are_refused_by_size_ratio_and_count() {
    let zeros = vec![0; 200 * 1024 * 1024];
    assert!(matches!(checked(&zipped(&[("zeros", &zeros)])), Err(ArchiveError::TooLarge(_))));
    assert!(matches!(checked(&gzipped(&tarred(&[("zeros", FILE, "", &zeros)]))), Err(ArchiveError::TooLarge(_))));
    let names: Vec<String> = (0..20_001).map(|n| format!("f{n}")).collect();
    let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), b"".as_slice())).collect();
    assert!(matches!(checked(&zipped(&many)), Err(ArchiveError::TooLarge(_))));
    // Folders that have no entry of their own are made all the same.
    let deep: Vec<String> = (0..1_000).map(|n| format!("{n}/{}f", "d/".repeat(30))).collect();
    let deep: Vec<(&str, &[u8])> = deep.iter().map(|name| (name.as_str(), b"".as_slice())).collect();
    assert!(matches!(checked(&zipped(&deep)), Err(ArchiveError::TooLarge(_))));
}

#[test]
fn a_small_archive_of_little_variety_is_no_bomb() {
    let zeros = vec![0; 60 * 1024 * 1024];
    assert_eq!(checked(&zipped(&[("zeros", &zeros)])).unwrap().bytes, zeros.len() as u64);
}

#[test]
fn names_that_differ_in_case_are_two_files() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = zipped(&[("LICENSE", b"A"), ("license", b"B"), ("E/x", b"C"), ("e/x", b"D")]);
    assert_eq!(checked(&bytes).unwrap().listing.inodes(), 6);
    unpack(&mut file(&bytes), folder.path(), &Bounds::SOURCE, Disk::default()).unwrap();
    assert_eq!(std::fs::read(folder.path().join("e/x")).unwrap(), b"D");
}

/// A zip of one file, `LENGTH` bytes of whose name are replaced in one or both of its headers.
fn renamed(from: &str, to: &[u8], headers: usize) -> Vec<u8> {
    let mut bytes = zipped(&[(from, b"x")]);
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from.as_bytes())).collect();
    for at in places.into_iter().rev().take(headers) {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    bytes
}

#[test]
fn a_name_that_is_no_utf_8_is_of_code_page_437() {
    let checked = checked(&renamed("seXal", b"se\xa4al", 2)).unwrap();
    assert!(checked.listing.below("").has_file("señal"));
}

#[test]
fn an_entry_with_two_names_is_refused() {
    assert!(matches!(checked(&renamed("first", b"other", 1)), Err(ArchiveError::Damaged(_))));
}

#[test]
fn a_backslash_separates_folders_only_on_windows() {
    use zip::System;
    let of = |system| {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        zip.start_file("a\\b", SimpleFileOptions::default().system(system)).unwrap();
        zip.write_all(b"x").unwrap();
        checked(&zip.finish().unwrap().into_inner()).unwrap().listing
    };
    assert!(of(System::Dos).below("").has_file("a/b"));
    assert!(of(System::Unix).below("").has_file("a\\b"));
}

#[test]
fn a_method_that_is_not_read_is_named() {
    let mut bytes = zipped(&[("a", b"hello")]);
    // The method stands behind the version and the flags of each header (APPNOTE 4.3.7 and 4.3.12).
    let central = bytes.windows(4).position(|four| four == b"PK\x01\x02").unwrap();
    for at in [8, central + 10] {
        bytes[at] = 14;
    }
    let error = checked(&bytes).unwrap_err();
    assert!(matches!(&error, ArchiveError::Unsupported { how, .. } if how.to_lowercase().contains("lzma")), "{error}");
}

#[test]
fn one_folder_around_everything_is_told() {
    let only = |files: &[(&str, &[u8])]| {
        let checked = checked(&zipped(files)).unwrap();
        (checked.listing.only_folder().map(str::to_owned), checked.manifest)
    };
    let mac =
        [("__MACOSX/fn/._a", b"x".as_slice()), (".DS_Store", b"x"), ("fn/a", b"x"), ("fn/faena.toml", b"retries = 1")];
    assert_eq!(only(&mac), (Some("fn".to_owned()), Some("retries = 1".to_owned())));
    assert_eq!(only(&[("fn/a", b"x"), ("b", b"x"), ("fn/faena.toml", b"y")]), (None, None));
    assert_eq!(only(&[("a", b"x")]), (None, None));
}

#[test]
fn a_manifest_is_found_whatever_its_path_begins_with() {
    let bytes = gzipped(&tarred(&[("./", EntryType::Directory, "", b""), ("./faena.toml", FILE, "", b"retries = 1")]));
    assert_eq!(checked(&bytes).unwrap().manifest.as_deref(), Some("retries = 1"));
}

#[test]
fn the_manifest_is_found_at_the_top() {
    let bytes = zipped(&[("sub/faena.toml", b"no"), ("faena.toml", b"retries = 1"), ("a", b"")]);
    assert_eq!(checked(&bytes).unwrap().manifest.as_deref(), Some("retries = 1"));
}

#[test]
fn a_tree_is_unpacked_with_plain_modes() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = tarred(&[
        ("./", EntryType::Directory, "", b""),
        ("a/b/f", FILE, "", b"deep"),
        ("a/l", EntryType::Symlink, "b/f", b""),
    ]);
    unpack(&mut file(&bytes), folder.path(), &Bounds::SOURCE, Disk::default()).unwrap();
    assert_eq!(std::fs::read(folder.path().join("a/l")).unwrap(), b"deep");
    let mode = |path: &str| std::fs::metadata(folder.path().join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("a/b/f"), mode("a")), (0o755, 0o755));
}

#[test]
fn an_artifacts_links_are_stored_and_never_followed() {
    let outside = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let to = outside.path().display().to_string();
    let link = tarred(&[("bin", EntryType::Symlink, &to, b"")]);
    unpack(&mut file(&link), folder.path(), &Bounds::ARTIFACT, Disk::default()).unwrap();
    assert_eq!(std::fs::read_link(folder.path().join("bin")).unwrap(), outside.path());
    // A second archive into the same folder stands for one that got past the judge.
    let through = tarred(&[("bin/canary", FILE, "", b"x")]);
    assert!(unpack(&mut file(&through), folder.path(), &Bounds::ARTIFACT, Disk::default()).is_err());
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn long_names_are_read_and_longer_extensions_refused() {
    let long = format!("{}/f", "d".repeat(150));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    builder.append_data(&mut header, &long, &b"x"[..]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    unpack(&mut file(&builder.into_inner().unwrap()), folder.path(), &Bounds::SOURCE, Disk::default()).unwrap();
    assert!(folder.path().join(&long).is_file());
    let name = vec![b'n'; 1_000_000];
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader, EntryType::XGlobalHeader] {
        assert!(matches!(checked(&tarred(&[("x", kind, "", &name)])), Err(ArchiveError::Damaged(_))), "{kind:?}");
    }
}

#[test]
fn a_tar_whose_first_name_looks_like_gzip_is_a_tar() {
    let bytes = tarred(&[("\u{1f}x", FILE, "", b"x")]);
    assert_eq!(format(&mut file(&bytes)).unwrap(), Format::Tar);
}

#[test]
fn a_zip_with_a_second_directory_is_refused() {
    let mut bytes = zipped(&[("a", b"x")]);
    let end = bytes.len();
    bytes[end - 6..end - 2].copy_from_slice(&[0xff; 4]);
    assert!(matches!(checked(&bytes), Err(ArchiveError::Damaged(_))));
}

#[test]
fn an_image_keeps_hard_links_and_leaves_devices_out() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = tarred(&[
        ("usr/bin/tool", FILE, "", b"bytes"),
        ("usr/bin/other", EntryType::Link, "usr/bin/tool", b""),
        ("dev/sda", EntryType::Block, "", b""),
        ("lib\\x2dname", FILE, "", b"x"),
    ]);
    unpack(&mut file(&bytes), folder.path(), &Bounds::IMAGE, Disk::default()).unwrap();
    assert_eq!(std::fs::read(folder.path().join("usr/bin/other")).unwrap(), b"bytes");
    assert!(!folder.path().join("dev/sda").exists() && folder.path().join("lib\\x2dname").is_file());
    for target in ["/etc/passwd", "../../etc/passwd", "nothing"] {
        let bytes = tarred(&[("a", EntryType::Link, target, b"")]);
        assert!(unpack(&mut file(&bytes), folder.path(), &Bounds::IMAGE, Disk::default()).is_err(), "{target}");
    }
}
