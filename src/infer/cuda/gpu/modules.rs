//! The kernels in the driver: loaded once, functions found by name.

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::driver;
use crate::infer::cuda::device::DeviceError;
use crate::infer::cuda::images::{IMAGES, Image};
use crate::infer::cuda::{Launch, LaunchError};

/// Dynamic shared memory that a function may use without being asked
/// (CUDA C++ Programming Guide, technical specifications).
const SHARED_BYTES_FREE: u32 = 48 << 10;

/// Modules, and functions that were launched.
pub(super) struct Modules {
    modules: BTreeMap<&'static str, sys::CUmodule>,
    functions: BTreeMap<&'static str, Function>,
}

struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory that it may use.
    shared_bytes: u32,
}

impl Modules {
    /// Loads all of them into the current context.
    pub(super) fn load() -> Result<Self, DeviceError> {
        let mut modules = Self { modules: BTreeMap::new(), functions: BTreeMap::new() };
        let mut takes_machine_code = true;
        for image in IMAGES {
            let handle = load(image, &mut takes_machine_code)
                .map_err(|e| driver(&format!("loading {}", image.module), e))?;
            modules.modules.insert(image.module, handle);
        }
        Ok(modules)
    }

    pub(super) fn launch(
        &mut self,
        launch: &Launch,
        stream: sys::CUstream,
    ) -> Result<(), DeviceError> {
        let handle = self.function(launch)?;
        let args = launch.args();
        // The driver reads the arguments before it returns.
        let mut params: [*mut c_void; Launch::MAX_ARGS] = [std::ptr::null_mut(); Launch::MAX_ARGS];
        for (param, arg) in params.iter_mut().zip(args) {
            *param = std::ptr::from_ref(arg).cast_mut().cast();
        }
        let [x, y, z] = launch.grid;
        let [bx, by, bz] = launch.block;
        // SAFETY: the function is of a loaded module, and its launch was described
        // by the code that knows its parameters, over memory that was checked there.
        unsafe {
            result::launch_kernel(
                handle,
                (x, y, z),
                (bx, by, bz),
                launch.shared_bytes,
                stream,
                &mut params[..args.len()],
            )
        }
        .map_err(|e| driver(&format!("launching {}", launch.function), e))
    }

    fn function(&mut self, launch: &Launch) -> Result<sys::CUfunction, DeviceError> {
        if !self.functions.contains_key(launch.function) {
            let absent = || LaunchError(format!("no module {}", launch.module));
            let module = *self.modules.get(launch.module).ok_or_else(absent)?;
            let name = CString::new(launch.function)
                .map_err(|_| LaunchError(format!("a function named {:?}", launch.function)))?;
            // SAFETY: the module is loaded.
            let handle = unsafe { result::module::get_function(module, name) }
                .map_err(|e| driver(&format!("finding {}", launch.function), e))?;
            let function = Function { handle, shared_bytes: SHARED_BYTES_FREE };
            self.functions.insert(launch.function, function);
        }
        let Some(function) = self.functions.get_mut(launch.function) else {
            return Err(LaunchError(format!("no function {}", launch.function)).into());
        };
        if launch.shared_bytes > function.shared_bytes {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(launch.shared_bytes).unwrap_or(i32::MAX);
            // SAFETY: the function is of a loaded module.
            unsafe { result::function::set_function_attribute(function.handle, attribute, bytes) }
                .map_err(|e| driver(&format!("shared memory of {}", launch.function), e))?;
            function.shared_bytes = launch.shared_bytes;
        }
        Ok(function.handle)
    }
}

/// The machine code for this device; where there is none that the driver takes,
/// it compiles the text, of this image and of those after it.
fn load(image: &Image, takes_machine_code: &mut bool) -> Result<sys::CUmodule, DriverError> {
    if *takes_machine_code {
        // SAFETY: the image is one that nvcc wrote, and the driver checks its header.
        if let Ok(module) = unsafe { result::module::load_data(image.fatbin.as_ptr().cast()) } {
            return Ok(module);
        }
        *takes_machine_code = false;
    }
    let text =
        CString::new(image.ptx).map_err(|_| DriverError(sys::CUresult::CUDA_ERROR_INVALID_PTX))?;
    // SAFETY: a text that ends with a zero.
    unsafe { result::module::load_data(text.as_ptr().cast()) }
}

impl Drop for Modules {
    fn drop(&mut self) {
        for module in self.modules.values() {
            // SAFETY: ours, unloaded once. A failure leaves nothing to do.
            let _ = unsafe { result::module::unload(*module) };
        }
    }
}
