//! The runner on a device: inputs over, work submitted or replayed, drawn tokens
//! back. Between two steps nothing but four bytes a sequence has come to the host.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::buffers::{Buffers, Capacity, KvPool};
use super::device::Device;
use super::forward::Forward;
use super::inputs::{Inputs, Shaping};
use super::kernels::prefill_attention;
use super::kernels::sample::{self, Params};
use super::weights::Weights;
use super::{DeviceError, Element, View};
use crate::infer::batch::{Batch, BatchLayout};
use crate::infer::model::WeightMemory;
use crate::infer::readout::{Readout, Rows};
use crate::infer::runner::Runner;
use crate::infer::sampler::SampleError;
use crate::infer::scheduler::{Chunk, SchedulerLimits};
use crate::infer::sequence::Sequence;
use crate::infer::telemetry::GpuMemory;
use crate::infer::{InferError, ModelConfig};

/// A model, its pool and its recorded steps on a device.
pub struct DeviceRunner<D: Device> {
    /// By the rows that they compute.
    graphs: BTreeMap<usize, D::Graph>,
    forward: Forward,
    shaping: Shaping,
    /// Rows of logits of the step that was begun.
    num_logit_rows: Option<usize>,
    gpu_memory: Option<GpuMemory>,
    device: D,
}

impl<D: Device> DeviceRunner<D> {
    /// The runner of `weights` over a pool of K and V.
    ///
    /// # Errors
    /// When the device has no room for what a step writes.
    pub fn new(
        mut device: D,
        config: &ModelConfig,
        element: Element,
        weights: Weights,
        limits: &SchedulerLimits,
        kv: impl FnOnce(&mut D) -> Result<KvPool, DeviceError>,
    ) -> Result<Self, InferError> {
        let capacity = Capacity::new(limits);
        let buffers = Buffers::new(&mut device, config, element, &capacity)?;
        let kv = kv(&mut device)?;
        let shaping = Shaping {
            group: config.num_attention_heads / config.num_key_value_heads,
            max_splits: capacity.splits,
            tiles: prefill_attention::supports(config.head_dim, element),
            bucket: 0,
        };
        let block_size = limits.block_size;
        let config = config.clone();
        let forward = Forward { config, weights, buffers, kv, block_size };
        let graphs = BTreeMap::new();
        Ok(Self { graphs, forward, shaping, num_logit_rows: None, gpu_memory: None, device })
    }

    /// Runs a decode step of padding for every bucket up to `max_num_seqs`, and
    /// records it. A device that cannot record runs every step as it comes.
    pub fn record_graphs(&mut self, max_num_seqs: usize) {
        if let Err(error) = buckets(max_num_seqs).try_for_each(|bucket| self.record(bucket)) {
            tracing::warn!("decode steps are not replayed as CUDA graphs: {error}");
            self.graphs.clear();
        }
    }

    /// Decode steps that were recorded.
    #[must_use]
    pub fn num_graphs(&self) -> usize {
        self.graphs.len()
    }

    /// Notes what loading has made of the device's memory.
    pub const fn note_gpu_memory(&mut self, parts: GpuMemory) {
        self.gpu_memory = Some(parts);
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> &D {
        &self.device
    }

    /// One decode step of padding, computed as it comes: the first use of a
    /// kernel or a product may load or allocate, which no recording may.
    ///
    /// # Errors
    /// When an operation is refused.
    pub fn warm_up(&mut self, rows: usize) -> Result<(), DeviceError> {
        let inputs = self.padding(rows)?;
        self.submit(&inputs)?;
        self.device.wait()?;
        Ok(())
    }

    /// Copies the inputs and submits every operation.
    fn submit(&mut self, inputs: &Inputs) -> Result<(), DeviceError> {
        self.device.stage(self.forward.buffers.inputs, &inputs.words)?;
        self.forward.submit(&mut self.device, inputs)
    }

    fn record(&mut self, bucket: usize) -> Result<(), DeviceError> {
        self.warm_up(bucket)?;
        let inputs = self.padding(bucket)?;
        let forward = &self.forward;
        let graph = self.device.capture(&mut |device| forward.submit(device, &inputs))?;
        self.graphs.insert(bucket, graph);
        Ok(())
    }

    /// The inputs of a decode step without a sequence.
    fn padding(&self, bucket: usize) -> Result<Inputs, DeviceError> {
        let layout = BatchLayout {
            query_start_loc: vec![0],
            seq_lens: Vec::new(),
            block_tables: Vec::new(),
        };
        let batch = Batch {
            input_ids: Vec::new(),
            positions: Arc::from([]),
            slot_mapping: Arc::from([]),
            layout: Arc::new(layout),
            logit_rows: Vec::new(),
        };
        Ok(Inputs::new(&batch, &[], &Shaping { bucket, ..self.shaping })?)
    }

    /// Submits a step by its graph, if it is a decode step that there is one for.
    fn replay(&mut self, batch: &Batch, params: &[Params]) -> Result<bool, DeviceError> {
        let num_seqs = batch.layout.seq_lens.len();
        let is_decode = batch.input_ids.len() == num_seqs && batch.logit_rows.len() == num_seqs;
        let Some((bucket, graph)) = self.graphs.range(num_seqs..).next().filter(|_| is_decode)
        else {
            return Ok(false);
        };
        let inputs = Inputs::new(batch, params, &Shaping { bucket: *bucket, ..self.shaping })?;
        if inputs.items.len() > 1 {
            return Ok(false);
        }
        self.device.stage(self.forward.buffers.inputs, &inputs.words)?;
        self.device.replay(graph)?;
        Ok(true)
    }

    /// Row `index` of the logits, and as many after it.
    fn logits(&mut self, index: usize, num_rows: usize) -> Result<Vec<f32>, DeviceError> {
        let vocab = self.forward.config.vocab_size;
        let view = self.forward.buffers.logits.slice(index * vocab, num_rows * vocab)?;
        let bytes = self.device.read(view)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// What a chunk asked for. `row` is its first row of logits.
    fn read(
        &mut self,
        sequence: &Sequence,
        chunk: Chunk,
        row: usize,
        drawn: Option<u32>,
    ) -> Result<Result<Readout, SampleError>, DeviceError> {
        let vocab = self.forward.config.vocab_size;
        let num_scored = chunk.num_scored_rows;
        let is_number = drawn.is_none_or(|id| id != sample::NOT_A_NUMBER);
        let wants_row = drawn.is_some() && (sequence.logprobs.is_some() || !is_number);
        let num_rows = num_scored + usize::from(wants_row);
        let logits = if num_rows == 0 { Vec::new() } else { self.logits(row, num_rows)? };
        let (scored, drawn_from) = logits.split_at(num_scored * vocab);
        let drawn = drawn.filter(|_| is_number);
        Ok(Rows { sequence, chunk, scored, drawn_from, drawn }.read(vocab))
    }
}

impl<D: Device> Runner for DeviceRunner<D> {
    fn start(
        &mut self,
        batch: &Batch,
        running: &[Sequence],
        chunks: &[Chunk],
    ) -> Result<(), InferError> {
        self.num_logit_rows = None;
        let mut params = Vec::with_capacity(batch.logit_rows.len());
        for chunk in chunks {
            let Some(sequence) = running.get(chunk.index) else { continue };
            params.extend((0..chunk.num_scored_rows).map(|_| sample::PADDING));
            if chunk.draws(sequence) {
                params.push(Params::new(&sequence.sampling, sequence.num_output_tokens()));
            }
        }
        if !self.replay(batch, &params)? {
            self.submit(&Inputs::new(batch, &params, &self.shaping)?)?;
        }
        let num_rows = batch.logit_rows.len();
        let drawn: View = self.forward.buffers.drawn.slice(0, num_rows)?;
        if num_rows > 0 {
            self.device.fetch(drawn)?;
        }
        self.num_logit_rows = Some(num_rows);
        Ok(())
    }

    fn finish(
        &mut self,
        running: &[Sequence],
        chunks: &[Chunk],
    ) -> Result<Vec<Result<Readout, SampleError>>, InferError> {
        let broken = |what: &str| InferError::Internal(format!("a step without {what}"));
        let num_rows = self.num_logit_rows.take().ok_or_else(|| broken("a beginning"))?;
        let bytes = self.device.wait()?;
        let words = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        let drawn: Vec<u32> = if num_rows > 0 { words.collect() } else { Vec::new() };
        let mut row = 0;
        let mut readouts = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let sequence = running.get(chunk.index).ok_or_else(|| broken("its sequence"))?;
            let drawn_row = row + chunk.num_scored_rows;
            let id = if chunk.draws(sequence) {
                Some(*drawn.get(drawn_row).ok_or_else(|| broken("a row of logits"))?)
            } else {
                None
            };
            readouts.push(self.read(sequence, *chunk, row, id)?);
            row = drawn_row + usize::from(id.is_some());
        }
        Ok(readouts)
    }

    fn weight_memory(&self) -> WeightMemory {
        self.forward.weights.memory
    }

    fn gpu_memory(&self) -> Option<GpuMemory> {
        self.gpu_memory
    }
}

/// Rows that decode steps are padded to: 1, 2, 4, then multiples of 8, and at last `max`.
fn buckets(max: usize) -> impl Iterator<Item = usize> {
    let eights = (1..).map(|eights| 8 * eights);
    [1, 2, 4].into_iter().chain(eights).take_while(move |bucket| *bucket < max).chain([max])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_reach_the_largest_batch_and_no_further() {
        assert_eq!(buckets(1).collect::<Vec<_>>(), [1]);
        assert_eq!(buckets(5).collect::<Vec<_>>(), [1, 2, 4, 5]);
        assert_eq!(buckets(24).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 24]);
    }
}
