//! The report: lines in the order of the checks.

use std::fmt::Write as _;

use clap::ValueEnum;
use plenum_telemetry::{Finding, State};
use serde_json::{Value, json};

use crate::cli::Check;

/// What was found so far.
pub struct Report {
    wanted: Vec<Check>,
    lines: Vec<(Check, Finding)>,
}

impl Report {
    /// A report of these checks; none means all.
    pub fn new(only: &[Check]) -> Self {
        let wanted = if only.is_empty() { Check::value_variants() } else { only };
        Self { wanted: wanted.to_vec(), lines: Vec::new() }
    }

    /// Whether a check was asked for.
    pub fn wants(&self, check: Check) -> bool {
        self.wanted.contains(&check)
    }

    /// Adds findings of a check, if it was asked for.
    pub fn add(&mut self, check: Check, findings: impl IntoIterator<Item = Finding>) {
        if self.wants(check) {
            self.always(check, findings);
        }
    }

    /// Adds findings that make all others impossible.
    pub fn always(&mut self, check: Check, findings: impl IntoIterator<Item = Finding>) {
        self.lines.extend(findings.into_iter().map(|finding| (check, finding)));
    }

    /// A check that found nothing to look at says so, so that no line is silently missing.
    pub fn fill(&mut self) {
        for check in self.wanted.clone() {
            if !self.lines.iter().any(|(of, _)| *of == check) {
                self.always(check, [Finding::skipped("-", "there is nothing to look at", "")]);
            }
        }
        self.lines.sort_by_key(|(check, _)| Check::value_variants().iter().position(|of| of == check));
    }

    /// The worst state of all.
    pub fn worst(&self) -> State {
        self.lines.iter().map(|(_, finding)| finding.state).max().unwrap_or(State::Good)
    }

    /// For people: a line each, and what to do below it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (check, Finding { subject, state, found, advice }) in &self.lines {
            let (state, check) = (state.name(), name(*check));
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{state:<8} {check:<13} {subject}: {found}");
            if !advice.is_empty() {
                let _ = writeln!(text, "{:>23} {advice}", "→");
            }
        }
        let count = |state| self.lines.iter().filter(|(_, finding)| finding.state == state).count();
        let _ = writeln!(
            text,
            "{} ok, {} skipped, {} warnings, {} failed",
            count(State::Good),
            count(State::Skipped),
            count(State::Warning),
            count(State::Failed)
        );
        text
    }

    /// For programs: `{"ok": bool, "findings": [{check, subject, state, found, advice}]}`.
    pub fn json(&self) -> anyhow::Result<String> {
        let findings = self.lines.iter().map(|(check, finding)| {
            json!({
                "check": name(*check),
                "subject": finding.subject,
                "state": finding.state.name(),
                "found": finding.found,
                "advice": finding.advice,
            })
        });
        let report = json!({ "ok": self.worst() != State::Failed, "findings": findings.collect::<Vec<Value>>() });
        Ok(serde_json::to_string_pretty(&report)? + "\n")
    }
}

fn name(check: Check) -> String {
    check.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_the_order_of_the_checks_and_none_is_missing() {
        let mut report = Report::new(&[Check::Files, Check::Nats, Check::Names]);
        report.add(Check::Files, [Finding::warning("limit", "low", "raise it")]);
        report.add(Check::Redis, [Finding::failed("not", "asked", "for")]);
        report.add(Check::Names, [Finding::good("name", "found")]);
        report.fill();
        assert_eq!(report.worst(), State::Warning);
        let text = report.text();
        let begin: Vec<&str> = text.lines().map(|line| line.split_whitespace().next().unwrap_or("")).collect();
        assert_eq!(begin, ["ok", "skipped", "warning", "→", "1"], "{text}");
        assert!(report.json().unwrap().contains("\"ok\": true"));
        report.always(Check::Config, [Finding::failed("file", "wrong", "mend it")]);
        assert!(report.json().unwrap().contains("\"ok\": false"));
    }
}
