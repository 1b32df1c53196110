//! Measures how long the parent takes to create the status of a service with many forked workers.
//!
//! `cargo bench --bench status -- 2000` measures with 2,000 workers, which is also the default.

#[cfg(target_os = "linux")]
fn main() -> taskfork::Result<taskfork::Report> {
    use std::hint::black_box;
    use std::time::{Duration, Instant};

    use taskfork::Prefork;

    const ROUNDS: usize = 101;

    let workers = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(2000);
    let service = Prefork::new().workers(workers).listen("127.0.0.1:0").listen("unix:@taskfork-status-bench");
    let service = service.on_interval(Duration::from_secs(1), move |status, handle| {
        let pool = &status.pools()[0];
        if pool.ready() < workers {
            return;
        }
        let mut times: Vec<Duration> = (0..ROUNDS)
            .map(|_| {
                let begun = Instant::now();
                black_box(handle.status());
                begun.elapsed()
            })
            .collect();
        times.sort();
        let last = times[ROUNDS - 1];
        println!("status of {workers} workers: median {:?}, longest {last:?}", times[ROUNDS / 2]);
        let begun = Instant::now();
        let cpu: Duration = pool.workers().iter().filter_map(|worker| worker.cpu_time()).sum();
        println!("cpu_time() of {workers} workers: {:?} in all, {cpu:?} used", begun.elapsed());
        handle.stop();
    });
    service.run(|worker| {
        worker.wait_for_stop(None);
        Ok(())
    })
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("status: it forks thousands of processes, so it runs on Linux only");
}
