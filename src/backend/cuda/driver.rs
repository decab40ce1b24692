//! NVIDIA's driver library, looked for when it is first wanted: the calls that phi makes, and nothing of it in the build.
//!
//! Why not a binding's crate: those hold result codes as enums, which a later driver's codes are not values of, and end the
//! process where a call is missing. Here a code is a number, and a library that lacks a call is no driver.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ops::Deref;
use std::sync::OnceLock;

use libloading::Library;

/// A result code; 0 is success.
pub type Code = u32;
/// An address in a device's memory.
pub type Pointer = u64;
/// Contexts, streams, modules, functions.
pub type Handle = *mut c_void;

pub const OUT_OF_MEMORY: Code = 2;

/// What a launch is made of, as in CUDA_KERNEL_NODE_PARAMS (of version 1).
#[repr(C)]
pub struct KernelNode {
    pub function: Handle,
    /// Blocks in each dimension.
    pub groups: [c_uint; 3],
    /// Threads of a block in each dimension.
    pub threads: [c_uint; 3],
    pub shared_bytes: c_uint,
    pub parameters: *mut *mut c_void,
    pub extra: *mut *mut c_void,
}

macro_rules! calls {
    ($(#[$doc:meta])* $set:ident { $($name:ident = $symbol:literal ($($kind:ty),*);)+ }) => {
        $(#[$doc])*
        pub struct $set {
            $(pub $name: unsafe extern "system" fn($($kind),*) -> Code,)+
        }

        impl $set {
            /// Valid as long as `library` is.
            fn of(library: &Library) -> Option<Self> {
                // Sound: the signatures are those of cuda.h.
                unsafe { Some(Self { $($name: *library.get($symbol).ok()?,)+ }) }
            }
        }
    };
}

/// The driver's library and its calls.
pub struct Driver {
    calls: Calls,
    /// Where it has them all.
    pub graphs: Option<Graphs>,
    _library: Library,
}

impl Deref for Driver {
    type Target = Calls;

    fn deref(&self) -> &Calls {
        &self.calls
    }
}

calls! {
    /// The driver's calls, named without their prefix; see NVIDIA's "CUDA Driver API".
    Calls {
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
}

calls! {
    /// Those for graphs, in CUDA since 11.4.
    Graphs {
        create = b"cuGraphCreate\0" (*mut Handle, c_uint);
        destroy = b"cuGraphDestroy\0" (Handle);
        add_kernel = b"cuGraphAddKernelNode\0" (*mut Handle, Handle, *const Handle, usize, *const KernelNode);
        instantiate = b"cuGraphInstantiateWithFlags\0" (*mut Handle, Handle, u64);
        set_kernel = b"cuGraphExecKernelNodeSetParams\0" (Handle, Handle, *const KernelNode);
        launch = b"cuGraphLaunch\0" (Handle, Handle);
        destroy_ready = b"cuGraphExecDestroy\0" (Handle);
    }
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
        let driver = Self { calls: Calls::of(&library)?, graphs: Graphs::of(&library), _library: library };
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
