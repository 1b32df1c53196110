//! Measures the calls that a worker may make often, `heartbeat`, `stop_requested` and `begin_work`:
//! `cargo bench --bench calls`.

use std::hint::black_box;
use std::thread;
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
    measure_work(&mut criterion, worker, "Worker::begin_work and drop");
    // Only the first thread that begins a unit needs no atomic addition.
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut criterion = Criterion::default().without_plots().configure_from_args();
            measure_work(&mut criterion, worker, "Worker::begin_work and drop, in a second thread");
        });
    });
    criterion.final_summary();
}

fn measure_work(criterion: &mut Criterion, worker: &Worker, name: &str) {
    criterion.bench_function(name, |bencher| bencher.iter(|| drop(black_box(black_box(worker).begin_work()))));
}
