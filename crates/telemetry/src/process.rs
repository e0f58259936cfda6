//! What the kernel says of this process, under the names that every Prometheus client library uses.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, IntGauge};

/// Clock ticks per second in `/proc/<pid>/stat`; Linux fixes it at 100 for user space on every architecture we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads `/proc/self` at each scrape; exports nothing new where it cannot be read.
pub(crate) struct ProcessCollector {
    cpu_seconds: Counter,
    resident_bytes: IntGauge,
    open_files: IntGauge,
    max_files: IntGauge,
    threads: IntGauge,
    start_time: Gauge,
    memory_limit: IntGauge,
}

impl ProcessCollector {
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let collector = Self {
            cpu_seconds: Counter::new("process_cpu_seconds_total", "CPU time used, user and system.")?,
            resident_bytes: IntGauge::new("process_resident_memory_bytes", "Resident memory.")?,
            open_files: IntGauge::new("process_open_fds", "Open file descriptors.")?,
            max_files: IntGauge::new("process_max_fds", "Most file descriptors that may be open.")?,
            threads: IntGauge::new("process_threads", "Threads.")?,
            start_time: Gauge::new("process_start_time_seconds", "When the process started, Unix seconds.")?,
            memory_limit: IntGauge::new(
                "plenum_memory_limit_bytes",
                "Memory that the process may use: its control group's limit, else the machine's.",
            )?,
        };
        if let Some(seconds) = start_time() {
            collector.start_time.set(seconds);
        }
        collector.memory_limit.set(memory_limit().unwrap_or(0));
        Ok(collector)
    }

    fn refresh(&self) {
        if let Some(stat) = Stat::read() {
            let used = stat.cpu_ticks as f64 / TICKS_PER_SECOND;
            self.cpu_seconds.inc_by((used - self.cpu_seconds.get()).max(0.0));
            self.threads.set(stat.threads);
        }
        if let Some(kib) = status_field("VmRSS:") {
            self.resident_bytes.set(kib * 1024);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // The directory that is being read is itself one of them.
            self.open_files.set(entries.count().saturating_sub(1) as i64);
        }
        if let Some(max) = max_files() {
            self.max_files.set(max);
        }
    }

    fn parts(&self) -> [&dyn Collector; 7] {
        [
            &self.cpu_seconds,
            &self.resident_bytes,
            &self.open_files,
            &self.max_files,
            &self.threads,
            &self.start_time,
            &self.memory_limit,
        ]
    }
}

/// CPU time and resident bytes of this process; zero where the kernel does not say.
pub(crate) fn usage() -> (std::time::Duration, u64) {
    let ticks = Stat::read().map_or(0.0, |stat| stat.cpu_ticks as f64);
    let memory = status_field("VmRSS:").map_or(0, |kib| kib as u64 * 1024);
    (std::time::Duration::from_secs_f64(ticks / TICKS_PER_SECOND), memory)
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().into_iter().flat_map(|part| part.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.refresh();
        self.parts().into_iter().flat_map(|part| part.collect()).collect()
    }
}

struct Stat {
    cpu_ticks: u64,
    threads: i64,
    start_ticks: u64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// proc(5): the program's name stands in brackets and may hold anything, so fields count from the last bracket.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: number(14)?.saturating_add(number(15)?),
            threads: number(20)?.try_into().ok()?,
            start_ticks: number(22)?,
        })
    }
}

fn status_field(name: &str) -> Option<i64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The smaller of the control group's limit (version 2, then 1) and the machine's memory.
fn memory_limit() -> Option<i64> {
    let machine = fs::read_to_string("/proc/meminfo").ok()?;
    let machine = machine.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let machine = machine.split_ascii_whitespace().next()?.parse::<i64>().ok()? * 1024;
    let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let group = group.iter().find_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    Some(group.map_or(machine, |limit| machine.min(limit.try_into().unwrap_or(i64::MAX))))
}

fn max_files() -> Option<i64> {
    let text = fs::read_to_string("/proc/self/limits").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn start_time() -> Option<f64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + Stat::read()?.start_ticks as f64 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 9 0 12345 1000 10";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.cpu_ticks, stat.threads, stat.start_ticks), (300, 9, 12345));
        assert!(Stat::parse("7 (a) S 1").is_none());
        assert!(Stat::parse("").is_none());
    }

    #[test]
    fn this_process_has_memory_files_and_a_start() {
        let collector = ProcessCollector::new().unwrap();
        assert_eq!(collector.collect().len(), 7);
        assert!(collector.memory_limit.get() > collector.resident_bytes.get());
        assert!(collector.resident_bytes.get() > 100_000);
        assert!(collector.open_files.get() >= 3);
        assert!(collector.max_files.get() > 0);
        assert!(collector.start_time.get() > 1.6e9);
    }
}
