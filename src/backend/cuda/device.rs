//! The graphics processors that NVIDIA's driver has, and opening one.

use std::ffi::{CStr, c_int};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::driver::{Code, Driver, Handle, OUT_OF_MEMORY, Pointer};
use super::graph::Launches;
use crate::{Error, Result};

/// The compute capability that the PTX is made for; later ones take it too.
const CAPABILITY: (c_int, c_int) = (8, 0);

/// The version of CUDA that a driver must speak to take the PTX, as the driver numbers it: 12.4.
const VERSION: c_int = 12_040;

/// A graphics processor that was found.
#[derive(Clone)]
pub struct Adapter {
    pub(super) driver: &'static Driver,
    number: c_int,
    name: Arc<str>,
    integrated: bool,
    /// Multiprocessors.
    processors: usize,
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter").field("number", &self.number).field("name", &self.name).finish()
    }
}

impl Adapter {
    /// Those of this machine that phi's kernels run on, in the driver's order. Without a driver, or with an old one, there are
    /// none.
    pub fn all() -> Vec<Adapter> {
        let Some(driver) = Driver::get().filter(|driver| version(driver) >= VERSION) else {
            return Vec::new();
        };
        let mut count = 0;
        // Sound: the pointer is to a number.
        if unsafe { (driver.device_count)(&mut count) } != 0 {
            return Vec::new();
        }
        (0..count).filter_map(|ordinal| Self::find(driver, ordinal)).collect()
    }

    fn find(driver: &'static Driver, ordinal: c_int) -> Option<Self> {
        const CAPABILITY_MAJOR: c_int = 75;
        const CAPABILITY_MINOR: c_int = 76;
        const INTEGRATED: c_int = 18;
        const PROCESSORS: c_int = 16;
        let mut number = 0;
        let mut name = [0u8; 256];
        // Sound: pointers are to a number, and to as many bytes as are said, the last of which stays zero.
        let found = unsafe {
            (driver.device)(&mut number, ordinal) == 0
                && (driver.device_name)(name.as_mut_ptr().cast(), name.len() as c_int - 1, number) == 0
        };
        let attribute = |which| {
            let mut value = 0;
            // Sound: the pointer is to a number.
            let code = unsafe { (driver.device_attribute)(&mut value, which, number) };
            (code == 0).then_some(value)
        };
        let capability = (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?);
        let name = CStr::from_bytes_until_nul(&name).ok()?.to_string_lossy();
        let integrated = attribute(INTEGRATED) == Some(1);
        let processors = attribute(PROCESSORS).map_or(1, |count| count.max(1) as usize);
        (found && capability >= CAPABILITY).then(|| Self {
            driver,
            number,
            name: name.into(),
            integrated,
            processors,
        })
    }

    /// As the driver calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// "CUDA", and the version that the driver speaks.
    pub fn driver(&self) -> String {
        let version = version(self.driver);
        format!("CUDA, {}.{}", version / 1000, version % 1000 / 10)
    }

    /// "discrete GPU" or "integrated GPU".
    pub fn kind(&self) -> &'static str {
        if self.integrated { "integrated GPU" } else { "discrete GPU" }
    }

    /// Whether its memory is the machine's.
    pub fn shares_memory(&self) -> bool {
        self.integrated
    }

    /// Bytes of its memory that can be taken.
    pub fn free_memory(&self) -> Option<u64> {
        let context = Context::open(self).ok()?;
        let (mut free, mut total) = (0, 0);
        context.enter().ok()?;
        // Sound: the pointers are to numbers.
        let code = unsafe { (self.driver.memory_info)(&mut free, &mut total) };
        (code == 0).then_some(free as u64)
    }
}

/// The version of CUDA that `driver` speaks: 12040 is 12.4.
fn version(driver: &Driver) -> c_int {
    let mut version = 0;
    // Sound: the pointer is to a number.
    unsafe { (driver.version)(&mut version) };
    version
}

/// An opened graphics processor, and the one stream that all its work goes through.
pub(super) struct Context {
    pub driver: &'static Driver,
    device: c_int,
    processors: usize,
    name: Arc<str>,
    context: Handle,
    launches: Mutex<Launches>,
    pub stream: Handle,
    fault: Mutex<Option<String>>,
}

// Sound: the driver's handles may be used from any thread.
unsafe impl Send for Context {}
// Sound: likewise; the driver locks what it must.
unsafe impl Sync for Context {}

impl Context {
    /// # Errors
    /// What the driver refuses.
    pub fn open(adapter: &Adapter) -> Result<Arc<Self>> {
        let Adapter { driver, number, name, processors, .. } = adapter.clone();
        let refused = |code| {
            let why = driver.explain(code);
            Error::Device(format!("cannot open {name}: {why}; go on without it with -ngl 0"))
        };
        let mut context = std::ptr::null_mut();
        // Sound: the pointer is to a handle; the device is one that the driver named.
        let code = unsafe { (driver.retain_context)(&mut context, number) };
        if code != 0 {
            return Err(refused(code));
        }
        // From here on it is released when it is dropped.
        let name = Arc::clone(&adapter.name);
        let (device, fault) = (number, Mutex::default());
        let stream = std::ptr::null_mut();
        let launches = Mutex::new(Launches::new(driver, stream));
        let mut opened = Self { driver, device, processors, name, context, launches, stream, fault };
        opened.enter()?;
        const NON_BLOCKING: u32 = 1;
        // Sound: the pointer is to a handle.
        let code = unsafe { (driver.create_stream)(&mut opened.stream, NON_BLOCKING) };
        if code != 0 {
            return Err(refused(code));
        }
        opened.launches = Mutex::new(Launches::new(driver, opened.stream));
        Ok(Arc::new(opened))
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many multiprocessors it has.
    pub fn processors(&self) -> usize {
        self.processors
    }

    /// Makes this thread's calls go to this device.
    pub fn enter(&self) -> Result<()> {
        // Sound: the context is retained while this lives.
        self.check(unsafe { (self.driver.set_context)(self.context) })
    }

    /// What is launched in the stream.
    pub fn launches(&self) -> MutexGuard<'_, Launches> {
        lock(&self.launches)
    }

    /// Makes this thread's calls go to this device, and those in the stream come after everything launched.
    pub fn queue_up(&self) -> Result<()> {
        self.enter()?;
        let settled = self.launches().settle();
        self.check(settled.err().unwrap_or(0))
    }

    /// # Errors
    /// What `code` stands for, if not success.
    pub fn check(&self, code: Code) -> Result<()> {
        match code {
            0 => Ok(()),
            code => Err(self.failed(&self.driver.explain(code))),
        }
    }

    fn failed(&self, what: &str) -> Error {
        Error::Device(format!("{} failed: {what}; go on without it with -ngl 0", self.name))
    }

    /// Keeps the first thing that went wrong until somebody waits for a result.
    pub fn note(&self, what: &str) {
        lock(&self.fault).get_or_insert_with(|| what.to_owned());
    }

    /// # Errors
    /// What was noted.
    pub fn faultless(&self) -> Result<()> {
        lock(&self.fault).as_ref().map_or(Ok(()), |what| Err(Error::Device(what.clone())))
    }

    /// Waits until the device has done everything.
    pub fn wait(&self) -> Result<()> {
        self.queue_up()?;
        // Sound: the stream lives as long as this.
        self.check(unsafe { (self.driver.wait)(self.stream) })?;
        self.faultless()
    }

    /// # Errors
    /// Too little memory on the device.
    pub fn allocate(&self, bytes: usize) -> Result<Pointer> {
        self.enter()?;
        let mut pointer = 0;
        // Sound: the pointer is to a number.
        match unsafe { (self.driver.allocate)(&mut pointer, bytes) } {
            OUT_OF_MEMORY => Err(Error::Resources(format!(
                "{} has no {} MiB of memory left: put fewer layers on it with -ngl",
                self.name,
                (bytes >> 20) + 1
            ))),
            code => self.check(code).map(|()| pointer),
        }
    }

    /// Takes back what [`Self::allocate`] gave, once the device has done everything.
    pub fn free(&self, pointer: Pointer) {
        // What waits to be launched may be for it.
        if let Err(error) = self.queue_up() {
            self.note(&error.to_string());
        }
        if self.enter().is_ok() {
            // Sound: its owner is gone, and the driver waits for what still uses it.
            unsafe { (self.driver.free)(pointer) };
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Sound: both were made by `open`, and nothing refers to them any more.
        unsafe {
            if !self.stream.is_null() && (self.driver.set_context)(self.context) == 0 {
                lock(&self.launches).forget();
                (self.driver.destroy_stream)(self.stream);
            }
            (self.driver.release_context)(self.device);
        }
    }
}

/// Locks; a thread that panicked elsewhere left nothing half-done that matters.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
