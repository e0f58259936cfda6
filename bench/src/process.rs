//! What the kernel accounts to a process, read from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

/// Nanoseconds of one clock tick of `/proc/PID/stat`: 100 a second on every Linux architecture that we run on.
const TICK_NANOS: u64 = 10_000_000;

/// CPU time of a process so far.
#[derive(Clone, Debug)]
pub struct CpuTime {
    /// Nanoseconds on a CPU by thread, from `task/*/schedstat`: what the scheduler counted, user and kernel together.
    threads: BTreeMap<u32, u64>,
    /// The whole process, ended threads included, in ticks of 10 ms.
    ticks: u64,
}

impl CpuTime {
    /// Reads the time of process `pid`.
    pub fn of(pid: u32) -> Result<Self> {
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))? {
            let task = task?;
            // A thread may end between the listing and the reading.
            let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let id = task.file_name().to_string_lossy().parse()?;
            let nanos = text.split(' ').next().unwrap_or_default().parse()?;
            threads.insert(id, nanos);
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is the name in brackets and may hold spaces; user and kernel time are fields 14 and 15.
        let fields = stat.rsplit_once(") ").ok_or_else(|| anyhow!("/proc/{pid}/stat has no name"))?.1;
        let field = |number: usize| -> Result<u64> { Ok(fields.split(' ').nth(number - 3).unwrap_or("").parse()?) };
        Ok(Self { threads, ticks: field(14)? + field(15)? })
    }

    /// Time spent since `before`: to the nanosecond when every thread of then is still there, else in ticks.
    pub fn since(&self, before: &Self) -> Duration {
        let all_here = before.threads.keys().all(|id| self.threads.contains_key(id));
        let nanos = if all_here {
            self.threads.values().sum::<u64>() - before.threads.values().sum::<u64>()
        } else {
            (self.ticks - before.ticks) * TICK_NANOS
        };
        Duration::from_nanos(nanos)
    }
}

/// Resident user memory of process `pid` in bytes: anonymous pages (`RssAnon`), without mapped files such as the
/// program itself.
pub fn resident_user_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: u64 = line.and_then(|rest| rest.trim().strip_suffix(" kB")).context("no RssAnon")?.trim().parse()?;
    Ok(kib * 1024)
}

/// Open files of process `pid`.
pub fn open_files(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// How many files this process, and the server that it starts, may open.
pub fn open_files_limit() -> Result<u64> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("no limit of open files")?;
    let soft = line.split_whitespace().next().unwrap_or_default();
    if soft == "unlimited" { Ok(u64::MAX) } else { Ok(soft.parse()?) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_in_the_cpu_time() {
        let pid = std::process::id();
        let before = CpuTime::of(pid).unwrap();
        let start = std::time::Instant::now();
        let mut sum = 0u64;
        while start.elapsed() < Duration::from_millis(100) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let spent = CpuTime::of(pid).unwrap().since(&before);
        assert!(spent > Duration::from_millis(5), "{spent:?}");
        assert!(spent < Duration::from_secs(60), "{spent:?}");
    }

    #[test]
    fn an_ended_thread_falls_back_to_ticks() {
        let sample = |threads: &[(u32, u64)], ticks| CpuTime { threads: threads.iter().copied().collect(), ticks };
        let before = sample(&[(1, 5_000), (2, 7_000)], 3);
        assert_eq!(sample(&[(1, 6_000), (2, 7_500), (3, 100)], 4).since(&before), Duration::from_nanos(1_600));
        assert_eq!(sample(&[(1, 6_000)], 5).since(&before), Duration::from_millis(20));
    }

    #[test]
    fn memory_and_files_of_this_process() {
        let pid = std::process::id();
        assert!(resident_user_bytes(pid).unwrap() > 10_000);
        assert!(open_files(pid).unwrap() >= 3);
        assert!(open_files_limit().unwrap() >= 64);
    }
}
