//! The WebSocket transport.
//!
//! [`Websocket`] answers an upgrade request and starts one task per connection; the task moves bytes between the socket
//! and an [`Endpoint`], which is the domain's session in the server and can be anything in a test. Between messages a
//! connection holds no buffers.

mod batch;
mod connection;
mod ending;
mod endpoint;
mod forwarded;
mod frame;
mod handshake;
mod origin;
mod scratch;
mod service;

pub use endpoint::{Door, Endpoint, Framing};
pub use forwarded::{NetworkError, TrustedProxies};
pub use frame::Kind;
pub use origin::{OriginError, Origins};
pub use service::{Websocket, WebsocketConfig};
