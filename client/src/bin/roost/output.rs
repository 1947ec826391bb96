//! What a command prints: for people or for programs, on standard output.

use std::io::{self, Write as _};

use clap::ValueEnum;
use serde::Serialize;

/// For whom a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Lines and tables, for people.
    Text,
    /// One JSON value, for programs; `infer` prints one per answer, each on a line.
    Json,
}

/// What a command found out. Its serialised form is what programs read.
pub trait Report: Serialize {
    /// The same for people, with its line breaks.
    fn text(&self) -> String;
}

impl Output {
    /// Prints a command's only report.
    ///
    /// # Errors
    /// Standard output's.
    pub fn print(self, report: &impl Report) -> io::Result<()> {
        match self {
            Self::Text => write(&report.text()),
            Self::Json => write(&(serde_json::to_string_pretty(report)? + "\n")),
        }
    }

    /// Prints one of many reports: in JSON, on one line.
    ///
    /// # Errors
    /// Standard output's.
    pub fn print_one_of_many(self, report: &impl Report) -> io::Result<()> {
        match self {
            Self::Text => write(&report.text()),
            Self::Json => write(&(serde_json::to_string(report)? + "\n")),
        }
    }
}

/// Prints a line for people.
///
/// # Errors
/// Standard output's.
pub fn line(text: &str) -> io::Result<()> {
    write(&format!("{text}\n"))
}

/// Not by `print!`, which panics when the reader, such as `head`, has gone.
fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
