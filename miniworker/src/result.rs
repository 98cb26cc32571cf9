//! From what a process left to what a call answers.

use std::collections::HashMap;

use faena_domain::limits::{MAX_RESULT, STDERR_TAIL};
use faena_domain::log::LogBuffer;
use faena_domain::{CallError, CallStatus, ErrorKind, Exit, Layer};
use faena_instance_protocol as wire;
use serde_json::value::RawValue;

use crate::live;
use crate::process::{Cut, Finished};

/// What a call answers, before it is stored.
pub(crate) struct CommandResult {
    pub(crate) status: CallStatus,
    pub(crate) result: Vec<u8>,
    pub(crate) error: Option<CallError>,
    /// As it is stored.
    pub(crate) log: String,
}

/// How a process ended, in the words of the domain.
pub(crate) fn exit(exit: wire::Exit) -> Exit {
    match exit {
        wire::Exit::Code(code) => Exit::Code(code),
        wire::Exit::Signal(signal) => Exit::Signal(signal),
    }
}

/// The end of a text, at most `most` bytes, on a character's border.
pub(crate) fn tail(text: &str, most: usize) -> &str {
    let mut from = text.len().saturating_sub(most);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

/// What went wrong with the process itself, if anything did.
fn failure(finished: &Finished, timeout_ms: u64, memory: &str) -> Option<CallError> {
    let error = |kind, message: String| Some(CallError::new(kind, Layer::Run, message));
    match finished.cut {
        Some(Cut::Deadline) => {
            return error(ErrorKind::Timeout, format!("the process ran longer than {timeout_ms} ms and was killed"));
        }
        Some(Cut::Output) => {
            let message = format!("standard output is over the limit of {MAX_RESULT} bytes; the process was killed");
            return error(ErrorKind::Output, message);
        }
        Some(Cut::Stop) | None => {}
    }
    let ended = &finished.ended;
    (ended.exit != wire::Exit::Code(0)).then(|| fallen(ended.exit, ended.oom_kills, memory, (Layer::Run, "")))
}

/// Why a process gave no answer that ended by itself; `when` follows what is said of its end.
pub(crate) fn fallen(
    ended: wire::Exit,
    oom_kills: u64,
    memory: impl std::fmt::Display,
    (layer, when): (Layer, &str),
) -> CallError {
    let error = |kind, message| CallError::new(kind, layer, message);
    match exit(ended) {
        _ if oom_kills > 0 => {
            error(ErrorKind::Oom, format!("the process wanted more memory than its limit of {memory}{when}"))
        }
        Exit::Code(code) => CallError {
            exit_code: Some(code),
            ..error(ErrorKind::Exit, format!("the process ended with code {code}{when}"))
        },
        Exit::Signal(signal) => CallError {
            signal: Some(signal),
            ..error(ErrorKind::Signal, format!("the process was ended by signal {signal}{when}"))
        },
    }
}

/// JSON without the white space between its tokens; numbers and texts stay as they were written.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    json.chars()
        .filter(|&c| {
            let keep = in_string || !c.is_ascii_whitespace();
            match c {
                _ if escaped => escaped = false,
                '\\' if in_string => escaped = true,
                '"' => in_string = !in_string,
                _ => {}
            }
            keep
        })
        .collect()
}

/// The member `output` of what was written to `output.json`.
fn output_member(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let members: HashMap<String, &RawValue> =
        serde_json::from_slice(bytes).map_err(|error| format!("output.json is no JSON object: {error}"))?;
    let value = members.get("output").ok_or("output.json has no member `output`")?;
    match serde_json::from_str::<String>(value.get()) {
        Ok(text) => Ok(text.into_bytes()),
        Err(_) => Ok(compact(value.get()).into_bytes()),
    }
}

/// What the process put out: from `output.json` where it wrote one, else from standard output. True in the former case.
fn output(finished: &Finished) -> Result<(Vec<u8>, bool), String> {
    match &finished.ended.output {
        wire::Output::Invalid(why) => Err(why.clone()),
        wire::Output::File if finished.output.is_cut() => {
            Err(format!("output.json is over the limit of {MAX_RESULT} bytes"))
        }
        wire::Output::File => output_member(finished.output.bytes()).map(|result| (result, true)),
        wire::Output::None => {
            let result = finished.stdout.bytes();
            Ok((result.strip_suffix(b"\n").unwrap_or(result).to_vec(), false))
        }
    }
}

/// Judges a finished process. `direct` lets any bytes be a result; `remarks` of the platform go to the log.
pub(crate) fn answer(
    finished: Finished,
    remarks: LogBuffer,
    (direct, timeout_ms, memory): (bool, u64, &str),
) -> CommandResult {
    let invalid = |message: String| CallError::new(ErrorKind::Output, Layer::Run, message);
    let failure = failure(&finished, timeout_ms, memory);
    let (result, mut error, from_file) = match (failure, output(&finished)) {
        (Some(error), Ok((_, from_file))) => (Vec::new(), Some(error), from_file),
        (Some(error), Err(_)) => (Vec::new(), Some(error), true),
        (None, Ok((result, from_file))) => (result, None, from_file),
        (None, Err(message)) => (Vec::new(), Some(invalid(message)), true),
    };
    if error.is_none() && !direct && std::str::from_utf8(&result).is_err() {
        error = Some(invalid("the output is no UTF-8; call it on /f/ where bytes are meant".to_owned()));
    }
    let Finished { stdout, stderr, .. } = finished;
    let mut written: Vec<LogBuffer> = {
        // Standard output is the log where it is not the result: output.json was, or there is none.
        let is_log = from_file || error.is_some();
        is_log.then_some(stdout).into_iter().chain(stderr).collect()
    };
    if let (Some(error), Some(stderr)) = (&mut error, written.last()) {
        error.stderr_tail = tail(&String::from_utf8_lossy(stderr.bytes()), STDERR_TAIL).to_owned();
    }
    written.push(remarks);
    let log = live::stored(&written);
    let status = match &error {
        None => CallStatus::Done,
        Some(error) if error.kind == ErrorKind::Timeout => CallStatus::Timeout,
        Some(_) => CallStatus::Failed,
    };
    CommandResult { status, result: if error.is_some() { Vec::new() } else { result }, error, log }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faena_domain::Timestamp;
    use faena_domain::log::{LogStream, plain};

    fn captured(stream: LogStream, text: &[u8]) -> LogBuffer {
        let mut buffer = LogBuffer::new(stream, MAX_RESULT);
        buffer.push(Timestamp(1), text);
        buffer
    }

    fn finished(exit: wire::Exit, stdout: &[u8], file: Option<&[u8]>) -> Finished {
        let output = if file.is_some() { wire::Output::File } else { wire::Output::None };
        Finished {
            ended: wire::Ended { id: 1, exit, oom_kills: 0, peak_memory: None, cpu_us: 0, output },
            cut: None,
            stdout: captured(LogStream::Stdout, stdout),
            stderr: Some(captured(LogStream::Stderr, b"whisper")),
            output: captured(LogStream::Stdout, file.unwrap_or_default()),
        }
    }

    fn no_remarks() -> LogBuffer {
        LogBuffer::new(LogStream::Platform, MAX_RESULT)
    }

    fn of(finished: Finished) -> CommandResult {
        answer(finished, no_remarks(), (false, 1000, "256 MB"))
    }

    #[test]
    fn standard_output_is_the_result_without_its_last_newline() {
        let answer = of(finished(wire::Exit::Code(0), b"a\n\n", None));
        assert_eq!(
            (answer.status, answer.result, plain(&answer.log)),
            (CallStatus::Done, b"a\n".to_vec(), "whisper".to_owned())
        );
    }

    #[test]
    fn output_json_wins_and_standard_output_becomes_the_log() {
        let file = br#"{"output": [4, 6.50, "a b"], "more": 1}"#;
        let answer = of(finished(wire::Exit::Code(0), b"chatter\n", Some(file)));
        assert_eq!(answer.result, br#"[4,6.50,"a b"]"#);
        assert_eq!(answer.log, "1 o chatter\n1 e whisper");
        let text = of(finished(wire::Exit::Code(0), b"", Some(br#"{"output": "as \"it\" is"}"#)));
        assert_eq!(text.result, b"as \"it\" is");
    }

    #[test]
    fn an_invalid_output_is_told() {
        for file in [b"[1]".as_slice(), b"{}", b"no", b"{\"output\":"] {
            let answer = of(finished(wire::Exit::Code(0), b"x", Some(file)));
            assert_eq!(answer.error.unwrap().kind, ErrorKind::Output);
        }
        let binary = of(finished(wire::Exit::Code(0), &[0xff], None));
        assert_eq!(binary.error.unwrap().kind, ErrorKind::Output);
        let direct = answer(finished(wire::Exit::Code(0), &[0xff], None), no_remarks(), (true, 1, ""));
        assert_eq!((direct.status, direct.result), (CallStatus::Done, vec![0xff]));
    }

    #[test]
    fn failures_are_told_apart() {
        let exit = of(finished(wire::Exit::Code(3), b"", None)).error.unwrap();
        assert_eq!((exit.kind, exit.exit_code, exit.stderr_tail.as_str()), (ErrorKind::Exit, Some(3), "whisper"));
        let signal = of(finished(wire::Exit::Signal(11), b"", None)).error.unwrap();
        assert_eq!((signal.kind, signal.signal), (ErrorKind::Signal, Some(11)));
        let mut killed = finished(wire::Exit::Code(137), b"", None);
        killed.ended.oom_kills = 1;
        assert_eq!(of(killed).error.unwrap().kind, ErrorKind::Oom);
        assert_eq!(plain(&of(finished(wire::Exit::Code(3), b"progress", None)).log), "progress\nwhisper");
        let mut late = finished(wire::Exit::Signal(9), b"", None);
        late.cut = Some(Cut::Deadline);
        assert_eq!(of(late).status, CallStatus::Timeout);
    }

    #[test]
    fn a_tail_begins_on_a_characters_border() {
        assert_eq!(tail("añb", 2), "b");
        assert_eq!(tail("añb", 3), "ñb");
    }
}
