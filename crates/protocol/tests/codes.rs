//! The code table against docs/protocol.md and against the rules that clients go by.

use plenum_protocol::codes::{Kind, Row, TABLE};
use plenum_protocol::{Disconnect, ErrorCode, ErrorReply, PushEvent, Unsubscribed};

const DOC: &str = include_str!("../../../docs/protocol.md");

fn rows(kind: Kind) -> impl Iterator<Item = &'static Row> {
    TABLE.iter().filter(move |row| row.kind == kind)
}

fn table(kind: Kind) -> String {
    let mut text = String::from("| code | text | sent when | what a client does |\n| --- | --- | --- | --- |\n");
    for Row { code, text: name, when, client, .. } in rows(kind) {
        text += &format!("| {code} | {name} | {when} | {client} |\n");
    }
    text
}

#[test]
fn the_document_has_these_tables() {
    for kind in [Kind::Error, Kind::Unsubscribe, Kind::Disconnect] {
        let table = table(kind);
        assert!(DOC.contains(&table), "docs/protocol.md lacks this table of {kind:?} codes:\n\n{table}");
    }
    let codes = DOC.lines().filter(|line| line.starts_with("| ") && line[2..].starts_with(char::is_numeric)).count();
    assert_eq!(codes, TABLE.len(), "docs/protocol.md has codes that we do not");
}

#[test]
fn numbers_increase_and_lie_in_their_ranges() {
    for (kind, range) in [(Kind::Error, 100..=399), (Kind::Unsubscribe, 0..=2999), (Kind::Disconnect, 3000..=3999)] {
        let codes: Vec<u32> = rows(kind).map(|row| row.code).collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
        assert!(codes.iter().all(|code| range.contains(code)), "{codes:?}");
    }
    assert_eq!(rows(Kind::Error).map(|row| row.code).collect::<Vec<_>>(), (100..=113).collect::<Vec<_>>());
}

#[test]
fn reasons_fit_into_a_close_frame() {
    assert!(rows(Kind::Disconnect).all(|row| row.text.len() <= 123));
}

#[test]
fn clients_come_back_by_range() {
    for (code, back) in [(3000, true), (3499, true), (3500, false), (3999, false), (4000, true), (4499, true)] {
        assert_eq!(Disconnect::custom(code, "").reconnects(), back, "{code}");
    }
    for (code, back) in [(4500, false), (4999, false), (5000, true)] {
        assert_eq!(Disconnect::custom(code, "").reconnects(), back, "{code}");
    }
    for row in rows(Kind::Disconnect) {
        let stays = row.client == "stays disconnected";
        assert_eq!(Disconnect::custom(row.code as u16, row.text).reconnects(), !stays, "{row:?}");
    }
    for row in rows(Kind::Unsubscribe) {
        let code = Unsubscribed { code: row.code, reason: row.text.into() };
        assert_eq!(code.resubscribes(), row.client.contains("subscribes again"), "{row:?}");
    }
}

#[test]
fn codes_become_messages() {
    let error = ErrorReply::from(ErrorCode::TOO_MANY_REQUESTS);
    assert_eq!((error.code, error.message.as_ref(), error.temporary), (111, "too many requests", true));
    assert!(!ErrorReply::from(ErrorCode::TOKEN_EXPIRED).temporary, "clients know 109 by its number");
    let push = PushEvent::from(Unsubscribed::INSUFFICIENT_STATE);
    assert_eq!(push, PushEvent::Unsubscribe { code: 2500, reason: "insufficient state".into() });
    let push = PushEvent::from(Disconnect::custom(4500, "banned"));
    assert_eq!(push, PushEvent::Disconnect { code: 4500, reason: "banned".into(), reconnect: false });
    assert_eq!(Disconnect::SLOW.to_string(), "3008 slow");
}
