//! Conformance of [`Copies`].

use std::time::Duration;

use bytes::Bytes;

use super::{Fixture, run_cases};
use crate::{Copies, MAX_COPY_BYTES};

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_secs(2);

/// All cases of the port [`Copies`].
pub async fn copies_suite(make: impl AsyncFn(usize) -> Fixture<dyn Copies>) {
    run_cases!("copies", make,
        the_newest_copy_is_read_whole => 2,
        what_is_no_copy_is_not_kept => 1,
        copies_expire => 1,
    );
}

/// Bytes that differ from place to place.
fn copy(bytes: usize) -> Bytes {
    (0..bytes).map(|place| (place ^ (place >> 8) ^ (place >> 16)) as u8).collect()
}

async fn the_newest_copy_is_read_whole(fixture: &Fixture<dyn Copies>) {
    let [one, other] = [&fixture.replicas[0], &fixture.replicas[1]];
    assert_eq!(other.copy(1).await, None);
    // Also shorter than the one before, and of any size where a store may cut it.
    for bytes in [1, 1 << 18, (1 << 18) + 1, MAX_COPY_BYTES, (1 << 19) - 1, 7] {
        assert!(one.keep(copy(bytes), LONG).await, "{bytes}");
        assert!(other.copy(bytes).await.is_some_and(|found| found == copy(bytes)), "{bytes}");
        assert_eq!(other.copy(bytes + 1).await, None, "it is not as long");
    }
}

async fn what_is_no_copy_is_not_kept(fixture: &Fixture<dyn Copies>) {
    let copies = &fixture.replicas[0];
    assert!(copies.keep(copy(5), LONG).await);
    for bytes in [0, MAX_COPY_BYTES + 1] {
        assert!(!copies.keep(copy(bytes), LONG).await);
        assert_eq!(copies.copy(bytes).await, None);
    }
    assert_eq!(copies.copy(5).await, Some(copy(5)));
}

async fn copies_expire(fixture: &Fixture<dyn Copies>) {
    let copies = &fixture.replicas[0];
    assert!(copies.keep(copy(9), SHORT).await);
    fixture.let_pass(SHORT + Duration::from_secs(1)).await;
    assert_eq!(copies.copy(9).await, None);
}
