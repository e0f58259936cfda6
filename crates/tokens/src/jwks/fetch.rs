//! One GET of a key set, bounded in time and bytes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};

use super::set::KeySet;

/// Most bytes of a key set; a larger answer counts as a failure.
const MAX_BODY: usize = 1024 * 1024;
/// Time to connect, TLS not included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Fetches key sets. Redirects are not followed and proxies not used.
pub(crate) struct Fetcher {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    timeout: Duration,
}

impl Fetcher {
    /// With the certificates that the platform trusts, when `https` is needed.
    ///
    /// # Errors
    /// When the platform has none.
    pub(crate) fn new(https: bool, timeout: Duration) -> io::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        let builder =
            if https { builder.with_native_roots()? } else { builder.with_root_certificates(RootCertStore::empty()) };
        Ok(Self::with_tls(builder.with_no_client_auth(), timeout))
    }

    pub(crate) fn with_tls(tls: ClientConfig, timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(connector);
        // Fetches are an hour apart: a connection kept would be dead by then.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Self { client, timeout }
    }

    /// # Errors
    /// A text for operators; it holds nothing of the answer.
    pub(crate) async fn fetch(&self, url: &Uri) -> Result<KeySet, String> {
        match tokio::time::timeout(self.timeout, self.get(url)).await {
            Ok(answer) => KeySet::parse(&answer?).map_err(str::to_owned),
            Err(_) => Err(format!("no complete answer within {} ms", self.timeout.as_millis())),
        }
    }

    async fn get(&self, url: &Uri) -> Result<Bytes, String> {
        let request = Request::get(url.clone()).header(header::ACCEPT, "application/json").body(Empty::new());
        let request = request.map_err(|error| error.to_string())?;
        let answer = self.client.request(request).await.map_err(|error| match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })?;
        if answer.status() != StatusCode::OK {
            return Err(format!("status {}", answer.status().as_u16()));
        }
        match Limited::new(answer.into_body(), MAX_BODY).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                Err(format!("the answer is larger than {MAX_BODY} bytes"))
            }
            Err(error) => Err(format!("the answer broke off: {error}")),
        }
    }
}
