//! A persistent pool for the few hundred short phases of a token.
//!
//! Between phases that follow at once, workers spin; after [`SPIN`] turns they sleep. A phase hands out
//! task numbers from one counter, so threads that are slowed down simply take fewer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};

pub use crate::machine::default_threads;

/// Turns of the waiting loop before a worker sleeps: some 100 µs, longer than any pause within a token.
const SPIN: usize = 20_000;

/// Threads that run the phases of a forward pass together with the calling thread.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One phase at a time, whoever calls.
    turn: Mutex<()>,
}

struct Shared {
    /// Counts phases; workers watch it.
    phase: AtomicUsize,
    next_task: AtomicUsize,
    tasks: AtomicUsize,
    /// The phase whose tasks may be taken; 0 between phases.
    open: AtomicUsize,
    /// Workers that may be looking at the job.
    inside: AtomicUsize,
    job: Mutex<Option<Job>>,
    asleep: Vec<AtomicBool>,
    stop: AtomicBool,
    panicked: AtomicBool,
}

/// The phase's function, its lifetime erased.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(usize) + Sync));

// Sound: the function is `Sync`, and `Pool::run` keeps it alive while anybody may call it.
unsafe impl Send for Job {}

impl Pool {
    /// A pool of `threads` threads in all, the caller included.
    pub fn new(threads: usize) -> Self {
        let workers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            phase: AtomicUsize::new(0),
            next_task: AtomicUsize::new(0),
            tasks: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            job: Mutex::new(None),
            asleep: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
        });
        let workers = (0..workers)
            .map(|id| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("phi-{}", id + 1))
                    .spawn(move || shared.work(id))
                    .expect("the system can start a thread")
            })
            .collect();
        Self { shared, workers, turn: Mutex::new(()) }
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0)` … `task(tasks - 1)`, each once, on all threads; returns when all are done.
    ///
    /// # Panics
    /// If a task panics, once all threads have stopped. Must not be called from within a task.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if self.workers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(task);
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let shared = &*self.shared;
        let task: &(dyn Fn(usize) + Sync) = &task;
        // Sound: only the lifetime changes, and nobody calls the job once it is closed and nobody is inside.
        let job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(task) };
        *shared.job.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(job);
        shared.next_task.store(0, Ordering::Relaxed);
        shared.tasks.store(tasks, Ordering::Relaxed);
        let phase = shared.phase.load(Ordering::Relaxed) + 1;
        shared.open.store(phase, Ordering::SeqCst);
        shared.phase.store(phase, Ordering::SeqCst);
        for (worker, asleep) in self.workers.iter().zip(&shared.asleep) {
            if asleep.load(Ordering::SeqCst) {
                Thread::unpark(worker.thread());
            }
        }
        shared.take_tasks(task);
        // Every task is taken. Workers that never came are not waited for; those inside finish theirs.
        shared.open.store(0, Ordering::SeqCst);
        let mut turns = 0usize;
        while shared.inside.load(Ordering::SeqCst) > 0 {
            turns += 1;
            if turns > SPIN { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        if shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a task of the thread pool panicked");
        }
    }

    /// Splits `0..length` in parts of `unit` elements (the last may be shorter) and calls `f` with each
    /// part's range.
    pub fn run_ranges(&self, length: usize, unit: usize, f: impl Fn(std::ops::Range<usize>) + Sync) {
        self.run(length.div_ceil(unit), |i| f(i * unit..((i + 1) * unit).min(length)));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.phase.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker's panic was already reported by `run`.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, id: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_phase(id, seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // Going inside comes before looking whether the phase is open, closing it before looking who is
            // inside: one of the two sides always sees the other.
            self.inside.fetch_add(1, Ordering::SeqCst);
            if self.open.load(Ordering::SeqCst) != 0 {
                let job = *self.job.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                if let Some(job) = job {
                    // Sound: `Pool::run` keeps the function alive while anybody is inside.
                    self.take_tasks(unsafe { &*job.0 });
                }
            }
            self.inside.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn wait_for_phase(&self, id: usize, seen: usize) -> usize {
        for _ in 0..SPIN {
            let phase = self.phase.load(Ordering::Acquire);
            if phase != seen {
                return phase;
            }
            std::hint::spin_loop();
        }
        loop {
            // The flag goes up before the phase is read: the caller either sees it or we see the phase.
            self.asleep[id].store(true, Ordering::SeqCst);
            let phase = self.phase.load(Ordering::SeqCst);
            if phase != seen {
                self.asleep[id].store(false, Ordering::SeqCst);
                return phase;
            }
            std::thread::park();
        }
    }

    fn take_tasks(&self, task: &(dyn Fn(usize) + Sync)) {
        let tasks = self.tasks.load(Ordering::Relaxed);
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let next = self.next_task.fetch_add(1, Ordering::Relaxed);
                if next >= tasks {
                    break;
                }
                task(next);
            }
        }));
        if result.is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_phase_after_phase() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    pool.run(tasks, |i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 50));
            }
        }
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let pool = Pool::new(2);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let sum = AtomicUsize::new(0);
            pool.run(10, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| pool.run(8, |i| assert!(i != 5))));
        assert!(caught.is_err());
        pool.run(8, |_| {});
    }
}
