//! NVIDIA's driver library, looked for when it is first wanted: the calls that phi makes, and nothing of it in the build.
//!
//! Why not a binding's crate: those hold result codes as enums, which a later driver's codes are not values of, and end the
//! process where a call is missing. Here a code is a number, and a library that lacks a call is no driver.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::Library;

/// A result code; 0 is success.
pub type Code = u32;
/// An address in a device's memory.
pub type Pointer = u64;
/// Contexts, streams, modules, functions.
pub type Handle = *mut c_void;

pub const OUT_OF_MEMORY: Code = 2;

macro_rules! calls {
    ($($name:ident = $symbol:literal ($($kind:ty),*);)+) => {
        /// The driver's calls, named without their prefix; see NVIDIA's "CUDA Driver API".
        pub struct Driver {
            $(pub $name: unsafe extern "system" fn($($kind),*) -> Code,)+
            _library: Library,
        }

        impl Driver {
            fn of(library: Library) -> Option<Self> {
                // Sound: the signatures are those of cuda.h, and the functions live as long as the library.
                unsafe {
                    Some(Self {
                        $($name: *library.get($symbol).ok()?,)+
                        _library: library,
                    })
                }
            }
        }
    };
}

calls! {
    init = b"cuInit\0" (c_uint);
    version = b"cuDriverGetVersion\0" (*mut c_int);
    error_text = b"cuGetErrorString\0" (Code, *mut *const c_char);
    device_count = b"cuDeviceGetCount\0" (*mut c_int);
    device = b"cuDeviceGet\0" (*mut c_int, c_int);
    device_name = b"cuDeviceGetName\0" (*mut c_char, c_int, c_int);
    device_attribute = b"cuDeviceGetAttribute\0" (*mut c_int, c_int, c_int);
    retain_context = b"cuDevicePrimaryCtxRetain\0" (*mut Handle, c_int);
    release_context = b"cuDevicePrimaryCtxRelease_v2\0" (c_int);
    set_context = b"cuCtxSetCurrent\0" (Handle);
    memory_info = b"cuMemGetInfo_v2\0" (*mut usize, *mut usize);
    allocate = b"cuMemAlloc_v2\0" (*mut Pointer, usize);
    free = b"cuMemFree_v2\0" (Pointer);
    allocate_host = b"cuMemHostAlloc\0" (*mut *mut c_void, usize, c_uint);
    free_host = b"cuMemFreeHost\0" (*mut c_void);
    to_device = b"cuMemcpyHtoDAsync_v2\0" (Pointer, *const c_void, usize, Handle);
    to_host = b"cuMemcpyDtoHAsync_v2\0" (*mut c_void, Pointer, usize, Handle);
    on_device = b"cuMemcpyDtoDAsync_v2\0" (Pointer, Pointer, usize, Handle);
    set_bytes = b"cuMemsetD8Async\0" (Pointer, u8, usize, Handle);
    create_stream = b"cuStreamCreate\0" (*mut Handle, c_uint);
    destroy_stream = b"cuStreamDestroy_v2\0" (Handle);
    wait = b"cuStreamSynchronize\0" (Handle);
    load_module = b"cuModuleLoadData\0" (*mut Handle, *const c_void);
    unload_module = b"cuModuleUnload\0" (Handle);
    function = b"cuModuleGetFunction\0" (*mut Handle, Handle, *const c_char);
    launch = b"cuLaunchKernel\0" (
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
    );
}

impl Driver {
    /// The driver of this machine, if there is one that works.
    pub fn get() -> Option<&'static Driver> {
        static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();
        DRIVER.get_or_init(Self::load).as_ref()
    }

    fn load() -> Option<Self> {
        let names: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
        // Sound: what a library of that name does when it is loaded is the system's own business.
        let library = names.iter().find_map(|name| unsafe { Library::new(name) }.ok())?;
        let driver = Self::of(library)?;
        // Sound: the first call there is to make; it has no pointers.
        (unsafe { (driver.init)(0) } == 0).then_some(driver)
    }

    /// What the driver says of a code.
    pub fn explain(&self, code: Code) -> String {
        let mut text = std::ptr::null();
        // Sound: the text is a constant of the library, ended by a zero.
        let text = unsafe {
            let known = (self.error_text)(code, &mut text) == 0 && !text.is_null();
            known.then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        text.unwrap_or_else(|| format!("CUDA error {code}"))
    }
}
