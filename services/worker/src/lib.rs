//! Background work: [`Consumers`] take commands of the server API from JetStream streams and carry them out, in order
//! for each channel, each until it is done or put aside. `docs/consumers.md` is their manual.

mod config;
mod consumer;
mod consumers;
mod letter;
mod metrics;

pub use config::{ConsumerConfig, Mode, PublicationHeaders};
pub use consumers::{Consumers, ConsumersParts};
pub use metrics::ConsumersCollector;
