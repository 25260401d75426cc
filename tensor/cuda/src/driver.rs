//! NVIDIA's driver: loaded, started, asked. What it makes (contexts, memory, streams, modules, graphs) is in the files
//! beside this one, each freed where it is dropped.
//!
//! Every call's result is looked at. A failure is a value with the call's name, the driver's code and name for it, and
//! what a person does about it.

mod context;
mod elf;
mod event;
mod graph;
mod memory;
mod module;
mod stream;

pub use context::Context;
pub use event::Event;
pub use graph::Graph;
pub use memory::{Arena, PinnedBytes, Span};
pub use module::{Function, FunctionUsage, Module};
pub use stream::{Argument, LaunchShape, Stream};

use crate::error::{CudaError, Result, cure_of};
use crate::ffi::driver::{CUresult, DriverFunctions, SUCCESS};
use crate::libs::search::Library;
use core::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::ptr::null;
use std::sync::Arc;

/// CUDA 12.0, driver 525.60: the oldest with all that is used here.
pub const VERSION_MIN: u32 = 12_000;

/// The driver, loaded and started.
pub struct Driver {
    pub(crate) functions: DriverFunctions,
    path: PathBuf,
    version: u32,
}

impl Driver {
    /// Loads the library and starts the driver. A stub, a driver that is too old, and one that sees no GPU are errors.
    pub fn load(path: &Path) -> Result<Arc<Driver>> {
        let functions = DriverFunctions::load(path, Library::Driver.cure())?;
        let mut driver = Driver { functions, path: path.into(), version: 0 };
        let mut version = 0;
        // SAFETY: the function writes one int, and may be called before `cuInit`.
        driver.check("cuDriverGetVersion", unsafe { (driver.functions.driver_version)(&mut version) })?;
        driver.version = version.unsigned_abs();
        if driver.version < VERSION_MIN {
            let cure = "update NVIDIA's driver to 525.60 or later";
            return Err(CudaError::TooOld {
                what: "the CUDA of NVIDIA's driver",
                found: driver.version,
                needed: VERSION_MIN,
                cure,
            });
        }
        // SAFETY: 0 is the one flag that there is; repeated calls do nothing.
        driver.check("cuInit", unsafe { (driver.functions.init)(0) })?;
        Ok(Arc::new(driver))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Of the CUDA that the driver is for, as CUDA counts: 13000 is 13.0.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// A call's result as a value.
    pub(crate) fn check(&self, call: &'static str, code: CUresult) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        let name = self.text_of(self.functions.error_name, code);
        let text = self.text_of(self.functions.error_text, code);
        let name = name.unwrap_or_else(|| "an error without a name".into());
        Err(CudaError::Call { call, code, name, text: text.unwrap_or_default(), cure: cure_of(code) })
    }

    fn text_of(
        &self,
        function: unsafe extern "C" fn(CUresult, *mut *const c_char) -> CUresult,
        code: CUresult,
    ) -> Option<String> {
        let mut text = null();
        // SAFETY: the function writes one pointer, to a text that stays, or null for a code that it does not know.
        let known = unsafe { function(code, &mut text) } == SUCCESS && !text.is_null();
        // SAFETY: see above: a text of C that stays.
        known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }
}
