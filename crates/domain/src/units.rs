//! Sizes and spans as people write them: `"256 MB"`, `"1.5s"`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One kilobyte: 1,024 bytes, here and in every message.
pub const KB: u64 = 1024;
/// One megabyte: 1,024 KB.
pub const MB: u64 = 1024 * KB;
/// One gigabyte: 1,024 MB.
pub const GB: u64 = 1024 * MB;

/// A text that is no size or span.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}, which is a number and a unit, like {like}")]
pub struct InvalidUnit {
    text: String,
    what: &'static str,
    like: &'static str,
}

fn split(text: &str) -> Option<(f64, String)> {
    let text = text.trim();
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: f64 = text[..at].trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then(|| (number, text[at..].to_ascii_lowercase()))
}

/// A number of bytes; written with a unit (`B`, `KB`, `MB`, `GB`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = InvalidUnit;

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "finite, not negative, and saturating is right"
    )]
    #[expect(clippy::cast_precision_loss, reason = "the units are powers of two")]
    fn from_str(text: &str) -> Result<Self, InvalidUnit> {
        let invalid = || InvalidUnit { text: text.chars().take(80).collect(), what: "size", like: "\"256 MB\"" };
        let (number, unit) = split(text).ok_or_else(invalid)?;
        let unit = match unit.as_str() {
            "b" => 1,
            "k" | "kb" | "kib" => KB,
            "m" | "mb" | "mib" => MB,
            "g" | "gb" | "gib" => GB,
            _ => return Err(invalid()),
        };
        Ok(Self((number * unit as f64) as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n >= GB && n.is_multiple_of(GB) => write!(f, "{} GB", n / GB),
            n if n >= MB && n.is_multiple_of(MB) => write!(f, "{} MB", n / MB),
            n if n >= KB && n.is_multiple_of(KB) => write!(f, "{} KB", n / KB),
            n => write!(f, "{n} B"),
        }
    }
}

/// A span of time in whole milliseconds; written with a unit (`ms`, `s`, `m`, `h`, `d`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub u64);

impl Span {
    /// The span as the standard library's type.
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl FromStr for Span {
    type Err = InvalidUnit;

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "finite, not negative, and saturating is right"
    )]
    fn from_str(text: &str) -> Result<Self, InvalidUnit> {
        let invalid = || InvalidUnit { text: text.chars().take(80).collect(), what: "span of time", like: "\"30s\"" };
        let (number, unit) = split(text).ok_or_else(invalid)?;
        let unit = match unit.as_str() {
            "ms" => 1.0,
            "s" => 1e3,
            "m" | "min" => 60e3,
            "h" => 3600e3,
            "d" => 24.0 * 3600e3,
            _ => return Err(invalid()),
        };
        Ok(Self((number * unit) as u64))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n if n >= 86_400_000 && n.is_multiple_of(86_400_000) => write!(f, "{}d", n / 86_400_000),
            n if n >= 3_600_000 && n.is_multiple_of(3_600_000) => write!(f, "{}h", n / 3_600_000),
            n if n >= 60_000 && n.is_multiple_of(60_000) => write!(f, "{}m", n / 60_000),
            n if n >= 1000 && n.is_multiple_of(1000) => write!(f, "{}s", n / 1000),
            n => write!(f, "{n}ms"),
        }
    }
}

/// A time that was measured, to the microsecond; written as a number of milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis {
    micros: u64,
}

impl Millis {
    /// So many microseconds.
    pub const fn from_micros(micros: u64) -> Self {
        Self { micros }
    }

    /// So many whole milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self { micros: millis.saturating_mul(1000) }
    }

    /// The time in microseconds.
    pub const fn micros(self) -> u64 {
        self.micros
    }

    /// The time as the standard library's type.
    pub const fn duration(self) -> Duration {
        Duration::from_micros(self.micros)
    }
}

impl From<Duration> for Millis {
    fn from(time: Duration) -> Self {
        Self { micros: u64::try_from(time.as_micros()).unwrap_or(u64::MAX) }
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(16);
        self.push_to(&mut text);
        f.write_str(&text)
    }
}

impl Millis {
    /// Appends it in milliseconds with three decimals, without a formatter: every reply tells three of them.
    pub fn push_to(self, text: &mut String) {
        let mut digits = itoa::Buffer::new();
        text.push_str(digits.format(self.micros / 1000));
        text.push('.');
        // A one before them keeps the zeros that they begin with.
        text.push_str(&digits.format(1000 + self.micros % 1000)[1..]);
    }
}

impl Serialize for Millis {
    #[expect(clippy::cast_precision_loss, reason = "exact below 285 years")]
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.micros.is_multiple_of(1000) {
            serializer.serialize_u64(self.micros / 1000)
        } else {
            serializer.serialize_f64(self.micros as f64 / 1000.0)
        }
    }
}

impl<'de> Deserialize<'de> for Millis {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "what is negative or too large saturates"
    )]
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let millis = f64::deserialize(deserializer)?;
        Ok(Self { micros: (millis * 1000.0).round() as u64 })
    }
}

macro_rules! through_text {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = InvalidUnit;
            fn try_from(text: String) -> Result<Self, InvalidUnit> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    )*};
}
through_text!(ByteSize, Span);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_measured_time_is_told_with_three_decimals() {
        let told = [0, 1, 1500, 2_000_000, 123_456_789].map(|micros| Millis::from_micros(micros).to_string());
        assert_eq!(told, ["0.000", "0.001", "1.500", "2000.000", "123456.789"]);
    }

    #[test]
    fn a_measured_time_is_a_number_of_milliseconds() {
        for (micros, json) in [(0, "0"), (1, "0.001"), (1500, "1.5"), (2_000_000, "2000"), (123_456_789, "123456.789")]
        {
            let time = Millis::from_micros(micros);
            assert_eq!(serde_json::to_string(&time).unwrap(), json);
            assert_eq!(serde_json::from_str::<Millis>(json).unwrap(), time);
        }
        assert_eq!(Millis::from_micros(1042).to_string(), "1.042");
    }

    #[test]
    fn sizes_and_spans_read_as_people_write_them() {
        assert_eq!("256MB".parse(), Ok(ByteSize(256 * MB)));
        assert_eq!("1.5 gb".parse(), Ok(ByteSize(GB + GB / 2)));
        assert_eq!("30s".parse(), Ok(Span(30_000)));
        assert_eq!("2 m".parse(), Ok(Span(120_000)));
        assert_eq!("7d".parse::<Span>().unwrap().to_string(), "7d");
        for text in ["", "256", "MB", "-1 MB", "1 XB", "nan s"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(bytes in 0u64..(1 << 50), millis in 0u64..(1 << 50)) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
            prop_assert_eq!(Span(millis).to_string().parse(), Ok(Span(millis)));
        }
    }
}
