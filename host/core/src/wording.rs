//! Formats numbers as text for people.

/// Format a count with its noun, as `1 partition` or `2 partitions`.
pub fn counted(count: usize, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

/// Format ascending numbers as ranges, as `1-3, 7`.
pub fn ranges(numbers: &[u16]) -> String {
    let runs = numbers.chunk_by(|before, next| before.checked_add(1) == Some(*next));
    let words: Vec<String> = runs
        .filter_map(|run| match run {
            [] => None,
            [one] => Some(one.to_string()),
            [first, .., last] => Some(format!("{first}-{last}")),
        })
        .collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_take_a_plural_and_numbers_collapse_into_ranges() {
        assert_eq!(counted(1, "partition"), "1 partition");
        assert_eq!(counted(0, "partition"), "0 partitions");
        assert_eq!(ranges(&[0, 1, 2, 7, 9, 10]), "0-2, 7, 9-10");
        assert_eq!(ranges(&[u16::MAX]), "65535");
        assert_eq!(ranges(&[]), "");
    }
}
