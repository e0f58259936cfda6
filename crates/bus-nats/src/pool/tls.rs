//! TLS files, looked at before they are needed.

use std::path::Path;
use std::sync::Arc;

use async_nats::rustls::crypto::aws_lc_rs;
use async_nats::rustls::pki_types::pem::PemObject;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::rustls::{ClientConfig, RootCertStore};

use super::{PoolError, Tls};

/// Refuses files that cannot be read, hold nothing of use or do not belong together.
pub(super) async fn check(tls: &Tls) -> Result<(), PoolError> {
    let tls = tls.clone();
    let checked = tokio::task::spawn_blocking(move || check_now(&tls)).await;
    checked.map_err(|_| PoolError::Closed)?
}

fn check_now(tls: &Tls) -> Result<(), PoolError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &tls.ca_file {
        for certificate in certificates("tls.ca_file", path)? {
            roots.add(certificate).map_err(|error| refused("tls.ca_file", path, error))?;
        }
    }
    let Some((certificate, key)) = &tls.client_files else { return Ok(()) };
    let chain = certificates("tls.certificate", certificate)?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| refused("tls.key", key, error))?;
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(|error| refused("tls.key", key, error))?;
    let config = config.with_root_certificates(roots).with_client_auth_cert(chain, secret);
    config.map(drop).map_err(|error| refused("tls.key", key, error))
}

fn certificates(setting: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, PoolError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| refused(setting, path, error))?;
    if certificates.is_empty() {
        return Err(refused(setting, path, "there is no certificate in it"));
    }
    Ok(certificates)
}

fn refused(setting: &'static str, path: &Path, reason: impl std::fmt::Display) -> PoolError {
    PoolError::Credentials { setting, reason: format!("{}: {reason}", path.display()) }
}
