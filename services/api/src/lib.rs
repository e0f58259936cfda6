//! The HTTP side of Plenum: the Centrifugo-compatible server API ([`Api`]), health and metrics ([`Operations`]), and
//! the page that `--dev` shows ([`Page`]).
//!
//! Each is a service that answers requests for the paths it owns; which port carries which is decided by whoever
//! composes them. A request comes with any body type, so that all of it runs in tests without a socket.

mod api;
mod auth;
mod batch;
mod canary;
mod check;
mod control;
mod decode;
mod error;
mod http_reply;
mod methods;
mod openapi;
mod operations;
mod page;
mod queued;
mod request;
mod response;

pub use api::{Api, ApiConfig};
pub use auth::Keys;
pub use batch::{BatchRequest, Command, Reply};
pub use control::*;
pub use error::{ApiError, ErrorMode};
pub use openapi::document as openapi_document;
pub use operations::{Blocked, Broker, BrokerState, Operations, OperationsConfig, OperationsParts};
pub use page::Page;
pub use queued::{Commands, QueuedCommand, QueuedPublication};
pub use request::*;
pub use response::*;
