//! CUDA graphs: a stretch of a stream's work, recorded once and launched as one.

use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{CudaContext, sys};

use super::driver;
use crate::infer::cuda::device::DeviceError;

/// A graph that can be launched.
pub struct Graph {
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
    context: Arc<CudaContext>,
}

// SAFETY: the handles belong to the context, and are used by one thread at a time.
unsafe impl Send for Graph {}

impl Graph {
    /// Has `stream` record its work from now on.
    pub(super) fn begin(stream: sys::CUstream) -> Result<(), DeviceError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the caller's stream, which is idle or busy but alive.
        unsafe { result::stream::begin_capture(stream, mode) }
            .map_err(|e| driver("cuStreamBeginCapture", e))
    }

    /// Ends the recording, makes it launchable, and puts it on the device.
    pub(super) fn end(
        stream: sys::CUstream,
        context: Arc<CudaContext>,
    ) -> Result<Self, DeviceError> {
        let no_flags = sys::CUgraphInstantiate_flags_enum(0);
        // SAFETY: the stream is recording; the graph is owned by what is made of
        // it here, and destroyed where nothing is.
        unsafe {
            let graph =
                result::stream::end_capture(stream).map_err(|e| driver("cuStreamEndCapture", e))?;
            let executable = result::graph::instantiate(graph, no_flags).map_err(|error| {
                let _: Result<(), DriverError> = result::graph::destroy(graph);
                driver("cuGraphInstantiate", error)
            })?;
            let made = Self { graph, executable, context };
            result::graph::upload(executable, stream).map_err(|e| driver("cuGraphUpload", e))?;
            Ok(made)
        }
    }

    pub(super) fn launch(&self, stream: sys::CUstream) -> Result<(), DeviceError> {
        // SAFETY: alive for as long as this object, and so is all memory it names:
        // the device frees its allocations after its graphs are gone.
        unsafe { result::graph::launch(self.executable, stream) }
            .map_err(|e| driver("cuGraphLaunch", e))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: ours, destroyed once. A failure leaves nothing to do.
            unsafe {
                let _ = result::graph::exec_destroy(self.executable);
                let _ = result::graph::destroy(self.graph);
            }
        }
    }
}
