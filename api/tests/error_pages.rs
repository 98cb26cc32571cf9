//! Every code that a problem document may carry has a page that says what to do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::collections::BTreeSet;
use std::path::Path;

/// Words after which a code stands in the source, as the first or the next text.
const BEFORE: [&str; 3] = ["::invalid(", "not_permitted(", "StatusCode::"];

/// The codes of one file; more than there are would be noticed by their missing pages.
fn codes_of(text: &str, codes: &mut BTreeSet<String>) {
    for (at, word) in BEFORE.iter().flat_map(|word| text.match_indices(word)) {
        let after: String = text[at + word.len()..].chars().take(90).collect();
        let Some(quoted) = after.split('"').nth(1) else { continue };
        if quoted.len() > 2 && quoted.bytes().all(|c| c.is_ascii_lowercase() || c == b'_') {
            codes.insert(quoted.to_owned());
        }
    }
}

fn walk(folder: &Path, codes: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() {
            walk(&entry.path(), codes);
        } else {
            codes_of(&std::fs::read_to_string(entry.path()).unwrap(), codes);
        }
    }
}

#[test]
fn every_code_has_a_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut codes = BTreeSet::new();
    walk(&root.join("src"), &mut codes);
    assert!(codes.len() > 30, "{codes:?}");
    let missing: Vec<&String> =
        codes.iter().filter(|code| !root.join(format!("../docs/errors/{code}.md")).is_file()).collect();
    assert!(missing.is_empty(), "no page for {missing:?}");
}
