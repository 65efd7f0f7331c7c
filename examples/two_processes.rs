//! Two processes, one Redis: 1 000 concurrent calls in each, on one cold key, make one fetch between them.
//!
//! ```text
//! REDIS_URL=redis://localhost:6379/0 cargo run --release --example two_processes
//! ```

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use cache_core::{Cache, cached};
use futures::future::join_all;

const CALLS: usize = 1_000;

type Failure = Box<dyn Error + Send + Sync>;

/// An answer that takes 50 ms and says which process found it. `run` makes the key cold in every run.
#[cached(ttl = 60, key_prefix = "two_processes")]
async fn slow_answer(run: &str) -> String {
    tokio::time::sleep(Duration::from_millis(50)).await;
    format!("found by process {} in run {run}", std::process::id())
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match std::env::args().nth(1) {
        Some(run) => worker(&run).await,
        None => parent(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts this program twice more, lets both go at the same moment, and shows what they say.
fn parent() -> Result<(), Failure> {
    if std::env::var_os("REDIS_URL").is_none() {
        return Err("this example needs a Redis: set REDIS_URL, for example to redis://localhost:6379/0".into());
    }
    let run = format!("{}-{}", std::process::id(), UNIX_EPOCH.elapsed()?.as_nanos());
    let mut workers = [start(&run)?, start(&run)?];
    for (_, lines) in &mut workers {
        read_line(lines)?;
    }
    for (worker, _) in &mut workers {
        drop(worker.stdin.take());
    }
    let mut fetches = 0;
    for (mut worker, mut lines) in workers {
        let said = read_line(&mut lines)?;
        println!("{said}");
        fetches += said.split_whitespace().find_map(|word| word.parse::<u64>().ok()).unwrap_or(0);
        worker.wait()?;
    }
    println!("{} calls in two processes: {fetches} fetches", 2 * CALLS);
    Ok(())
}

type Lines = BufReader<std::process::ChildStdout>;

fn start(run: &str) -> Result<(Child, Lines), Failure> {
    let program = std::env::current_exe()?;
    let mut worker = Command::new(program).arg(run).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(worker.stdout.take().ok_or("no pipe")?);
    Ok((worker, lines))
}

fn read_line(lines: &mut Lines) -> Result<String, Failure> {
    let mut line = String::new();
    match lines.read_line(&mut line)? {
        0 => Err("a process ended too early".into()),
        _ => Ok(line.trim_end().to_owned()),
    }
}

/// One of the two processes: connects, says so, waits for the other, calls.
async fn worker(run: &str) -> Result<(), Failure> {
    let cache = Cache::from_env().await?;
    cache.install()?;
    println!("ready");
    std::io::stdout().flush()?;
    // Ends when the parent closes the pipe.
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;

    let started = Instant::now();
    let answers = join_all((0..CALLS).map(|_| slow_answer(run))).await;
    let time = started.elapsed().as_millis();
    let stats = cache.stats().total;
    cache.close().await;
    println!("{} fetches for {CALLS} calls in {time} ms; the answer was {}", stats.fetches, answers[0]);
    Ok(())
}
