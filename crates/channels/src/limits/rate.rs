//! Rates as configuration writes them: `"20/1s"`, `"1000/1m"`; empty: none. For `#[serde(with = "rate")]`.

use std::fmt;
use std::time::Duration;

use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};

use crate::Bucket;
use crate::settings::duration;

/// What a rate looks like, for error messages.
pub const EXPECTED: &str = "a rate such as \"20/1s\" or \"1000/1m\" (1 to 1000000 per 1s to 1h), or empty";

/// Reads a rate; `None` when the text is not one, or is out of bounds.
pub fn parse(text: &str) -> Option<Bucket> {
    let (tokens, period) = text.split_once('/')?;
    let (tokens, period) = (tokens.trim().parse().ok()?, duration::parse(period.trim())?);
    let fits =
        (1..=1_000_000).contains(&tokens) && (Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&period);
    fits.then_some(Bucket { tokens, period })
}

/// Writes a rate as [`parse`] reads it.
pub fn format(rate: &Option<Bucket>) -> String {
    rate.map(|rate| format!("{}/{}", rate.tokens, duration::format(&rate.period))).unwrap_or_default()
}

/// Serializes as [`format`] writes it.
pub fn serialize<S: Serializer>(rate: &Option<Bucket>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(rate))
}

/// Deserializes what [`parse`] reads.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bucket>, D::Error> {
    struct Text;
    impl Visitor<'_> for Text {
        type Value = Option<Bucket>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str(EXPECTED)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Option<Bucket>, E> {
            match text {
                "" => Ok(None),
                text => parse(text).map(Some).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self)),
            }
        }
    }
    deserializer.deserialize_any(Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_read_and_write() {
        for (text, tokens, seconds, written) in
            [("20/1s", 20, 1, "20/1s"), ("1000 / 60s", 1000, 60, "1000/1m"), ("1/1h", 1, 3600, "1/1h")]
        {
            let rate = parse(text);
            assert_eq!(rate, Some(Bucket { tokens, period: Duration::from_secs(seconds) }), "{text}");
            assert_eq!(format(&rate), written);
        }
        for text in ["20", "/1s", "20/", "0/1s", "-1/1s", "20/0s", "20/500ms", "20/2h", "1000001/1s", "a/1s", "1/1s/1s"]
        {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(format(&None), "");
    }
}
