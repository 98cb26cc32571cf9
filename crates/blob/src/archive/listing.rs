//! What stands where in an archive.

use std::collections::HashMap;

use faena_domain::program::Tree;

/// Names that an error lists.
const SHOWN: usize = 10;

/// What takes a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A regular file.
    File,
    /// A folder, whether or not it has an entry of its own.
    Folder,
    /// A symbolic link.
    Link,
}

/// The normal paths of an archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    places: HashMap<String, Place>,
    only_folder: Option<String>,
}

/// Files that macOS adds to archives by itself: resource forks and the Finder's settings.
pub(super) fn is_by_the_way(name: &str) -> bool {
    name == "__MACOSX" || name == ".DS_Store" || name.starts_with("._")
}

impl Listing {
    pub(super) fn new(places: HashMap<String, Place>) -> Self {
        let mut tops = places.iter().filter(|(path, _)| !path.contains('/') && !is_by_the_way(path));
        let only_folder = match (tops.next(), tops.next()) {
            (Some((name, Place::Folder)), None) => Some(name.clone()),
            _ => None,
        };
        Self { places, only_folder }
    }

    /// The one folder at the top that holds everything, where there is no more; what macOS adds does not count.
    pub fn only_folder(&self) -> Option<&str> {
        self.only_folder.as_deref()
    }

    /// What lies below a root: `""`, or a folder with a slash at its end.
    pub fn below<'a>(&'a self, root: &'a str) -> Below<'a> {
        Below { listing: self, root }
    }

    /// The names of files at the top of a root, in order, at most `most` of them.
    fn top_files(&self, root: &str, most: usize) -> Vec<&str> {
        let below = |path: &'_ String| path.strip_prefix(root).is_some_and(|name| !name.contains('/'));
        let files = self.places.iter().filter(|(path, place)| **place != Place::Folder && below(path));
        let mut names: Vec<&str> =
            files.map(|(path, _)| &path[root.len()..]).filter(|name| !is_by_the_way(name)).collect();
        names.sort_unstable();
        names.truncate(most);
        names
    }

    /// How many files, folders and links there are.
    pub fn inodes(&self) -> u64 {
        self.places.len() as u64
    }
}

/// A part of an archive.
#[derive(Clone, Copy, Debug)]
pub struct Below<'a> {
    listing: &'a Listing,
    root: &'a str,
}

impl Tree for Below<'_> {
    fn has_file(&self, path: &str) -> bool {
        let parts = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect::<Vec<_>>().join("/");
        matches!(self.listing.places.get(&format!("{}{parts}", self.root)), Some(Place::File | Place::Link))
    }

    fn top_files(&self) -> Vec<String> {
        self.listing.top_files(self.root, SHOWN).into_iter().map(str::to_owned).collect()
    }
}
