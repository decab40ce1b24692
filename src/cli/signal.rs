//! Ctrl-C, SIGTERM and SIGHUP: stop an answer, or leave with nothing left behind.

use std::io::IsTerminal;
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::{Error, Result, fs};

/// A command is looking at [`STOP`] often enough that it need not be killed.
static WATCHED: AtomicBool = AtomicBool::new(false);
/// The user asked to stop while a command was watching.
static STOP: AtomicBool = AtomicBool::new(false);
/// The process was told to end (not merely interrupted from the keyboard).
static TERMINATE: AtomicBool = AtomicBool::new(false);

/// A thread is on its way out of the process, and says why.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// Whether the caller is the first thread that wants to end the process: only that one says why. A signal that ends the
/// process and the command that it stops get there at the same time.
pub fn leave_first() -> bool {
    !LEAVING.swap(true, SeqCst)
}

/// Takes over the signals that ask a process to stop.
pub fn install() -> Result<()> {
    ctrlc::set_handler(on_signal)
        .map_err(|error| Error::io("handle signals of", "phi", std::io::Error::other(error)))?;
    #[cfg(unix)]
    unix::install();
    Ok(())
}

/// Runs on a thread of its own, not in the signal handler. A second signal does not wait.
fn on_signal() {
    let first = !STOP.swap(true, SeqCst);
    if first && WATCHED.load(SeqCst) && !TERMINATE.load(SeqCst) {
        return;
    }
    if !leave_first() {
        return;
    }
    fs::remove_unfinished();
    #[cfg(unix)]
    unix::restore_terminal();
    // A terminal shows "^C" in the line that was begun.
    let line = if std::io::stderr().is_terminal() { "\n" } else { "" };
    eprintln!("{line}error: {}", Error::Interrupted);
    exit(super::FAILED.into());
}

/// While this lives, a first Ctrl-C only sets a flag that [`Watch::stopped`] reports.
pub struct Watch(());

impl Watch {
    /// Starts watching; earlier signals are forgotten.
    pub fn start() -> Self {
        STOP.store(false, SeqCst);
        WATCHED.store(true, SeqCst);
        Self(())
    }

    /// Whether the user asked to stop.
    pub fn stopped(&self) -> bool {
        STOP.load(SeqCst)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.store(false, SeqCst);
        STOP.store(false, SeqCst);
    }
}

#[cfg(unix)]
mod unix {
    use std::mem::MaybeUninit;
    use std::sync::OnceLock;

    use super::{SeqCst, TERMINATE};

    static TERMINAL: OnceLock<libc::termios> = OnceLock::new();

    /// Leads SIGTERM and SIGHUP to the handler of SIGINT, unless the caller (nohup) has them ignored.
    pub fn install() {
        let handler: extern "C" fn(libc::c_int) = forward;
        for signal in [libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: `forward` calls only async-signal-safe functions.
            unsafe {
                if libc::signal(signal, handler as libc::sighandler_t) == libc::SIG_IGN {
                    libc::signal(signal, libc::SIG_IGN);
                }
            }
        }
        let mut state = MaybeUninit::uninit();
        // SAFETY: tcgetattr has filled `state` when it returns 0, and only then is it read.
        unsafe {
            if libc::tcgetattr(libc::STDIN_FILENO, state.as_mut_ptr()) == 0 {
                let _ = TERMINAL.set(state.assume_init());
            }
        }
    }

    extern "C" fn forward(_signal: libc::c_int) {
        TERMINATE.store(true, SeqCst);
        // SAFETY: `raise` is async-signal-safe.
        unsafe { libc::raise(libc::SIGINT) };
    }

    /// Undoes what the line editor set, should it be at work.
    pub fn restore_terminal() {
        if let Some(state) = TERMINAL.get() {
            // SAFETY: `state` came from tcgetattr on the same descriptor.
            unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, state) };
        }
    }
}
