//! What a load test found, and what to think of it.

use std::fmt::Write as _;
use std::time::Duration;

use hashbrown::HashMap;
use serde::Serialize;

use crate::Shared;
use crate::book::{Book, Numbers};

/// What must hold for the test to have passed.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// Least share of connection attempts that succeed, 0 to 1.
    pub connect: f64,
    /// Longest latency of 99 %.
    pub p99: Duration,
    /// Most acknowledged publications that may be missing at a user.
    pub lost: u64,
}

/// Milliseconds from just before a publish to its arrival.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Shortest.
    pub min: f64,
    /// Average.
    pub avg: f64,
    /// Half are shorter.
    pub p50: f64,
    /// 95 % are shorter.
    pub p95: f64,
    /// 99 % are shorter.
    pub p99: f64,
    /// Longest.
    pub max: f64,
}

/// What a load test found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Users asked for.
    pub users: usize,
    /// Users that were connected and subscribed at some time.
    pub users_joined: usize,
    /// Sessions they were spread over.
    pub sessions: usize,
    /// Seconds in which they published.
    pub seconds: f64,
    /// Attempts to connect and subscribe, repeated ones included.
    pub connection_attempts: u64,
    /// Those that succeeded.
    pub connections: u64,
    /// Connections that ended before the test did.
    pub reconnects: u64,
    /// Reconnects that could not be recovered, as the server said.
    pub unrecovered: u64,
    /// Publications sent.
    pub sent: u64,
    /// Publications acknowledged.
    pub acknowledged: u64,
    /// Publications answered with an error.
    pub refused: u64,
    /// Publications without an answer, because the connection ended; nobody promised anything about them.
    pub unanswered: u64,
    /// Publications that arrived, of all users.
    pub received: u64,
    /// Acknowledged publications that never arrived at a user of the session, of all users.
    pub lost: u64,
    /// Publications that arrived twice.
    pub doubled: u64,
    /// Acknowledged publications that arrived behind a later one of the same publisher.
    pub reordered: u64,
    /// Milliseconds.
    pub latency_ms: Latency,
    /// The first failure, in words.
    pub trouble: Option<String>,
}

impl Report {
    pub(crate) fn new(shared: &Shared, books: &[Book], ran: Duration) -> Self {
        let counts = shared.counts.lock();
        let millis = |micros: u64| micros as f64 / 1000.0;
        let latency = &counts.latency;
        let latency_ms = match latency.is_empty() {
            true => Latency::default(),
            false => Latency {
                min: millis(latency.min()),
                avg: latency.mean() / 1000.0,
                p50: millis(latency.value_at_quantile(0.5)),
                p95: millis(latency.value_at_quantile(0.95)),
                p99: millis(latency.value_at_quantile(0.99)),
                max: millis(latency.max()),
            },
        };
        Self {
            users: shared.plan.users,
            users_joined: books.iter().filter(|book| book.joined).count(),
            sessions: shared.plan.sessions,
            seconds: ran.as_secs_f64(),
            connection_attempts: counts.attempts,
            connections: counts.connected,
            reconnects: counts.reconnects,
            unrecovered: counts.unrecovered,
            sent: counts.sent,
            acknowledged: counts.acknowledged,
            refused: counts.refused,
            unanswered: counts.sent.saturating_sub(counts.acknowledged + counts.refused),
            received: counts.received,
            lost: lost(books, |user| shared.session_of(user)),
            doubled: books.iter().map(|book| book.doubled).sum(),
            reordered: reordered(books),
            latency_ms,
            trouble: counts.trouble.clone(),
        }
    }

    /// Share of connection attempts that succeeded, 0 to 1.
    pub fn connect_ratio(&self) -> f64 {
        self.connections as f64 / (self.connection_attempts.max(1)) as f64
    }

    /// What is not as it must be, in words; empty when the test passed.
    pub fn complaints(&self, thresholds: &Thresholds) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut complain = |wrong: bool, text: String| {
            if wrong {
                complaints.push(text);
            }
        };
        let (ratio, p99) = (self.connect_ratio() * 100.0, self.latency_ms.p99);
        complain(
            ratio < thresholds.connect * 100.0,
            format!(
                "{ratio:.2} % of the connection attempts succeeded, at least {:.2} % must",
                thresholds.connect * 100.0
            ),
        );
        complain(
            self.users_joined < self.users,
            format!("{} of {} users never got in", self.users - self.users_joined, self.users),
        );
        complain(self.received == 0, "nothing arrived at anybody".into());
        complain(
            self.lost > thresholds.lost,
            format!("{} acknowledged publications are missing, at most {} may be", self.lost, thresholds.lost),
        );
        complain(self.doubled > 0, format!("{} publications arrived twice", self.doubled));
        complain(self.reordered > 0, format!("{} publications arrived out of order", self.reordered));
        let limit = thresholds.p99.as_secs_f64() * 1000.0;
        complain(p99 > limit, format!("p99 latency is {p99:.2} ms, at most {limit} ms is allowed"));
        complaints
    }

    /// For people: figures, then the assessment.
    pub fn text(&self, thresholds: &Thresholds) -> String {
        let mut text = String::new();
        let latency = &self.latency_ms;
        let rate = |count: u64| count as f64 / self.seconds.max(f64::MIN_POSITIVE);
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<12} {value}");
        };
        line(
            "users",
            format!("{} of {} in {} sessions, {:.1} s", self.users_joined, self.users, self.sessions, self.seconds),
        );
        line(
            "connections",
            format!(
                "{} of {} attempts ({:.2} %), {} reconnects, {} not recovered",
                self.connections,
                self.connection_attempts,
                self.connect_ratio() * 100.0,
                self.reconnects,
                self.unrecovered
            ),
        );
        line(
            "sent",
            format!(
                "{} ({:.1}/s), {} acknowledged, {} refused, {} unanswered",
                self.sent,
                rate(self.sent),
                self.acknowledged,
                self.refused,
                self.unanswered
            ),
        );
        line(
            "received",
            format!(
                "{} ({:.1}/s), {} lost, {} doubled, {} reordered",
                self.received,
                rate(self.received),
                self.lost,
                self.doubled,
                self.reordered
            ),
        );
        line(
            "latency ms",
            format!(
                "min {:.2}  avg {:.2}  p50 {:.2}  p95 {:.2}  p99 {:.2}  max {:.2}",
                latency.min, latency.avg, latency.p50, latency.p95, latency.p99, latency.max
            ),
        );
        if let Some(trouble) = &self.trouble {
            line("first error", trouble.clone());
        }
        let complaints = self.complaints(thresholds);
        match complaints.is_empty() {
            true => line("assessment", "passed: everybody got everything once, in order and in time".into()),
            false => complaints.into_iter().for_each(|complaint| line("FAILED", complaint)),
        }
        text
    }
}

/// Acknowledged publications that are missing at somebody who took part in the session.
fn lost(books: &[Book], session_of: impl Fn(usize) -> usize) -> u64 {
    let mut sessions: HashMap<usize, Vec<&Book>> = HashMap::new();
    for book in books.iter().filter(|book| book.joined) {
        sessions.entry(session_of(book.user)).or_default().push(book);
    }
    let nothing = Numbers::default();
    let pairs =
        sessions.values().flat_map(|books| books.iter().flat_map(move |to| books.iter().map(move |from| (from, to))));
    pairs
        .map(|(from, to)| {
            let received = to.received.get(&(from.user as u32)).map_or(&nothing, |received| &received.numbers);
            from.acknowledged.without(received)
        })
        .sum()
}

/// Acknowledged publications that came behind a later one of their publisher. One whose acknowledgement was never heard may
/// come late: the log went on trying while its publisher went on elsewhere.
fn reordered(books: &[Book]) -> u64 {
    let acknowledged: HashMap<u32, &Numbers> =
        books.iter().map(|book| (book.user as u32, &book.acknowledged)).collect();
    let late = books.iter().flat_map(|book| &book.received);
    late.map(|(from, received)| acknowledged.get(from).map_or(0, |numbers| received.late.within(numbers))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: Thresholds = Thresholds { connect: 1.0, p99: Duration::from_millis(5), lost: 0 };

    fn good() -> Report {
        Report {
            users: 2,
            users_joined: 2,
            connection_attempts: 2,
            connections: 2,
            received: 4,
            latency_ms: Latency { p99: 4.9, ..Latency::default() },
            ..Report::default()
        }
    }

    #[test]
    fn each_thing_that_is_wrong_is_told() {
        assert!(good().complaints(&STRICT).is_empty());
        let wrong = [
            Report { connection_attempts: 3, ..good() },
            Report { users_joined: 1, ..good() },
            Report { received: 0, ..good() },
            Report { lost: 1, ..good() },
            Report { doubled: 1, ..good() },
            Report { reordered: 1, ..good() },
            Report { latency_ms: Latency { p99: 5.1, ..Latency::default() }, ..good() },
        ];
        for report in wrong {
            assert_eq!(report.complaints(&STRICT).len(), 1, "{report:?}");
            assert!(report.text(&STRICT).contains("FAILED"));
        }
    }

    #[test]
    fn what_one_user_of_a_session_missed_is_lost() {
        let mut books: Vec<Book> = (0..4).map(Book::new).collect();
        for book in &mut books {
            book.joined = true;
        }
        for number in 0..10 {
            books[0].acknowledged.insert(number);
            books[0].enter(0, number);
            if number != 3 {
                books[2].enter(0, number);
            }
        }
        let by_parity = |user| user % 2;
        assert_eq!(lost(&books, by_parity), 1, "users 0 and 2 are in one session, 1 and 3 in the other");
        books[2].enter(0, 3);
        assert_eq!(lost(&books, by_parity), 0);
    }
}
