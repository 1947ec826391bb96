//! The errors that travel: what one party answers the other instead of what was asked.
//!
//! [`InferError`] is the data plane's, [`CommandError`] what the replicated state answers to a command that it refuses,
//! [`ControlError`] the control plane's around it. Each says what was expected, what came and what to do.

mod command;
mod control;
mod infer;

pub use command::CommandError;
pub use control::ControlError;
pub use infer::InferError;

use crate::limits::REASON_BYTES_MAX;

/// What a panic said, from its payload.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a text")
}

/// A text for an error or a history entry, cut at [`REASON_BYTES_MAX`].
pub fn reason(text: impl std::fmt::Display) -> String {
    let mut text = text.to_string();
    if text.len() > REASON_BYTES_MAX {
        let end = (0..=REASON_BYTES_MAX - 3).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_between_characters() {
        let cut = reason("ä".repeat(1000));
        assert!(cut.len() <= REASON_BYTES_MAX && cut.ends_with('…'));
        assert_eq!(reason("short"), "short");
    }

    #[test]
    fn a_panic_says_what_it_was_told() {
        let text = |panic: Box<dyn std::any::Any + Send>| panic_text(&*panic).to_owned();
        assert_eq!(text(Box::new("static")), "static");
        assert_eq!(text(Box::new("made".to_owned())), "made");
        assert_eq!(text(Box::new(7)), "without a text");
    }
}
