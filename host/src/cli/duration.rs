//! Durations of the command line: `500ms`, `30s`, `5m`, `1h`.

use std::time::Duration;

/// Longest duration that is accepted.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Parse a duration: a decimal number and a unit, `ms`, `s`, `m` or `h`.
///
/// # Errors
/// Returns the reason if the unit is missing or unknown, or the duration is not from 1 ms to 24 hours.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "" => return Err("a unit is missing: 500ms, 30s, 5m, 1h".to_owned()),
        other => return Err(format!("{other:?} is not a unit: 500ms, 30s, 5m, 1h")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{number:?} is not a number"))?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if duration >= Duration::from_millis(1) && duration <= LONGEST => Ok(duration),
        _ => Err("it must be from 1ms to 24h".to_owned()),
    }
}

/// Format a duration for people: `90 s`, `10 min`, `24 h`.
pub(super) fn spoken(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        seconds if seconds % 3600 == 0 => format!("{} h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}

/// Return the duration in whole milliseconds, the unit of the admin protocol.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_are_parsed_and_malformed_ones_are_refused() {
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
