//! The kernels' PTX, loaded module by module when a kernel of it is first wanted.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex};

use super::device::{Context, lock};
use super::driver::Handle;
use crate::Result;
use crate::gguf::TensorType;
use crate::kernel::kv::KvType;

macro_rules! ptx {
    ($($name:literal),+ $(,)?) => {
        /// What scripts/build_ptx.py made of kernels/; each is ended by a zero, as the driver wants it.
        const MODULES: &[(&str, &str)] = &[
            $(($name, concat!(include_str!(concat!("ptx/", $name, ".ptx")), "\0"))),+
        ];
    };
}

ptx![
    "elementwise",
    "mend",
    "attention_f32",
    "attention_f16",
    "attention_bf16",
    "attention_q8_0",
    "attention_q4_0",
    "attention_any",
    "weights_f32",
    "weights_f16",
    "weights_bf16",
    "weights_q4_0",
    "weights_q4_1",
    "weights_q5_0",
    "weights_q5_1",
    "weights_q8_0",
    "weights_q1_0",
    "weights_q2_0",
    "weights_q2_k",
    "weights_q3_k",
    "weights_q4_k",
    "weights_q5_k",
    "weights_q6_k",
    "weights_iq1_s",
    "weights_iq1_m",
    "weights_iq2_xxs",
    "weights_iq2_xs",
    "weights_iq2_s",
    "weights_iq3_xxs",
    "weights_iq3_s",
    "weights_iq4_nl",
    "weights_iq4_xs",
    "weights_tq1_0",
    "weights_tq2_0",
    "weights_mxfp4",
    "weights_nvfp4",
];

/// One of [`MODULES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Module(usize);

impl Module {
    fn named(name: &str) -> Option<Self> {
        MODULES.iter().position(|(known, _)| *known == name).map(Self)
    }

    pub fn elementwise() -> Self {
        Self(0)
    }

    pub fn mend() -> Self {
        Self(1)
    }

    /// The kernels for caches of these types.
    pub fn attention(keys: KvType, values: KvType) -> Self {
        let name = match (keys, values) {
            (KvType::F32, KvType::F32) => "attention_f32",
            (KvType::F16, KvType::F16) => "attention_f16",
            (KvType::Bf16, KvType::Bf16) => "attention_bf16",
            (KvType::Q8_0, KvType::Q8_0) => "attention_q8_0",
            (KvType::Q4_0, KvType::Q4_0) => "attention_q4_0",
            _ => "attention_any",
        };
        Self::named(name).expect("it is in the list")
    }

    /// The kernels for weights of this type, if there are any.
    pub fn weights(kind: TensorType) -> Option<Self> {
        Self::named(&format!("weights_{}", kind.name().to_ascii_lowercase()))
    }
}

/// All modules' names.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    MODULES.iter().map(|(name, _)| *name)
}

/// The kernels of a device that were wanted so far.
pub(super) struct Kernels {
    context: Arc<Context>,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<Module, Handle>,
    functions: HashMap<(Module, &'static str), Handle>,
}

// Sound: the driver's handles may be used from any thread.
unsafe impl Send for Loaded {}

impl Kernels {
    pub fn new(context: &Arc<Context>) -> Self {
        Self { context: Arc::clone(context), loaded: Mutex::default() }
    }

    /// The kernel `name` of `module`.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn get(&self, module: Module, name: &'static str) -> Result<Handle> {
        let mut loaded = lock(&self.loaded);
        if let Some(function) = loaded.functions.get(&(module, name)) {
            return Ok(*function);
        }
        let handle = match loaded.modules.get(&module) {
            Some(handle) => *handle,
            None => {
                let mut handle = std::ptr::null_mut();
                self.context.enter()?;
                // Sound: the text is ended by a zero.
                let code = unsafe {
                    (self.context.driver.load_module)(&mut handle, MODULES[module.0].1.as_ptr().cast())
                };
                self.context.check(code)?;
                loaded.modules.insert(module, handle);
                handle
            }
        };
        let mut function = std::ptr::null_mut();
        let symbol = CString::new(name).unwrap_or_default();
        // Sound: the module is loaded and stays so; the name is ended by a zero.
        let code = unsafe { (self.context.driver.function)(&mut function, handle, symbol.as_ptr()) };
        self.context.check(code)?;
        loaded.functions.insert((module, name), function);
        Ok(function)
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if self.context.queue_up().and_then(|()| self.context.enter()).is_ok() {
            self.context.launches().forget();
            for module in lock(&self.loaded).modules.values() {
                // Sound: nobody launches anything of it any more.
                unsafe { (self.context.driver.unload_module)(*module) };
            }
        }
    }
}
