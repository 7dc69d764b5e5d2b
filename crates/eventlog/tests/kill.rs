//! A process that appends is killed at random moments; what it was told to be durable must be there.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use catchment_eventlog::EventLog;
use catchment_eventlog::conformance::{batch, read_all};
use catchment_eventlog::embedded::{EmbeddedLog, LogConfig};

const FOLDER: &str = "CATCHMENT_TEST_KILL_FOLDER";
const ROUND: &str = "CATCHMENT_TEST_KILL_ROUND";
const ROUNDS: u32 = 12;

fn open(dir: &Path) -> Arc<EmbeddedLog> {
    // Small segments: the process is killed while it begins new ones, too.
    let config = LogConfig {
        partitions: 1,
        segment_bytes: 64 << 10,
        retention_bytes: 64 << 20,
        ..LogConfig::default()
    };
    EmbeddedLog::open(dir, config).unwrap()
}

/// The process to be killed: appends from several tasks, prints what was acknowledged.
#[test]
#[ignore = "started by the test below"]
fn appends_until_killed() {
    let (Ok(dir), Ok(round)) = (std::env::var(FOLDER), std::env::var(ROUND)) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let log = open(dir.as_ref());
        let mut tasks = Vec::new();
        for task in 0..8 {
            let (log, round) = (log.clone(), round.clone());
            tasks.push(tokio::spawn(async move {
                for number in 0.. {
                    let text = format!("{round}/{task}/{number}/{}", "x".repeat(number % 700));
                    let offset = log.submit(0, batch([&text])).await.unwrap().await.unwrap();
                    // One write call a line: a line that is there is whole.
                    let line = format!("\nacknowledged {offset} {text}\n");
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
}

#[test]
fn a_killed_process_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "appends_until_killed", "--ignored", "--nocapture"])
            .env(FOLDER, dir.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || output.lines().map_while(Result::ok).collect::<Vec<_>>());
        let millis = 60 + (seed ^ u64::from(round).wrapping_mul(0x9e37_79b9_7f4a_7c15)) % 240;
        std::thread::sleep(Duration::from_millis(millis));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in reader.join().unwrap() {
            let told = line.strip_prefix("acknowledged ").and_then(|told| told.split_once(' '));
            if let Some((offset, text)) = told {
                acknowledged.push((offset.parse::<u64>().unwrap(), text.to_owned()));
            }
        }
    }
    assert!(acknowledged.len() > 100, "only {} acknowledged", acknowledged.len());

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let log = open(dir.path());
        let read = read_all(&*log, 0).await;
        assert_eq!(log.stats().corrupted_blocks, 0);
        assert!(read.iter().map(|&(offset, _)| offset).eq(0..read.len() as u64), "no gap");
        let texts: HashSet<_> = read.iter().map(|(_, text)| text).collect();
        assert_eq!(texts.len(), read.len(), "each once");
        for (offset, text) in &acknowledged {
            assert_eq!(&read[*offset as usize].1, text, "seed {seed}");
        }
        println!("{} acknowledged, {} kept", acknowledged.len(), read.len());
    });
}
