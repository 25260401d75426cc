//! NCCL on this machine: found where CUDA's other libraries are, loaded, and refused if it is too old.

use crate::error::{NcclError, Result};
use crate::ffi::{IN_PROGRESS, NcclFunctions, SUCCESS, ncclComm_t, ncclUniqueId};
use crate::version::{OLDEST, Version};
use core::ffi::{CStr, c_char, c_int};
use elastic_cuda::CudaError;
use elastic_cuda::libs::{self, search::Library, search::Surroundings};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::Arc;

/// The library, loaded for good.
pub struct Nccl {
    pub(crate) functions: NcclFunctions,
    path: PathBuf,
    version: Version,
}

/// Functions that older versions lack: name, and the version that they came with.
pub const OPTIONAL: [(&str, Version); 8] = [
    ("ncclCommSplit", Version(21_801)),
    ("ncclCommRegister", Version(21_901)),
    ("ncclCommDeregister", Version(21_901)),
    ("ncclCommWindowRegister", Version(22_703)),
    ("ncclCommShrink", Version(22_703)),
    ("ncclCommRevoke", Version(22_807)),
    ("ncclCommGrow", Version(22_902)),
    ("ncclCommMemStats", Version(22_907)),
];

impl Nccl {
    /// The best one that this machine has, by the same places as CUDA's libraries (docs/gpu.md).
    pub fn find() -> Result<Arc<Nccl>> {
        Nccl::find_in(&Surroundings::of_process())
    }

    pub fn find_in(around: &Surroundings) -> Result<Arc<Nccl>> {
        Ok(Arc::new(libs::load(Library::Nccl, around, Nccl::load)?))
    }

    /// A file, whatever its name. Too old a version is refused, so that a newer one elsewhere is taken.
    fn load(path: &Path) -> std::result::Result<Nccl, CudaError> {
        let cure = Library::Nccl.cure();
        let functions = NcclFunctions::load(path, cure)?;
        let mut code = 0;
        // SAFETY: the function writes one int.
        let said = unsafe { (functions.version)(&mut code) };
        let version = Version(u32::try_from(code).unwrap_or_default());
        if said != SUCCESS || version < OLDEST {
            let found = if said == SUCCESS { version.to_string() } else { format!("unknown (code {said})") };
            return Err(CudaError::OldLibrary { path: path.into(), found, needed: OLDEST.to_string(), cure });
        }
        Ok(Nccl { functions, path: path.into(), version })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// The optional functions that this version lacks.
    pub fn lacks(&self) -> Vec<&'static str> {
        let f = &self.functions;
        let there = [
            f.split.is_some(),
            f.register.is_some(),
            f.deregister.is_some(),
            f.window_register.is_some(),
            f.shrink.is_some(),
            f.revoke.is_some(),
            f.grow.is_some(),
            f.memory.is_some(),
        ];
        OPTIONAL.iter().zip(there).filter(|(_, there)| !there).map(|((name, _), _)| *name).collect()
    }

    /// A place to meet at, open from now on in this process. Needs no GPU.
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = ncclUniqueId { internal: [0; UniqueId::BYTES] };
        // SAFETY: the function writes the id's bytes.
        let code = unsafe { (self.functions.unique_id)(&mut id) };
        self.check("ncclGetUniqueId", code, null_mut())?;
        Ok(UniqueId(id.internal.map(|byte| byte as u8)))
    }

    /// An error for each code but success and "in progress". The communicator, if there is one, must be alive.
    pub(crate) fn check(&self, call: &'static str, code: c_int, communicator: ncclComm_t) -> Result<()> {
        if [SUCCESS, IN_PROGRESS].contains(&code) {
            return Ok(());
        }
        // SAFETY: the function knows every code, and gives a text that stays.
        let name = unsafe { text((self.functions.error_string)(code)) };
        // SAFETY: as above; the text stays until the next error, and is copied at once.
        let last = unsafe { text((self.functions.last_error)(communicator)) };
        Err(NcclError::call(call, code, name, last.trim().to_string()))
    }
}

/// # Safety
/// Null, or a C text.
unsafe fn text(from: *const c_char) -> String {
    if from.is_null() {
        return String::new();
    }
    // SAFETY: the caller knows that it is a text.
    unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned()
}

/// Where the ranks of one communicator meet. Good for one communicator, and not shown in logs: it opens a door.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub(crate) [u8; UniqueId::BYTES]);

impl UniqueId {
    pub const BYTES: usize = 128;

    /// One that came on a link.
    pub fn from_bytes(bytes: [u8; UniqueId::BYTES]) -> UniqueId {
        UniqueId(bytes)
    }

    pub fn to_bytes(self) -> [u8; UniqueId::BYTES] {
        self.0
    }

    pub(crate) fn for_c(self) -> ncclUniqueId {
        ncclUniqueId { internal: self.0.map(|byte| byte as c_char) }
    }
}

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UniqueId(..)")
    }
}
