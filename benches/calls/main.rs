//! Measures the calls that a worker may make often, `heartbeat` and `stop_requested`: `cargo bench --bench calls`.

use std::hint::black_box;
use std::time::Duration;

use criterion::Criterion;
use taskfork::{Prefork, Report, Worker};

/// Measures in a worker, because only workers have a [`Worker`].
fn main() -> taskfork::Result<Report> {
    Prefork::new().workers(1).graceful_timeout(Duration::from_secs(1)).max_restarts(0).run(|worker| {
        measure(&worker);
        Ok(())
    })
}

fn measure(worker: &Worker) {
    let mut criterion = Criterion::default().without_plots().configure_from_args();
    criterion.bench_function("Worker::heartbeat", |bencher| bencher.iter(|| black_box(worker).heartbeat()));
    criterion.bench_function("Worker::stop_requested", |bencher| bencher.iter(|| black_box(worker).stop_requested()));
    criterion.final_summary();
}
