//! The host as a device: its memory, the kernels compiled for it, and products
//! by three loops. Counts what a GPU would be asked to do.

use std::sync::{Arc, Mutex};

use super::{Values, library};
use crate::infer::cuda::device::{Device, DeviceError, Product};
use crate::infer::cuda::{Element, Launch, View};

/// What was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::infer::cuda) struct Submitted {
    pub allocations: usize,
    pub launches: usize,
    pub products: usize,
    pub graphs: usize,
    pub copies_in: usize,
    pub fetched_bytes: usize,
    pub waits: usize,
}

/// One operation of a graph.
enum Operation {
    Launch(Box<Launch>),
    Product(Product),
}

/// Operations that were recorded.
pub(in crate::infer::cuda) struct HostGraph(Vec<Operation>);

/// See the module.
#[derive(Default)]
pub(in crate::infer::cuda) struct Host {
    memory: Vec<Values>,
    recording: Option<Vec<Operation>>,
    fetched: Vec<u8>,
    submitted: Arc<Mutex<Submitted>>,
}

// SAFETY: `Values` owns its memory, which no other thread knows of.
unsafe impl Send for Host {}

impl Host {
    /// Counts, for a test that gives the device away.
    pub(in crate::infer::cuda) fn submitted(&self) -> Arc<Mutex<Submitted>> {
        Arc::clone(&self.submitted)
    }

    fn count(&self, count: impl FnOnce(&mut Submitted)) {
        count(&mut self.submitted.lock().unwrap());
    }

    /// Bytes of a view of this device's memory.
    fn bytes(&mut self, view: View) -> &mut [u8] {
        let owner = self.memory.iter_mut().find_map(|values| {
            let whole = values.view();
            let start = usize::try_from(view.ptr.checked_sub(whole.ptr)?).ok()?;
            values.bytes_mut().get_mut(start..start + view.num_bytes())
        });
        owner.expect("a view of memory that this device does not have")
    }

    fn values(&mut self, view: View) -> Values {
        let mut values = Values::nan(view.len, view.element);
        values.bytes_mut().copy_from_slice(self.bytes(view));
        values
    }

    fn run(&mut self, operation: &Operation) {
        match operation {
            Operation::Launch(launch) => library::launch(launch, 0),
            Operation::Product(product) => self.multiply(product),
        }
    }

    fn multiply(&mut self, product: &Product) {
        let [m, n, k] = product.shape;
        let x = self.values(product.x.slice(0, m * k).unwrap()).to_f32();
        let w = self.values(product.w.slice(0, n * k).unwrap()).to_f32();
        let out = product.out.slice(0, m * n).unwrap();
        let mut sums = if product.add { self.values(out).to_f32() } else { vec![0.0; m * n] };
        for (row, sums) in sums.chunks_exact_mut(n).enumerate() {
            for (column, sum) in sums.iter_mut().enumerate() {
                let pairs = x[row * k..][..k].iter().zip(&w[column * k..][..k]);
                *sum += pairs.map(|(a, b)| a * b).sum::<f32>();
            }
        }
        let rounded = Values::of(&sums, out.element);
        self.bytes(out).copy_from_slice(rounded.bytes());
    }

    fn submit(&mut self, operation: Operation) {
        match &mut self.recording {
            Some(recording) => recording.push(operation),
            None => self.run(&operation),
        }
    }
}

impl Device for Host {
    type Graph = HostGraph;

    fn alloc(&mut self, len: usize, element: Element) -> Result<View, DeviceError> {
        assert!(self.recording.is_none(), "an allocation in a graph");
        self.count(|submitted| submitted.allocations += 1);
        self.memory.push(Values::nan(len, element));
        Ok(self.memory[self.memory.len() - 1].view())
    }

    fn upload(&mut self, to: View, bytes: &[u8]) -> Result<(), DeviceError> {
        self.bytes(to)[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn stage(&mut self, to: View, words: &[i32]) -> Result<(), DeviceError> {
        assert!(self.recording.is_none(), "a copy from the host in a graph");
        self.count(|submitted| submitted.copies_in += 1);
        to.expect("inputs", Element::I32, words.len())?;
        let bytes = self.bytes(to);
        // What a step before left must not be read.
        bytes.fill(0xff);
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Ok(())
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DeviceError> {
        self.count(|submitted| submitted.launches += 1);
        self.submit(Operation::Launch(Box::new(launch.clone())));
        Ok(())
    }

    fn product(&mut self, product: &Product) -> Result<(), DeviceError> {
        product.check()?;
        self.count(|submitted| submitted.products += 1);
        self.submit(Operation::Product(*product));
        Ok(())
    }

    fn fetch(&mut self, from: View) -> Result<(), DeviceError> {
        self.count(|submitted| submitted.fetched_bytes += from.num_bytes());
        self.fetched = self.bytes(from).to_vec();
        Ok(())
    }

    fn wait(&mut self) -> Result<&[u8], DeviceError> {
        self.count(|submitted| submitted.waits += 1);
        Ok(&self.fetched)
    }

    fn read(&mut self, from: View) -> Result<Vec<u8>, DeviceError> {
        Ok(self.bytes(from).to_vec())
    }

    fn capture(
        &mut self,
        record: &mut dyn FnMut(&mut Self) -> Result<(), DeviceError>,
    ) -> Result<HostGraph, DeviceError> {
        let before = *self.submitted.lock().unwrap();
        self.recording = Some(Vec::new());
        record(self)?;
        // What is recorded is not submitted.
        *self.submitted.lock().unwrap() = before;
        Ok(HostGraph(self.recording.take().unwrap_or_default()))
    }

    fn replay(&mut self, graph: &HostGraph) -> Result<(), DeviceError> {
        self.count(|submitted| submitted.graphs += 1);
        for operation in &graph.0 {
            self.run(operation);
        }
        Ok(())
    }

    fn num_processors(&self) -> usize {
        2
    }
}
