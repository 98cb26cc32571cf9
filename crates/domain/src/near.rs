//! The near name: what somebody probably meant.

/// The candidate most like `word`, where one is near enough to be worth naming.
///
/// Near enough is a Jaro-Winkler likeness of 0.8, the threshold that `clap` settled on for its own hints.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&word.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_slip_of_the_finger_is_recognised() {
        assert_eq!(nearest("imagee", ["image", "path", "run"]), Some("image"));
        assert_eq!(nearest("tiemoutMs", ["timeoutMs", "retries"]), Some("timeoutMs"));
    }

    #[test]
    fn a_stranger_is_not() {
        assert_eq!(nearest("colour", ["image", "path", "run"]), None);
    }
}
