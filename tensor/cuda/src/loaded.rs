//! Kernels that a context has loaded, by file and name: each file once, when the first of its functions is asked for.

use crate::arch::Capability;
use crate::cache::Cache;
use crate::driver::{Context, Function, Module};
use crate::error::{CudaError, Result};
use crate::kernels;
use crate::libs::Libraries;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Shared memory of a block that a launch may ask for without having told the driver before.
const SHARED_BYTES_PLAIN: u32 = 48 << 10;

pub struct Loaded {
    context: Arc<Context>,
    capability: Capability,
    libraries: Libraries,
    cache: Cache,
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    modules: BTreeMap<&'static str, Arc<Module>>,
    functions: BTreeMap<(&'static str, &'static str), (Function, u32)>,
}

impl Loaded {
    pub fn new(context: Arc<Context>, capability: Capability, libraries: Libraries, cache: Cache) -> Loaded {
        Loaded { context, capability, libraries, cache, files: Mutex::default() }
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// A function of a file, ready for launches with so much shared memory.
    pub fn function(&self, file: &'static str, name: &'static str, shared_bytes: u32) -> Result<Function> {
        let mut files = self.files.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((function, allowed)) = files.functions.get(&(file, name))
            && shared_bytes <= *allowed
        {
            return Ok(function.clone());
        }
        let module = match files.modules.get(file) {
            Some(module) => Arc::clone(module),
            None => {
                let source = kernels::named(file).ok_or_else(|| CudaError::NoCubin {
                    kernel: file.into(),
                    major: self.capability.major,
                    minor: self.capability.minor,
                    embedded: "none".into(),
                    nvrtc: "there is no such source: this is a fault of elastic itself".into(),
                })?;
                let ready = self.cache.get(&source, self.capability, self.libraries.nvrtc.as_ref())?;
                let module = Module::load(&self.context, &ready.bytes)?;
                files.modules.insert(file, Arc::clone(&module));
                module
            }
        };
        let function = module.function(name)?;
        if shared_bytes > SHARED_BYTES_PLAIN {
            function.allow_shared_bytes(shared_bytes)?;
        }
        files.functions.insert((file, name), (function.clone(), shared_bytes.max(SHARED_BYTES_PLAIN)));
        Ok(function)
    }
}
