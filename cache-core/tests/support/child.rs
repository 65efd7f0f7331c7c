//! Further processes of a test: the test binary runs itself again.
//!
//! The part that runs in the child is a test of its own, which does nothing unless it is one:
//!
//! ```ignore
//! #[test]
//! fn other_process() {
//!     if !child::is_child() {
//!         return;
//!     }
//!     child::report("ready");
//!     let word = child::wait_for_parent();
//!     child::report(&format!("heard {word}"));
//! }
//!
//! #[test]
//! fn two_processes_talk() {
//!     let mut other = child::spawn("other_process", &[("REDIS_URL", &server.url())]);
//!     assert_eq!(other.next_report(), "ready");
//!     other.tell("go");
//!     assert_eq!(other.next_report(), "heard go");
//!     other.finish();
//! }
//! ```

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{self, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

/// Set in children only.
const MARK: &str = "CACHE_TEST_CHILD";
/// In front of every report, so that it is told apart from what the test harness prints.
const REPORT: &str = "@report ";
/// Long enough for a loaded machine, short enough to fail a hung test in time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that runs one test of this binary. It is killed when the handle is dropped.
pub(crate) struct Child {
    process: process::Child,
    /// What it prints, line by line. Closes when it ends.
    lines: Receiver<String>,
    /// What it printed besides reports, for the message of a failure.
    said: String,
}

/// Starts a process that runs only the test `test` (its full path inside the binary), with these variables set.
pub(crate) fn spawn(test: &str, env: &[(&str, &str)]) -> Child {
    let binary = std::env::current_exe().expect("the path of the test binary");
    let mut process = Command::new(binary)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(MARK, test)
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the test binary runs again");
    let (sender, lines) = mpsc::channel();
    collect(process.stdout.take().expect("stdout is piped"), sender.clone());
    collect(process.stderr.take().expect("stderr is piped"), sender);
    Child { process, lines, said: String::new() }
}

fn collect(output: impl Read + Send + 'static, lines: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            lines.send(line).ok();
        }
    });
}

impl Child {
    /// The next thing the child [reported](report). Blocks until then; panics if the child ends without a word.
    pub(crate) fn next_report(&mut self) -> String {
        let report = self.read_report();
        report.unwrap_or_else(|| panic!("the child ended or hangs; it printed:\n{}", self.said))
    }

    /// Sends a line that the child receives with [`wait_for_parent`].
    pub(crate) fn tell(&mut self, line: &str) {
        let stdin = self.process.stdin.as_mut().expect("stdin is piped");
        writeln!(stdin, "{line}").expect("the child runs");
    }

    /// Waits until the child's test has passed and gives the reports not yet read. Panics if it failed, or if there is
    /// no test of that name.
    pub(crate) fn finish(mut self) -> Vec<String> {
        drop(self.process.stdin.take());
        let mut reports = Vec::new();
        while let Some(report) = self.read_report() {
            reports.push(report);
        }
        self.end();
        let passed = self.said.contains("1 passed; 0 failed");
        assert!(passed, "the child failed, hangs or is no test; it printed:\n{}", self.said);
        reports
    }

    fn read_report(&mut self) -> Option<String> {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).ok()?;
            if let Some(report) = line.strip_prefix(REPORT) {
                return Some(report.to_owned());
            }
            self.said += &(line + "\n");
        }
    }

    /// Ends the process at once, as a crash would (`SIGKILL`).
    pub(crate) fn kill(mut self) {
        self.end();
    }

    /// Freezes the process (`SIGSTOP`).
    pub(crate) fn pause(&self) {
        signal(self.process.id(), "-STOP");
    }

    /// Lets a paused process go on.
    pub(crate) fn resume(&self) {
        signal(self.process.id(), "-CONT");
    }

    fn end(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether this process was started by [`spawn`].
pub(crate) fn is_child() -> bool {
    std::env::var_os(MARK).is_some()
}

/// In a child: sends one line to the parent.
pub(crate) fn report(line: &str) {
    // The harness may have left its own line unfinished.
    println!("\n{REPORT}{line}");
}

/// In a child: the next line that the parent [told](Child::tell), or nothing once the parent has gone.
pub(crate) fn wait_for_parent() -> Option<String> {
    let mut line = String::new();
    match std::io::stdin().read_line(&mut line) {
        Ok(read) if read > 0 => Some(line.trim_end().to_owned()),
        _ => None,
    }
}

/// Sends a signal through the shell, which has `kill` built in: the standard library can only kill, this workspace
/// forbids `unsafe`, and a small system lacks the program of that name.
pub(super) fn signal(pid: u32, signal: &str) {
    let done = Command::new("sh").args(["-c", "kill \"$0\" \"$1\"", signal, &pid.to_string()]).status();
    assert!(done.is_ok_and(|status| status.success()), "kill {signal} {pid} failed");
}
