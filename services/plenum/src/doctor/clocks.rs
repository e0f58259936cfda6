//! Clocks of servers against this machine's.

use std::time::{SystemTime, UNIX_EPOCH};

use plenum_bus_nats::check::skew;
use plenum_telemetry::Finding;

/// Dates in headers are not better than this, with the way of the answer, milliseconds.
const RESOLUTION: i64 = 2_000;

/// Of Redis servers, by how many milliseconds each is ahead.
pub fn redis(clocks: Vec<(String, i64)>) -> impl Iterator<Item = Finding> {
    clocks.into_iter().map(|(server, ahead)| skew(format!("clock of Redis server {server}"), ahead))
}

/// By the header `Date` of an answer that came just now; `None` where there is none.
pub fn by_date(subject: String, date: &str) -> Option<Finding> {
    let date = httpdate::parse_http_date(date).ok()?;
    // The header names whole seconds, cut off: on average it is half a second late.
    let ahead = unix_ms(date) + 500 - unix_ms(SystemTime::now());
    Some(match ahead.abs() {
        0..=RESOLUTION => Finding::good(subject, "within 2 s of this machine's, as far as whole seconds tell"),
        _ => skew(subject, ahead),
    })
}

fn unix_ms(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use plenum_telemetry::State;

    use super::*;

    #[test]
    fn a_date_tells_seconds() {
        let at = |seconds: i64| {
            let time =
                UNIX_EPOCH + std::time::Duration::from_millis((unix_ms(SystemTime::now()) + seconds * 1000) as u64);
            by_date("server".into(), &httpdate::fmt_http_date(time)).unwrap().state
        };
        assert_eq!((at(0), at(-10), at(120)), (State::Good, State::Warning, State::Failed));
        assert_eq!(by_date("server".into(), ""), None);
    }
}
