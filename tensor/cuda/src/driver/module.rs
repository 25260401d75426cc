//! Kernels on the GPU: a loaded cubin and its functions.

use super::{Context, elf};
use crate::error::{CudaError, Result};
use crate::ffi::driver::{
    CUfunction, CUfunction_attribute, CUmodule, FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
    FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, FUNC_ATTRIBUTE_NUM_REGS, FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
};
use std::ffi::CString;
use std::ptr::null_mut;
use std::sync::Arc;

/// Machine code that was loaded.
pub struct Module {
    context: Arc<Context>,
    raw: CUmodule,
}

// SAFETY: the handle is only given to the driver, which may be called from any thread.
unsafe impl Send for Module {}
// SAFETY: as above; nothing in it changes once it is loaded.
unsafe impl Sync for Module {}

/// A kernel that can be launched. It keeps its module.
#[derive(Clone)]
pub struct Function {
    module: Arc<Module>,
    pub(crate) raw: CUfunction,
}

// SAFETY: see `Module`.
unsafe impl Send for Function {}
// SAFETY: see `Module`.
unsafe impl Sync for Function {}

/// What the driver says that a function needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FunctionUsage {
    /// Of a thread.
    pub registers: u32,
    /// Of a thread: what does not fit into registers, and arrays.
    pub local_bytes: u32,
    /// Of a block, besides what a launch asks for.
    pub shared_bytes: u32,
}

impl Module {
    /// Loads a cubin. One for another GPU, or one that is not whole, is an error.
    pub fn load(context: &Arc<Context>, cubin: &[u8]) -> Result<Arc<Module>> {
        context.enter()?;
        elf::check(cubin)?;
        let mut raw = null_mut();
        // SAFETY: the file's own places lie in it, as checked above; the function writes one handle and copies.
        let code = unsafe { (context.driver.functions.module_load)(&mut raw, cubin.as_ptr().cast()) };
        context.driver.check("cuModuleLoadData", code)?;
        Ok(Arc::new(Module { context: Arc::clone(context), raw }))
    }

    /// The kernel of this name.
    pub fn function(self: &Arc<Module>, name: &str) -> Result<Function> {
        self.context.enter()?;
        let text = CString::new(name).map_err(|_| CudaError::Nul { what: "a function's name".into() })?;
        let mut raw = null_mut();
        // SAFETY: the module lives; the name is a text of C; the function writes one handle.
        let code = unsafe { (self.context.driver.functions.module_function)(&mut raw, self.raw, text.as_ptr()) };
        self.context.driver.check("cuModuleGetFunction", code)?;
        Ok(Function { module: Arc::clone(self), raw })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        self.context.leave_nothing();
        // SAFETY: loaded once, unloaded once; functions keep their module.
        unsafe { (self.context.driver.functions.module_unload)(self.raw) };
    }
}

impl Function {
    pub fn usage(&self) -> Result<FunctionUsage> {
        Ok(FunctionUsage {
            registers: self.attribute(FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: self.attribute(FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            shared_bytes: self.attribute(FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
        })
    }

    fn attribute(&self, which: CUfunction_attribute) -> Result<u32> {
        let context = &self.module.context;
        context.enter()?;
        let mut value = 0;
        // SAFETY: the function lives; one int is written.
        let code = unsafe { (context.driver.functions.function_attribute)(&mut value, which, self.raw) };
        context.driver.check("cuFuncGetAttribute", code)?;
        Ok(value.unsigned_abs())
    }

    /// Allows launches with so many bytes of shared memory; above 48 KiB a function must be told before.
    pub fn allow_shared_bytes(&self, bytes: u32) -> Result<()> {
        let context = &self.module.context;
        context.enter()?;
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        let which = FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function lives.
        let code = unsafe { (context.driver.functions.function_set_attribute)(self.raw, which, bytes) };
        context.driver.check("cuFuncSetAttribute", code)
    }
}
