//! `plenum token`.

use std::io::Read;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use plenum_tokens::{
    ConnectionTokenSpec, SubscriptionSpec, SubscriptionTokenSpec, TokenConfig, TokenKind, check, sign_connection,
    sign_subscription,
};
use serde_json::value::RawValue;

use crate::cli::{CheckToken, Kind, MakeToken, TokenCommand};
use crate::compose;
use crate::config::{self, Config};

/// Runs the command; a token that is refused is exit code 1.
pub fn run(command: &TokenCommand) -> anyhow::Result<ExitCode> {
    match command {
        TokenCommand::Make(arguments) => {
            let config = config::load(&arguments.source.sources())?.config;
            println!("{}", make(arguments, &config, SystemTime::now())?);
            Ok(ExitCode::SUCCESS)
        }
        TokenCommand::Check(arguments) => {
            let config = config::load(&arguments.source.sources())?.config;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(report(arguments, &config))
        }
    }
}

fn make(arguments: &MakeToken, config: &Config, now: SystemTime) -> anyhow::Result<String> {
    let own = arguments.channel.is_some() && config.subscription_token.enabled;
    let (section, keys) = match own {
        true => ("client.subscription_token", &config.subscription_token.token),
        false => ("client.token", &config.access.token),
    };
    if keys.hmac_secret_key.is_empty() {
        bail!("{section}.hmac_secret_key is not set: say where it is with --config or in the environment");
    }
    if !keys.user_id_claim.is_empty() {
        bail!("{section}.user_id_claim is set: this command writes the user's id to sub only");
    }
    let iat = seconds(now);
    let exp = expiry(now, arguments.ttl);
    let info = arguments.info.clone().map(RawValue::from_string).transpose().context("--info must be JSON")?;
    let token = match &arguments.channel {
        None => sign_connection(
            &keys.hmac_secret_key,
            &ConnectionTokenSpec {
                user: arguments.user.clone(),
                exp,
                iat: Some(iat),
                audience: given(keys, |keys| &keys.audience),
                issuer: given(keys, |keys| &keys.issuer),
                info,
                channels: arguments.subscribe.clone(),
                ..ConnectionTokenSpec::default()
            },
        ),
        Some(channel) => sign_subscription(
            &keys.hmac_secret_key,
            &SubscriptionTokenSpec {
                user: arguments.user.clone(),
                channel: channel.clone(),
                client: arguments.client.clone().unwrap_or_default(),
                exp,
                iat: Some(iat),
                audience: given(keys, |keys| &keys.audience),
                issuer: given(keys, |keys| &keys.issuer),
                options: SubscriptionSpec { info, ..SubscriptionSpec::default() },
                ..SubscriptionTokenSpec::default()
            },
        ),
    };
    Ok(token?)
}

fn given(keys: &TokenConfig, of: impl Fn(&TokenConfig) -> &String) -> Option<String> {
    Some(of(keys)).filter(|text| !text.is_empty()).cloned()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn expiry(now: SystemTime, ttl: Duration) -> Option<u64> {
    (!ttl.is_zero()).then(|| seconds(now).saturating_add(ttl.as_secs().max(1)))
}

async fn report(arguments: &CheckToken, config: &Config) -> anyhow::Result<ExitCode> {
    let token = if arguments.token == "-" {
        let mut text = String::new();
        // A token is far shorter; whatever else comes is cut.
        std::io::stdin().take(1 << 20).read_to_string(&mut text)?;
        text
    } else {
        arguments.token.clone()
    };
    let kind = arguments.kind.map(|kind| match kind {
        Kind::Connection => TokenKind::Connection,
        Kind::Subscription => TokenKind::Subscription,
    });
    let report = check(&compose::authority(config)?, token.trim(), kind).await;
    println!("{report}");
    Ok(if report.is_accepted() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn arguments(line: &[&str]) -> MakeToken {
        let line = ["plenum", "token", "make"].iter().chain(line);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Token(TokenCommand::Make(make)) => make,
            _ => panic!("token make"),
        }
    }

    fn configured() -> Config {
        let mut config = Config::default();
        config.access.token.hmac_secret_key = "a secret of this test only".into();
        config.access.token.audience = "plenum".into();
        config
    }

    #[tokio::test]
    async fn tokens_made_here_are_accepted_here() {
        let config = configured();
        let authority = compose::authority(&config).unwrap();
        let connection = ["--user", "42", "--info", r#"{"name": "Ada"}"#, "--subscribe", "news"];
        let subscription = ["--user", "42", "--channel", "chat:1", "--client", "c", "--ttl", "0s"];
        for line in [&connection[..], &subscription[..]] {
            let token = make(&arguments(line), &config, SystemTime::now()).unwrap();
            let report = check(&authority, &token, None).await;
            assert!(report.is_accepted(), "{report}");
            assert!(report.to_string().contains("42"), "{report}");
        }
    }

    #[tokio::test]
    async fn they_expire() {
        let config = configured();
        let long_ago = SystemTime::now() - Duration::from_secs(7200);
        let token = make(&arguments(&["--user", "42"]), &config, long_ago).unwrap();
        assert!(!check(&compose::authority(&config).unwrap(), &token, None).await.is_accepted());
    }

    #[test]
    fn subscription_tokens_use_their_own_secret() {
        let mut config = configured();
        config.subscription_token.enabled = true;
        let line = arguments(&["--user", "42", "--channel", "chat:1"]);
        let error = make(&line, &config, SystemTime::now()).unwrap_err().to_string();
        assert!(error.contains("client.subscription_token.hmac_secret_key"), "{error}");
        config.subscription_token.token.hmac_secret_key = "another secret of this test".into();
        assert!(make(&line, &config, SystemTime::now()).is_ok());
    }
}
