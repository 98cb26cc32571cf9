//! Queries of instances: which are answered, and how the answer is written (RFC 1035).

use std::net::Ipv4Addr;

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::A;
use hickory_resolver::proto::rr::{DNSClass, RData, Record, RecordType};

use faena_domain::network::is_host_name;

/// How long an address stands for its name, at least, in seconds: a program that keeps an answer for that long finds it
/// good.
pub(crate) const TTL: u32 = 60;
/// What a datagram may have, where the query does not say that it may be more (RFC 1035, 4.2.1).
const DATAGRAM: usize = 512;
/// The upper bound for the size that a query may ask for.
const LARGEST_DATAGRAM: u16 = 4096;

/// A query that may be looked up.
#[derive(Debug)]
pub(crate) struct Question {
    message: Message,
    query: Query,
    /// The name, in lower case and without a dot at its end.
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

/// What is asked of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its address.
    Address,
    /// Records that are passed on as they are: services, mail servers, texts.
    Records(RecordType),
    /// Something that no name has here: addresses of version 6, hints for HTTPS.
    Absent,
}

/// What a question is answered with.
#[derive(Debug)]
pub(crate) enum Answer {
    Address(Ipv4Addr),
    Records(Vec<Record>),
    /// The name has nothing of the kind.
    Nothing,
    NoSuchName,
    Refused,
    Failed,
}

/// Reads a query. An error is the reply to what is none; empty where even that cannot be said.
pub(crate) fn parse(bytes: &[u8]) -> Result<Question, Vec<u8>> {
    let refuse = |message: &Message, code| Err(written(&reply_to(message, code), None));
    let Ok(message) = Message::from_vec(bytes) else {
        let id = bytes.get(..2).and_then(|id| id.try_into().ok()).map(u16::from_be_bytes);
        let malformed = |id| written(&Message::error_msg(id, OpCode::Query, ResponseCode::FormErr), None);
        return Err(id.map(malformed).unwrap_or_default());
    };
    if message.metadata.message_type != MessageType::Query {
        return Err(Vec::new());
    }
    if message.metadata.op_code != OpCode::Query {
        return refuse(&message, ResponseCode::NotImp);
    }
    let [query] = &message.queries[..] else { return refuse(&message, ResponseCode::FormErr) };
    let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    if query.query_class() != DNSClass::IN {
        return refuse(&message, ResponseCode::Refused);
    }
    let kind = match query.query_type() {
        RecordType::A => Kind::Address,
        kind @ (RecordType::SRV | RecordType::MX | RecordType::TXT) => Kind::Records(kind),
        RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB => Kind::Absent,
        _ => return refuse(&message, ResponseCode::Refused),
    };
    if !is_host_name(&name) {
        return refuse(&message, ResponseCode::NXDomain);
    }
    let query = query.clone();
    Ok(Question { message, query, name, kind })
}

fn reply_to(message: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(message.metadata.id, message.metadata.op_code);
    reply.metadata.recursion_desired = message.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.add_queries(message.queries.iter().take(1).cloned());
    reply
}

/// A message as bytes, of at most `room` of them: a longer one says that it was cut, and is asked for again by TCP.
fn written(message: &Message, room: Option<usize>) -> Vec<u8> {
    let whole = message.to_vec().unwrap_or_default();
    match room {
        Some(room) if whole.len() > room => message.truncate().to_vec().unwrap_or_default(),
        _ => whole,
    }
}

impl Question {
    /// The reply; `by_datagram` where its length is bounded.
    pub(crate) fn reply(&self, answer: Answer, by_datagram: bool) -> Vec<u8> {
        let code = match &answer {
            Answer::Address(_) | Answer::Records(_) | Answer::Nothing => ResponseCode::NoError,
            Answer::NoSuchName => ResponseCode::NXDomain,
            Answer::Refused => ResponseCode::Refused,
            Answer::Failed => ResponseCode::ServFail,
        };
        let mut reply = reply_to(&self.message, code);
        match answer {
            Answer::Address(address) => {
                let record = Record::from_rdata(self.query.name().clone(), TTL, RData::A(A(address)));
                reply.add_answer(record);
            }
            Answer::Records(records) => {
                reply.add_answers(records);
            }
            Answer::Nothing | Answer::NoSuchName | Answer::Refused | Answer::Failed => {}
        }
        let room = || {
            self.message
                .edns
                .as_ref()
                .map_or(DATAGRAM, |edns| usize::from(edns.max_payload().clamp(512, LARGEST_DATAGRAM)))
        };
        written(&reply, by_datagram.then(room))
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::Name;
    use hickory_resolver::proto::rr::rdata::TXT;

    use super::*;

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn code(bytes: &[u8]) -> ResponseCode {
        Message::from_vec(bytes).unwrap().metadata.response_code
    }

    #[test]
    fn a_name_is_answered_with_its_address() {
        let question = parse(&query("API.example.ORG.", RecordType::A).to_vec().unwrap()).unwrap();
        assert_eq!((question.name.as_str(), question.kind), ("api.example.org", Kind::Address));
        let reply = Message::from_vec(&question.reply(Answer::Address([198, 18, 1, 1].into()), true)).unwrap();
        assert_eq!((reply.metadata.id, reply.metadata.message_type), (7, MessageType::Response));
        assert_eq!(reply.answers[0].data, RData::A(A([198, 18, 1, 1].into())));
        assert_eq!(reply.queries[0].name().to_ascii(), "API.example.ORG.");
    }

    #[test]
    fn what_is_no_question_is_told_so() {
        let with = |change: fn(&mut Message)| {
            let mut message = query("a.example.", RecordType::A);
            change(&mut message);
            message.to_vec().unwrap()
        };
        let refused = |bytes: &[u8]| parse(bytes).map(drop).unwrap_err();
        assert_eq!(code(&refused(&with(|message| message.queries.clear()))), ResponseCode::FormErr);
        assert_eq!(code(&refused(&with(|message| message.metadata.op_code = OpCode::Update))), ResponseCode::NotImp);
        assert_eq!(
            code(&refused(&with(|message| message.queries[0].query_class = DNSClass::CH))),
            ResponseCode::Refused
        );
        let of = |name, kind| refused(&query(name, kind).to_vec().unwrap());
        assert_eq!(code(&of("1.0.0.127.in-addr.arpa.", RecordType::PTR)), ResponseCode::Refused);
        assert_eq!(code(&of("a.example.", RecordType::AXFR)), ResponseCode::Refused);
        assert_eq!(code(&of(".", RecordType::A)), ResponseCode::NXDomain);
        // A reply is not replied to, and neither is what has no number.
        assert_eq!(refused(&with(|message| message.metadata.message_type = MessageType::Response)), Vec::<u8>::new());
        assert_eq!(refused(b"x"), Vec::<u8>::new());
        assert_eq!(code(&refused(b"xy")), ResponseCode::FormErr);
    }

    #[test]
    fn a_long_answer_is_cut_for_a_datagram_alone() {
        let question = parse(&query("a.example.", RecordType::TXT).to_vec().unwrap()).unwrap();
        assert_eq!(question.kind, Kind::Records(RecordType::TXT));
        let text =
            |_| Record::from_rdata(question.query.name().clone(), 5, RData::TXT(TXT::new(vec!["x".repeat(200)])));
        let records: Vec<Record> = (0..10).map(text).collect();
        let whole = question.reply(Answer::Records(records.clone()), false);
        assert!(whole.len() > 2000);
        let cut = Message::from_vec(&question.reply(Answer::Records(records), true)).unwrap();
        assert!(cut.metadata.truncation && cut.to_vec().unwrap().len() <= DATAGRAM);
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut random = fastrand::Rng::with_seed(53);
        let plain = query("a.b.c.example.org.", RecordType::A).to_vec().unwrap();
        for round in 0..100_000 {
            let mut bytes = plain.clone();
            for _ in 0..random.usize(1..8) {
                let at = random.usize(0..bytes.len());
                bytes[at] = random.u8(..);
            }
            if round % 3 == 0 {
                // Pointers to pointers (RFC 1035, 4.1.4).
                let at = random.usize(12..bytes.len() - 1);
                bytes[at..at + 2].copy_from_slice(&[0xc0, random.u8(0..40)]);
            }
            bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(round % 50));
            if let Ok(question) = parse(&bytes) {
                question.reply(Answer::Nothing, true);
            }
        }
    }
}
