//! What `taiji` and `taiji-trainer` have in common as programs: the version they print, their man pages and completions, the
//! processor they need, and that ONNX Runtime tells nobody of them.
//!
//! In: the commit that the program was built from, its command line as clap knows it. Out: what was asked for, text and files.
//! Callers: both `main.rs`.

use clap::{Arg, ArgMatches, Command, Parser, ValueEnum};
use clap_complete::Shell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Parses a program's command line. Where nothing is left to do (help, version, pages) or it is wrong, the exit code: 0, or 64.
/// `commit`: `option_env!("TAIJI_COMMIT")` of the program itself, which make sets. It stands in `main.rs` and not in a build script, so
/// that a new commit links the programs anew and compiles nothing else.
pub fn parse<T: Parser>(commit: Option<&'static str>) -> Result<T, ExitCode> {
    let command = T::command().version(version(commit));
    let parsed =
        command.clone().subcommand(pages_command()).try_get_matches().and_then(|matches| match matches.subcommand() {
            Some((PAGES, given)) => Ok(Err(pages(&command, given))),
            _ => T::from_arg_matches(&matches).map(Ok),
        });
    parsed.unwrap_or_else(|error| {
        // Help and version go to stdout and are a success; everything else is a usage error.
        let code = if error.use_stderr() { 64 } else { 0 };
        Err(ExitCode::from(if error.print().is_ok() { code } else { 70 }))
    })
}

/// What `--version` prints behind the name.
fn version(commit: Option<&'static str>) -> &'static str {
    let commit = commit.filter(|commit| !commit.is_empty()).unwrap_or("unknown: not built by make in a git checkout");
    format!("{} (commit {commit})", env!("CARGO_PKG_VERSION")).leak()
}

/// Name of the subcommand for packages; it is in no help and in none of what it writes.
const PAGES: &str = "pages";

fn pages_command() -> Command {
    let out = Arg::new("out").long("out").value_name("DIR").required(true).value_parser(clap::value_parser!(PathBuf));
    Command::new(PAGES).hide(true).about("Write man pages and shell completions into a folder").arg(out)
}

fn pages(command: &Command, given: &ArgMatches) -> ExitCode {
    let Some(folder) = given.get_one::<PathBuf>("out") else { return ExitCode::from(64) };
    match write_pages(command, folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {}: {error}", command.get_name(), folder.display());
            ExitCode::from(69)
        }
    }
}

/// Writes `man1/NAME.1` with a page for each subcommand beside it, and `completions/` for bash, zsh and fish, into a folder.
fn write_pages(command: &Command, folder: &Path) -> std::io::Result<()> {
    let (pages, completions) = (folder.join("man1"), folder.join("completions"));
    std::fs::create_dir_all(&pages)?;
    std::fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(command.clone(), &pages)?;
    let shells = Shell::value_variants().iter().filter(|shell| matches!(shell, Shell::Bash | Shell::Zsh | Shell::Fish));
    for shell in shells {
        let name = command.get_name().to_owned();
        clap_complete::generate_to(*shell, &mut command.clone(), name, &completions)?;
    }
    Ok(())
}

/// Keeps ONNX Runtime from telling its maker that it was started, and from leaving a device's id and a file of events in the cache
/// folder: its official builds do unless this is set before they are loaded (their Privacy.md; `with_telemetry(false)` comes after
/// the first event). To be called first in `main`.
#[allow(unsafe_code)]
pub fn silence_onnx_runtime() {
    // SAFETY: at the beginning of `main` no other thread of this process looks at its environment.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") }
}

/// Stands once in a program's `main.rs`: on a processor that lacks what `.cargo/config.toml` lets the compiler use (x86-64-v3) the
/// program says so in one line and ends with 69, before anything else of it runs: the linker puts the check in front of
/// constructors and libraries, and it is written in instructions that every x86-64 has. Without those settings it is nothing.
#[macro_export]
macro_rules! require_processor {
    ($program:literal) => {
        #[cfg(all(target_arch = "x86_64", target_os = "linux", target_feature = "avx2"))]
        #[allow(unsafe_code)]
        mod processor {
            core::arch::global_asm!(
                ".pushsection .preinit_array, \"aw\", @preinit_array",
                ".p2align 3",
                ".quad 20f",
                ".popsection",
                ".pushsection .text.require_processor, \"ax\", @progbits",
                "20: push rbx", // cpuid writes it; the caller's
                "xor eax, eax",
                "cpuid",
                "cmp eax, 7",
                "jb 21f",
                "mov eax, 1",
                "xor ecx, ecx",
                "cpuid",
                "not ecx",
                "test ecx, {leaf_1_ecx}",
                "jnz 21f",
                // The system must save the wide registers, too.
                "xor ecx, ecx",
                "xgetbv",
                "not eax",
                "test eax, {xcr0}",
                "jnz 21f",
                "mov eax, 7",
                "xor ecx, ecx",
                "cpuid",
                "not ebx",
                "test ebx, {leaf_7_ebx}",
                "jnz 21f",
                "mov eax, 0x80000000",
                "cpuid",
                "cmp eax, 0x80000001",
                "jb 21f",
                "mov eax, 0x80000001",
                "cpuid",
                "not ecx",
                "test ecx, {leaf_ext_ecx}",
                "jnz 21f",
                "pop rbx",
                "ret",
                // write(2, text), exit_group(69)
                "21: mov edi, 2",
                "lea rsi, [rip + 22f]",
                // up to and with the line's end
                "xor edx, edx",
                "23: inc edx",
                "cmp byte ptr [rsi + rdx], 10",
                "jne 23b",
                "inc edx",
                "mov eax, 1",
                "syscall",
                "mov eax, 231",
                "mov edi, 69",
                "syscall",
                "ud2",
                concat!("22: .ascii \"", $program, ": this processor is too old for this build, which needs x86-64-v3 \""),
                ".ascii \"(AVX2, BMI2, FMA; Intel Haswell of 2013, AMD Excavator of 2015, or newer): \"",
                ".ascii \"build it without the two settings of .cargo/config.toml\"",
                ".byte 10",
                ".popsection",
                // Bits as Intel's manual numbers them: SSE3, SSSE3, FMA, CMPXCHG16B, SSE4.1, SSE4.2, MOVBE, POPCNT, OSXSAVE, AVX, F16C
                leaf_1_ecx = const 1 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 27 | 1 << 28 | 1 << 29,
                // SSE and AVX state
                xcr0 = const 1 << 1 | 1 << 2,
                // BMI1, AVX2, BMI2
                leaf_7_ebx = const 1 << 3 | 1 << 5 | 1 << 8,
                // LAHF, LZCNT
                leaf_ext_ecx = const 1 | 1 << 5,
            );
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_names_the_commit_or_says_that_it_is_unknown() {
        let number = env!("CARGO_PKG_VERSION");
        assert_eq!(version(Some("0123abc")), format!("{number} (commit 0123abc)"));
        for none in [None, Some("")] {
            assert_eq!(version(none), format!("{number} (commit unknown: not built by make in a git checkout)"));
        }
    }

    #[test]
    fn pages_are_written_of_every_command() {
        let command = Command::new("tool").subcommand(Command::new("go").about("Goes."));
        let folder = tempfile::tempdir().expect("tempdir");
        write_pages(&command, folder.path()).expect("pages");
        let read = |name: &str| {
            std::fs::read_to_string(folder.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        assert!(read("man1/tool.1").contains("go") && read("man1/tool-go.1").contains("Goes."));
        for name in ["tool.bash", "_tool", "tool.fish"] {
            let text = read(&format!("completions/{name}"));
            assert!(text.contains("go") && !text.contains(PAGES), "{name}: {text}");
        }
    }
}
