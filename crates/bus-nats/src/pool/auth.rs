//! Credentials for one connect.

use std::path::Path;

use async_nats::{Auth, AuthError};

use super::Credentials;

/// What the server gets for its `nonce`. Files are read here, so that a rotated one is used at the next connect.
pub(super) async fn authenticate(credentials: &Credentials, nonce: &[u8]) -> Result<Auth, AuthError> {
    let mut auth = Auth::new();
    match credentials {
        Credentials::None => {}
        Credentials::UserPassword { user, password } => {
            auth.username = Some(user.clone());
            auth.password = Some(password.clone());
        }
        Credentials::Token(token) => auth.token = Some(token.clone()),
        Credentials::NKeyFile(path) => {
            let seed = read(path).await?;
            let key =
                nkeys::KeyPair::from_seed(seed.trim()).map_err(|_| AuthError::new("the file holds no nkey seed"))?;
            auth.nkey = Some(key.public_key());
            auth.signature = Some(key.sign(nonce).map_err(|_| AuthError::new("the nkey cannot sign"))?);
        }
        Credentials::CredsFile(path) => {
            let text = read(path).await?;
            let jwt = section(&text, "USER JWT").ok_or_else(|| AuthError::new("the credentials file has no JWT"))?;
            let seed = section(&text, "NKEY SEED").ok_or_else(|| AuthError::new("the credentials file has no seed"))?;
            let key =
                nkeys::KeyPair::from_seed(&seed).map_err(|_| AuthError::new("the seed in the file is not valid"))?;
            auth.jwt = Some(jwt);
            auth.signature = Some(key.sign(nonce).map_err(|_| AuthError::new("the seed cannot sign"))?);
        }
    }
    Ok(auth)
}

async fn read(path: &Path) -> Result<String, AuthError> {
    let text = tokio::fs::read_to_string(path).await;
    text.map_err(|error| AuthError::new(format!("{}: {error}", path.display())))
}

/// What stands between the `BEGIN` and `END` lines whose text ends in `name`.
fn section(text: &str, name: &str) -> Option<String> {
    let mut lines =
        text.lines().skip_while(|line| !(line.starts_with("---") && line.contains("BEGIN") && line.contains(name)));
    lines.next()?;
    let body: String = lines.take_while(|line| !line.starts_with("---")).map(str::trim).collect();
    (!body.is_empty()).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_of_a_credentials_file() {
        let text = "-----BEGIN NATS USER JWT-----\neyJ0\n------END NATS USER JWT------\n\nkeep secret\n\n\
                    -----BEGIN USER NKEY SEED-----\nSUAB\n------END USER NKEY SEED------\n";
        assert_eq!(section(text, "USER JWT").as_deref(), Some("eyJ0"));
        assert_eq!(section(text, "NKEY SEED").as_deref(), Some("SUAB"));
        assert_eq!(section("nothing", "USER JWT"), None);
    }
}
