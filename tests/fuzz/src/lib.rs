//! Fuzz targets. A target is a test of the crate that has the parser, so that it reaches what is private there; it lies in a
//! module `fuzzed` and calls [`target`].
//!
//! Built as any test, it reads what it was given as seeds, what fuzzing has found before (`corpus/<name>`, in the repository),
//! and some hundred inputs made of these. Built by `cargo xtask fuzz` (`--cfg fuzzing`, with counters in every branch), the
//! same test is libFuzzer's: inputs that reach something new are kept and changed further.
//!
//! It must not know any of the parsers.

mod changed;
mod edited;
#[cfg(fuzzing)]
mod sys;

use std::path::{Path, PathBuf};
use std::{fs, io, thread};

pub use edited::edited;

/// Inputs made of seeds and corpus, in an ordinary test.
const MADE: usize = 500;

/// Where libFuzzer is to keep its corpus and what it finds (`cargo xtask fuzz` sets it); without it a test is an ordinary one.
pub const DIRECTORY: &str = "KATA_FUZZ_DIR";

/// Seconds for libFuzzer.
pub const SECONDS: &str = "KATA_FUZZ_SECONDS";

/// Has `run` read inputs: any bytes at all, none of which it may panic on, hang with or make a lot of memory of. What else
/// must hold of what it reads, it asserts. The name is that of the corpus, and is no other target's.
///
/// # Panics
/// `run` does, or there is nothing to begin with.
pub fn target<S: AsRef<[u8]>>(
    name: &str,
    seeds: impl IntoIterator<Item = S>,
    run: impl Fn(&[u8]) + Send + Sync + 'static,
) {
    let seeds: Vec<Vec<u8>> = seeds.into_iter().map(|seed| seed.as_ref().to_owned()).collect();
    assert!(!seeds.is_empty(), "the target {name} has no seeds");
    #[cfg(fuzzing)]
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let session = Session::prepare(Path::new(&directory), name, &seeds);
        let arguments = session.unwrap_or_else(|error| {
            eprintln!("{}: {error}", Path::new(&directory).display());
            std::process::exit(1)
        });
        sys::fuzz(arguments, run);
    }
    let found = files(&corpus(name));
    let known: Vec<Vec<u8>> = seeds.into_iter().chain(found).collect();
    for input in &known {
        told(name, input, &run);
    }
    let mut source = changed::Source::new(name);
    for number in 0..MADE {
        let input = source.made_of(&known, number);
        told(name, &input, &run);
    }
}

/// What fuzzing has found that is worth keeping.
fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

/// The contents of a directory's files, by their names. A directory that is not there has none.
fn files(directory: &Path) -> Vec<Vec<u8>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries.flatten(),
        Err(error) => {
            let absent = error.kind() == io::ErrorKind::NotFound;
            assert!(absent, "{}: {error}", directory.display());
            return Vec::new();
        }
    };
    let mut paths: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    paths.iter().filter_map(|path| fs::read(path).ok()).collect()
}

/// Runs it, and says of which input it was if it panics.
fn told(name: &str, input: &[u8], run: &impl Fn(&[u8])) {
    struct Tell<'a>(&'a str, &'a [u8]);
    impl Drop for Tell<'_> {
        fn drop(&mut self) {
            if thread::panicking() {
                eprintln!("the target {} fails on \"{}\"", self.0, self.1.escape_ascii());
            }
        }
    }
    let _tell = Tell(name, input);
    run(input);
}

/// What libFuzzer is to do, in its words.
#[cfg(fuzzing)]
struct Session;

#[cfg(fuzzing)]
impl Session {
    /// Puts seeds and a dictionary of their words into the directory. Answers with libFuzzer's arguments.
    fn prepare(directory: &Path, name: &str, seeds: &[Vec<u8>]) -> io::Result<Vec<String>> {
        let [own, found] = ["corpus", "found"].map(|part| directory.join(part).join(name));
        fs::create_dir_all(&own)?;
        fs::create_dir_all(&found)?;
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(own.join(format!("seed-{number}")), seed)?;
        }
        let words = directory.join(format!("{name}.dict"));
        let dictionary = changed::dictionary(seeds);
        fs::write(&words, &dictionary)?;
        let longest = seeds.iter().map(Vec::len).max().unwrap_or(0);
        let seconds = std::env::var(SECONDS).unwrap_or_else(|_| "60".to_owned());
        let mut arguments = vec![
            name.to_owned(),
            own.display().to_string(),
            format!("-artifact_prefix={}/", found.display()),
            format!("-max_total_time={seconds}"),
            format!("-max_len={}", (2 * longest).max(4096)),
            "-timeout=20".to_owned(),
            "-rss_limit_mb=2048".to_owned(),
            "-print_final_stats=1".to_owned(),
            "-use_value_profile=1".to_owned(),
        ];
        // libFuzzer refuses one without words, as seeds of mere bytes have it.
        if !dictionary.is_empty() {
            arguments.push(format!("-dict={}", words.display()));
        }
        let kept = corpus(name);
        if kept.is_dir() {
            arguments.insert(2, kept.display().to_string());
        }
        Ok(arguments)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_target_sees_its_seeds_and_what_is_made_of_them_and_can_fail() {
        let seen: &'static Mutex<Vec<Vec<u8>>> = Box::leak(Box::default());
        target("own-1", [b"a seed"], |input| {
            seen.lock().unwrap().push(input.to_owned())
        });
        let first = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!((first.len(), first[0].as_slice()), (MADE + 1, &b"a seed"[..]));
        let different: std::collections::BTreeSet<_> = first.iter().collect();
        assert!(different.len() > MADE / 4, "{} are different", different.len());
        target("own-1", [b"a seed"], |input| {
            seen.lock().unwrap().push(input.to_owned())
        });
        assert!(first == *seen.lock().unwrap(), "another run sees the same");

        let trap = |input: &[u8]| assert!(input.len() != 5, "five");
        assert!(catch_unwind(AssertUnwindSafe(|| target("own-2", [b"a seed"], trap))).is_err());
        let none: [&[u8]; 0] = [];
        assert!(catch_unwind(|| target("own-3", none, |_| ())).is_err());
    }
}
