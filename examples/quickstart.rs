//! Scans the source of every dependency of this workspace with a cached function: once cold, once warm.
//!
//! ```text
//! cargo run --release --example quickstart
//! REDIS_URL=redis://localhost:6379/0 cargo run --release --example quickstart
//! ```
//!
//! Without `REDIS_URL` results live in this process. With it they live in Redis too, so a second run within the five
//! minutes of the TTL fetches nothing at all.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use cache_core::{Cache, cached};
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use tokio::task;

#[path = "quickstart/scan.rs"]
mod scan;
use scan::Report;

type Failure = Box<dyn Error + Send + Sync>;

/// Counts lines, functions and `unsafe` blocks of one package.
///
/// `package` is its name and version. What is published under a version never changes, so that alone is the key.
#[cached(ttl = 300, key_prefix = "scan", skip(root))]
async fn scan_results(package: &str, root: &Path) -> Result<Report, ScanError> {
    let root = root.to_owned();
    let scan = task::spawn_blocking(move || scan::scan(&root)).await;
    let report = scan.map_err(|panic| panic.to_string()).and_then(|read| read.map_err(|error| error.to_string()));
    report.map_err(|reason| ScanError { package: package.to_owned(), reason })
}

/// A package could not be scanned.
#[derive(Clone, Debug)]
struct ScanError {
    package: String,
    reason: String,
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot scan {}: {}", self.package, self.reason)
    }
}

impl Error for ScanError {}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Failure> {
    let cache = Cache::from_env().await?;
    cache.install()?;
    println!("{}\n", tiers(&cache).await);
    let packages = task::spawn_blocking(dependencies).await??;

    let cold = Pass::run("cold", &cache, &packages).await?;
    let warm = Pass::run("warm", &cache, &packages).await?;
    cache.close().await;

    print_findings(&packages, &cold.reports);
    print_passes(&[&cold, &warm]);
    Ok(())
}

/// Where values can live in this run.
async fn tiers(cache: &Cache) -> String {
    let health = cache.health().await;
    match (health.server_version, health.error) {
        (Some(version), _) => format!("tiers: this process and Redis {version}"),
        (None, Some(error)) => format!("tiers: this process alone, for Redis fails: {error}"),
        (None, None) => "tiers: this process alone (set REDIS_URL to share values between processes)".to_owned(),
    }
}

/// A package of the dependency tree, with its source on this machine.
struct Package {
    /// `name@version`
    id: String,
    root: PathBuf,
}

/// One call of [`scan_results`] for each package, and what the cache counted meanwhile.
struct Pass {
    name: &'static str,
    reports: Vec<Report>,
    fetches: u64,
    near_hits: u64,
    remote_hits: u64,
    time: Duration,
}

impl Pass {
    async fn run(name: &'static str, cache: &Cache, packages: &[Package]) -> Result<Self, ScanError> {
        let bar = progress_bar(name, packages.len());
        let parallel = std::thread::available_parallelism().map_or(4, |cores| cores.get() * 2);
        let before = cache.stats().total;
        let started = Instant::now();
        let reports = stream::iter(packages)
            .map(|package| scan_results(&package.id, &package.root))
            .buffered(parallel)
            .inspect(|_| bar.inc(1))
            .try_collect()
            .await?;
        let time = started.elapsed();
        let after = cache.stats().total;
        bar.finish_and_clear();
        Ok(Self {
            name,
            reports,
            fetches: after.fetches - before.fetches,
            near_hits: after.near_hits - before.near_hits,
            remote_hits: after.remote_hits - before.remote_hits,
            time,
        })
    }
}

/// Drawn on the terminal; hidden where standard error is none.
fn progress_bar(name: &'static str, length: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} pass {wide_bar} {pos}/{len} packages, {elapsed}");
    ProgressBar::new(length as u64).with_style(style.expect("a valid template")).with_message(name)
}

fn print_findings(packages: &[Package], reports: &[Report]) {
    let sum = |count: fn(&Report) -> u64| reports.iter().map(count).sum::<u64>();
    println!(
        "{} packages: {} files, {} lines, {} functions, {} unsafe blocks ({} files unreadable)",
        packages.len(),
        sum(|report| report.files),
        sum(|report| report.lines),
        sum(|report| report.functions),
        sum(|report| report.unsafe_blocks),
        sum(|report| report.unreadable),
    );

    let mut ranking: Vec<_> = packages.iter().zip(reports).collect();
    ranking.sort_by_key(|(_, report)| std::cmp::Reverse(report.unsafe_blocks));
    println!("\n{:<32} {:>8} {:>10} {:>8}", "most unsafe blocks", "lines", "functions", "unsafe");
    for (package, report) in ranking.iter().take(5) {
        println!("{:<32} {:>8} {:>10} {:>8}", package.id, report.lines, report.functions, report.unsafe_blocks);
    }
}

fn print_passes(passes: &[&Pass; 2]) {
    println!(
        "\n{:<5} {:>6} {:>8} {:>10} {:>12} {:>12}",
        "pass", "calls", "fetches", "near hits", "remote hits", "time"
    );
    for pass in passes {
        let Pass { name, reports, fetches, near_hits, remote_hits, time } = pass;
        let (calls, time) = (reports.len(), format!("{:.2} ms", time.as_secs_f64() * 1e3));
        println!("{name:<5} {calls:>6} {fetches:>8} {near_hits:>10} {remote_hits:>12} {time:>12}");
    }
    let [cold, warm] = passes;
    println!("\nspeed-up: {:.0} times", cold.time.as_secs_f64() / warm.time.as_secs_f64());
    for pass in passes {
        println!("{} pass: {} fetches", pass.name, pass.fetches);
    }
}

/// The packages from a registry that this workspace is built with on this platform, as cargo knows them.
fn dependencies() -> Result<Vec<Package>, Failure> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Listed>,
    }
    #[derive(Deserialize)]
    struct Listed {
        name: String,
        version: String,
        source: Option<String>,
        manifest_path: PathBuf,
    }

    let version = cargo(&["-vV"])?;
    let platform = version.lines().find_map(|line| line.strip_prefix("host: "));
    let platform = platform.ok_or("cargo does not name the platform it runs on")?;
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let list = ["metadata", "--format-version=1", "--filter-platform", platform, "--manifest-path", manifest];
    // The build has fetched what this needs. Should something be missing all the same, the network is asked.
    let metadata = cargo(&[&list[..], &["--offline"]].concat()).or_else(|_| cargo(&list))?;
    let metadata: Metadata = serde_json::from_str(&metadata)?;

    let ours = |package: &Listed| package.source.is_none();
    let packages = metadata.packages.into_iter().filter(|package| !ours(package)).map(|package| Package {
        id: format!("{}@{}", package.name, package.version),
        root: package.manifest_path.parent().map(Path::to_owned).unwrap_or_default(),
    });
    Ok(packages.collect())
}

/// Runs cargo, the one that started this program if any, and gives what it prints.
fn cargo(args: &[&str]) -> Result<String, Failure> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(&program).args(args).output().map_err(|error| {
        format!("cannot run {}: {error}; it lists the packages to scan, so install Rust", program.display())
    })?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("cargo {} failed: {}", args.join(" "), stderr.trim()).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
