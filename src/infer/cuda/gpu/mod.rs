//! A GPU behind the CUDA driver: memory, one stream, kernels by name, cuBLAS,
//! graphs. The libraries are loaded when they are first needed.

mod blas;
mod graph;
mod modules;
mod pinned;
mod timing;

use std::panic::catch_unwind;
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError, stream::StreamKind};
use cudarc::driver::{CudaContext, sys};

use self::blas::Blas;
use self::graph::Graph;
use self::modules::Modules;
use self::pinned::Pinned;
use super::device::{Device, DeviceError, Product};
use super::memory::DeviceMemory;
use super::{Element, Launch, View};
use crate::infer::device::{CudaAbsent, CudaDevice};

/// The least compute capability that the kernels are compiled for.
const MIN_CAPABILITY: (u32, u32) = (8, 0);

/// The CUDA devices that kernels can run on, in the driver's order.
///
/// # Errors
/// [`CudaAbsent`] when there is none.
pub fn devices() -> Result<Vec<CudaDevice>, CudaAbsent> {
    // The bindings panic where a library lacks a function that they know.
    catch_unwind(find_devices).unwrap_or_else(|panic| {
        Err(CudaAbsent::Failed(crate::infer::error::panic_message(panic.as_ref()).to_owned()))
    })
}

fn find_devices() -> Result<Vec<CudaDevice>, CudaAbsent> {
    // SAFETY: both calls load a library and run its initialisers, nothing else.
    let (driver, cublas) =
        unsafe { (sys::is_culib_present(), cudarc::cublas::sys::is_culib_present()) };
    if !driver {
        return Err(CudaAbsent::NoDriver);
    }
    let failed = |error: DriverError| match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => CudaAbsent::NoDevice,
        _ => CudaAbsent::Failed(error.to_string()),
    };
    result::init().map_err(failed)?;
    let count = result::device::get_count().map_err(failed)?;
    let devices = (0..count).map(describe).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let Some(first) = devices.first() else { return Err(CudaAbsent::NoDevice) };
    if !cublas {
        return Err(CudaAbsent::NoCublas);
    }
    if devices.iter().all(|device| device.capability < MIN_CAPABILITY) {
        return Err(CudaAbsent::TooOld { name: first.name.clone(), capability: first.capability });
    }
    Ok(devices)
}

fn describe(ordinal: i32) -> Result<CudaDevice, DriverError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let device = result::device::get(ordinal)?;
    let mut driver_version = 0;
    // SAFETY: the device handle is valid, and the version is written to a live integer.
    unsafe {
        let attribute = |which| result::device::get_attribute(device, which);
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        sys::cuDriverGetVersion(&raw mut driver_version).result()?;
        Ok(CudaDevice {
            name: result::device::get_name(device)?,
            capability: (major.unsigned_abs(), minor.unsigned_abs()),
            total_bytes: result::device::total_mem(device)? as u64,
            driver_version: driver_version.unsigned_abs(),
        })
    }
}

/// The memory of device `ordinal` beside a context with nothing in it, which is
/// gone again when this returns.
///
/// # Errors
/// What the driver says.
pub fn memory_of(ordinal: usize) -> Result<DeviceMemory, DeviceError> {
    let context = CudaContext::new(ordinal).map_err(|error| driver("opening", error))?;
    memory_in(&context)
}

fn memory_in(context: &CudaContext) -> Result<DeviceMemory, DeviceError> {
    let (free, total) = context.mem_get_info().map_err(|e| driver("cuMemGetInfo", e))?;
    Ok(DeviceMemory { free: free as u64, total: total as u64 })
}

/// One device, its memory and a stream on it.
pub struct Gpu {
    // Fields are dropped in this order; all need the context.
    modules: Modules,
    blas: Blas,
    staging: Pinned,
    fetched: Pinned,
    num_fetched_bytes: usize,
    allocations: Vec<sys::CUdeviceptr>,
    allocated_bytes: u64,
    /// Bytes in use by everybody when the context stood and was empty.
    context_bytes: u64,
    num_processors: usize,
    stream: Stream,
    context: Arc<CudaContext>,
}

/// A stream that is destroyed after all that works on it.
struct Stream(sys::CUstream);

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: ours, and idle. A failure leaves nothing to do.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

// SAFETY: the handles belong to a context, not to a thread; every call that
// needs the context binds it to the calling thread first, and `&mut` keeps
// calls apart.
unsafe impl Send for Gpu {}

impl Gpu {
    /// Opens device `ordinal` and loads the kernels.
    ///
    /// # Errors
    /// What the driver says.
    pub fn open(ordinal: usize) -> Result<Self, DeviceError> {
        let context = CudaContext::new(ordinal).map_err(|error| driver("opening", error))?;
        let DeviceMemory { free, total } = memory_in(&context)?;
        let stream =
            result::stream::create(StreamKind::NonBlocking).map_err(|e| driver("a stream", e))?;
        let attribute = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let processors =
            context.attribute(attribute).map_err(|e| driver("counting processors", e))?;
        let mut gpu = Self {
            modules: Modules::load()?,
            blas: Blas::new(stream)?,
            staging: Pinned::empty(),
            fetched: Pinned::empty(),
            num_fetched_bytes: 0,
            allocations: Vec::new(),
            allocated_bytes: 0,
            context_bytes: total - free,
            num_processors: usize::try_from(processors).unwrap_or(1).max(1),
            stream: Stream(stream),
            context,
        };
        let workspace = gpu.alloc(Blas::WORKSPACE_BYTES / 4, Element::U32)?;
        gpu.blas.set_workspace(workspace)?;
        Ok(gpu)
    }

    /// The device's memory, as the driver counts it for everybody.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(&self) -> Result<DeviceMemory, DeviceError> {
        memory_in(&self.context)
    }

    /// Bytes that [`Device::alloc`] has handed out.
    #[must_use]
    pub const fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes
    }

    /// Bytes that were in use, by everybody, when this context stood and was empty.
    #[must_use]
    pub const fn context_bytes(&self) -> u64 {
        self.context_bytes
    }

    fn bind(&self) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(|e| driver("cuCtxSetCurrent", e))
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.bind()?;
        // SAFETY: the stream is this object's own.
        unsafe { result::stream::synchronize(self.stream.0) }
            .map_err(|e| driver("cuStreamSynchronize", e))
    }

    fn copy_to_host(&mut self, from: View) -> Result<(), DeviceError> {
        self.bind()?;
        let bytes = from.num_bytes();
        self.fetched.reserve(bytes)?;
        // SAFETY: pinned memory of at least this size that is not touched before
        // `synchronize`, and a stretch of an allocation of ours.
        unsafe {
            let to = std::slice::from_raw_parts_mut(self.fetched.as_mut_ptr(), bytes);
            result::memcpy_dtoh_async(to, from.ptr, self.stream.0)
        }
        .map_err(|e| driver("cuMemcpyDtoHAsync", e))?;
        self.num_fetched_bytes = bytes;
        Ok(())
    }

    fn fetched(&self) -> &[u8] {
        // SAFETY: so many bytes were written by a copy that has been waited for.
        unsafe { std::slice::from_raw_parts(self.fetched.as_ptr(), self.num_fetched_bytes) }
    }
}

impl Device for Gpu {
    type Graph = Graph;

    fn alloc(&mut self, len: usize, element: Element) -> Result<View, DeviceError> {
        self.bind()?;
        let bytes = (len * element.num_bytes()).max(1);
        // SAFETY: the memory is freed with this object, once.
        let ptr = unsafe { result::malloc_sync(bytes) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => DeviceError::OutOfMemory(bytes as u64),
            _ => driver("cuMemAlloc", error),
        })?;
        self.allocations.push(ptr);
        self.allocated_bytes += bytes as u64;
        Ok(View { ptr, len, element })
    }

    fn upload(&mut self, to: View, bytes: &[u8]) -> Result<(), DeviceError> {
        if bytes.len() > to.num_bytes() {
            let why = format!("{} bytes into a buffer of {}", bytes.len(), to.num_bytes());
            return Err(DeviceError::Failed(why));
        }
        self.bind()?;
        // SAFETY: the bytes fit, and the call returns when they have been copied.
        unsafe { result::memcpy_htod_sync(to.ptr, bytes) }.map_err(|e| driver("cuMemcpyHtoD", e))
    }

    fn stage(&mut self, to: View, words: &[i32]) -> Result<(), DeviceError> {
        to.expect("inputs", Element::I32, words.len())?;
        self.bind()?;
        let bytes = size_of_val(words);
        self.staging.reserve(bytes)?;
        // SAFETY: pinned memory of at least this size, which no copy reads any
        // more: the step before has been waited for. It stays as it is until
        // this one has been.
        unsafe {
            let staged: *mut i32 = self.staging.as_mut_ptr().cast();
            staged.copy_from_nonoverlapping(words.as_ptr(), words.len());
            let staged = std::slice::from_raw_parts(staged, words.len());
            result::memcpy_htod_async(to.ptr, staged, self.stream.0)
        }
        .map_err(|e| driver("cuMemcpyHtoDAsync", e))
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DeviceError> {
        self.bind()?;
        self.modules.launch(launch, self.stream.0)
    }

    fn product(&mut self, product: &Product) -> Result<(), DeviceError> {
        product.check()?;
        self.bind()?;
        self.blas.product(product)
    }

    fn fetch(&mut self, from: View) -> Result<(), DeviceError> {
        self.copy_to_host(from)
    }

    fn wait(&mut self) -> Result<&[u8], DeviceError> {
        self.synchronize()?;
        Ok(self.fetched())
    }

    fn read(&mut self, from: View) -> Result<Vec<u8>, DeviceError> {
        self.copy_to_host(from)?;
        Ok(self.wait()?.to_vec())
    }

    fn capture(
        &mut self,
        record: &mut dyn FnMut(&mut Self) -> Result<(), DeviceError>,
    ) -> Result<Graph, DeviceError> {
        self.bind()?;
        let stream = self.stream.0;
        Graph::begin(stream)?;
        let recorded = record(self);
        // Ended in any case: a stream left capturing takes no work.
        let graph = Graph::end(stream, Arc::clone(&self.context));
        recorded?;
        graph
    }

    fn replay(&mut self, graph: &Graph) -> Result<(), DeviceError> {
        self.bind()?;
        graph.launch(self.stream.0)
    }

    fn num_processors(&self) -> usize {
        self.num_processors
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and nothing is lost by it
        // but memory that the driver takes back with the process.
        if self.synchronize().is_err() {
            return;
        }
        for ptr in self.allocations.drain(..) {
            // SAFETY: allocated by `alloc`, freed once, and no work uses it any more.
            let _ = unsafe { result::free_sync(ptr) };
        }
    }
}

/// A failure with what was being done.
fn driver(what: &str, error: DriverError) -> DeviceError {
    DeviceError::Failed(format!("{what}: {error}"))
}
