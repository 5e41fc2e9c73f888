//! A file's tokenizer as `tokenizer.json` and what stands beside it.
//!
//! In: metadata. Out: the definition in the form of the tokenizers library, the settings with the chat template, and the tokens
//! that begin and end a text. Byte-level BPE only; how text is cut before it (`tokenizer.ggml.pre`) must be known.

use std::collections::HashSet;
use std::io::{Read, Seek};

use serde_json::{Map, Value as Json, json};

use super::GgufError;
use super::file::{Gguf, Value};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const PRE: &str = "tokenizer.ggml.pre";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";

/// Token types of the format: control, such as the end of a turn; defined by the user, such as `<think>`. Both are found whole in text.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Words with one sign in front, single digits, runs of signs, line ends, spaces: as Qwen2's tokenizer.json has it.
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with up to three digits: as Llama 3's has it.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Keys of single tokens: ggml's name, then Hugging Face's.
const SPECIAL: [(&str, &str); 4] = [
    ("bos_token_id", "bos_token"),
    ("eos_token_id", "eos_token"),
    ("padding_token_id", "pad_token"),
    ("unknown_token_id", "unk_token"),
];

/// What a tokenizer's files hold.
pub struct Tokenizer {
    /// `tokenizer.json`.
    pub definition: Map<String, Json>,
    /// `tokenizer_config.json`.
    pub settings: Map<String, Json>,
    /// `generation_config.json`: the tokens that begin, end and fill.
    pub generation: Map<String, Json>,
    /// Tokens of the vocabulary.
    pub tokens: usize,
}

/// How text is cut before tokens are sought.
struct Cut {
    normaliser: Json,
    pieces: Json,
    /// A piece that is a token is taken whole, whatever the merges say.
    ignores_merges: bool,
    /// What holds where the file does not say whether texts begin with a token.
    begins: bool,
}

impl Tokenizer {
    /// Translates; `vocabulary` is the number of rows of the embedding table.
    pub fn of<R: Read + Seek>(gguf: &Gguf<R>, vocabulary: usize) -> Result<Self, GgufError> {
        check_kind(gguf)?;
        let cut = Cut::of(gguf)?;
        let (tokens, merges) = (gguf.texts(TOKENS)?, gguf.texts(MERGES)?);
        if tokens.len() > vocabulary {
            let message = format!("has {} tokens, the embedding table {vocabulary} rows", tokens.len());
            return Err(gguf.wrong(TOKENS, message));
        }
        let types = match gguf.metadata.get(TYPES) {
            None => vec![1; tokens.len()],
            Some(Value::Integers(types)) if types.len() == tokens.len() => types.clone(),
            Some(_) => return Err(gguf.wrong(TYPES, format!("is not a list of {} integers", tokens.len()))),
        };
        let added: Vec<Json> = (0..tokens.len())
            .filter(|&id| types[id] == CONTROL || types[id] == USER_DEFINED)
            .map(|id| {
                json!({
                    "id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": types[id] == CONTROL
                })
            })
            .collect();
        let mut special = Map::new();
        let mut generation = Map::new();
        for (key, name) in SPECIAL {
            let Some(id) = gguf.size(&format!("tokenizer.ggml.{key}"))? else { continue };
            let Some(token) = tokens.get(id as usize) else {
                return Err(gguf.wrong(&format!("tokenizer.ggml.{key}"), format!("is {id}, which no token has")));
            };
            special.insert(name.to_owned(), json!(token));
            if name != "unk_token" {
                generation.insert(format!("{name}_id"), json!(id));
            }
        }
        let begins = gguf.truth(ADD_BOS)?.unwrap_or(cut.begins);
        let definition = Map::from_iter([
            ("version".to_owned(), json!("1.0")),
            ("truncation".to_owned(), Json::Null),
            ("padding".to_owned(), Json::Null),
            ("added_tokens".to_owned(), Json::Array(added)),
            ("normalizer".to_owned(), cut.normaliser),
            ("pre_tokenizer".to_owned(), cut.pieces),
            (
                "post_processor".to_owned(),
                beginning(gguf, begins, special.get("bos_token"), generation.get("bos_token_id"))?,
            ),
            ("decoder".to_owned(), byte_level(true)),
            ("model".to_owned(), model(gguf, tokens, merges, cut.ignores_merges)?),
        ]);
        let mut settings = Map::from_iter([
            ("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast")),
            ("clean_up_tokenization_spaces".to_owned(), json!(false)),
        ]);
        settings.extend(special);
        if let Some(template) = gguf.text("tokenizer.chat_template")? {
            settings.insert("chat_template".to_owned(), json!(template));
        }
        Ok(Self { definition, settings, generation, tokens: tokens.len() })
    }
}

/// Byte-level BPE, without what its definition cannot say.
fn check_kind<R: Read + Seek>(gguf: &Gguf<R>) -> Result<(), GgufError> {
    const KIND: &str = "tokenizer.ggml.model";
    let kind = gguf.text(KIND)?.unwrap_or_default();
    if kind != "gpt2" {
        let message = format!("is '{kind}'; only gpt2, which is byte-level BPE, can be converted");
        return Err(gguf.wrong(KIND, message));
    }
    for key in ["tokenizer.ggml.add_space_prefix", "tokenizer.ggml.add_eos_token"] {
        if gguf.truth(key)? == Some(true) {
            return Err(gguf.wrong(key, "is true, which cannot be converted"));
        }
    }
    Ok(())
}

impl Cut {
    fn of<R: Read + Seek>(gguf: &Gguf<R>) -> Result<Self, GgufError> {
        let split = |pattern: &str| {
            let split =
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
            json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]})
        };
        let plain = |pieces| Self { normaliser: Json::Null, pieces, ignores_merges: false, begins: false };
        match gguf.text(PRE)?.unwrap_or("absent") {
            "gpt-2" => Ok(plain(byte_level(true))),
            "smollm" => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                Ok(plain(json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]})))
            }
            "qwen2" | "deepseek-r1-qwen" => {
                Ok(Self { normaliser: json!({"type": "NFC"}), ..plain(split(QWEN2_SPLIT)) })
            }
            "llama-bpe" | "llama3" | "llama-v3" => {
                Ok(Self { ignores_merges: true, begins: true, ..plain(split(LLAMA3_SPLIT)) })
            }
            other => {
                let message =
                    format!("is '{other}'; gpt-2, smollm, qwen2, deepseek-r1-qwen and llama-bpe can be converted");
                Err(gguf.wrong(PRE, message))
            }
        }
    }
}

/// Bytes as printable characters; `cuts` = words are cut as in GPT-2 first.
fn byte_level(cuts: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": cuts})
}

/// The token in front of every text, if there is one.
fn beginning<R: Read + Seek>(
    gguf: &Gguf<R>,
    begins: bool,
    token: Option<&Json>,
    id: Option<&Json>,
) -> Result<Json, GgufError> {
    if !begins {
        return Ok(Json::Null);
    }
    let (Some(token), Some(id)) = (token, id) else {
        return Err(gguf.wrong(ADD_BOS, "is true, but tokenizer.ggml.bos_token_id is missing"));
    };
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |name: &str, kind: usize| json!({"Sequence": {"id": name, "type_id": kind}});
    let key = token.as_str().unwrap_or_default();
    Ok(json!({
        "type": "TemplateProcessing",
        "single": [special, text("A", 0)],
        "pair": [special, text("A", 0), text("B", 1)],
        "special_tokens": {key: {"id": token, "ids": [id], "tokens": [token]}}
    }))
}

/// Vocabulary and merges; every merge joins two tokens to a third.
fn model<R: Read + Seek>(
    gguf: &Gguf<R>,
    tokens: &[String],
    merges: &[String],
    ignores_merges: bool,
) -> Result<Json, GgufError> {
    let mut vocabulary = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocabulary.insert(token.clone(), json!(id)).is_some() {
            return Err(gguf.wrong(&format!("{TOKENS}[{id}]"), format!("'{token}' stands there twice")));
        }
    }
    let known: HashSet<&str> = tokens.iter().map(String::as_str).collect();
    let mut pairs = Vec::with_capacity(merges.len());
    for (number, merge) in merges.iter().enumerate() {
        let pair = merge.split_once(' ').filter(|(left, right)| {
            known.contains(left) && known.contains(right) && known.contains(format!("{left}{right}").as_str())
        });
        let Some((left, right)) = pair else {
            let message = format!("'{merge}' does not join two tokens to a third");
            return Err(gguf.wrong(&format!("{MERGES}[{number}]"), message));
        };
        pairs.push(json!([left, right]));
    }
    Ok(json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignores_merges,
        "vocab": vocabulary, "merges": pairs
    }))
}
