//! How long certificates are valid: those in files, and those that servers showed.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use plenum_telemetry::Finding;
use x509_parser::prelude::{FromDer, Pem, X509Certificate};

use crate::cli::Doctor;
use crate::config::{Config, TlsSection};

/// Whoever renews by himself has done it before then, days.
const SOON: i64 = 14;
const DAY: i64 = 86_400;

/// Whose certificate, and in DER.
pub type Shown = (String, Vec<u8>);

/// Looks at the files of the configuration and at `shown`.
pub fn check(arguments: &Doctor, config: &Config, shown: Vec<Shown>) -> Vec<Finding> {
    let http = &config.http_server;
    let mut findings = Vec::new();
    for (section, tls) in [("http_server.tls", &http.tls), ("http_server.internal_tls", &http.internal_tls)] {
        if tls.enabled {
            findings.extend(own(section, tls));
        }
    }
    let (nats, redis) = (&config.nats.tls, &config.redis.tls);
    for (setting, path) in [
        ("nats.tls.server_ca_pem", &nats.server_ca_pem),
        ("nats.tls.cert_pem", &nats.cert_pem),
        ("redis.tls.server_ca_pem", &redis.server_ca_pem),
        ("redis.tls.cert_pem", &redis.cert_pem),
    ] {
        if !path.is_empty() {
            findings.push(file(setting, Path::new(path)));
        }
    }
    if let Some(path) = &arguments.ca {
        findings.push(file("--ca", path));
    }
    findings.extend(shown.into_iter().map(|(whose, der)| one(whose, &der)));
    findings
}

/// Certificate and key of this server, which also have to belong together.
fn own(section: &str, tls: &TlsSection) -> Vec<Finding> {
    let (certificate, key) = (Path::new(&tls.cert_pem), Path::new(&tls.key_pem));
    let mut findings = vec![file(&format!("{section}.cert_pem"), certificate)];
    if let Err(error) = plenum_http::Tls::load(certificate, key) {
        findings.push(Finding::failed(
            section,
            error.to_string(),
            "put in a certificate and the key that belongs to it",
        ));
    }
    findings
}

/// The certificate of a PEM file that ends first.
fn file(setting: &str, path: &Path) -> Finding {
    let subject = format!("{} ({setting})", path.display());
    let failed = |reason: String| Finding::failed(&*subject, reason, "put a PEM file with certificates there");
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) => return failed(error.to_string()),
    };
    let blocks = Pem::iter_from_buffer(&text).filter_map(Result::ok).filter(|block| block.label == "CERTIFICATE");
    let ends =
        |der: &[u8]| X509Certificate::from_der(der).map_or(i64::MIN, |(_, one)| one.validity().not_after.timestamp());
    match blocks.map(|block| block.contents).min_by_key(|der| ends(der)) {
        Some(der) => one(subject, &der),
        None => failed("there is no certificate in it".into()),
    }
}

fn one(subject: String, der: &[u8]) -> Finding {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return Finding::failed(subject, "it cannot be read", "replace it");
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let (begin, end) = (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
    let found = format!("{}, until {}", certificate.subject(), date(end));
    match (end - now) / DAY {
        _ if now < begin => {
            Finding::failed(subject, format!("{found}, not valid before {}", date(begin)), "is a clock wrong?")
        }
        _ if now > end => {
            Finding::failed(subject, format!("{found}: expired"), "renew it; it is read again without a restart")
        }
        days if days < SOON => Finding::warning(subject, format!("{found}, {days} days"), "renew it"),
        days => Finding::good(subject, format!("{found}, {days} days")),
    }
}

fn date(unix: i64) -> String {
    let time = UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(unix).unwrap_or(0));
    // "Sun, 06 Nov 1994 08:49:37 GMT": the day is enough.
    httpdate::fmt_http_date(time).get(5..16).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use plenum_telemetry::State;

    use super::*;

    #[test]
    fn days_that_are_left_decide() {
        let made = |from: (i32, u8, u8), to: (i32, u8, u8)| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut parameters = rcgen::CertificateParams::new(vec!["plenum.example".into()]).unwrap();
            parameters.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
            parameters.not_after = rcgen::date_time_ymd(to.0, to.1, to.2);
            let certificate = parameters.self_signed(&key).unwrap();
            one("it".into(), certificate.der())
        };
        assert_eq!(made((2020, 1, 1), (4000, 1, 1)).state, State::Good);
        let expired = made((2020, 1, 1), (2021, 6, 7));
        assert!(expired.state == State::Failed && expired.found.contains("07 Jun 2021: expired"), "{expired:?}");
        assert_eq!(made((3000, 1, 1), (4000, 1, 1)).state, State::Failed);
        assert_eq!(one("it".into(), b"rubbish").state, State::Failed);
    }
}
