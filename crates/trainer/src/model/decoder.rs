//! The decoder: its parameters and the way of a batch through them.
//!
//! Called by `sft` and by whatever trains further; `checkpoint` saves and loads it, `optimizer` changes it.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::attention::{AttentionShape, attention};
use super::batch::{TokenBatch, TrainBatch};
use super::config::DecoderConfig;
use super::embedding::embed;
use super::linear::{linear, swiglu_mlp};
use super::loss::{LOGIT_BYTES, OutputRows};
use super::norm::rms_norm;
use super::{ModelError, Objective};

/// Gives the tensor of a name and shape.
pub(super) type TensorSource<'a> = dyn FnMut(&str, &[usize]) -> Result<Tensor, ModelError> + 'a;

/// One trainable tensor.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Name, as Hugging Face has it; `qkv_proj` and `gate_up_proj` hold their parts one below the other.
    pub name: String,
    /// Value, f32 on the CPU.
    pub var: Var,
    /// Weight decay applies: matrices yes, norms and biases no.
    pub decay: bool,
}

/// Weights of one layer.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) input_norm: Var,
    /// `[(heads + 2·kv_heads)·head_dim, d]`: query, key, value rows.
    pub(super) qkv: Var,
    pub(super) qkv_bias: Var,
    /// `[d, heads·head_dim]`.
    pub(super) output: Var,
    pub(super) post_norm: Var,
    /// `[2·ffn, d]`: gate rows, then up rows.
    pub(super) gate_up: Var,
    /// `[d, ffn]`.
    pub(super) down: Var,
}

/// A Qwen2-shaped decoder in f32.
#[derive(Debug)]
pub struct Decoder {
    config: DecoderConfig,
    pub(super) embedding: Var,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Var,
    pub(super) head: Option<Var>,
    pub(super) shape: Arc<AttentionShape>,
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
        let mut var =
            |name: &str, shape: &[usize]| -> Result<Var, ModelError> { Ok(Var::from_tensor(&source(name, shape)?)?) };
        let embedding = var("model.embed_tokens.weight", &[config.vocab_size, d])?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for index in 0..config.num_hidden_layers {
            let name = |part: &str| layer_name(index, part);
            layers.push(Layer {
                input_norm: var(&name("input_layernorm.weight"), &[d])?,
                qkv: var(&name("self_attn.qkv_proj.weight"), &[qkv, d])?,
                qkv_bias: var(&name("self_attn.qkv_proj.bias"), &[qkv])?,
                output: var(&name("self_attn.o_proj.weight"), &[d, config.num_attention_heads * config.head_dim()])?,
                post_norm: var(&name("post_attention_layernorm.weight"), &[d])?,
                gate_up: var(&name("mlp.gate_up_proj.weight"), &[2 * ffn, d])?,
                down: var(&name("mlp.down_proj.weight"), &[d, ffn])?,
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
            config.head_dim(),
            config.max_position_embeddings,
            config.rope_theta,
        );
        Ok(Self { config: config.clone(), embedding, layers, final_norm, head, shape: Arc::new(shape) })
    }

    /// Shape of the decoder.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Every trainable tensor, in a fixed order.
    pub fn parameters(&self) -> Vec<Parameter> {
        let parameter = |name: String, var: &Var| Parameter { name, var: var.clone(), decay: var.rank() == 2 };
        let mut all = vec![parameter("model.embed_tokens.weight".into(), &self.embedding)];
        for (index, layer) in self.layers.iter().enumerate() {
            for (part, var) in [
                ("input_layernorm.weight", &layer.input_norm),
                ("self_attn.qkv_proj.weight", &layer.qkv),
                ("self_attn.qkv_proj.bias", &layer.qkv_bias),
                ("self_attn.o_proj.weight", &layer.output),
                ("post_attention_layernorm.weight", &layer.post_norm),
                ("mlp.gate_up_proj.weight", &layer.gate_up),
                ("mlp.down_proj.weight", &layer.down),
            ] {
                all.push(parameter(layer_name(index, part), var));
            }
        }
        all.push(parameter("model.norm.weight".into(), &self.final_norm));
        all.extend(self.head.iter().map(|head| parameter("lm_head.weight".into(), head)));
        all
    }

    /// Number of trainable values.
    pub fn parameter_count(&self) -> usize {
        self.parameters().iter().map(|parameter| parameter.var.elem_count()).sum()
    }

    /// The table of the output layer, `[vocab, d]`.
    pub(super) fn output_table(&self) -> &Var {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Hidden states after the final norm, `[tokens, d]`, on the tape. Several losses may be taken of them.
    pub fn hidden(&self, batch: &TokenBatch) -> Result<Tensor, ModelError> {
        self.forward(batch, |var| var.as_tensor().clone())
    }

    /// The way through the layers; `weight` gives a parameter on or off the tape.
    pub(super) fn forward(&self, batch: &TokenBatch, weight: impl Fn(&Var) -> Tensor) -> Result<Tensor, ModelError> {
        batch.check(self.config.max_position_embeddings)?;
        let epsilon = self.config.rms_norm_eps as f32;
        let segments = Arc::new(batch.attention_segments());
        let mut x = embed(&weight(&self.embedding), &batch.tokens)?;
        for layer in &self.layers {
            let normed = rms_norm(&x, &weight(&layer.input_norm), epsilon)?;
            let projected = linear(&normed, &weight(&layer.qkv))?;
            let mixed = attention(&projected, &weight(&layer.qkv_bias), &segments, &self.shape)?;
            x = x.add(&linear(&mixed, &weight(&layer.output))?)?;
            let post = rms_norm(&x, &weight(&layer.post_norm), epsilon)?;
            x = x.add(&swiglu_mlp(&post, &weight(&layer.gate_up), &weight(&layer.down))?)?;
        }
        Ok(rms_norm(&x, &weight(&self.final_norm), epsilon)?)
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
        let (table, smoothing) = (self.output_table().as_tensor(), objective.label_smoothing());
        OutputRows { hidden, table, learned: &learned, smoothing, logit_bytes: LOGIT_BYTES }.loss(objective)
    }

    /// Log-likelihood (nats) of the target at each position of non-zero weight, in order; no tape is kept.
    pub fn log_likelihoods(&self, batch: &TrainBatch) -> Result<Vec<f64>, ModelError> {
        let learned = batch.learned_rows()?;
        let hidden = &self.forward(&batch.input, Var::as_detached_tensor)?;
        let table = &self.output_table().as_detached_tensor();
        let rows = OutputRows { hidden, table, learned: &learned, smoothing: 0.0, logit_bytes: LOGIT_BYTES };
        Ok(rows.log_likelihoods()?)
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
