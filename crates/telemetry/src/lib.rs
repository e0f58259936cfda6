//! What Plenum says of itself: metrics in Prometheus' text format, and logs.
//!
//! Label values come from the enums of this crate alone: no name that a user chose ever becomes a label.

mod finding;
mod labels;
mod logs;
mod metrics;
mod process;
mod vitals;

pub use finding::{Finding, State};
pub use labels::*;
pub use logs::{LogError, LogFormat, init_logs};
pub use metrics::{Metrics, MetricsError};
pub use prometheus::{Histogram, IntCounter, IntGauge};
pub use vitals::Vitals;
