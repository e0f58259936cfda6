//! Bodies that do not come to an end.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::StreamBody;
use hyper::body::Frame;

use crate::fixture::{KEY, fixture};

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_given_up() {
    let fixture = fixture();
    let body = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>());
    let request = Request::post("/api/publish").header("x-api-key", KEY).body(body).unwrap();
    let started = tokio::time::Instant::now();
    let reply = tokio::time::timeout(Duration::from_secs(600), fixture.api.route(request)).await.expect("a reply");
    assert_eq!((reply.status(), started.elapsed().as_secs()), (StatusCode::REQUEST_TIMEOUT, 30));
}
