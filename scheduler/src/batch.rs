//! What goes to db in one message.

use faena_domain::units::KB;

/// The most calls of one message, and what their payloads may hold before it takes no more. Written as JSON they may be six
/// times as long, and the last call may bring another 256 KB: a message is at most 4 MB.
pub const BOUNDS: (usize, u64) = (256, 256 * KB);

/// The first of many and whatever is there beside it, up to so many and, before the last of them, so many bytes.
pub fn gather<T>(
    first: T,
    mut next: impl FnMut() -> Option<T>,
    held_by: impl Fn(&T) -> u64,
    (most, most_bytes): (usize, u64),
) -> Vec<T> {
    let mut bytes = held_by(&first);
    let mut batch = vec![first];
    while batch.len() < most && bytes < most_bytes {
        let Some(one) = next() else { break };
        bytes += held_by(&one);
        batch.push(one);
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_ends_at_either_bound_or_with_what_is_there() {
        let gather_up_to = |bounds| {
            let mut rest = [2, 3, 4].into_iter();
            gather(1, || rest.next(), |size| *size, bounds)
        };
        assert_eq!(gather_up_to((9, 99)), [1, 2, 3, 4]);
        assert_eq!(gather_up_to((2, 99)), [1, 2]);
        assert_eq!(gather_up_to((9, 4)), [1, 2, 3]);
    }
}
