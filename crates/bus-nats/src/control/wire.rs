//! What control messages look like: JSON, answers in parts that fit into a message.

use std::collections::BTreeMap;

use plenum_channels::{Answer, Order, Question};
use serde::{Deserialize, Serialize};

/// Channels in one part: names of 255 bytes and their counts stay below the server's megabyte.
const CHANNELS_PER_PART: usize = 2000;

/// Most parts of an answer that are taken: two million channels.
pub(super) const MAX_PARTS: u32 = 1024;

#[derive(Serialize, Deserialize)]
pub(super) struct Call {
    /// The run of the replica that calls.
    pub from: u64,
    pub id: u64,
    pub what: What,
}

#[derive(Serialize, Deserialize)]
pub(super) enum What {
    Order(Order),
    Question(Question),
}

#[derive(Serialize, Deserialize)]
pub(super) struct Reply {
    pub from: u64,
    pub part: u32,
    pub parts: u32,
    /// `None` for an order that was carried out.
    pub answer: Option<Answer>,
}

/// The messages of an answer.
pub(super) fn split(from: u64, answer: Option<Answer>) -> Vec<Vec<u8>> {
    let parts: Vec<Option<Answer>> = match answer {
        Some(Answer::Channels(channels)) if channels.len() > CHANNELS_PER_PART => {
            let all: Vec<_> = channels.into_iter().collect();
            let part = |part: &[(String, u32)]| Some(Answer::Channels(part.iter().cloned().collect()));
            all.chunks(CHANNELS_PER_PART).take(MAX_PARTS as usize).map(part).collect()
        }
        other => vec![other],
    };
    let count = parts.len() as u32;
    let reply = |(part, answer): (usize, Option<Answer>)| Reply { from, part: part as u32, parts: count, answer };
    parts.into_iter().enumerate().map(reply).filter_map(|reply| serde_json::to_vec(&reply).ok()).collect()
}

/// The answer of all its parts.
pub(super) fn merge(parts: Vec<Reply>) -> Option<Answer> {
    let mut answers = parts.into_iter().map(|part| part.answer);
    let mut whole = answers.next()??;
    for answer in answers {
        if let (Answer::Channels(whole), Some(Answer::Channels(more))) = (&mut whole, answer) {
            whole.extend::<BTreeMap<_, _>>(more);
        }
    }
    Some(whole)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn large_answers_are_split_and_come_back() {
        let channels: BTreeMap<String, u32> = (0..4500).map(|n| (format!("{n:0>255}"), n)).collect();
        let parts = split(7, Some(Answer::Channels(channels.clone())));
        assert_eq!(parts.len(), 3);
        assert!(parts.iter().all(|part| part.len() < 1 << 20));
        let parts = parts.iter().map(|part| serde_json::from_slice(part).unwrap()).collect();
        assert_eq!(merge(parts), Some(Answer::Channels(channels)));
        let none: Vec<Reply> = split(7, None).iter().map(|part| serde_json::from_slice(part).unwrap()).collect();
        assert_eq!((none.len(), none[0].from), (1, 7));
        assert_eq!(merge(none), None);
    }
}
