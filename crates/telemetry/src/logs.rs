//! Logs go to standard error, one event a line.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Pretty,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is not a level or a list of `target=level`.
    #[error(
        "log level {level:?} is not understood ({reason}); allowed: off, error, warn, info, debug, trace, or target=level,…"
    )]
    Level {
        /// What was configured.
        level: String,
        /// What the parser says.
        reason: String,
    },
    /// A subscriber was installed before.
    #[error("logging is set up already")]
    Installed,
}

/// Installs the process-wide log subscriber. `level` is one of off, error, warn, info, debug, trace, or a
/// comma-separated list of `target=level`.
pub fn init_logs(format: LogFormat, level: &str) -> Result<(), LogError> {
    let filter = filter(level)?;
    // Colours are for a terminal only.
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    let installed = match format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
        LogFormat::Pretty => builder.compact().with_target(false).try_init(),
    };
    installed.map_err(|_| LogError::Installed)
}

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let refused = |reason: String| LogError::Level { level: level.into(), reason };
    if level.trim().is_empty() {
        return Err(refused("it is empty".into()));
    }
    // The filter's grammar would take a mistyped level for the name of a target.
    let plain = !level.contains(['=', ',']);
    if plain && level.parse::<tracing_subscriber::filter::LevelFilter>().is_err() {
        return Err(refused("not a level".into()));
    }
    EnvFilter::try_new(level).map_err(|error| refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_level_is_refused_with_what_is_allowed() {
        let error = filter("inof").unwrap_err().to_string();
        assert!(error.contains("inof") && error.contains("info"), "{error}");
        assert!(filter("").is_err());
        assert!(filter("plenum=loud").is_err());
    }

    #[test]
    fn levels_and_targets_are_taken() {
        for level in ["off", "info", "DEBUG", "info,hyper=warn"] {
            assert!(filter(level).is_ok(), "{level}");
        }
    }

    #[test]
    fn a_second_set_up_is_an_error() {
        init_logs(LogFormat::Pretty, "off").unwrap();
        assert!(matches!(init_logs(LogFormat::Json, "info"), Err(LogError::Installed)));
    }
}
