//! Sizes in bytes, as people write them.

/// Return the bytes of `500000`, `10MB`, `1.5MiB`; a part of a byte is dropped.
///
/// # Errors
/// Returns the reason if the number is invalid or the unit is unknown.
pub(super) fn bytes_of(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit: u64 = match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" => 1 << 30,
        other => return Err(format!("{other:?} is not a unit: kB, KiB, MB, MiB, GB, GiB")),
    };
    multiplied(number, unit).ok_or_else(|| format!("{number:?} is not a number of bytes"))
}

fn multiplied(number: &str, unit: u64) -> Option<u64> {
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let digits = u32::try_from(part.len()).ok()?;
    let part = u128::from(part.parse::<u64>().ok()?) * u128::from(unit) / 10u128.checked_pow(digits)?;
    whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("0", 0),
            ("500000", 500_000),
            ("10MB", 10_000_000),
            ("1.5MiB", 1_572_864),
            ("2GiB", 2 << 30),
            ("0.1B", 0),
        ] {
            assert_eq!(bytes_of(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "MB", "1.MB", ".5MB", "1.2.3MB", "10XB", "-1", "99999999999999999999", "99999999999GiB"]
        {
            assert!(bytes_of(text).is_err(), "{text}");
        }
    }
}
