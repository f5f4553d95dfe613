//! Bytes, rates and durations as people and machines read them. Knows no
//! measurement; only how a number with a unit is written.

use std::time::Duration;

/// One mebibyte in bytes.
pub const MIB: u64 = 1 << 20;
/// One gibibyte in bytes.
pub const GIB: u64 = 1 << 30;

/// Whole nanoseconds, the unit of every raw line; the most that fits for the
/// 585 years beyond.
#[must_use]
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Milliseconds as a float, the unit of every latency in `summary.json`.
#[must_use]
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Microseconds as a float, the unit of send spreads.
#[must_use]
pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// A latency in milliseconds with three significant digits: `0.482`, `12.3`, `1 234`.
#[must_use]
pub fn format_ms(ms: f64) -> String {
    format_significant(ms)
}

/// A number with three significant digits below 1000 and none after the point above.
#[must_use]
pub fn format_significant(value: f64) -> String {
    let magnitude = value.abs();
    if !value.is_finite() {
        "-".to_owned()
    } else if magnitude >= 100.0 {
        format!("{value:.0}")
    } else if magnitude >= 10.0 {
        format!("{value:.1}")
    } else if magnitude >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}

/// Bytes in binary units: `512 B`, `93.8 MiB`, `5.98 GiB`.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn format_bytes(bytes: u64) -> String {
    const STEPS: [(&str, u64); 4] =
        [("TiB", 1 << 40), ("GiB", GIB), ("MiB", MIB), ("KiB", 1 << 10)];
    STEPS.iter().find(|(_, size)| bytes >= *size).map_or_else(
        || format!("{bytes} B"),
        |(unit, size)| format!("{} {unit}", format_significant(bytes as f64 / *size as f64)),
    )
}

/// Bytes as lower-case hexadecimal digits, as digests are written.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A byte count as a user writes it: `1073741824`, `512MiB`, `1.5 GiB`, `2GB`.
///
/// # Errors
/// A sentence naming the text and the accepted forms.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "checked to be finite, not negative and below 2^63 first"
)]
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "kb" => 1_000,
        "m" | "mib" => MIB,
        "mb" => 1_000_000,
        "g" | "gib" => GIB,
        "gb" => 1_000_000_000,
        _ => {
            return Err(format!(
                "`{text}` is no size: expected a number with B, KiB, MiB, GiB, KB, MB or GB"
            ));
        }
    };
    let value: f64 = number
        .parse()
        .map_err(|_| format!("`{text}` is no size: expected a number such as 512MiB"))?;
    let bytes = value * scale as f64;
    if bytes.is_finite() && (0.0..9e18).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err(format!("`{text}` is out of range for a size"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_trip_through_people() {
        assert_eq!(format_bytes(98_362_432), "93.8 MiB");
        assert_eq!(parse_bytes("1.5 GiB"), Ok(3 * GIB / 2));
        assert_eq!(parse_bytes("64"), Ok(64));
        assert!(parse_bytes("12 parsecs").unwrap_err().contains("12 parsecs"));
        assert!(parse_bytes("-1").is_err());
    }

    #[test]
    fn digits_follow_magnitude() {
        assert_eq!(format_ms(0.4821), "0.482");
        assert_eq!(format_ms(12.34), "12.3");
        assert_eq!(format_ms(1234.4), "1234");
    }
}
