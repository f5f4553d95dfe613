//! Time on the device's own clock, for benches.

use cudarc::driver::{result, sys};

use super::{Gpu, driver};
use crate::infer::cuda::device::DeviceError;

impl Gpu {
    /// Seconds from the end of what was submitted before to the end of what
    /// `submit` submits, on the device's clock; waits until it is over. The host
    /// must keep ahead of the device, or its time is measured: replay a graph.
    ///
    /// # Errors
    /// What `submit` fails with, or the driver says.
    pub fn time(
        &mut self,
        submit: &mut dyn FnMut(&mut Self) -> Result<(), DeviceError>,
    ) -> Result<f64, DeviceError> {
        self.bind()?;
        let (start, end) = (Event::new()?, Event::new()?);
        start.record(self.stream.0)?;
        submit(self)?;
        end.record(self.stream.0)?;
        self.synchronize()?;
        // SAFETY: both were recorded on the stream, which has been waited for.
        let ms = unsafe { result::event::elapsed(start.0, end.0) }
            .map_err(|e| driver("cuEventElapsedTime", e))?;
        Ok(f64::from(ms) * 1e-3)
    }
}

struct Event(sys::CUevent);

impl Event {
    fn new() -> Result<Self, DeviceError> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)
            .map(Self)
            .map_err(|e| driver("cuEventCreate", e))
    }

    fn record(&self, stream: sys::CUstream) -> Result<(), DeviceError> {
        // SAFETY: both are alive.
        unsafe { result::event::record(self.0, stream) }.map_err(|e| driver("cuEventRecord", e))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}
