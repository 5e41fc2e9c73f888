//! The decoder: its parameters and the way of a batch through them.
//!
//! Called by `sft` and by whatever trains further; `checkpoint` saves and loads it, `fit` changes it.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::attention::{AttentionShape, Segment};
use super::batch::{TokenBatch, TrainBatch};
use super::checkpoint::parts;
use super::compute::{Compute, DeviceKind};
use super::config::DecoderConfig;
use super::dropout::{AttentionDropout, Dropout};
use super::linear::{Linear, LinearPart, WeightSource, feed_forward};
use super::loss::{LOGIT_BYTES, OutputRows};
use super::{ModelError, Objective};
use crate::nn::{Module, Parameter, Weight};

/// Gives the tensor of a name and shape.
pub(super) type TensorSource<'a> = dyn FnMut(&str, &[usize]) -> Result<Tensor, ModelError> + 'a;

/// Weights of one layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) input_norm: Weight,
    /// `[(heads + 2·kv_heads)·head_dim, d]`: query, key, value rows.
    pub(super) qkv: Linear,
    pub(super) qkv_bias: Option<Weight>,
    /// Of each query head and of each key head, `[head_dim]`.
    pub(super) head_norms: Option<[Weight; 2]>,
    /// `[d, heads·head_dim]`.
    pub(super) output: Linear,
    pub(super) output_bias: Option<Weight>,
    pub(super) post_norm: Weight,
    /// `[2·ffn, d]`: gate rows, then up rows.
    pub(super) gate_up: Linear,
    /// `[d, ffn]`.
    pub(super) down: Linear,
}

/// A decoder of Qwen2's, Qwen3's or Llama's form in f32.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    pub(super) embedding: Weight,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Weight,
    pub(super) head: Option<Weight>,
    pub(super) shape: Arc<AttentionShape>,
    dropout: Option<Dropout>,
    pub(super) compute: Compute,
}

impl Decoder {
    /// Random weights: normal with `initializer_range`, the two matrices that write into the residual stream smaller by
    /// √(2·layers) so that its variance does not grow with depth.
    pub fn random(config: &DecoderConfig, seed: u64) -> Result<Self, ModelError> {
        config.check()?;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let deviation = config.initializer_range;
        let residual = deviation / (2.0 * config.num_hidden_layers as f64).sqrt();
        let mut source = |name: &str, shape: &[usize]| {
            let count: usize = shape.iter().product();
            let values = match name {
                _ if name.ends_with("bias") => vec![0.0; count],
                _ if name.contains("norm") => vec![1.0; count],
                _ if name.contains("o_proj") || name.contains("down_proj") => normal(&mut random, residual, count),
                _ => normal(&mut random, deviation, count),
            };
            Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
        };
        Self::build(config, &mut source)
    }

    /// A decoder whose tensors come from `source(name, shape)`, asked in a fixed order.
    pub(super) fn build(config: &DecoderConfig, source: &mut TensorSource<'_>) -> Result<Self, ModelError> {
        config.check()?;
        let (d, ffn, qkv) = (config.hidden_size, config.intermediate_size, config.qkv_width());
        let heads = config.num_attention_heads * config.head_dim;
        let mut var =
            |name: &str, shape: &[usize]| -> Result<Weight, ModelError> { Ok(Weight::new(&source(name, shape)?)?) };
        let embedding = var("model.embed_tokens.weight", &[config.vocab_size, d])?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for index in 0..config.num_hidden_layers {
            let name = |part: &str| layer_name(index, part);
            let linear = |part: &str, weight| Linear::new(&name(part), weight, config);
            layers.push(Layer {
                input_norm: var(&name("input_layernorm.weight"), &[d])?,
                qkv: linear("self_attn.qkv_proj.weight", var(&name("self_attn.qkv_proj.weight"), &[qkv, d])?),
                qkv_bias: config.qkv_bias().then(|| var(&name("self_attn.qkv_proj.bias"), &[qkv])).transpose()?,
                head_norms: match config.head_norms() {
                    true => Some([
                        var(&name("self_attn.q_norm.weight"), &[config.head_dim])?,
                        var(&name("self_attn.k_norm.weight"), &[config.head_dim])?,
                    ]),
                    false => None,
                },
                output: linear("self_attn.o_proj.weight", var(&name("self_attn.o_proj.weight"), &[d, heads])?),
                output_bias: config.output_bias().then(|| var(&name("self_attn.o_proj.bias"), &[d])).transpose()?,
                post_norm: var(&name("post_attention_layernorm.weight"), &[d])?,
                gate_up: linear("mlp.gate_up_proj.weight", var(&name("mlp.gate_up_proj.weight"), &[2 * ffn, d])?),
                down: linear("mlp.down_proj.weight", var(&name("mlp.down_proj.weight"), &[d, ffn])?),
            });
        }
        let final_norm = var("model.norm.weight", &[d])?;
        let head = match config.tie_word_embeddings {
            true => None,
            false => Some(var("lm_head.weight", &[config.vocab_size, d])?),
        };
        let shape = AttentionShape::new(
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.max_position_embeddings,
            &config.rope,
        );
        let (config, shape, compute) = (config.clone(), Arc::new(shape), Compute::Kernels);
        Ok(Self { config, embedding, layers, final_norm, head, shape, dropout: None, compute })
    }

    /// Shape of the decoder.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Every tensor with its name, in a fixed order; a layer's adapters follow its matrix.
    fn weights(&self) -> Vec<(String, &Weight)> {
        let mut all = vec![("model.embed_tokens.weight".to_owned(), &self.embedding)];
        for (index, layer) in self.layers.iter().enumerate() {
            let [query_norm, key_norm] = match &layer.head_norms {
                Some([query, key]) => [Some(query), Some(key)],
                None => [None, None],
            };
            for (part, weight, adapters) in [
                ("input_layernorm.weight", Some(&layer.input_norm), None),
                ("self_attn.qkv_proj.weight", Some(&layer.qkv.weight), Some(&layer.qkv.adapters)),
                ("self_attn.qkv_proj.bias", layer.qkv_bias.as_ref(), None),
                ("self_attn.q_norm.weight", query_norm, None),
                ("self_attn.k_norm.weight", key_norm, None),
                ("self_attn.o_proj.weight", Some(&layer.output.weight), Some(&layer.output.adapters)),
                ("self_attn.o_proj.bias", layer.output_bias.as_ref(), None),
                ("post_attention_layernorm.weight", Some(&layer.post_norm), None),
                ("mlp.gate_up_proj.weight", Some(&layer.gate_up.weight), Some(&layer.gate_up.adapters)),
                ("mlp.down_proj.weight", Some(&layer.down.weight), Some(&layer.down.adapters)),
            ] {
                all.extend(weight.map(|weight| (layer_name(index, part), weight)));
                for adapter in adapters.into_iter().flatten() {
                    all.push((format!("{}.lora_A.weight", adapter.name), &adapter.a));
                    all.push((format!("{}.lora_B.weight", adapter.name), &adapter.b));
                }
            }
        }
        all.push(("model.norm.weight".into(), &self.final_norm));
        all.extend(self.head.iter().map(|head| ("lm_head.weight".into(), head)));
        all
    }

    /// The layers that can have adapters, in a fixed order.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(|layer| [&layer.qkv, &layer.output, &layer.gate_up, &layer.down])
    }

    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.layers
            .iter_mut()
            .flat_map(|layer| [&mut layer.qkv, &mut layer.output, &mut layer.gate_up, &mut layer.down])
    }

    /// Number of values in all parameters.
    pub fn parameter_count(&self) -> usize {
        self.parameters().iter().map(|parameter| parameter.var.elem_count()).sum()
    }

    /// The table of the output layer, `[vocab, d]`.
    pub(super) fn output_table(&self) -> &Weight {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// From now on drops values of the embedding, of the attention's probabilities and of what the blocks add, as long as this is not `None`.
    pub fn set_dropout(&mut self, dropout: Option<Dropout>) {
        self.dropout = dropout;
    }

    /// Multiplies all logits, by way of the last norm's weights: 1/T makes the policy at temperature 1 what it was at T. 1 changes no bit.
    pub fn scale_logits(&self, factor: f64) -> Result<(), ModelError> {
        if factor != 1.0 {
            let var = self.final_norm.var();
            var.set(&var.affine(factor, 0.0)?)?;
        }
        Ok(())
    }

    /// What `act` makes of this decoder with its logits multiplied; the weights have their own bits again behind it.
    pub fn with_scaled_logits<T>(
        &self,
        factor: f64,
        act: impl FnOnce(&Self) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        let var = self.final_norm.var();
        let own = var.copy()?;
        self.scale_logits(factor)?;
        let made = act(self);
        var.set(&own)?;
        made
    }

    /// From now on computes there. Weights stay on the CPU in f32.
    pub fn set_device(&mut self, kind: DeviceKind) -> Result<(), ModelError> {
        self.compute = Compute::on(kind)?;
        Ok(())
    }

    fn drop_some(&self, x: Tensor, place: usize) -> Result<Tensor, ModelError> {
        match self.dropout {
            Some(dropout) => Ok(self.compute.dropout(&x, dropout, place as u64)?),
            None => Ok(x),
        }
    }

    /// Hidden states after the final norm, `[tokens, d]`, on the tape. Several losses may be taken of them.
    pub fn hidden(&self, batch: &TokenBatch) -> Result<Tensor, ModelError> {
        self.forward(batch, Weight::on_tape)
    }

    /// The way through the layers; `weight` gives a parameter on or off the tape.
    pub(super) fn forward(&self, batch: &TokenBatch, weight: impl Fn(&Weight) -> Tensor) -> Result<Tensor, ModelError> {
        batch.check(self.config.max_position_embeddings)?;
        let (compute, epsilon) = (&self.compute, self.config.rms_norm_eps as f32);
        let weight = |own: &Weight| compute.place(weight(own));
        let segments = Arc::new(batch.attention_segments());
        let mut x = self.drop_some(compute.embed(&weight(&self.embedding)?, &batch.tokens)?, 0)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = compute.rms_norm(&x, &weight(&layer.input_norm)?, epsilon)?;
            let dropout = self.dropout.and_then(|dropout| dropout.of_attention(index));
            let attended = self.attend(layer, &normed, &segments, &weight, dropout)?;
            x = x.add(&self.drop_some(attended, 2 * index + 1)?)?;
            let post = compute.rms_norm(&x, &weight(&layer.post_norm)?, epsilon)?;
            let added = feed_forward(&post, &layer.gate_up, &layer.down, compute, &weight)?;
            x = x.add(&self.drop_some(added, 2 * index + 2)?)?;
        }
        Ok(compute.rms_norm(&x, &weight(&self.final_norm)?, epsilon)?)
    }

    /// What a layer's attention adds, `[tokens, d]` → `[tokens, d]`.
    fn attend(
        &self,
        layer: &Layer,
        x: &Tensor,
        segments: &Arc<Vec<Segment>>,
        weight: &WeightSource<'_>,
        dropout: Option<AttentionDropout>,
    ) -> Result<Tensor, ModelError> {
        let compute = &self.compute;
        let mut projected = layer.qkv.forward(x, compute, weight)?;
        let mut bias = layer.qkv_bias.as_ref().map(weight).transpose()?;
        if let Some([query, key]) = &layer.head_norms {
            // The norms are taken of the sums.
            if let Some(bias) = bias.take() {
                projected = projected.broadcast_add(&bias)?;
            }
            let epsilon = self.config.rms_norm_eps as f32;
            projected = compute.head_norm(&projected, [&weight(query)?, &weight(key)?], &self.shape, epsilon)?;
        }
        let mixed = compute.attention(&projected, bias.as_ref(), segments, &self.shape, dropout)?;
        let out = layer.output.forward(&mixed, compute, weight)?;
        Ok(match &layer.output_bias {
            Some(bias) => out.broadcast_add(&weight(bias)?)?,
            None => out,
        })
    }

    /// The objective's value on the batch, a scalar on the tape: call `backward()` on it.
    pub fn loss(&self, batch: &TrainBatch, objective: &dyn Objective) -> Result<Tensor, ModelError> {
        self.loss_of(&self.hidden(&batch.input)?, batch, objective)
    }

    /// As [`Self::loss`], of hidden states that [`Self::hidden`] made of the same batch.
    pub fn loss_of(
        &self,
        hidden: &Tensor,
        batch: &TrainBatch,
        objective: &dyn Objective,
    ) -> Result<Tensor, ModelError> {
        let learned = batch.learned_rows()?;
        let table = &self.compute.place_head(self.output_table().on_tape())?;
        let smoothing = objective.label_smoothing();
        let rows = OutputRows { hidden, table, learned: &learned, smoothing, logit_bytes: LOGIT_BYTES };
        self.compute.loss(&rows, objective)
    }

    /// Log-likelihood (nats) of the target at each position of non-zero weight, in order; no tape is kept.
    pub fn log_likelihoods(&self, batch: &TrainBatch) -> Result<Vec<f64>, ModelError> {
        self.off_tape(batch, |rows| self.compute.log_likelihoods(rows))
    }

    /// As [`Self::log_likelihoods`], with the most likely token at each of these positions.
    pub fn scores(&self, batch: &TrainBatch) -> Result<Vec<(f64, u32)>, ModelError> {
        self.off_tape(batch, |rows| self.compute.scores(rows))
    }

    /// What `measure` makes of the learned rows, without a tape.
    fn off_tape<T>(
        &self,
        batch: &TrainBatch,
        measure: impl FnOnce(&OutputRows<'_>) -> candle_core::Result<T>,
    ) -> Result<T, ModelError> {
        let learned = batch.learned_rows()?;
        let hidden = &self.forward(&batch.input, Weight::off_tape)?;
        let table = &self.compute.place_head(self.output_table().off_tape())?;
        Ok(measure(&OutputRows { hidden, table, learned: &learned, smoothing: 0.0, logit_bytes: LOGIT_BYTES })?)
    }
}

impl Module for Decoder {
    /// Names are Hugging Face's; `qkv_proj` and `gate_up_proj` hold their parts one below the other.
    fn parameters(&self) -> Vec<Parameter> {
        let parameter = |(name, weight): (String, &Weight)| Parameter {
            name,
            var: weight.var().clone(),
            decay: weight.rank() == 2,
        };
        self.weights().into_iter().map(parameter).collect()
    }

    fn freeze(&self, frozen: &dyn Fn(&str) -> bool) {
        for (name, weight) in self.weights() {
            weight.freeze(frozen(&name));
        }
    }
}

impl Linear {
    /// A layer without adapters; `name` is the matrix's.
    fn new(name: &str, weight: Weight, config: &DecoderConfig) -> Self {
        let mut start = 0;
        let part = |(name, rows): (String, usize)| {
            let name = name.strip_suffix(".weight").unwrap_or(&name).to_owned();
            start += rows;
            LinearPart { name, rows: start - rows..start }
        };
        let parts = parts(name, config, weight.dims()[0]).into_iter().map(part).collect();
        Self { weight, parts, adapters: Vec::new() }
    }
}

fn layer_name(index: usize, part: &str) -> String {
    format!("model.layers.{index}.{part}")
}

/// Box–Muller, from the seeded generator.
fn normal(random: &mut ChaCha8Rng, deviation: f64, count: usize) -> Vec<f32> {
    use rand::Rng;
    let mut draw = || {
        let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
        let angle = std::f64::consts::TAU * random.random::<f64>();
        (radius * angle.cos() * deviation) as f32
    };
    (0..count).map(|_| draw()).collect()
}
