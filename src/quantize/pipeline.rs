//! Work on many threads whose results are taken one by one, in order, with a bounded number in flight.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::Result;

/// Results that may be in the making or waiting to be taken.
pub(super) fn window(threads: usize) -> usize {
    threads * 4 + 4
}

/// Calls `make(0)` … `make(count - 1)` on `threads` threads and `take` with each result, in order, on this one.
///
/// Each thread keeps one `S` for all its calls. `make` fills the buffer it is given, which is used again
/// later, and may return something beside. The first error, in the order of the results, ends the run and is returned.
pub(super) fn run_in_order<S: Default, T: Send>(
    threads: usize,
    count: usize,
    make: impl Fn(usize, &mut S, &mut Vec<u8>) -> Result<T> + Sync,
    mut take: impl FnMut(usize, &[u8], T) -> Result<()>,
) -> Result<()> {
    let queue = Queue::new(count, window(threads));
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, count.max(1)) {
            scope.spawn(|| {
                let _stop = StopOnPanic(&queue);
                let mut scratch = S::default();
                while let Some((index, mut buffer)) = queue.claim() {
                    buffer.clear();
                    let made = make(index, &mut scratch, &mut buffer);
                    queue.deliver(index, made.map(|made| (buffer, made)));
                }
            });
        }
        let _stop = StopOnDrop(&queue);
        for index in 0..count {
            let Some(made) = queue.collect() else { break };
            let (buffer, made) = made?;
            take(index, &buffer, made)?;
            queue.give_back(buffer);
        }
        Ok(())
    })
}

/// A filled buffer and what else came out of making it.
type Made<T> = Result<(Vec<u8>, T)>;

struct Queue<T> {
    state: Mutex<State<T>>,
    /// Signalled when there is room for another result.
    room: Condvar,
    /// Signalled when the next result is there.
    ready: Condvar,
}

struct State<T> {
    /// The next index to be made.
    next: usize,
    /// The next index to be taken.
    taken: usize,
    count: usize,
    window: usize,
    /// Results from `taken` on; `None` while in the making.
    results: VecDeque<Option<Made<T>>>,
    spare: Vec<Vec<u8>>,
    stopped: bool,
}

impl<T> Queue<T> {
    fn new(count: usize, window: usize) -> Self {
        let results = VecDeque::with_capacity(window);
        let state = State { next: 0, taken: 0, count, window, results, spare: Vec::new(), stopped: false };
        Self { state: Mutex::new(state), room: Condvar::new(), ready: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next index to make and a buffer for it, as soon as there is room; `None` when all are claimed.
    fn claim(&self) -> Option<(usize, Vec<u8>)> {
        let mut state = self.lock();
        loop {
            if state.stopped || state.next == state.count {
                return None;
            }
            if state.next - state.taken < state.window {
                let index = state.next;
                state.next += 1;
                state.results.push_back(None);
                return Some((index, state.spare.pop().unwrap_or_default()));
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn deliver(&self, index: usize, result: Made<T>) {
        let mut state = self.lock();
        let place = index - state.taken;
        state.results[place] = Some(result);
        if place == 0 {
            self.ready.notify_one();
        }
    }

    /// The next result in order; `None` if a thread died.
    fn collect(&self) -> Option<Made<T>> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(result) = state.results.front_mut().and_then(Option::take) {
                return Some(result);
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns the buffer of the result that was just taken, which makes room for another.
    fn give_back(&self, buffer: Vec<u8>) {
        let mut state = self.lock();
        state.results.pop_front();
        state.taken += 1;
        state.spare.push(buffer);
        self.room.notify_one();
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.room.notify_all();
        self.ready.notify_all();
    }
}

/// Ends the threads' waiting when the taking side leaves, by error or not.
struct StopOnDrop<'a, T>(&'a Queue<T>);

impl<T> Drop for StopOnDrop<'_, T> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Ends everyone's waiting when a thread panics; the scope then passes the panic on.
struct StopOnPanic<'a, T>(&'a Queue<T>);

impl<T> Drop for StopOnPanic<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::Error;

    fn fill(index: usize, _: &mut (), out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(&index.to_le_bytes());
        Ok(())
    }

    #[test]
    fn results_come_in_order_with_any_thread_count() {
        for threads in [1, 2, 7] {
            for count in [0, 1, 1000] {
                let mut seen = Vec::new();
                run_in_order(threads, count, fill, |index, bytes, ()| {
                    assert_eq!(bytes, index.to_le_bytes());
                    seen.push(index);
                    Ok(())
                })
                .unwrap();
                assert!(seen.into_iter().eq(0..count));
            }
        }
    }

    #[test]
    fn no_more_than_the_window_is_ahead() {
        let taken = AtomicUsize::new(0);
        let make = |index: usize, _: &mut (), _: &mut Vec<u8>| {
            assert!(index < taken.load(Ordering::SeqCst) + window(2) + 1);
            Ok(())
        };
        run_in_order(2, 500, make, |_, _, ()| {
            taken.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn the_first_error_of_either_side_ends_the_run() {
        let make = |index: usize, _: &mut (), _: &mut Vec<u8>| {
            if index >= 30 { Err(Error::Usage(index.to_string())) } else { Ok(()) }
        };
        let error = run_in_order(3, 1000, make, |_, _, ()| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "30");
        let error = run_in_order(
            3,
            1000,
            fill,
            |index, _, ()| if index == 5 { Err(Error::Interrupted) } else { Ok(()) },
        );
        assert!(matches!(error, Err(Error::Interrupted)));
    }
}
