//! Batches against a socket that takes what it likes.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::future::poll_fn;

use super::*;

/// Takes random pieces, and often nothing.
struct Moody {
    random: StdRng,
    taken: Vec<u8>,
    calls: usize,
}

impl Moody {
    fn take(&mut self, pieces: &[IoSlice<'_>], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.calls += 1;
        if self.random.random() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let offered: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        let taken = self.random.random_range(1..=offered.len());
        self.taken.extend(&offered[..taken]);
        Poll::Ready(Ok(taken))
    }
}

impl AsyncWrite for Moody {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().take(&[IoSlice::new(bytes)], cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().take(pieces, cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.get_mut().random.random() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Payloads of the frames in `bytes`.
fn payloads(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let [_, short, rest @ ..] = bytes {
        let (length, rest) = match short {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            127 => (u64::from_be_bytes(rest[..8].try_into().unwrap()) as usize, &rest[8..]),
            short => (usize::from(*short), rest),
        };
        found.push(&rest[..length]);
        bytes = &rest[length..];
    }
    found
}

#[tokio::test(start_paused = true)]
async fn whatever_the_socket_takes_the_bytes_are_whole_and_in_order() {
    let mut random = StdRng::seed_from_u64(3);
    let mut batch = Batch::default();
    for round in 0..60 {
        let messages: Vec<Bytes> = (0..random.random_range(1..=MAX_MESSAGES))
            .map(|n| {
                let length = [1, 50, 200, 9_000, 70_000][random.random_range(0..5usize)];
                Bytes::from(format!("{n}:{}", "p".repeat(length)))
            })
            .collect();
        let bytes: usize = messages.iter().map(Bytes::len).sum();
        let mut socket = Moody { random: StdRng::seed_from_u64(round), taken: Vec::new(), calls: 0 };
        batch.push_messages(&mut messages.clone(), Framing::Lines);
        let outcome =
            poll_fn(|cx| Poll::Ready(batch.poll_write(cx, &mut socket, Duration::from_secs(1)))).await.unwrap();
        let sent = match outcome {
            Ok(sent) => sent,
            Err(mut unsent) => poll_fn(|cx| unsent.poll(cx, &mut socket)).await.unwrap(),
        };
        assert_eq!((sent.messages, sent.bytes), (messages.len(), bytes));
        assert_eq!(batch.len(), 0);
        let frames = payloads(&socket.taken);
        let lines: Vec<&[u8]> = frames.iter().flat_map(|frame| frame.split(|byte| *byte == b'\n')).collect();
        assert!(lines == messages.iter().map(|message| &message[..]).collect::<Vec<_>>(), "round {round}");
        for frame in frames {
            assert!(frame.len() <= MAX_JOINED || !frame.contains(&b'\n'));
        }
    }
}

/// A socket that takes one byte a second, or none.
struct Trickle {
    beat: Option<Pin<Box<Sleep>>>,
}

impl AsyncWrite for Trickle {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        let Some(beat) = &mut self.get_mut().beat else { return Poll::Pending };
        ready!(beat.as_mut().poll(cx));
        beat.as_mut().reset(Instant::now() + Duration::from_secs(1));
        Poll::Ready(Ok(1))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

async fn write(mut socket: Trickle, hurry: bool) -> (io::Result<Sent>, Duration) {
    let (mut batch, start) = (Batch::default(), Instant::now());
    batch.push_messages(&mut vec![Bytes::from_static(&[b'x'; 20])], Framing::Lines);
    let outcome = poll_fn(|cx| Poll::Ready(batch.poll_write(cx, &mut socket, Duration::from_secs(5)))).await.unwrap();
    let mut unsent = outcome.unwrap_err();
    if hurry {
        unsent.hurry();
    }
    (poll_fn(|cx| unsent.poll(cx, &mut socket)).await, start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn patience_is_for_sockets_that_move_unless_the_end_is_near() {
    let trickle = || Trickle { beat: Some(Box::pin(sleep(Duration::from_secs(1)))) };
    let (sent, _) = write(trickle(), false).await;
    assert_eq!(sent.unwrap().messages, 1);
    for (socket, hurry) in [(Trickle { beat: None }, false), (trickle(), true)] {
        let (sent, took) = write(socket, hurry).await;
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(took < Duration::from_secs(6));
    }
}
