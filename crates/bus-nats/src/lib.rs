//! The log and the control bus on pooled NATS JetStream.
