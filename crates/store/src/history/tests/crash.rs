//! Exactly once: whatever stops between any two steps.

use parking_lot::Mutex;

use super::super::hook::Step;
use super::*;

#[tokio::test]
async fn a_crash_between_any_two_steps_loses_and_doubles_nothing() {
    crash_everywhere(&Site::local(), 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_any_two_steps_on_s3_loses_and_doubles_nothing() {
    if let Some(site) = Site::s3() {
        crash_everywhere(&site, 1).await;
    }
}

async fn crash_everywhere(site: &Site, rounds: usize) {
    let mut log = Log::default();
    let history = open_at(&site.places("history"), HistoryConfig::default()).await.unwrap();
    let taken = Arc::new(Mutex::new(Vec::new()));
    {
        // What a crash at this step would leave.
        let source = site.place("history");
        let images: Vec<_> = (0..rounds * (1 + 3 * TableId::COUNT))
            .map(|image| site.place(&format!("image-{image}")))
            .collect();
        let taken = Arc::clone(&taken);
        history.hook.set(move |step| {
            let mut taken = taken.lock();
            let (source, image) = (source.clone(), images[taken.len()].clone());
            // Some steps are on a runtime's thread.
            std::thread::spawn(move || copy_place(&source, &image)).join().unwrap();
            taken.push(step);
            Ok(())
        });
    }
    for _ in 0..rounds {
        log.push_some(60);
        log.feed(&history);
        history.flush().await.unwrap();
    }
    let steps = taken.lock().clone();
    assert_eq!(steps.len(), rounds * (1 + 3 * TableId::COUNT));

    for (image, step) in steps.iter().enumerate() {
        let when = format!("after a crash at {step:?}, step {image}");
        let image = site.places(&format!("image-{image}"));
        let history = open_at(&image, HistoryConfig::default()).await.unwrap();
        let orphans = files_at(&image.history).await.len()
            - history.tables.iter().map(|t| t.log.lock().files().count()).sum::<usize>();
        assert_eq!(orphans, 0, "{when}");
        // The log is read again from where some table needs it, with a flush at an awkward moment.
        for partition in 0..PARTITIONS {
            let start = history.start_offset(partition as u32);
            let end = log.events[partition].len().min(start as usize + 11);
            log.feed_up_to(&history, partition, start, end);
        }
        history.flush().await.unwrap();
        log.feed(&history);
        assert_complete(&history, &log, &when).await;
        history.flush().await.unwrap();
        assert_complete(&history, &log, &format!("{when}, flushed")).await;
        let history = open_at(&image, HistoryConfig::default()).await.unwrap();
        assert_complete(&history, &log, &format!("{when}, opened again")).await;
        assert_eq!(*history.subscribe_committed().borrow(), log.events.each_ref().map(|e| e.len() as u64));
    }
}

#[tokio::test]
async fn a_flush_that_fails_at_any_step_is_made_good_by_the_next() {
    let steps = 1 + 3 * TableId::COUNT;
    for failing in 0..steps {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::default();
        let history = open(folder.path()).await;
        let mut step = 0;
        history.hook.set(move |_| {
            step += 1;
            if step == failing + 1 {
                return Err(StoreError::Interrupted { what: "flush", message: "test".to_owned() });
            }
            Ok(())
        });
        log.push_some(60);
        log.feed(&history);
        history.flush().await.unwrap_err();
        assert!(matches!(history.health(), HistoryHealth::Failing { attempts: 1, .. }));
        assert_complete(&history, &log, &format!("after failing at step {failing}")).await;

        log.push_some(30);
        log.feed(&history);
        assert_complete(&history, &log, "with more rows").await;
        history.flush().await.unwrap();
        assert_eq!(history.health(), HistoryHealth::Healthy);
        assert_complete(&history, &log, &format!("after failing at step {failing} and another flush")).await;
        assert_eq!(history.view.buffered_bytes(), 0);
        let history = open(folder.path()).await;
        assert_complete(&history, &log, "opened again").await;
    }
}

#[tokio::test]
async fn an_abandoned_flush_is_not_made_twice() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = Log::default();
    let history = open(folder.path()).await;
    log.push_some(60);
    log.feed(&history);
    // The first table's work goes on for a while after its caller has gone.
    history.hook.set(|step| {
        if matches!(step, Step::Written(_)) {
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        Ok(())
    });
    let abandoned = tokio::time::timeout(std::time::Duration::from_millis(100), history.flush()).await;
    assert!(abandoned.is_err());
    history.hook.clear();
    history.flush().await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_complete(&history, &log, "after an abandoned flush").await;
    let history = open(folder.path()).await;
    assert_complete(&history, &log, "opened again").await;
}
