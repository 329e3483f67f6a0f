//! Durations as they are typed: `500ms`, `30s`, `5m`, `1h`.

use std::time::Duration;

/// Longest that anything may be asked to take.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Reads a duration.
///
/// # Errors
/// When it has no unit, is zero or longer than a day.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "" => return Err("a unit is missing: 500ms, 30s, 5m, 1h".to_owned()),
        other => return Err(format!("{other:?} is no unit: 500ms, 30s, 5m, 1h")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{number:?} is no number"))?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if duration >= Duration::from_millis(1) && duration <= LONGEST => Ok(duration),
        _ => Err("it must be from 1ms to 24h".to_owned()),
    }
}

/// For people: `90 s`, `10 min`, `24 h`.
pub(super) fn spoken(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        seconds if seconds % 3600 == 0 => format!("{} h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}

/// Milliseconds, for the wire.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_are_read_and_junk_is_refused() {
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(parse_duration("2m").unwrap(), Duration::from_secs(120));
        let said = ["500ms", "90s", "600s", "24h"].map(|text| spoken(parse_duration(text).unwrap()));
        assert_eq!(said, ["500 ms", "90 s", "10 min", "24 h"]);
        for bad in ["", "5", "s", "-1s", "0s", "1d", "1e99s", "25h", "..s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
