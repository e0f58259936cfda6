//! Certificates from PEM files, exchanged while the server runs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// The encrypted stream of an accepted connection.
pub type TlsStream = tokio_rustls::server::TlsStream<TcpStream>;

/// Why a certificate could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not the PEM that is expected there.
    #[error("{} holds no usable PEM: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: rustls_pki_types::pem::Error,
    },
    /// The certificate file holds no certificate.
    #[error("{} holds no certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key do not belong together, or their kind is not supported.
    #[error("certificate {} with key {}: {source}", certificate.display(), key.display())]
    Pair {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
}

/// A certificate chain and key that follow their files.
///
/// TLS 1.2 and 1.3, HTTP/1.1 by ALPN. Handshakes under way keep the certificate they started with.
#[derive(Debug)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    current: ArcSwap<rustls::ServerConfig>,
    /// The bytes that were last looked at, good or bad: an unchanged bad file is reported once.
    seen: Mutex<Files>,
}

#[derive(Debug, PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Tls {
    /// Reads the chain (leaf first) and the private key (PKCS #8, PKCS #1 or SEC 1).
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let files = read(certificate, key)?;
        let config = build(certificate, key, &files)?;
        Ok(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            current: ArcSwap::from(config),
            seen: Mutex::new(files),
        })
    }

    /// Reads the files again and uses them from now on if they changed; `Ok(true)` says that they did.
    ///
    /// On an error the old certificate stays. A pair that was refused is refused silently (`Ok(false)`) until a file
    /// changes again: certificate and key are often replaced one after the other. Blocks on file I/O.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let files = read(&self.certificate, &self.key)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == files {
            return Ok(false);
        }
        let built = build(&self.certificate, &self.key, &files);
        *seen = files;
        self.current.store(built?);
        Ok(true)
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }
}

fn read(certificate: &Path, key: &Path) -> Result<Files, TlsError> {
    let read = |path: &Path| std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source });
    Ok(Files { certificate: read(certificate)?, key: read(key)? })
}

fn build(certificate: &Path, key: &Path, files: &Files) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let pem = |path: &Path, source| TlsError::Pem { path: path.to_owned(), source };
    let chain = CertificateDer::pem_slice_iter(&files.certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| pem(certificate, source))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: certificate.to_owned() });
    }
    let secret = PrivateKeyDer::from_pem_slice(&files.key).map_err(|source| pem(key, source))?;
    let pair = |source| TlsError::Pair { certificate: certificate.to_owned(), key: key.to_owned(), source };
    // The provider is named so that no process-wide default has to be installed.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
