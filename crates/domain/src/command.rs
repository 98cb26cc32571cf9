//! The two commands of a runtime: words, or a line for the shell.

use serde::{Deserialize, Serialize};

/// The longest command, in bytes.
pub const MAX_COMMAND: usize = 4096;

/// A command as it is executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The program and its arguments; never empty.
    pub words: Vec<String>,
}

/// Why a text is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCommand {
    /// No words.
    #[error("a command needs at least a program")]
    Empty,
    /// Longer than [`MAX_COMMAND`].
    #[error("a command has at most {MAX_COMMAND} bytes")]
    TooLong,
    /// A control character that no command needs.
    #[error("a command must not hold NUL or other control characters")]
    Control,
    /// A quote without its end.
    #[error("a quote is not closed")]
    Quote,
}

impl Command {
    /// Splits a line into words as POSIX does; where it holds shell syntax it becomes `/bin/sh -c LINE`.
    ///
    /// # Errors
    /// [`InvalidCommand`] where the line has no words or is no line.
    pub fn parse(line: &str) -> Result<Self, InvalidCommand> {
        if line.len() > MAX_COMMAND {
            return Err(InvalidCommand::TooLong);
        }
        if line.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
            return Err(InvalidCommand::Control);
        }
        let words = shlex::split(line).ok_or(InvalidCommand::Quote)?;
        if words.first().is_none_or(String::is_empty) {
            return Err(InvalidCommand::Empty);
        }
        if needs_shell(line) {
            return Ok(Self { words: vec!["/bin/sh".to_owned(), "-c".to_owned(), line.to_owned()] });
        }
        Ok(Self { words })
    }
}

/// Whether a line holds, outside of quotes, what only a shell understands (POSIX, Shell Command Language, 2.2).
fn needs_shell(line: &str) -> bool {
    let mut quote = None;
    let mut escaped = false;
    for c in line.chars() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (None | Some('"'), '\\') => escaped = true,
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            (None | Some('"'), '$' | '`') => return true,
            (None, '&' | '|' | ';' | '<' | '>' | '(' | ')' | '*' | '?' | '[' | '~' | '#' | '\n' | '{' | '}') => {
                return true;
            }
            _ => {}
        }
    }
    let first = line.split_whitespace().next().unwrap_or_default();
    // An assignment before the program, or a builtin that is no program everywhere.
    first.contains('=') || matches!(first, "cd" | "exec" | "export" | "if" | "for" | "while" | "set" | "." | "!")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(line: &str) -> Vec<String> {
        Command::parse(line).unwrap().words
    }

    #[test]
    fn plain_words_are_executed_directly() {
        assert_eq!(words("pip3 install -r requirements.txt"), ["pip3", "install", "-r", "requirements.txt"]);
        assert_eq!(words("python3 -c 'print(1 | 2)'"), ["python3", "-c", "print(1 | 2)"]);
        assert_eq!(words(r"echo a\ b"), ["echo", "a b"]);
    }

    #[test]
    fn shell_syntax_goes_through_the_shell() {
        for line in ["a && b", "a | b", "a; b", "a > f", "a $X", "a *", "a ~/x", "A=1 b", "a \"$X\"", "cd x", "a `b`"] {
            assert_eq!(words(line), ["/bin/sh", "-c", line], "{line}");
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        assert_eq!(Command::parse("  "), Err(InvalidCommand::Empty));
        assert_eq!(Command::parse("''"), Err(InvalidCommand::Empty));
        assert_eq!(Command::parse("echo 'a"), Err(InvalidCommand::Quote));
        assert_eq!(Command::parse("a\0b"), Err(InvalidCommand::Control));
        assert_eq!(Command::parse(&"a".repeat(5000)), Err(InvalidCommand::TooLong));
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in ".{0,200}") {
            let _ = Command::parse(&line);
        }
    }
}
